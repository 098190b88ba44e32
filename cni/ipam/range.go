// Package ipam hands out pod addresses from ranges and remembers them in a
// folder, laid out as the host-local plugin lays it out, so that a node can
// change between the two without losing a reservation:
//
//	<dataDir>/<network>/<address>            containerID CRLF ifname
//	<dataDir>/<network>/last_reserved_ip.<n> last address given from set n
//	<dataDir>/<network>/lock                 flock(2), held by every writer
//	<dataDir>/<network>/owners/              an index, see index.go; host-local passes it over
//
// The choice of an address is pure (Set.Pick); Store keeps the files.
package ipam

import (
	"fmt"
	"math/big"
	"net/netip"
	"strings"
)

// Range is a run of addresses of one subnet.
type Range struct {
	Subnet  netip.Prefix // masked
	First   netip.Addr   // inclusive
	Last    netip.Addr   // inclusive
	Gateway netip.Addr   // inside Subnet, never handed out
}

// NewRange fills in what host-local fills in: the first address after the
// network address, the last before the broadcast address (IPv4) or the last
// of all (IPv6), and the first address as gateway. Zero addresses mean "not
// given". Errors name the key and what was expected of it.
func NewRange(subnet netip.Prefix, first, last, gateway netip.Addr) (Range, error) {
	if subnet != subnet.Masked() {
		return Range{}, fmt.Errorf("subnet is %s, which has host bits set: expected %s", subnet, subnet.Masked())
	}
	if subnet.Addr().BitLen()-subnet.Bits() < 2 {
		return Range{}, fmt.Errorf("subnet is %s, too small for a gateway and a pod: expected /%d or larger",
			subnet, subnet.Addr().BitLen()-2)
	}
	r := Range{Subnet: subnet, First: subnet.Addr().Next(), Last: lastOf(subnet), Gateway: subnet.Addr().Next()}
	for _, given := range []struct {
		key  string
		addr netip.Addr
		into *netip.Addr
	}{{"rangeStart", first, &r.First}, {"rangeEnd", last, &r.Last}, {"gateway", gateway, &r.Gateway}} {
		if !given.addr.IsValid() {
			continue
		}
		if !subnet.Contains(given.addr) || given.addr == subnet.Addr() {
			return Range{}, fmt.Errorf("%s is %s: expected a host address of subnet %s", given.key, given.addr, subnet)
		}
		*given.into = given.addr
	}
	if r.Last.Less(r.First) {
		return Range{}, fmt.Errorf("rangeStart is %s, after rangeEnd %s: expected the lower address first", r.First, r.Last)
	}
	return r, nil
}

// lastOf is the last address of a subnet that a host may have.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for bit := p.Bits(); bit < len(b)*8; bit++ {
		b[bit/8] |= 0x80 >> (bit % 8)
	}
	last, _ := netip.AddrFromSlice(b)
	if last.Is4() {
		return last.Prev()
	}
	return last
}

// Contains tells whether an address lies between First and Last.
func (r Range) Contains(a netip.Addr) bool {
	return a.BitLen() == r.First.BitLen() && !a.Less(r.First) && !r.Last.Less(a)
}

func (r Range) overlaps(o Range) bool { return r.Contains(o.First) || o.Contains(r.First) }

func (r Range) String() string { return r.First.String() + "-" + r.Last.String() }

// Set is a list of ranges of one family that a pod gets one address from.
type Set []Range

// Lease is an address given to an interface.
type Lease struct {
	Addr    netip.Addr
	Gateway netip.Addr
	Subnet  netip.Prefix
}

// Check says what makes sets unusable together: an empty set, families mixed
// in a set, or ranges that overlap, which would give an address twice.
func Check(sets []Set) error {
	type place struct{ set, at int }
	var seen []place
	for i, set := range sets {
		if len(set) == 0 {
			return fmt.Errorf("ranges[%d] is empty: expected at least one range", i)
		}
		for j, r := range set {
			if r.Subnet.Addr().Is4() != set[0].Subnet.Addr().Is4() {
				return fmt.Errorf("ranges[%d][%d].subnet is %s: expected the family of %s, since a pod gets one address per set",
					i, j, r.Subnet, set[0].Subnet)
			}
			for _, p := range seen {
				if o := sets[p.set][p.at]; o.overlaps(r) {
					return fmt.Errorf("ranges[%d][%d] is %s: expected no overlap with ranges[%d][%d], %s", i, j, r, p.set, p.at, o)
				}
			}
			seen = append(seen, place{i, j})
		}
	}
	return nil
}

// Pick chooses the next address after last that is not taken, in the order of
// the ranges and around to the start, so that an address rests for as long as
// possible before it is used again. A last that is in no range (none yet, or
// the ranges have changed) starts at the beginning. ok is false when every
// address is taken.
func (s Set) Pick(last netip.Addr, taken func(netip.Addr) bool) (lease Lease, ok bool) {
	at, addr := s.after(last)
	for first := addr; ; {
		if !taken(addr) {
			return Lease{Addr: addr, Gateway: s[at].Gateway, Subnet: s[at].Subnet}, true
		}
		if at, addr = s.after(addr); addr == first {
			return Lease{}, false
		}
	}
}

// lease is the first of some addresses that the set has.
func (s Set) lease(list []netip.Addr) (lease Lease, ok bool) {
	for _, a := range list {
		for _, r := range s {
			if r.Contains(a) {
				return Lease{Addr: a, Gateway: r.Gateway, Subnet: r.Subnet}, true
			}
		}
	}
	return Lease{}, false
}

// after is the address that follows a in the set, and the range it is in.
func (s Set) after(a netip.Addr) (int, netip.Addr) {
	for i, r := range s {
		if !r.Contains(a) {
			continue
		}
		if a != r.Last {
			return i, a.Next()
		}
		next := (i + 1) % len(s)
		return next, s[next].First
	}
	return 0, s[0].First
}

// Contains tells whether an address lies in one of the ranges.
func (s Set) Contains(a netip.Addr) bool {
	for _, r := range s {
		if r.Contains(a) {
			return true
		}
	}
	return false
}

// size counts the addresses of the set without the gateways in it.
func (s Set) size(isGateway map[netip.Addr]bool) *big.Int {
	n := new(big.Int)
	for _, r := range s {
		first := new(big.Int).SetBytes(r.First.AsSlice())
		last := new(big.Int).SetBytes(r.Last.AsSlice())
		n.Add(n, last.Sub(last, first)).Add(n, big.NewInt(1))
	}
	for gw := range isGateway {
		if s.Contains(gw) {
			n.Sub(n, big.NewInt(1))
		}
	}
	return n
}

func (s Set) String() string {
	names := make([]string, len(s))
	for i, r := range s {
		names[i] = r.String()
	}
	return strings.Join(names, ",")
}
