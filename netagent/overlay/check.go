package overlay

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/braidnet/braid/internal/desired"
	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/netagent/overlay/peer"
)

// check holds what was found sound in the input, and the notes on what was not.
type check struct {
	in    Input
	nodes []*model.Node                  // self and peers, by name
	good  map[*model.Node][]netip.Prefix // pod CIDRs that may be used
	addrs map[*model.Node][]netip.Addr   // where each is reached, at most one per family
	macs  map[*model.Node]desired.MAC
	keys  map[*model.Node][]desired.WGKey
	ways  map[*model.Node]peer.Detour
	notes []Note
}

func newCheck(in Input) *check {
	c := &check{in: in, nodes: append([]*model.Node{in.Self}, in.Peers...),
		good: map[*model.Node][]netip.Prefix{}, macs: map[*model.Node]desired.MAC{}, addrs: map[*model.Node][]netip.Addr{},
		keys: map[*model.Node][]desired.WGKey{}, ways: map[*model.Node]peer.Detour{}}
	slices.SortFunc(c.nodes, func(a, b *model.Node) int { return strings.Compare(a.Name, b.Name) })
	c.cidrs()
	c.underlays()
	if in.Backend == "vxlan" {
		c.addresses()
	}
	if in.Backend == "wireguard" {
		c.publicKeys()
		c.detours()
	}
	return c
}

func (c *check) note(n *model.Node, format string, args ...any) {
	c.notes = append(c.notes, Note{Node: n.Name, Text: fmt.Sprintf(format, args...)})
}

// self notes what is missing on this node.
func (c *check) self(s peer.Self) {
	n := c.in.Self
	if len(n.PodCIDRs) == 0 {
		c.note(n, "it has no spec.podCIDRs: its pods cannot be reached; let the controller manager allocate them (--allocate-node-cidrs) or set them")
	}
	said, err := Addresses(n)
	if _, ok := n.Annotations[UnderlayAnnotation]; ok && err == nil && len(c.in.Own) > 0 && !slices.Equal(said, c.in.Own) {
		c.note(n, "its annotation %s says %v, and its settings say %v: other nodes send to the former until it is changed or taken away, by hand or by an agent that may (deploy/own-node) and has a setting such as iface",
			UnderlayAnnotation, said, c.in.Own)
	}
	for _, is4 := range []bool{true, false} {
		addr, has := c.address(n, is4)
		if _, found := s.Underlay(is4); has && !found {
			c.note(n, "no device of this machine holds its InternalIP %s: nothing is reached over %s", addr, peer.Family(is4))
		}
	}
}

// claim is one pod CIDR that a node says is its own.
type claim struct {
	node *model.Node
	cidr netip.Prefix
}

// cidrs sorts the pod CIDRs of all nodes into usable ones and notes. Those that cannot be pod CIDRs
// at all go first, so that a node with 0.0.0.0/0 cannot take the others' away by overlapping them.
func (c *check) cidrs() {
	var ips []netip.Addr
	for _, n := range c.nodes {
		ips = append(ips, n.InternalIPs...)
	}
	ips = append(ips, c.in.Own...)
	slices.SortFunc(ips, netip.Addr.Compare)
	var claims []claim
	for _, n := range c.nodes {
		if len(n.PodCIDRs) == 0 && n != c.in.Self {
			c.note(n, "it has no spec.podCIDRs: its pods cannot be reached until it gets one")
		}
		for _, p := range n.PodCIDRs {
			if reason := implausible(p, ips); reason != "" {
				c.note(n, "its pod CIDR %s is not used: it %s", p, reason)
				continue
			}
			claims = append(claims, claim{n, p})
		}
	}
	c.overlaps(claims)
}

// overlaps keeps the claims that no other node's claim overlaps. An address that two nodes claim is
// delivered to neither: a packet that is lost shows, one that reaches a stranger's pod may not. This
// node's own pods are local and stay reachable here whatever others claim.
func (c *check) overlaps(claims []claim) {
	slices.SortStableFunc(claims, func(a, b claim) int { return desired.ComparePrefix(a.cidr, b.cidr) })
	rival := make([]int, len(claims))
	var open []int // the claims that contain the current one, the narrowest last
	for i := range claims {
		rival[i] = -1
		for len(open) > 0 && !claims[open[len(open)-1]].cidr.Overlaps(claims[i].cidr) {
			open = open[:len(open)-1]
		}
		if len(open) > 0 {
			rival[i] = open[len(open)-1]
			for _, j := range open {
				if rival[j] < 0 {
					rival[j] = i
				}
			}
		}
		open = append(open, i)
	}
	for i, cl := range claims {
		switch {
		case rival[i] < 0:
			c.good[cl.node] = append(c.good[cl.node], cl.cidr)
		case cl.node == c.in.Self:
			c.good[cl.node] = append(c.good[cl.node], cl.cidr)
			other := claims[rival[i]]
			c.note(cl.node, "its pod CIDR %s overlaps %s of node %s: other nodes reach neither; delete the stale Node or give one a new pod CIDR", cl.cidr, other.cidr, other.node.Name)
		default:
			other := claims[rival[i]]
			c.note(cl.node, "no route to pod CIDR %s: it overlaps %s of node %s, so packets go to neither; delete the stale Node or give one a new pod CIDR", cl.cidr, other.cidr, other.node.Name)
		}
	}
}

// underlays finds out where each node is reached. An annotation that names the address of another node, or one of
// pods, does not count: it would lead that one's packets astray. Of two annotations with one address, the
// first by the nodes' names counts.
func (c *check) underlays() {
	owner, cidrs := map[netip.Addr]*model.Node{}, map[netip.Prefix]*model.Node{}
	lengths := map[int]bool{}
	for _, n := range c.nodes {
		for _, a := range n.InternalIPs {
			owner[a] = n
		}
		for _, p := range c.good[n] {
			cidrs[p], lengths[p.Bits()] = n, true
		}
	}
	if len(c.in.Own) > 0 {
		c.addrs[c.in.Self] = c.in.Own
		for _, a := range c.in.Own {
			owner[a] = c.in.Self
		}
	}
	for _, n := range c.nodes {
		if c.addrs[n] != nil {
			continue
		}
		list, err := Addresses(n)
		_, annotated := n.Annotations[UnderlayAnnotation]
		for i := 0; annotated && err == nil && i < len(list); i++ {
			a := list[i]
			if other := owner[a]; other != nil && other != n {
				err = fmt.Errorf("annotation %s: %s is an address of node %s; its InternalIPs are used", UnderlayAnnotation, a, other.Name)
			}
			for bits := range lengths {
				if p, perr := a.Prefix(bits); perr == nil && cidrs[p] != nil {
					err = fmt.Errorf("annotation %s: %s is in pod CIDR %s of node %s; its InternalIPs are used", UnderlayAnnotation, a, p, cidrs[p].Name)
				}
			}
		}
		if err != nil {
			c.note(n, "%v", err)
			list, _ = Addresses(&model.Node{InternalIPs: n.InternalIPs})
		}
		for _, a := range list {
			owner[a] = n
		}
		c.addrs[n] = list
	}
}

// address returns where a node is reached in a family, and whether it is.
func (c *check) address(n *model.Node, is4 bool) (netip.Addr, bool) {
	for _, a := range c.addrs[n] {
		if a.Is4() == is4 {
			return a, true
		}
	}
	return netip.Addr{}, false
}

// addresses gives every node its MAC. Two nodes cannot share one, since frames go by it: this node
// comes first, then nodes whose address is derived, then by name; who comes too late has no route.
func (c *check) addresses() {
	order := slices.Clone(c.nodes)
	annotated := map[*model.Node]bool{}
	for _, n := range order {
		mac, err := MAC(n)
		c.macs[n] = mac
		if _, ok := n.Annotations[MACAnnotation]; err != nil {
			c.note(n, "%v", err)
		} else {
			annotated[n] = ok
		}
	}
	rank := func(n *model.Node) int {
		switch {
		case n == c.in.Self:
			return 0
		case annotated[n]:
			return 2
		}
		return 1
	}
	slices.SortStableFunc(order, func(a, b *model.Node) int { return cmp.Compare(rank(a), rank(b)) })
	owner := map[desired.MAC]*model.Node{}
	for _, n := range order {
		if first := owner[c.macs[n]]; first != nil {
			for _, p := range c.good[n] {
				c.note(n, "no route to pod CIDR %s: its VXLAN address %s is that of node %s; remove the annotation %s", p, c.macs[n], first.Name, MACAnnotation)
			}
			delete(c.good, n)
			continue
		}
		owner[c.macs[n]] = n
	}
}

// unusable says why an address of a peer cannot be one, or nothing.
func (c *check) unusable(a netip.Addr) string {
	if reason := special(a); reason != "" {
		return reason
	}
	if slices.Contains(c.in.Self.InternalIPs, a) || slices.Contains(c.addrs[c.in.Self], a) {
		return "is this node's own"
	}
	return ""
}

// implausible says why a prefix cannot hold pods, or nothing. ips are the InternalIPs of all nodes,
// sorted: a route over one of them would cut the machine off.
func implausible(p netip.Prefix, ips []netip.Addr) string {
	switch {
	case !p.IsValid() || p.Addr().Is4In6():
		return "is not a valid prefix"
	case p != p.Masked():
		return "has bits set beyond its length"
	case p.Bits() == 0:
		return "covers the whole address family"
	}
	if reason := special(p.Addr()); reason != "" {
		return reason
	}
	i, _ := slices.BinarySearchFunc(ips, p.Addr(), netip.Addr.Compare)
	if i < len(ips) && p.Contains(ips[i]) {
		return fmt.Sprintf("holds %s, the InternalIP of a node", ips[i])
	}
	return ""
}

// special says why an address can be neither a node's nor a pod's, or nothing.
func special(a netip.Addr) string {
	switch {
	case !a.IsValid() || a.Is4In6() || a.Zone() != "":
		return "is not a plain address"
	case a.IsUnspecified():
		return "is the unspecified address"
	case a.IsLoopback():
		return "is a loopback address"
	case a.IsMulticast():
		return "is a multicast address"
	case a.IsLinkLocalUnicast():
		return "is a link-local address"
	case a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return "is the broadcast address"
	}
	return ""
}
