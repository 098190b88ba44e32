// Package overlay plans how pods of this node reach pods of other nodes. It is pure: nodes of the
// cluster and facts about the machine in, devices, routes, neighbour and forwarding entries out.
// Each backend (vxlan, hostgw, udp, ipip, wireguard) is one function over input that was checked here.
//
// Node objects are written by their nodes, so what a peer says of itself is not trusted: a pod CIDR
// that overlaps another node's or holds a node's address is refused, never half applied, and each
// refusal is a Note that names the nodes.
package overlay

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/braidnet/braid/internal/desired"
	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/netagent/overlay/hostgw"
	"github.com/braidnet/braid/netagent/overlay/ipip"
	"github.com/braidnet/braid/netagent/overlay/peer"
	"github.com/braidnet/braid/netagent/overlay/udp"
	"github.com/braidnet/braid/netagent/overlay/vxlan"
	"github.com/braidnet/braid/netagent/overlay/wireguard"
)

// MACAnnotation on a Node replaces the derived address of its VXLAN devices.
const MACAnnotation = "braid.network/vtep-mac"

// Underlay and Note are the words of package peer, under the names users of a plan know.
type (
	Underlay = peer.Underlay
	Note     = peer.Note
)

// Input is everything a plan depends on.
type Input struct {
	Backend   string             // one of Backends
	Name      string             // this node's name
	Self      *model.Node        // nil when the cluster does not know the node
	Peers     []*model.Node      // the other nodes, in any order
	Underlays []Underlay         // at most one per family
	Own       []netip.Addr       // where other nodes reach this one, when that is not its InternalIPs; at most one per family
	PathMTU   map[netip.Addr]int // what the route to an address of a peer takes, bytes; absent = not known
	Ways      map[string]bool    // the devices that those routes lead by
	Direct    bool               // reach peers on the link by plain routes: vxlan, ipip
	VXLAN     peer.VXLAN         // of backend vxlan
	UDP       peer.UDP           // of backend udp
	WireGuard peer.WireGuard
}

type backend struct {
	plan func(peer.Self, []peer.Peer) (desired.Network, []Note)
	mtu  func(peer.Self, []peer.Peer) (int, string)
	over func(is4 bool) int // what a packet grows by in a tunnel over a family, bytes
}

var backends = map[string]backend{
	"vxlan":   {vxlan.Plan, vxlan.MTU, vxlan.Overhead},
	"host-gw": {hostgw.Plan, hostgw.MTU, nil},
	"udp":     {udp.Plan, udp.MTU, udp.Overhead},
	"ipip":    {ipip.Plan, ipip.MTU, ipip.Overhead},

	"wireguard": {wireguard.Plan, wireguard.MTU, wireguard.Overhead},
}

// Backends lists the names that Input.Backend may have.
func Backends() []string { return slices.Sorted(maps.Keys(backends)) }

// Plan returns what the kernel of this node should hold, sorted, and notes, sorted, on everything
// that cannot be reached and why. Every pod CIDR of a peer has either exactly one route or a note
// that names the peer. When a note blocks, nothing was planned and the kernel is to be left alone.
func Plan(in Input) (desired.Network, []Note) {
	b, self, peers, notes := prepare(in)
	if blocked(notes) {
		return desired.Network{}, notes
	}
	net, more := b.plan(self, peers)
	net.Sort()
	notes = append(notes, more...)
	notes = append(notes, narrow(net.Routes, peers)...)
	slices.SortFunc(notes, func(a, b Note) int {
		return cmp.Or(strings.Compare(a.Node, b.Node), strings.Compare(a.Text, b.Text))
	})
	return net, notes
}

// MTU returns the MTU, in bytes, that pods of this node should have: the underlay's, less the larger
// overhead of the devices in use, and that in words. It is 0 when nothing could be planned.
func MTU(in Input) (mtu int, why string) {
	b, self, peers, notes := prepare(in)
	if blocked(notes) {
		return 0, ""
	}
	return b.mtu(self, peers)
}

// MAC returns the address of a node's VXLAN devices: the annotation when it is valid, else one
// derived from the node's name, which peers compute alike and which never changes. Derived addresses
// are locally administered unicast ones (IEEE 802: second-lowest bit of the first byte set, lowest
// clear). The error says what is wrong with the annotation; the address is the derived one then.
func MAC(n *model.Node) (desired.MAC, error) {
	sum := sha256.Sum256([]byte("braid vtep " + n.Name))
	mac := desired.MAC(sum[:6])
	mac[0] = mac[0]&^1 | 2
	text, ok := n.Annotations[MACAnnotation]
	if !ok {
		return mac, nil
	}
	given, err := desired.ParseMAC(text)
	if err != nil {
		return mac, fmt.Errorf("annotation %s: %w; the address derived from the name is used", MACAnnotation, err)
	}
	return given, nil
}

func blocked(notes []Note) bool {
	return slices.ContainsFunc(notes, func(n Note) bool { return n.Blocks })
}

// prepare checks the input and turns it into what backends take.
func prepare(in Input) (b backend, self peer.Self, peers []peer.Peer, notes []Note) {
	b, known := backends[in.Backend]
	block := func(format string, args ...any) {
		notes = append(notes, Note{Node: in.Name, Text: fmt.Sprintf(format, args...), Blocks: true})
	}
	switch {
	case !known:
		block("unknown overlay backend %q: use one of %s", in.Backend, strings.Join(Backends(), ", "))
	case in.Self == nil:
		block("the cluster has no Node of this name: is it what `kubectl get nodes` prints?")
	case len(in.Self.InternalIPs) == 0 && len(in.Own) == 0:
		block("it has no InternalIP in status.addresses: the kubelet sets it (--node-ip)")
	case len(in.Underlays) == 0:
		block("no device of this machine, loopback aside, holds its InternalIP %v: is the device up, and --node-ip right?", in.Self.InternalIPs)
	case in.Backend == "ipip" && !slices.ContainsFunc(in.Underlays, func(u Underlay) bool { return u.Addr.Is4() }):
		block("ipip goes over IPv4, and this node has no address of that family for it: use vxlan")
	}
	if len(notes) > 0 {
		return b, self, nil, notes
	}
	c := newCheck(in)
	self = peer.Self{Name: in.Name, Origin: in.Self.Origin.String(), MAC: c.macs[in.Self], CIDRs: c.good[in.Self],
		Underlays: slices.Clone(in.Underlays), Direct: in.Direct, VXLAN: in.VXLAN, UDP: in.UDP, WireGuard: in.WireGuard}
	slices.SortFunc(self.Underlays, func(a, b Underlay) int { return a.Addr.Compare(b.Addr) })
	c.self(self)
	for _, n := range c.nodes {
		if n == in.Self {
			continue
		}
		p := peer.Peer{Name: n.Name, Origin: n.Origin.String(), MAC: c.macs[n], Keys: c.keys[n], Detour: c.ways[n]}
		for _, cidr := range c.good[n] {
			if via, ok := c.transport(n, cidr.Addr().Is4()); !ok && in.Backend == "ipip" {
				c.note(n, "no route to pod CIDR %s: ipip goes over IPv4, and it has no address of that family (%v): use vxlan", cidr, c.addrs[n])
			} else if !ok {
				c.note(n, "no route to pod CIDR %s: it shares no family of addresses with this node (%v and %v)", cidr, c.addrs[n], c.addrs[in.Self])
			} else if reason := c.unusable(via); reason != "" {
				c.note(n, "no route to pod CIDR %s: its address %s %s", cidr, via, reason)
			} else {
				p.Paths = append(p.Paths, peer.Path{CIDR: cidr, Via: via, MTU: in.PathMTU[via]})
			}
		}
		if len(p.Paths) > 0 {
			peers = append(peers, p)
		}
	}
	self.Underlays = withMTU(self.Underlays, peers)
	return b, self, peers, c.notes
}

// withMTU finds out what each underlay takes: as much as the widest way to a peer, since routes to the others say
// that they take less. Without peers that is what the device takes.
func withMTU(list []Underlay, peers []peer.Peer) []Underlay {
	for i := range list {
		u := &list[i]
		widest := 0
		for _, p := range peers {
			for _, path := range p.Paths {
				if path.Via.Is4() != u.Addr.Is4() {
					continue
				}
				if path.MTU == 0 {
					path.MTU = u.DevMTU
				}
				widest = max(widest, path.MTU)
			}
		}
		u.MTU, u.Why = u.DevMTU, fmt.Sprintf("%s has %d", u.Dev, u.DevMTU)
		if widest > 0 && widest != u.DevMTU {
			u.MTU, u.Why = widest, fmt.Sprintf("the routes to other nodes have %d", widest)
		}
	}
	return list
}

// narrow notes the routes that are too narrow for IPv6.
func narrow(routes []desired.Route, peers []peer.Peer) (notes []Note) {
	for _, r := range routes {
		if r.MTU == 0 || r.MTU >= peer.MinIPv6MTU || r.Dst.Addr().Is4() {
			continue
		}
		for _, p := range peers {
			if slices.ContainsFunc(p.Paths, func(path peer.Path) bool { return path.CIDR == r.Dst }) {
				notes = append(notes, Note{Node: p.Name, Text: fmt.Sprintf("the way to it takes packets of %d bytes only, IPv6 needs %d: raise the MTU of the route to it, and of what carries it",
					r.MTU, peer.MinIPv6MTU)})
			}
		}
	}
	return notes
}

// transport returns the peer's address that carries pods of a family: over the same family when
// both nodes have one of it, else over the other one; ipip knows IPv4 only. It looks at the cluster's view of
// both nodes only, so both ends choose alike.
func (c *check) transport(n *model.Node, is4 bool) (netip.Addr, bool) {
	families := []bool{is4, !is4}
	if c.in.Backend == "ipip" {
		families = []bool{true}
	}
	for _, over := range families {
		_, mine := c.address(c.in.Self, over)
		if via, theirs := c.address(n, over); mine && theirs {
			return via, true
		}
	}
	return netip.Addr{}, false
}
