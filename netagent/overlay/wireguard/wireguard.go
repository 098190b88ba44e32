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

// Detour is the name of the second device, which is there while some node replaces its key.
const Detour = "braid.wg2"

// Port is WireGuard's usual UDP port.
const Port = 51820

// keepalive is after how many seconds a peer is sent something where a session has to be there before data are.
const keepalive = 20

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
		to := via(p)
		for _, path := range p.Paths {
			net.Routes = append(net.Routes, desired.Route{Dst: path.CIDR, Via: path.CIDR.Addr(), Dev: Device, OnLink: true, MTU: way(p, to).Inner(mtu, Overhead(to.Is4())),
				Origin: fmt.Sprintf("pod CIDR %s of %s", path.CIDR, p.Origin)})
		}
		if _, ok := self.Underlay(to.Is4()); !ok {
			notes = append(notes, peer.Note{Node: p.Name, Text: fmt.Sprintf("its pods %v are not reached: it is reached over %s, and node %s has no address of that family for it",
				cidrs(p), peer.Family(to.Is4()), self.Name)})
			continue
		}
		for i, key := range p.Keys {
			w := desired.WGPeer{Key: key, Endpoint: netip.AddrPortFrom(to, self.WireGuard.Port), Origin: "public key of " + p.Origin}
			if i == 0 { // the others are known already, and used when the node says so
				w.Allowed = cidrs(p)
				if self.WireGuard.Phase == peer.Away || p.Detour.Phase == peer.Away {
					w.Keepalive = keepalive
				}
			}
			wg.Peers = append(wg.Peers, w)
		}
	}
	if ipv6 && mtu < peer.MinIPv6MTU {
		notes = append(notes, self.TooNarrow(Device, mtu, why))
	}
	net.WireGuard = wg
	if net.Detour = detour(self, peers); net.Detour != nil {
		net.Links = append(net.Links, desired.Link{Name: Detour, Kind: desired.KindWireGuard, MTU: mtu, Origin: net.Detour.Origin})
	}
	return net, notes
}

func cidrs(p peer.Peer) (list []netip.Prefix) {
	for _, path := range p.Paths {
		list = append(list, path.CIDR)
	}
	return list
}

// Way is how packets go to a peer that has a detour, while some node replaces its key.
type Way struct {
	Node        string
	Key, Detour desired.WGKey
	Taken       bool // the detour is there: for this node's key, or for the peer's
	Moved       bool // packets are sent by the detour
	Own         bool // the peer's own key asks for the detour, whatever becomes of this node's

	peer peer.Peer
}

// Ways lists the peers that have a detour and are reached.
func Ways(self peer.Self, peers []peer.Peer) (list []Way) {
	for _, p := range peers {
		_, reached := self.Underlay(via(p).Is4())
		if len(p.Keys) == 0 || p.Detour.Key == (desired.WGKey{}) || !reached {
			continue
		}
		own := p.Detour.Phase.Detours()
		list = append(list, Way{Node: p.Name, Key: p.Keys[0], Detour: p.Detour.Key, Own: own, peer: p,
			Taken: self.WireGuard.Phase != peer.Steady || p.Detour.Phase != peer.Steady,
			Moved: (own || self.WireGuard.Phase.Detours()) && self.WireGuard.Up[p.Detour.Key]})
	}
	return list
}

// detour returns the second device, nil when it is not needed. It knows the peers that need it, all of them where this node
// replaces its key.
func detour(self peer.Self, peers []peer.Peer) *desired.Detour {
	out := &desired.Detour{WireGuard: desired.WireGuard{Dev: Detour, Port: self.WireGuard.Port + 1, Origin: "key being replaced, of " + self.Origin}}
	moved := map[string]bool{}
	for _, w := range Ways(self, peers) {
		if !w.Taken {
			continue
		}
		if w.peer.Detour.Phase != peer.Steady {
			out.Origin = "key being replaced, of " + w.peer.Origin
		}
		moved[w.Node] = w.Moved
		out.Peers = append(out.Peers, desired.WGPeer{Key: w.Detour, Endpoint: netip.AddrPortFrom(via(w.peer), self.WireGuard.Port+1), Allowed: cidrs(w.peer),
			Keepalive: keepalive, Origin: "detour of " + w.peer.Origin})
	}
	if len(out.Peers) == 0 && self.WireGuard.Phase == peer.Steady {
		return nil
	}
	var by, past []netip.Prefix
	for _, p := range peers {
		if moved[p.Name] {
			by = append(by, cidrs(p)...)
		} else {
			past = append(past, cidrs(p)...)
		}
	}
	// Packets are compared with one after the other: the fewer the better.
	if out.Steer.Prefixes = by; len(past) < len(by) {
		out.Steer = desired.Steering{All: true, Prefixes: past}
	}
	return out
}
