package desired

import (
	"bytes"
	"cmp"
	"net/netip"
	"slices"
)

// Aggregate returns the fewest prefixes that cover exactly the same addresses, sorted: a thousand
// nodes with neighbouring pod CIDRs cost a packet a few rules, not a thousand.
func Aggregate(list []netip.Prefix) []netip.Prefix {
	list = slices.Clone(list)
	for i := range list {
		list[i] = list[i].Masked()
	}
	slices.SortFunc(list, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), a.Bits()-b.Bits())
	})
	var out []netip.Prefix
	for _, p := range list {
		if n := len(out); n > 0 && out[n-1].Contains(p.Addr()) {
			continue // sorted, so the shorter of two nested prefixes came first
		}
		out = append(out, p)
		for len(out) > 1 {
			a, b := out[len(out)-2], out[len(out)-1]
			if a.Bits() != b.Bits() || a.Bits() == 0 {
				break
			}
			parent := netip.PrefixFrom(a.Addr(), a.Bits()-1).Masked()
			if parent.Addr() != a.Addr() || !parent.Contains(b.Addr()) {
				break
			}
			out = append(out[:len(out)-2], parent)
		}
	}
	return out
}

// NFTRanges turns those of the prefixes that are of the family (IPv4 or IPv6) into the elements of a set
// of ranges, which have to be disjoint: overlapping and touching ones become one.
func NFTRanges(f NFTFamily, set string, prefixes []netip.Prefix) (out []NFTElement) {
	type span struct{ first, end []byte } // end: behind the last address, nil when there is none
	var spans []span
	for _, p := range prefixes {
		if p.IsValid() && p.Addr().Is4() == (f == NFTIPv4) {
			p = p.Masked()
			spans = append(spans, span{p.Addr().AsSlice(), behind(p)})
		}
	}
	slices.SortFunc(spans, func(a, b span) int { return bytes.Compare(a.first, b.first) })
	var done []span
	for _, s := range spans {
		last := len(done) - 1
		switch {
		case last < 0 || done[last].end != nil && bytes.Compare(done[last].end, s.first) < 0:
			done = append(done, s)
		case done[last].end != nil && (s.end == nil || bytes.Compare(done[last].end, s.end) < 0):
			done[last].end = s.end
		}
	}
	for _, s := range done {
		out = append(out, NFTElement{Set: set, Key: string(s.first), End: string(s.end)})
	}
	return out
}

// behind is the first address after a masked prefix, nil when the prefix reaches the last address.
func behind(p netip.Prefix) []byte {
	b := p.Addr().AsSlice()
	if p.Bits() == 0 {
		return nil
	}
	i := (p.Bits() - 1) / 8
	step := byte(0x80) >> ((p.Bits() - 1) % 8)
	for ; i >= 0; i, step = i-1, 1 {
		b[i] += step
		if b[i] >= step {
			return b
		}
	}
	return nil
}
