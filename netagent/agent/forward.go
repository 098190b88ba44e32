package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/braidnet/braid/internal/desired"
	"github.com/braidnet/braid/internal/desired/xt"
	"github.com/braidnet/braid/internal/kernel/ipt"
	"github.com/braidnet/braid/internal/kernel/nft"
	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/internal/reconcile"
	"github.com/braidnet/braid/netagent/agent/tools"
	"github.com/braidnet/braid/netagent/egress"
)

const (
	// forwardAudit is how often the agent looks whether somebody changed the node's rules, which costs a question to the kernel.
	forwardAudit = time.Second
	// forwardBlind is how often it reads what no such question tells of: a policy that was set by the older tools.
	forwardBlind = 20 * time.Second
)

// forwarding lets pods' packets pass through a node on which iptables drops what is forwarded, as Docker's does: where the policy
// of FORWARD is DROP, in either variant of the tools, a chain of ours at its end accepts what pods send and get. What a
// rule drops stays dropped, and is said.
type forwarding struct {
	log      *slog.Logger
	planner  *egress.Planner
	on       bool // the setting
	services bool // connections of services are let through too

	conn   *nft.Conn  // nil: this kernel has no nftables
	tables *ipt.Watch // of the older tools
	places []*forwardPlace

	cluster    []netip.Prefix
	generation uint32    // of nftables at the last look at all base chains
	looked     time.Time // when that was
	walls      []string  // what else drops
}

// forwardPlace is FORWARD of one variant of the tools, in one family.
type forwardPlace struct {
	variant ipt.Variant
	ipv6    bool
	number  uint32    // of the rules at the last look
	looked  time.Time // when that was; zero: what is there is not known
	took    time.Duration
	futile  bool   // that found nothing to be done
	drops   bool   // its policy was DROP then
	note    string // what keeps pods' packets from passing all the same
}

func (p *forwardPlace) family() desired.NFTFamily {
	if p.ipv6 {
		return desired.NFTIPv6
	}
	return desired.NFTIPv4
}

// String is how people know it.
func (p *forwardPlace) String() string { return tools.Family(p.ipv6) + " (" + string(p.variant) + ")" }

// newForwarding returns nil for an agent that has no part in the pod network.
func newForwarding(c Config) (*forwarding, error) {
	cfg, err := c.egressConfig()
	if err != nil || c.CNIConfDir == "" && c.Overlay == "none" || c.ServiceMode == "none" && c.Overlay == "none" {
		return nil, err
	}
	f := &forwarding{log: c.Log, planner: egress.NewPlanner(cfg), on: c.ForwardRules, services: c.ServiceMode != "none"}
	if f.conn, err = nft.Open(); err == nil {
		if _, err := f.conn.Generation(); err != nil {
			f.conn.Close()
			f.conn = nil
		}
	}
	var families []bool
	for _, ipv6 := range []bool{false, true} {
		if !ipt.Enabled(ipv6) {
			continue
		}
		families = append(families, ipv6)
		for _, v := range ipt.Variants {
			if v == ipt.Legacy || f.conn != nil {
				f.places = append(f.places, &forwardPlace{variant: v, ipv6: ipv6})
			}
		}
	}
	f.tables, err = ipt.NewWatch(families...)
	return f, err
}

// buildForwarding adds its loop, where there is one.
func (a *Agent) buildForwarding() (err error) {
	if a.forward, err = newForwarding(a.cfg); err == nil && a.forward != nil {
		a.addLoop("forward", a.forward.step, forwardAudit)
	}
	return err
}

func (f *forwarding) close() {
	f.tables.Close()
	if f.conn != nil {
		f.conn.Close()
	}
}

// note takes a batch of changes and reports whether they concern it.
func (f *forwarding) note(rev uint64, changes []model.Change) bool {
	f.planner.Apply(rev, changes)
	return f.planner.Dirty()
}

func (f *forwarding) step(context.Context) (out reconcile.Outcome, err error) {
	if f.planner.Dirty() {
		r := f.planner.Rules()
		f.cluster = r.Cluster
		for _, p := range f.places {
			p.looked = time.Time{}
		}
	}
	var errs []error
	for _, p := range f.places {
		change, err := f.look(p, time.Now())
		if err != nil {
			p.looked = time.Time{}
			errs = append(errs, fmt.Errorf("let pods' packets pass through FORWARD of iptables, %s: %w", p, err))
		}
		if change != "" {
			f.log.Info(change)
			out.Changes = append(out.Changes, change)
		}
	}
	if f.on {
		errs = append(errs, f.findWalls(time.Now()))
	}
	f.tell(&out)
	return out, errors.Join(errs...)
}

// tell says how it is.
func (f *forwarding) tell(out *reconcile.Outcome) {
	var where []string
	for _, p := range f.places {
		if p.drops {
			where = append(where, p.String())
		}
		if p.note != "" && f.on {
			out.Notes = append(out.Notes, p.note)
		}
	}
	out.Notes = append(out.Notes, f.walls...)
	switch {
	case !f.on:
		out.Summary = "iptables-forward-rules: false"
	case len(where) == 0:
		out.Summary = "iptables drops nothing that is forwarded"
	default:
		out.Summary = "the policy of FORWARD in iptables is DROP: rules of ours let pods' packets pass: " + strings.Join(where, ", ")
	}
}

// look makes one place right, when somebody may have changed it, and says what it changed.
func (f *forwarding) look(p *forwardPlace, now time.Time) (change string, err error) {
	var number uint32
	there := true
	if p.variant == ipt.NFT {
		number, err = f.conn.Generation()
	} else {
		number, there, err = f.tables.Table(p.ipv6, egress.ForwardTable)
	}
	if err != nil {
		return "", err
	}
	known, since := !p.looked.IsZero(), now.Sub(p.looked)
	blind := p.variant == ipt.Legacy && there && since >= forwardBlind
	if known && number == p.number && !blind || known && (p.futile || blind) && since < tools.RepairShare*p.took {
		return "", nil // nothing has changed, or reading is dear and others are busy
	}
	right := false
	if p.variant == ipt.NFT {
		if there, right, err = f.glance(p); err != nil {
			return "", err
		}
	}
	p.number = number
	if !there {
		p.drops, p.note, p.looked = false, "", now
		return "", nil
	}
	if right && known {
		return "", nil
	}
	change, err = f.put(p)
	p.looked, p.took, p.futile = now, time.Since(now), change == ""
	return change, err
}

// glance asks nftables whether the place is there and right, without reading all of its table.
func (f *forwarding) glance(p *forwardPlace) (there, right bool, err error) {
	chain, there, err := f.conn.BaseChain(p.family(), egress.ForwardTable, egress.ForwardEntry)
	if err != nil || !there {
		return false, false, err
	}
	ours, err := f.conn.Verdicts(p.family(), egress.ForwardTable, egress.ForwardChain)
	if err != nil {
		return true, false, err
	}
	entry, err := f.conn.Verdicts(p.family(), egress.ForwardTable, egress.ForwardEntry)
	if err != nil {
		return true, false, err
	}
	p.drops, p.note = chain.Drops, f.noted(p, refusing(entry))
	leads := slices.ContainsFunc(entry, func(v nft.Verdict) bool { return v.Chain == egress.ForwardChain })
	accepts := !slices.ContainsFunc(ours, func(v nft.Verdict) bool { return v.Word != "accept" })
	want := f.wanted(p)
	return true, len(ours) == len(want) && accepts && leads == (len(want) > 0), nil
}

// wanted is what our chain has to have.
func (f *forwarding) wanted(p *forwardPlace) []string {
	if !f.on || !p.drops {
		return nil
	}
	return egress.Forward(p.family(), f.cluster, f.services)
}

// refusing is the word of a rule that leaves nothing for what comes after it; empty where there is none before ours.
func refusing(rules []nft.Verdict) string {
	for _, v := range rules {
		switch {
		case v.Chain == egress.ForwardChain:
			return ""
		case v.All && (v.Word == "drop" || v.Word == "reject"):
			return v.Word
		}
	}
	return ""
}

// noted says what a rule that refuses everything means.
func (f *forwarding) noted(p *forwardPlace, word string) string {
	if word == "" {
		return ""
	}
	return fmt.Sprintf("a rule in FORWARD of iptables, %s, %ss all that the rules before it do not let through, pods' packets among it: see \"What repairs itself\" in docs/operations.md", p, word)
}

// put reads the place with its tool and writes what is missing, or too much.
func (f *forwarding) put(p *forwardPlace) (change string, err error) {
	tool, err := ipt.Find(p.ipv6, p.variant)
	if err != nil {
		if p.variant == ipt.Legacy || p.drops { // else nobody needs the tool; and without it nothing of ours can be there
			p.note = fmt.Sprintf("if FORWARD in iptables, %s, drops what pods send, nothing can be done about it: %v", p, tools.HintIPTables(p.variant, err))
		}
		return "", nil
	}
	saved, policies, err := tool.SavePolicies(egress.ForwardTable)
	if errors.Is(err, os.ErrPermission) {
		p.note = fmt.Sprintf("whether FORWARD in iptables, %s, drops what pods send is not known: %v", p, tools.HintIPTables(p.variant, err))
		return "", nil
	}
	if err != nil {
		return "", err
	}
	p.drops = policies[egress.ForwardEntry] == "DROP"
	p.note = f.noted(p, refusing(verdicts(saved[egress.ForwardTable][egress.ForwardEntry])))
	input := egress.ForwardInput(f.wanted(p), saved)
	if input == "" {
		return "", nil
	}
	if err := tool.Restore(input); err != nil {
		return "", err
	}
	if len(f.wanted(p)) == 0 {
		return fmt.Sprintf("removed iptables chain %s, %s: it is not needed any more", egress.ForwardChain, p), nil
	}
	return fmt.Sprintf("wrote iptables chain %s, %s: the policy of FORWARD is DROP", egress.ForwardChain, p), nil
}

// verdicts is what Verdicts of package nft reads, of what iptables-save printed.
func verdicts(rules []string) (out []nft.Verdict) {
	for _, r := range rules {
		words := xt.Words(r)
		if len(words) > 3 && slices.Equal(words[:3], []string{"-m", "comment", "--comment"}) {
			words = words[4:]
		}
		to := xt.LeadsTo(r)
		out = append(out, nft.Verdict{Word: strings.ToLower(to), Chain: to, All: len(words) > 0 && words[0] == "-j"})
	}
	return out
}

// findWalls finds chains of nftables, but for those of iptables and of our own, that drop or reject what their rules do not let
// through: an accept of ours is none of theirs.
func (f *forwarding) findWalls(now time.Time) error {
	if f.conn == nil || now.Sub(f.looked) < forwardBlind {
		return nil
	}
	number, err := f.conn.Generation()
	if err != nil || number == f.generation {
		return err
	}
	chains, err := f.conn.BaseChains()
	if err != nil {
		return err
	}
	var walls []string
	for _, c := range chains {
		iptables := c.Family != desired.NFTInet && c.Table == egress.ForwardTable && c.Name == egress.ForwardEntry
		if c.Hook != nft.HookForward || iptables || strings.HasPrefix(c.Table, "braid") {
			continue
		}
		rules, err := f.conn.Verdicts(c.Family, c.Table, c.Name)
		if err != nil {
			return err
		}
		word := refusing(rules)
		if c.Drops {
			word = cmp.Or(word, "drop")
		}
		if word != "" {
			walls = append(walls, fmt.Sprintf("nftables table %s %s, chain %s, %ss all that its own rules do not let through: "+
				"tell its owner about pods' ranges, %s: see \"What repairs itself\" in docs/operations.md", c.Family, c.Table, c.Name, word, list(f.cluster)))
		}
	}
	f.walls, f.generation, f.looked = walls, number, now
	return nil
}

// removeForwarding takes our chain away, wherever it is.
func removeForwarding() (removed []string, err error) {
	return removeChains("forwarding", "chain "+egress.ForwardChain, func(saved xt.Saved) string { return egress.ForwardInput(nil, saved) })
}
