package names

import (
	"net/netip"
	"slices"

	"github.com/braidnet/braid/internal/model"
)

// labelZone is the node label that names its topology zone.
const labelZone = "topology.kubernetes.io/zone"

// nodes finds the node of an address. Two nodes may claim one address while it moves: the first by
// name has it.
type nodes struct {
	byName map[string]*model.Node
	cidrs  map[netip.Prefix][]string
	addrs  map[netip.Addr][]string
	bits   map[[2]int]int // number of cidrs by length of their addresses and of the prefix
}

func newNodes() nodes {
	return nodes{map[string]*model.Node{}, map[netip.Prefix][]string{}, map[netip.Addr][]string{}, map[[2]int]int{}}
}

func (n *nodes) set(name string, node *model.Node) {
	if old := n.byName[name]; old != nil {
		for _, p := range old.PodCIDRs {
			if drop(n.cidrs, p, name); n.cidrs[p] == nil {
				n.count(p, -1)
			}
		}
		for _, a := range old.InternalIPs {
			drop(n.addrs, a, name)
		}
		delete(n.byName, name)
	}
	if node == nil {
		return
	}
	n.byName[name] = node
	for _, p := range node.PodCIDRs {
		if n.cidrs[p] == nil {
			n.count(p, 1)
		}
		put(n.cidrs, p, name)
	}
	for _, a := range node.InternalIPs {
		put(n.addrs, a, name)
	}
}

func (n *nodes) count(p netip.Prefix, by int) {
	l := [2]int{p.Addr().BitLen(), p.Bits()}
	if n.bits[l] += by; n.bits[l] == 0 {
		delete(n.bits, l)
	}
}

func put[K comparable](m map[K][]string, k K, name string) {
	if at, ok := slices.BinarySearch(m[k], name); !ok {
		m[k] = slices.Insert(m[k], at, name)
	}
}

func drop[K comparable](m map[K][]string, k K, name string) {
	if at, ok := slices.BinarySearch(m[k], name); ok {
		m[k] = slices.Delete(m[k], at, at+1)
	}
	if len(m[k]) == 0 {
		delete(m, k)
	}
}

// find returns the node that an address belongs to: its own, or of its pods.
func (n *nodes) find(a netip.Addr) string {
	if list := n.addrs[a]; len(list) > 0 {
		return list[0]
	}
	longest, name := -1, ""
	for l := range n.bits {
		if l[0] != a.BitLen() || l[1] < longest {
			continue
		}
		if p, err := a.Prefix(l[1]); err == nil && len(n.cidrs[p]) > 0 {
			longest, name = l[1], n.cidrs[p][0]
		}
	}
	return name
}

// Place returns the node that an address belongs to, its own or a pod's, and the node's topology zone.
// Both are empty when the address is nobody's.
func (x *Index) Place(a netip.Addr) (node, zone string) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	if keys := x.podIPs[a]; len(keys) > 0 {
		node = x.pods[keys[0]].Node
	}
	if node == "" {
		node = x.nodes.find(a)
	}
	if n := x.nodes.byName[node]; n != nil {
		zone = n.Labels[labelZone]
	}
	return node, zone
}
