// Package ipip plans an overlay of IP in IP over IPv4 (RFC 2003 for IPv4, RFC 4213 for IPv6): one device
// for each family of pods, and one route per pod CIDR of a peer. It adds the outer IP header and nothing
// else.
package ipip

import (
	"fmt"
	"net/netip"

	"github.com/braidnet/braid/internal/desired"
	"github.com/braidnet/braid/netagent/overlay/hostgw"
	"github.com/braidnet/braid/netagent/overlay/peer"
)

// Device names.
const (
	Device4 = "braid.ipip" // IPv4 in IPv4
	Device6 = "braid.sit"  // IPv6 in IPv4
)

// overhead is what a packet grows by: the outer IPv4 header.
const overhead = 20

// Overhead is what a packet grows by.
func Overhead(bool) int { return overhead }

// families returns which families of pods are carried, [0] IPv6 and [1] IPv4: those of peers' paths and of
// the own pod CIDRs, so that devices do not depend on whether a peer is there.
func families(self peer.Self, peers []peer.Peer) (carried [2]bool) {
	mark := func(c netip.Prefix) {
		if c.Addr().Is4() {
			carried[1] = true
		} else {
			carried[0] = true
		}
	}
	for _, c := range self.CIDRs {
		mark(c)
	}
	for _, p := range peers {
		for _, path := range p.Paths {
			mark(path.CIDR)
		}
	}
	return carried
}

// MTU returns the largest packet, in bytes, that fits into the devices, and what makes it so. It is 0
// without an IPv4 underlay.
func MTU(self peer.Self, _ []peer.Peer) (mtu int, why string) {
	u, ok := self.Underlay(true)
	if !ok {
		return 0, ""
	}
	return u.MTU - overhead, fmt.Sprintf("%s, less %d for the outer IPv4 header", u.Why, overhead)
}

// Plan returns the devices, this node's addresses on them, and a route per pod CIDR of a peer.
func Plan(self peer.Self, peers []peer.Peer) (net desired.Network, notes []peer.Note) {
	u, ok := self.Underlay(true)
	if !ok {
		return net, nil // the overlay package has said so
	}
	carried := families(self, peers)
	mtu := u.MTU - overhead
	if carried[1] {
		device(&net, self, desired.Link{Name: Device4, Kind: desired.KindIPIP, MTU: mtu}, u)
	}
	if carried[0] {
		device(&net, self, desired.Link{Name: Device6, Kind: desired.KindSIT, MTU: mtu}, u)
		if mtu < peer.MinIPv6MTU {
			notes = append(notes, peer.Note{Node: self.Name, Text: fmt.Sprintf("%s has room for packets of %d bytes only, IPv6 needs %d: raise the MTU of the underlay (%s)",
				Device6, mtu, peer.MinIPv6MTU, u.Why)})
		}
	}
	for _, p := range peers {
		p, net.Routes = hostgw.Split(self, p, net.Routes)
		for _, path := range p.Paths {
			r := desired.Route{Dst: path.CIDR, Via: path.Via, Dev: Device4, OnLink: true, MTU: path.Inner(mtu, overhead), Origin: fmt.Sprintf("pod CIDR %s of %s", path.CIDR, p.Origin)}
			if path.CIDR.Addr().Is6() { // where to is the gateway here too, in IPv6's clothes
				r.Via, r.Dev = compatible(path.Via), Device6
			}
			net.Routes = append(net.Routes, r)
		}
	}
	return net, notes
}

// device adds a device and, as the source of what the node itself sends to pods, the network addresses of
// the own pod CIDRs of its family.
func device(net *desired.Network, self peer.Self, l desired.Link, u peer.Underlay) {
	l.Origin, l.IPIP = "overlay of "+self.Origin, desired.IPIP{Underlay: u.Dev, Local: u.Addr}
	net.Links = append(net.Links, l)
	for _, c := range self.CIDRs {
		if a := c.Addr(); a.Is4() == (l.Kind == desired.KindIPIP) {
			prefix, _ := a.Prefix(a.BitLen())
			net.Addrs = append(net.Addrs, desired.Addr{Dev: l.Name, Prefix: prefix, Origin: fmt.Sprintf("pod CIDR %s of %s", c, self.Origin)})
		}
	}
}

// compatible writes an IPv4 address in 16 bytes that end with it (RFC 4291 section 2.5.5.1).
func compatible(a netip.Addr) netip.Addr {
	var raw [16]byte
	in := a.As4()
	copy(raw[12:], in[:])
	return netip.AddrFrom16(raw)
}
