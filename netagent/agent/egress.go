package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/braidnet/braid/internal/kernel/link"
	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/internal/reconcile"
	"github.com/braidnet/braid/netagent/agent/tools"
	"github.com/braidnet/braid/netagent/egress"
	"github.com/braidnet/braid/netagent/overlay"
)

// egressAudit is how often the agent looks whether somebody changed the node's rules, which costs one
// question to the kernel.
const egressAudit = time.Second

// IPMasqs are the values of the setting ip-masq.
var IPMasqs = []string{"auto", "true", "false"}

// egressConfig returns what the planner of masquerading is told.
func (c *Config) egressConfig() (egress.Config, error) {
	out := egress.Config{Node: c.Node, SamePorts: c.IPMasqSamePorts, Reached: func(n *model.Node) []netip.Addr {
		list, _ := overlay.Addresses(n) // what is wrong with them the overlay says
		return list
	}}
	if !slices.Contains(IPMasqs, c.IPMasq) {
		return out, fmt.Errorf("ip-masq: unknown value %q: use one of %s", c.IPMasq, strings.Join(IPMasqs, ", "))
	}
	// An agent that neither carries pods nor configures their plugin is beside another pod network, which has its own rules.
	out.Masquerade = c.IPMasq == "true" || c.IPMasq == "auto" && (c.CNIConfDir != "" || c.Overlay != "none")
	var err error
	if out.Keep, err = prefixes(c.NonMasquerade); err != nil {
		return out, fmt.Errorf("non-masquerade-cidrs: %w", err)
	}
	if out.Cluster, err = prefixes(c.DetectLocal.ClusterCIDR); err != nil {
		return out, fmt.Errorf("cluster-cidr: %w", err)
	}
	switch {
	case out.Masquerade:
	case len(out.Keep) > 0:
		return out, fmt.Errorf("non-masquerade-cidrs: nothing is masqueraded with ip-masq %s here: leave it out", c.IPMasq)
	case c.IPMasqSamePorts:
		return out, fmt.Errorf("ip-masq-fully-random-disable: nothing is masqueraded with ip-masq %s here: leave it out", c.IPMasq)
	}
	switch c.Overlay {
	case "vxlan":
		out.Overlay = egress.Overlay{Links: link.Prefix, UDPPorts: []uint16{uint16(c.Port)}}
	case "udp":
		out.Overlay = egress.Overlay{Links: link.Prefix, UDPPorts: []uint16{uint16(c.UDPPort)}}
	case "wireguard":
		out.Overlay = egress.Overlay{Links: link.Prefix, UDPPorts: []uint16{uint16(c.WireGuardPort), uint16(c.WireGuardPort) + 1}, Authentic: true}
	case "ipip":
		out.Overlay = egress.Overlay{Links: link.Prefix, Protocols: []uint8{4, 41}} // IANA: IPv4 and IPv6 within IPv4
	}
	out.Overlay.Tracked = out.Masquerade || c.ServiceMode != "none"
	return out, nil
}

// egressPlane writes egress rules to the kernel, as nftables or iptables.
type egressPlane interface {
	Name() string
	// replace makes the kernel hold the rules, whatever it has, and says what was done about what somebody else
	// did.
	replace(*egress.Rules) (changes []string, err error)
	// apply does the same where the kernel has what was written last.
	apply(*egress.Rules) error
	generation() (uint32, error) // a number that is another after a change by anybody
	commits() uint32             // by how much our writes have raised it, where that is known
	Close()
}

// egressLoop keeps the kernel's masquerading and what pods may send as planned: whole once (adopting what an earlier
// run left), then only what changed, and whole again after an error and when somebody else changed
// rules.
type egressLoop struct {
	log     *slog.Logger
	planner *egress.Planner
	plane   egressPlane

	rules egress.Rules
	known bool // that the kernel had the rules at the generation last seen
	last  uint32
	whole time.Time     // when all was compared last
	took  time.Duration // how long that was
	swept bool          // that what another plane may have left is gone
}

// newEgress returns a loop, nil where there is nothing to do or, without masquerading, nothing to do it with.
func newEgress(c Config) (*egressLoop, error) {
	cfg, err := c.egressConfig()
	if err != nil {
		return nil, err
	}
	e := &egressLoop{log: c.Log, planner: egress.NewPlanner(cfg)}
	e.rules = e.planner.Rules()
	if e.rules.Empty() && c.ServiceMode == "none" && c.Overlay == "none" {
		return nil, nil // an agent that touches no kernel
	}
	e.plane, err = chooseEgressPlane(&e.rules, c.Log)
	switch {
	case err == nil:
		return e, nil
	case cfg.Masquerade:
		return nil, fmt.Errorf("pods cannot be masqueraded: %w; with ip-masq: false they keep their addresses everywhere", err)
	case e.rules.Guarded():
		c.Log.Warn("pods are not kept from sending packets of the overlay", "err", err)
	}
	return nil, nil
}

func chooseEgressPlane(r *egress.Rules, log *slog.Logger) (egressPlane, error) {
	n, err := newEgressNFTables(r)
	if err == nil {
		return n, nil
	}
	if errors.Is(err, os.ErrPermission) { // iptables would only say so again, in other words
		return nil, err
	}
	i, err2 := newEgressIPTables()
	if err2 == nil {
		log.Info("masquerading by iptables", "because", err)
		return i, nil
	}
	return nil, fmt.Errorf("neither nftables nor iptables works here: %w; %w", err, err2)
}

func (e *egressLoop) close() { e.plane.Close() }

func (e *egressLoop) step(context.Context) (reconcile.Outcome, error) {
	changed := e.planner.Dirty() || !e.known
	if changed {
		e.rules = e.planner.Rules()
	}
	out := reconcile.Outcome{Summary: e.summary()}
	now, err := e.plane.generation()
	if err != nil {
		e.known = false
		return out, fmt.Errorf("masquerading: %w", err)
	}
	// Others may write rules all the time: comparing takes no more than one part in tools.RepairShare of it.
	whole := !e.known || now != e.last && time.Since(e.whole) >= tools.RepairShare*e.took
	if !whole && !changed {
		return out, nil
	}
	before := e.plane.commits()
	if !whole {
		err = e.plane.apply(&e.rules)
	}
	if whole || err != nil { // also when somebody took away what was to be changed
		begin := time.Now()
		whole = true
		out.Changes, err = e.plane.replace(&e.rules)
		e.whole, e.took = time.Now(), time.Since(begin)
	}
	if err != nil {
		e.known = false
		return out, fmt.Errorf("masquerading: %w", err)
	}
	for _, c := range out.Changes {
		e.log.Warn(c)
	}
	if written := e.plane.commits() - before; whole || now == e.last {
		e.last = now + written // what others did meanwhile makes another number of it, and the next step compares
	}
	e.known = true
	e.sweep()
	return out, nil
}

// sweep removes what another plane has left, once.
func (e *egressLoop) sweep() {
	if e.swept {
		return
	}
	e.swept = true
	removed, err := removeEgress(e.plane.Name())
	for _, what := range removed {
		e.log.Info("removed what an earlier run left", "removed", what)
	}
	if err != nil {
		e.log.Warn("not all is gone that an earlier run may have left: netagent cleanup tries again", "err", err)
	}
}

func (e *egressLoop) summary() string {
	r := &e.rules
	text := e.plane.Name() + ": pods keep their addresses everywhere"
	if r.Masquerade {
		text = fmt.Sprintf("%s: pods %s are masqueraded, but not to %d ranges", e.plane.Name(), list(r.Pods), len(r.Own))
	}
	return text
}

// list names a few prefixes.
func list(prefixes []netip.Prefix) string {
	const most = 4
	var words []string
	for i, p := range prefixes {
		if i == most {
			words = append(words, fmt.Sprintf("%d more", len(prefixes)-most))
			break
		}
		words = append(words, p.String())
	}
	if len(words) == 0 {
		return "(none)"
	}
	return strings.Join(words, " ")
}

// removeEgress takes away the rules of masquerading, but for those of one plane ("nftables", "iptables"), and says what.
func removeEgress(except string) (removed []string, err error) {
	var errs []error
	if except != "nftables" {
		gone, err := removeEgressTables()
		removed, errs = append(removed, gone...), append(errs, err)
	}
	if except != "iptables" {
		gone, err := removeEgressChains()
		removed, errs = append(removed, gone...), append(errs, err)
	}
	return removed, errors.Join(errs...)
}
