// Package hostgw plans plain routes: a peer's pods are reached through the peer itself, which must
// be on the same link. No encapsulation, no overhead.
package hostgw

import (
	"fmt"
	"net/netip"

	"github.com/braidnet/braid/internal/desired"
	"github.com/braidnet/braid/netagent/overlay/peer"
)

// Plan returns one route per reachable pod CIDR, and a note for each other.
func Plan(self peer.Self, peers []peer.Peer) (net desired.Network, notes []peer.Note) {
	for _, p := range peers {
		for _, path := range p.Paths {
			r, reason := route(self, p, path)
			if reason != "" {
				notes = append(notes, peer.Note{Node: p.Name, Text: fmt.Sprintf("no route to pod CIDR %s: %s", path.CIDR, reason)})
				continue
			}
			net.Routes = append(net.Routes, r)
		}
	}
	return net, notes
}

// Split appends, where direct routing is asked for, the routes of the peer's paths that need no tunnel. It
// returns the peer with the other paths.
func Split(self peer.Self, p peer.Peer, routes []desired.Route) (peer.Peer, []desired.Route) {
	if !self.Direct {
		return p, routes
	}
	all := p.Paths
	p.Paths = nil
	for _, path := range all {
		if r, not := route(self, p, path); not == "" {
			routes = append(routes, r)
		} else {
			p.Paths = append(p.Paths, path)
		}
	}
	return p, routes
}

// route returns the route of one path, or why there is none.
func route(self peer.Self, p peer.Peer, path peer.Path) (desired.Route, string) {
	is4 := path.CIDR.Addr().Is4()
	if path.Via.Is4() != is4 {
		return desired.Route{}, fmt.Sprintf("host-gw cannot carry %s over %s: give both nodes an address of that family, or use vxlan",
			peer.Family(is4), peer.Family(!is4))
	}
	u, ok := self.Underlay(is4)
	switch {
	case !ok:
		return desired.Route{}, fmt.Sprintf("node %s has no %s address for it", self.Name, peer.Family(is4))
	case !u.Reaches(path.Via):
		return desired.Route{}, fmt.Sprintf("its address %s is not on the link of %s (%v): host-gw needs all nodes on one link, use vxlan",
			path.Via, u.Dev, u.OnLink)
	}
	return desired.Route{Dst: path.CIDR, Via: path.Via, Dev: u.Dev, MTU: path.Below(u.DevMTU),
		Origin: fmt.Sprintf("pod CIDR %s of %s", path.CIDR, p.Origin)}, ""
}

// MTU returns the largest packet, in bytes, that reaches the pods of every peer, which is the underlay's own,
// and what makes it so. It is 0 when no underlay is known.
func MTU(self peer.Self, _ []peer.Peer) (mtu int, why string) {
	for _, u := range self.Underlays {
		if used(self.CIDRs, u.Addr) && (mtu == 0 || u.MTU < mtu) {
			mtu, why = u.MTU, u.Why+", and plain routes add nothing"
		}
	}
	return mtu, why
}

// used reports whether the underlay of addr carries pod traffic: one of the pod CIDRs is of its
// family, or none is known.
func used(cidrs []netip.Prefix, addr netip.Addr) bool {
	for _, c := range cidrs {
		if c.Addr().Is4() == addr.Is4() {
			return true
		}
	}
	return len(cidrs) == 0
}
