package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/braidnet/braid/internal/kernel/link"
	"github.com/braidnet/braid/internal/kernel/netns"
	"github.com/braidnet/braid/internal/kernel/sysctl"
	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/internal/reconcile"
)

// podLinksAudit is how often the pods' links are looked at without an event.
const podLinksAudit = 30 * time.Second

// podLinks keeps the pods of the node connected when somebody takes away or changes what the CNI plugin made: the
// bridge with its address and settings, and the host ends of pods' interfaces. Which pods there are, and how each is
// connected, the links themselves say (link.Mark). It makes no bridge on a node without pods on one.
type podLinks struct {
	log  *slog.Logger
	ns   *netns.NS
	read *link.PodLinks
	want func() podNetworkSpec

	mac      net.HardwareAddr // of the bridge when it was last in order: pods remember it
	localnet string           // route_localnet of the bridge then

	mu   sync.Mutex
	view podLinksView
}

// podNetworkSpec is what the pods of the node are to be connected to.
type podNetworkSpec struct {
	CIDRs []netip.Prefix // of the node; none: not known yet
	MTU   int            // of pods, bytes; 0 = not known
}

// gateway is the node's address in a pod CIDR: the first, as the CNI plugin has it.
func gateway(cidr netip.Prefix) netip.Prefix {
	return netip.PrefixFrom(cidr.Masked().Addr().Next(), cidr.Bits())
}

// newPodLinks works in the network namespace of the calling thread. Close it after use.
func newPodLinks(log *slog.Logger, want func() podNetworkSpec) (*podLinks, error) {
	ns, err := netns.Current()
	if err != nil {
		return nil, fmt.Errorf("links of pods: %w", err)
	}
	read, err := link.OpenPodLinks()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("links of pods: %w", err), ns.Close())
	}
	return &podLinks{log: log, ns: ns, read: read, want: want}, nil
}

func (p *podLinks) close() error {
	p.read.Close()
	return p.ns.Close()
}

// podNetworkSpec is what the conflist tells the plugin.
func (a *Agent) podNetworkSpec() (s podNetworkSpec) {
	node, _ := a.store.Get(model.Ref{Kind: model.KindNode, Key: model.Key{Name: a.cfg.Node}}).(*model.Node)
	if node != nil {
		s.CIDRs = node.PodCIDRs
	}
	s.MTU = a.podMTU()
	return s
}

func (p *podLinks) step(context.Context) (reconcile.Outcome, error) {
	spec := p.want()
	if len(spec.CIDRs) == 0 {
		return reconcile.Outcome{Summary: "waits for the node's pod CIDRs"}, nil
	}
	pods, err := p.read.Read()
	if err != nil {
		return reconcile.Outcome{}, fmt.Errorf("links of pods: %w", err)
	}
	var out reconcile.Outcome
	var ports, routed []link.PodLink
	for _, pod := range pods {
		switch pod.Bridge {
		case link.PodBridge:
			ports = append(ports, pod)
		case "":
			routed = append(routed, pod)
		}
	}
	var errs []error
	bridge := link.Ref{}
	note := func(changes []string, err error) {
		out.Changes, errs = append(out.Changes, changes...), append(errs, err)
	}
	if len(ports) > 0 {
		var changes []string
		bridge, changes, err = p.repairBridge(spec)
		if note(changes, err); err == nil {
			note(p.repairPorts(bridge, ports))
		}
	}
	note(p.repairRouted(spec, routed))
	p.remember(newPodLinksView(spec, bridge, pods))
	for _, c := range out.Changes {
		p.log.Warn(c)
	}
	out.Summary = fmt.Sprintf("%d pods on bridge %s, %d routed", len(ports), link.PodBridge, len(routed))
	return out, errors.Join(errs...)
}

// repairRouted keeps the ways to pods that have no bridge, and the route that refuses what is for nobody: without a
// bridge, or before there is one, it would leave the node by the default route.
func (p *podLinks) repairRouted(spec podNetworkSpec, pods []link.PodLink) (changes []string, err error) {
	h := p.read.Handle()
	have, err := link.ReadRouted(h)
	if err != nil {
		return nil, err
	}
	added, err := link.EnsureUnreachable(h, missing(spec.CIDRs, have.Unreachable))
	for _, n := range added {
		changes = append(changes, fmt.Sprintf("made %s unreachable where no pod has the address", n))
	}
	errs := []error{err}
	owner := map[netip.Addr]int{}
	for _, pod := range pods { // by index: of two that claim an address the newer has it
		for _, a := range pod.Addrs {
			owner[a] = pod.Index
		}
	}
	for _, pod := range pods {
		done, err := have.Repair(h, pod, spec.routed(pod, owner))
		changes, errs = append(changes, done...), append(errs, err)
	}
	// Of another network of the plugin is what pods are in.
	removed, err := have.RemoveUnreachable(h, func(n netip.Prefix) bool {
		return slices.Contains(spec.CIDRs, n) || slices.ContainsFunc(pods, func(p link.PodLink) bool { return slices.ContainsFunc(p.Addrs, n.Contains) })
	})
	for _, r := range removed {
		changes = append(changes, "removed "+r)
	}
	return changes, errors.Join(append(errs, err)...)
}

// routed is what a pod's link has to have. Addresses out of the node's pod CIDRs have gateways that only their
// configuration knows.
func (s podNetworkSpec) routed(pod link.PodLink, owner map[netip.Addr]int) (r link.Routed) {
	for _, a := range pod.Addrs {
		if owner[a] != pod.Index {
			continue
		}
		r.Addrs = append(r.Addrs, a)
		for _, c := range s.CIDRs {
			if gw := gateway(c).Addr(); c.Contains(a) && !slices.Contains(r.Gateways, gw) {
				r.Gateways = append(r.Gateways, gw)
			}
		}
	}
	return r
}

// missing lists what have lacks of want.
func missing(want, have []netip.Prefix) []netip.Prefix {
	return slices.DeleteFunc(slices.Clone(want), func(p netip.Prefix) bool { return slices.Contains(have, p) })
}

// repairBridge makes the bridge what the plugin would make it. A bridge that is made anew has the hardware address of
// the one before, so that pods, which know no other neighbour, notice nothing.
func (p *podLinks) repairBridge(spec podNetworkSpec) (link.Ref, []string, error) {
	want := link.Bridge{Name: link.PodBridge, MTU: spec.MTU, MAC: p.mac}
	for _, c := range spec.CIDRs {
		want.Addrs = append(want.Addrs, gateway(c))
	}
	bridge, changes, err := link.RepairBridge(p.read.Handle(), want)
	if err != nil {
		return bridge, changes, err
	}
	p.mac = bridge.MAC
	key := "net/ipv4/conf/" + link.PodBridge + "/route_localnet"
	have, err := sysctl.Get(key)
	if err == nil && have == "0" && p.localnet != "" && len(changes) > 0 {
		// Host ports or node ports on 127.0.0.1 are in use; their guard does not hang on the bridge.
		if _, err = sysctl.Set(key, p.localnet); err == nil {
			changes = append(changes, "loopback addresses are routed by "+link.PodBridge+" again (route_localnet)")
		}
		return bridge, changes, err
	}
	if p.localnet = ""; have != "0" {
		p.localnet = have
	}
	return bridge, changes, err
}

// repairPorts makes links what they are marked to be: ports of the bridge in hairpin mode, up.
func (p *podLinks) repairPorts(bridge link.Ref, ports []link.PodLink) (changes []string, err error) {
	var errs []error
	for _, port := range ports {
		done, err := link.RepairPort(p.read.Handle(), bridge, port)
		changes, errs = append(changes, done...), append(errs, err)
	}
	return changes, errors.Join(errs...)
}
