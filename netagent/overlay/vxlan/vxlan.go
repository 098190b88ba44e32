// Package vxlan plans an overlay of VXLAN devices (RFC 7348): one per family of the underlay, and
// per pod CIDR of a peer one route, one neighbour entry and one forwarding entry. Nothing is learned
// and nothing flooded. Where it is asked for, peers on the same link are reached by plain routes instead.
package vxlan

import (
	"fmt"

	"github.com/braidnet/braid/internal/desired"
	"github.com/braidnet/braid/netagent/overlay/hostgw"
	"github.com/braidnet/braid/netagent/overlay/peer"
)

// Device names, by the family of the underlay.
const (
	Device4 = "braid.vx4"
	Device6 = "braid.vx6"
)

// What a packet grows by: inner Ethernet 14, VXLAN 8, UDP 8, and the outer IP header of 20 or 40 bytes.
const (
	overhead4 = 50
	overhead6 = 70
)

// Device returns the name of the device over an IPv4 (is4) or IPv6 underlay.
func Device(is4 bool) string {
	if is4 {
		return Device4
	}
	return Device6
}

// Overhead is what a packet grows by over a family.
func Overhead(is4 bool) int {
	if is4 {
		return overhead4
	}
	return overhead6
}

func inner(u peer.Underlay) int { return u.MTU - Overhead(u.Addr.Is4()) }

// index gives a family its place in the arrays of this package: [0] IPv6, [1] IPv4.
func index(is4 bool) int {
	if is4 {
		return 1
	}
	return 0
}

// devices returns, per family of the underlay, which families of pods its device carries: those that
// peers' paths need, and for each own pod CIDR the device it would go over to an equal node, so that
// device and MTU do not depend on whether a peer is there.
func devices(self peer.Self, peers []peer.Peer) (carried [2][2]bool) {
	for _, c := range self.CIDRs {
		is4 := c.Addr().Is4()
		over := is4
		if _, ok := self.Underlay(is4); !ok {
			over = !is4
		}
		carried[index(over)][index(is4)] = true
	}
	for _, p := range peers {
		for _, path := range p.Paths {
			carried[index(path.Via.Is4())][index(path.CIDR.Addr().Is4())] = true
		}
	}
	return carried
}

// MTU returns the largest packet, in bytes, that fits into every device in use, and what makes it so. It is 0
// when no underlay is known. Plain routes to peers on the link do not raise it: a pod keeps the MTU that it
// was started with, and the next node may be behind a router.
func MTU(self peer.Self, peers []peer.Peer) (mtu int, why string) {
	carried := devices(self, peers)
	var used []peer.Underlay
	for _, u := range self.Underlays {
		if c := carried[index(u.Addr.Is4())]; c[0] || c[1] {
			used = append(used, u)
		}
	}
	return peer.MTU(used, Overhead, "VXLAN")
}

// Plan returns the devices and, per pod CIDR of a peer, route, neighbour and forwarding entry.
//
// The gateway of a pod CIDR is its network address, which no pod ever has: it is the peer's address
// on the overlay, and this node's own CIDRs give this node's.
func Plan(self peer.Self, peers []peer.Peer) (net desired.Network, notes []peer.Note) {
	carried := devices(self, peers)
	for _, u := range self.Underlays {
		c := carried[index(u.Addr.Is4())]
		if !c[0] && !c[1] {
			continue
		}
		device(&net, self, u, c)
		if c[0] && inner(u) < peer.MinIPv6MTU {
			notes = append(notes, peer.Note{Node: self.Name, Text: fmt.Sprintf("%s has room for packets of %d bytes only, IPv6 needs %d: raise the MTU of the underlay (%s)",
				Device(u.Addr.Is4()), inner(u), peer.MinIPv6MTU, u.Why)})
		}
	}
	for _, p := range peers {
		p, net.Routes = hostgw.Split(self, p, net.Routes)
		fdb := [2]bool{} // one forwarding entry per device, not per CIDR
		for _, path := range p.Paths {
			over := path.Via.Is4()
			u, ok := self.Underlay(over)
			if !ok {
				notes = append(notes, peer.Note{Node: p.Name, Text: fmt.Sprintf("no route to pod CIDR %s: it is reached over %s, and node %s has no address of that family for it",
					path.CIDR, peer.Family(over), self.Name)})
				continue
			}
			dev, why := Device(over), fmt.Sprintf("pod CIDR %s of %s", path.CIDR, p.Origin)
			gw := path.CIDR.Addr()
			net.Routes = append(net.Routes, desired.Route{Dst: path.CIDR, Via: gw, Dev: dev, OnLink: true, MTU: path.Inner(inner(u), Overhead(over)), Origin: why})
			net.Neighs = append(net.Neighs, desired.Neigh{Dev: dev, IP: gw, MAC: p.MAC, Origin: why})
			if !fdb[index(over)] {
				fdb[index(over)] = true
				net.FDB = append(net.FDB, desired.FDB{Dev: dev, MAC: p.MAC, Dst: path.Via, Origin: "address of " + p.Origin})
			}
		}
	}
	return net, notes
}

// device adds the device over u and this node's addresses on it: the network address of each own
// pod CIDR whose family it carries, the source of what the node itself sends to pods.
func device(net *desired.Network, self peer.Self, u peer.Underlay, carried [2]bool) {
	name := Device(u.Addr.Is4())
	net.Links = append(net.Links, desired.Link{Name: name, MTU: inner(u), MAC: self.MAC, Origin: "overlay of " + self.Origin,
		VXLAN: desired.VXLAN{VNI: self.VXLAN.VNI, Port: self.VXLAN.Port, GBP: self.VXLAN.GBP, Underlay: u.Dev, Local: u.Addr}})
	for _, c := range self.CIDRs {
		if a := c.Addr(); carried[index(a.Is4())] {
			prefix, _ := a.Prefix(a.BitLen())
			net.Addrs = append(net.Addrs, desired.Addr{Dev: name, Prefix: prefix,
				Origin: fmt.Sprintf("pod CIDR %s of %s", c, self.Origin)})
		}
	}
}
