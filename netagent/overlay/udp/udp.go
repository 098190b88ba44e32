// Package udp plans an overlay in user space: one TUN device for all peers, one route to it per pod CIDR
// of a peer, and a relay that carries each packet in one UDP datagram with nothing before it. That is
// the wire format of flannel's udp backend, whose nodes can be peers, and here of IPv6 too.
package udp

import (
	"fmt"

	"github.com/braidnet/braid/internal/desired"
	"github.com/braidnet/braid/netagent/overlay/peer"
)

// Device is the name of the TUN device.
const Device = "braid.udp"

// Port is the UDP port that flannel uses.
const Port = 8285

// Overhead is what a packet grows by: UDP 8, and the outer IP header.
func Overhead(is4 bool) int {
	if is4 {
		return 20 + 8
	}
	return 40 + 8
}

// used returns the underlays that carry pods: those that peers' paths need, and for each own pod CIDR the
// one that an equal node would be reached over, so that the MTU does not depend on whether a peer is there.
func used(self peer.Self, peers []peer.Peer) (list []peer.Underlay) {
	over := map[bool]bool{}
	for _, c := range self.CIDRs {
		is4 := c.Addr().Is4()
		if _, ok := self.Underlay(is4); !ok {
			is4 = !is4
		}
		over[is4] = true
	}
	for _, p := range peers {
		for _, path := range p.Paths {
			over[path.Via.Is4()] = true
		}
	}
	for _, u := range self.Underlays {
		if over[u.Addr.Is4()] {
			list = append(list, u)
		}
	}
	return list
}

// MTU returns the largest packet, in bytes, that fits into a datagram over every underlay in use, and
// what makes it so. It is 0 when no underlay is known.
func MTU(self peer.Self, peers []peer.Peer) (mtu int, why string) {
	return peer.MTU(used(self, peers), Overhead, "UDP")
}

// Plan returns the device, this node's addresses on it, a route per pod CIDR of a peer, and the relay.
//
// The gateway of a pod CIDR is its network address, which no pod ever has. The device needs none; with it
// the routes are like those of the other backends.
func Plan(self peer.Self, peers []peer.Peer) (net desired.Network, notes []peer.Note) {
	under := used(self, peers)
	if len(under) == 0 {
		return net, nil
	}
	mtu, why := MTU(self, peers)
	origin := "overlay of " + self.Origin
	net.Links = []desired.Link{{Name: Device, Kind: desired.KindTUN, MTU: mtu, Origin: origin}}
	relay := desired.Relay{Dev: Device, Port: self.UDP.Port, Pods: self.CIDRs, Origin: origin}
	for _, u := range under {
		relay.Local = append(relay.Local, u.Addr)
	}
	ipv6 := false
	for _, c := range self.CIDRs {
		ipv6 = ipv6 || c.Addr().Is6()
		prefix, _ := c.Addr().Prefix(c.Addr().BitLen())
		net.Addrs = append(net.Addrs, desired.Addr{Dev: Device, Prefix: prefix, Origin: fmt.Sprintf("pod CIDR %s of %s", c, self.Origin)})
	}
	for _, p := range peers {
		for _, path := range p.Paths {
			u, ok := self.Underlay(path.Via.Is4())
			if !ok {
				notes = append(notes, peer.Note{Node: p.Name, Text: fmt.Sprintf("no route to pod CIDR %s: it is reached over %s, and node %s has no address of that family for it",
					path.CIDR, peer.Family(path.Via.Is4()), self.Name)})
				continue
			}
			ipv6 = ipv6 || path.CIDR.Addr().Is6()
			origin := fmt.Sprintf("pod CIDR %s of %s", path.CIDR, p.Origin)
			net.Routes = append(net.Routes, desired.Route{Dst: path.CIDR, Via: path.CIDR.Addr(), Dev: Device, OnLink: true, MTU: path.Inner(mtu, Overhead(u.Addr.Is4())), Origin: origin})
			relay.Tunnels = append(relay.Tunnels, desired.Tunnel{Dst: path.CIDR, Via: path.Via, Origin: origin})
		}
	}
	if ipv6 && mtu < peer.MinIPv6MTU {
		notes = append(notes, self.TooNarrow(Device, mtu, why))
	}
	net.Relay = &relay
	return net, notes
}
