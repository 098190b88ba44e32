package policy

import (
	"net/netip"
	"slices"

	"github.com/braidnet/braid/internal/model"
)

// Range is a range of addresses of one family, both ends included.
type Range struct{ From, To netip.Addr }

// Contains reports whether a is in the range.
func (r Range) Contains(a netip.Addr) bool {
	return a.BitLen() == r.From.BitLen() && r.From.Compare(a) <= 0 && a.Compare(r.To) <= 0
}

// String prints "from-to", or one address.
func (r Range) String() string {
	if r.From == r.To {
		return r.From.String()
	}
	return r.From.String() + "-" + r.To.String()
}

func rangeOf(p netip.Prefix) Range {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	last, _ := netip.AddrFromSlice(b)
	return Range{p.Masked().Addr(), last}
}

// without returns what is left of a block when its exceptions are taken out.
func without(block netip.Prefix, except []netip.Prefix) (out []Range) {
	rest := rangeOf(block)
	holes := make([]Range, len(except))
	for i, e := range except {
		holes[i] = rangeOf(e)
	}
	slices.SortFunc(holes, compareRanges)
	for _, h := range holes {
		switch {
		case h.To.Less(rest.From): // inside a hole that came before
			continue
		case rest.From.Less(h.From):
			out = append(out, Range{rest.From, h.From.Prev()})
		}
		if h.To == rest.To {
			return out
		}
		rest.From = h.To.Next()
	}
	return append(out, rest)
}

// union sorts ranges and joins those that overlap or touch.
func union(list []Range) (out []Range) {
	slices.SortFunc(list, compareRanges)
	for _, r := range list {
		if n := len(out) - 1; n >= 0 && out[n].From.BitLen() == r.From.BitLen() && (r.From.Compare(out[n].To) <= 0 || r.From == out[n].To.Next()) {
			if out[n].To.Less(r.To) {
				out[n].To = r.To
			}
			continue
		}
		out = append(out, r)
	}
	return out
}

// compareRanges orders by family, then by the first address.
func compareRanges(a, b Range) int { return a.From.Compare(b.From) }

// portRanges joins the ports that rules give by number.
func portRanges(ports []model.PolicyPort) []PortRange {
	var list []PortRange
	for _, p := range ports {
		if p.Name == "" {
			list = append(list, PortRange{p.Protocol, p.From, p.To})
		}
	}
	return joinPorts(list)
}
