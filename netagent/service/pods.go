package service

import (
	"net/netip"
	"slices"

	"github.com/braidnet/braid/internal/model"
)

// podNets counts the pod CIDRs of all nodes, so that one node's change costs only its own CIDRs.
type podNets struct {
	nodes map[string][]netip.Prefix
	count map[netip.Prefix]int
}

func newPodNets() podNets {
	return podNets{nodes: map[string][]netip.Prefix{}, count: map[netip.Prefix]int{}}
}

// set stores the pod CIDRs of a node (nil: the node is gone) and reports whether they changed.
func (p *podNets) set(name string, node *model.Node) bool {
	var now []netip.Prefix
	if node != nil {
		for _, c := range node.PodCIDRs {
			now = append(now, c.Masked())
		}
	}
	was := p.nodes[name]
	if slices.Equal(was, now) {
		return false
	}
	for _, c := range was {
		if p.count[c]--; p.count[c] == 0 {
			delete(p.count, c)
		}
	}
	for _, c := range now {
		p.count[c]++
	}
	if now == nil {
		delete(p.nodes, name)
	} else {
		p.nodes[name] = now
	}
	return true
}

// net returns both lists, sorted.
func (p *podNets) net(node string) Net {
	n := Net{LocalPods: slices.Clone(p.nodes[node])}
	for c := range p.count {
		n.ClusterPods = append(n.ClusterPods, c)
	}
	slices.SortFunc(n.LocalPods, comparePrefixes)
	n.LocalPods = slices.Compact(n.LocalPods)
	slices.SortFunc(n.ClusterPods, comparePrefixes)
	return n
}

func comparePrefixes(a, b netip.Prefix) int {
	if c := a.Addr().Compare(b.Addr()); c != 0 {
		return c
	}
	return a.Bits() - b.Bits()
}

func equalNet(a, b Net) bool {
	return slices.Equal(a.LocalPods, b.LocalPods) && a.Local.equal(b.Local) && a.Loopback == b.Loopback && slices.Equal(a.HealthPorts, b.HealthPorts) && slices.Equal(a.ClusterPods, b.ClusterPods) &&
		slices.Equal(a.Services, b.Services) && slices.Equal(a.NodePorts, b.NodePorts)
}
