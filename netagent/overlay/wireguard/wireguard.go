// Package wireguard plans an encrypted overlay: one WireGuard device for all peers, one route to it per
// pod CIDR of a peer, and the peers with their public keys. A peer may send from, and is sent, its pod
// CIDRs and nothing else.
package wireguard

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/braidnet/braid/internal/desired"
	"github.com/braidnet/braid/netagent/overlay/peer"
)

// Device is the name of the device.
const Device = "braid.wg"

// Port is WireGuard's usual UDP port.
const Port = 51820

// Overhead is what a packet grows by: the outer IP header, UDP 8, WireGuard's header 16 and tag 16.
func Overhead(is4 bool) int {
	if is4 {
		return 20 + 8 + 32
	}
	return 40 + 8 + 32
}

// via returns the address that a peer is reached at. One peer has one endpoint, whatever families its pods
// have: IPv4 where a path goes over that. Both ends choose alike, since paths follow the InternalIPs of both.
func via(p peer.Peer) netip.Addr {
	for _, path := range p.Paths {
		if path.Via.Is4() {
			return path.Via
		}
	}
	return p.Paths[0].Via
}

// way returns one of the paths that lead over an address of the peer.
func way(p peer.Peer, to netip.Addr) peer.Path {
	return p.Paths[slices.IndexFunc(p.Paths, func(path peer.Path) bool { return path.Via == to })]
}

// used lists the underlays that peers are reached over, and the one that an equal node would be.
func used(self peer.Self, peers []peer.Peer) (list []peer.Underlay) {
	over := map[bool]bool{}
	if u, ok := self.Underlay(true); ok {
		over[u.Addr.Is4()] = true
	} else {
		over[false] = true
	}
	for _, p := range peers {
		over[via(p).Is4()] = true
	}
	for _, u := range self.Underlays {
		if over[u.Addr.Is4()] {
			list = append(list, u)
		}
	}
	return list
}

// MTU returns the largest packet, in bytes, that is sent whole over every underlay in use, and what makes
// it so. It is 0 when no underlay is known.
func MTU(self peer.Self, peers []peer.Peer) (mtu int, why string) {
	return peer.MTU(used(self, peers), Overhead, "WireGuard")
}

// Plan returns the device, this node's addresses on it, a route per pod CIDR of a peer, and the peers. A
// peer without a key has its routes too: what is sent there must be refused, not leave unencrypted.
func Plan(self peer.Self, peers []peer.Peer) (net desired.Network, notes []peer.Note) {
	mtu, why := MTU(self, peers)
	origin := "overlay of " + self.Origin
	net.Links = []desired.Link{{Name: Device, Kind: desired.KindWireGuard, MTU: mtu, Origin: origin}}
	wg := &desired.WireGuard{Dev: Device, Port: self.WireGuard.Port, Origin: origin}
	ipv6 := false
	for _, c := range self.CIDRs {
		ipv6 = ipv6 || c.Addr().Is6()
		prefix, _ := c.Addr().Prefix(c.Addr().BitLen())
		net.Addrs = append(net.Addrs, desired.Addr{Dev: Device, Prefix: prefix, Origin: fmt.Sprintf("pod CIDR %s of %s", c, self.Origin)})
	}
	for _, p := range peers {
		var allowed []netip.Prefix
		to := via(p)
		_, ok := self.Underlay(to.Is4())
		for _, path := range p.Paths {
			least := way(p, to).Inner(mtu, Overhead(to.Is4()))
			allowed = append(allowed, path.CIDR)
			net.Routes = append(net.Routes, desired.Route{Dst: path.CIDR, Via: path.CIDR.Addr(), Dev: Device, OnLink: true, MTU: least,
				Origin: fmt.Sprintf("pod CIDR %s of %s", path.CIDR, p.Origin)})
		}
		if !ok {
			notes = append(notes, peer.Note{Node: p.Name, Text: fmt.Sprintf("its pods %v are not reached: it is reached over %s, and node %s has no address of that family for it",
				allowed, peer.Family(to.Is4()), self.Name)})
			continue
		}
		for i, key := range p.Keys {
			w := desired.WGPeer{Key: key, Endpoint: netip.AddrPortFrom(to, self.WireGuard.Port), Origin: "public key of " + p.Origin}
			if i == 0 { // the others are known already, and used when the node says so
				w.Allowed = allowed
			}
			wg.Peers = append(wg.Peers, w)
		}
	}
	if ipv6 && mtu < peer.MinIPv6MTU {
		notes = append(notes, self.TooNarrow(Device, mtu, why))
	}
	net.WireGuard = wg
	return net, notes
}
