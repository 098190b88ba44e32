package tun

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/braidnet/braid/internal/desired"
)

// table says where packets go and whose packets are taken. It is never changed: a new one takes its place.
type table struct {
	dst   []netip.Prefix // of the tunnels, sorted and disjoint
	hops  []*hop         // the same places
	nodes map[netip.Addr]*hop
	pods  []netip.Prefix // of this node
}

// hop is another node, by the address that it is reached at.
type hop struct {
	addr netip.Addr
	from []netip.Prefix // sources that its packets may have: its pods, and itself
	name sockaddr
	*hello
}

// newTable checks and sorts a relay's tunnels. Overlapping ones are an error: the planner lets none
// through, since it would be a guess whose pods a packet is for. What is known of nodes in the table before
// it, which may be nil, is kept.
func newTable(r desired.Relay, before *table) (*table, error) {
	t := &table{nodes: map[netip.Addr]*hop{}, pods: slices.Clone(r.Pods)}
	list := slices.Clone(r.Tunnels)
	slices.SortFunc(list, func(a, b desired.Tunnel) int { return desired.ComparePrefix(a.Dst, b.Dst) })
	for i, tun := range list {
		if !tun.Dst.IsValid() || tun.Dst != tun.Dst.Masked() || !tun.Via.IsValid() || tun.Via.Is4In6() || tun.Via.Zone() != "" {
			return nil, fmt.Errorf("%s: not a network and a plain address", tun)
		}
		if i > 0 && list[i-1].Dst.Overlaps(tun.Dst) {
			return nil, fmt.Errorf("%s overlaps %s", tun, list[i-1])
		}
		h := t.nodes[tun.Via]
		if h == nil {
			h = &hop{addr: tun.Via, from: []netip.Prefix{netip.PrefixFrom(tun.Via, tun.Via.BitLen())}, name: newSockaddr(netip.AddrPortFrom(tun.Via, r.Port))}
			if h.hello = new(hello); before != nil && before.nodes[tun.Via] != nil {
				h.hello = before.nodes[tun.Via].hello
			}
			t.nodes[tun.Via] = h
		}
		h.from = append(h.from, tun.Dst)
		t.dst, t.hops = append(t.dst, tun.Dst), append(t.hops, h)
	}
	return t, nil
}

// lookup returns the node whose pods hold an address, or nil.
func (t *table) lookup(a netip.Addr) *hop {
	i, found := slices.BinarySearchFunc(t.dst, a, func(p netip.Prefix, a netip.Addr) int { return p.Addr().Compare(a) })
	if !found {
		i--
	}
	if i < 0 || !t.dst[i].Contains(a) {
		return nil
	}
	return t.hops[i]
}

func contains(list []netip.Prefix, a netip.Addr) bool {
	for _, p := range list {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// source and destination of an IP packet by checkIP.
func source(p []byte) netip.Addr {
	if isIPv4(p) {
		return netip.AddrFrom4([4]byte(p[12:16]))
	}
	return netip.AddrFrom16([16]byte(p[8:24]))
}

func destination(p []byte) netip.Addr {
	if isIPv4(p) {
		return netip.AddrFrom4([4]byte(p[16:20]))
	}
	return netip.AddrFrom16([16]byte(p[24:40]))
}
