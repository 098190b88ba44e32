package nftables

import (
	"bytes"
	"net/netip"
	"slices"

	"github.com/braidnet/braid/internal/desired"
	"github.com/braidnet/braid/netagent/service"
)

// Elements are a frontend's elements: where it is found, its backends in the order of f.Backends,
// and the backends on this node that may reach themselves through it. Hairpin elements of different
// frontends may be equal; all others are the frontend's own.
func Elements(f *service.Frontend) []desired.NFTElement {
	if !known(f.Protocol) {
		return nil
	}
	p, ok := PickOf(f)
	key := entry(f.Key)
	name := f.Name()
	found := desired.NFTElement{Key: string(key), Comment: name + " " + f.Kind.String()}
	if !ok {
		found.Set = p.set(setRejected, setNodeRejected)
		if f.Empty == service.Drop {
			found.Set = p.set(setDropped, setNodeDropped)
		}
		return []desired.NFTElement{found}
	}
	found.Set = p.set(setFrontends, setNodeFrontends)
	found.Goto = p.chain()
	out := make([]desired.NFTElement, 0, 1+p.Backends)
	out = append(out, found)
	slots := p.set(setSlots, setNodeSlots)
	for i, b := range f.Backends[:p.Backends] {
		out = append(out, desired.NFTElement{
			Set: slots, Key: string(number(key, uint32(i))), Value: backend(b.AddrPort), Comment: name,
		})
	}
	for _, b := range f.Backends[:p.Backends] {
		if b.Local {
			a := string(b.Addr().AsSlice())
			out = append(out, desired.NFTElement{Set: setHairpins, Key: a + a})
		}
	}
	return out
}

// NetElements are the elements that pod addresses need in one family.
func NetElements(f desired.NFTFamily, net service.Net) []desired.NFTElement {
	// Local pods are pods of the cluster, whatever else the list of all nodes lacks for the moment.
	all := append(slices.Clone(net.ClusterPods), net.LocalPods...)
	return append(merged(f, setLocalPods, net.LocalPods), merged(f, setClusterPods, all)...)
}

// merged turns prefixes into disjoint ranges, as interval sets need them: overlapping and touching
// ones become one.
func merged(f desired.NFTFamily, set string, prefixes []netip.Prefix) (out []desired.NFTElement) {
	type span struct{ first, end []byte } // end: behind the last address, nil when there is none
	var spans []span
	for _, p := range prefixes {
		if p.IsValid() && familyOf(p.Addr()) == f {
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
		out = append(out, desired.NFTElement{Set: set, Key: string(s.first), End: string(s.end)})
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

// arrange gives the backends of next an order in which most keep the slot they have in old: who
// stays where it is needs no change in the kernel, so that one endpoint more or less is one or two
// elements even for a service with thousands. Any order balances equally well.
func arrange(old []netip.AddrPort, next []service.Backend) []service.Backend {
	at := make(map[netip.AddrPort]int, len(old))
	for i, b := range old {
		at[b] = i
	}
	out := make([]service.Backend, len(next))
	placed := make([]bool, len(next))
	var homeless []service.Backend
	for _, b := range next {
		if i, ok := at[b.AddrPort]; ok && i < len(out) && !placed[i] {
			out[i], placed[i] = b, true
		} else {
			homeless = append(homeless, b)
		}
	}
	for i := range out {
		if !placed[i] {
			out[i], homeless = homeless[0], homeless[1:]
		}
	}
	return out
}

func addrPorts(backends []service.Backend) []netip.AddrPort {
	out := make([]netip.AddrPort, len(backends))
	for i, b := range backends {
		out[i] = b.AddrPort
	}
	return out
}
