package iptables

import (
	"net/netip"

	"strings"

	"github.com/braidnet/braid/internal/desired"
	"github.com/braidnet/braid/netagent/policy"
)

// SetPrefix starts the names of our sets, of both families. Whoever changes what a set is made with has to change
// its name: the kernel cannot make one set of another while rules refer to it.
const SetPrefix = "braid"

// Ours reports whether a set is one that this package makes.
func Ours(name string) bool {
	return strings.HasPrefix(name, families[false].sets) || strings.HasPrefix(name, families[true].sets)
}

// version tells two sets of the same list apart, the one in force and the one that takes its place: "a" or "b".
type version string

func (v version) other() version {
	if v == "a" {
		return "b"
	}
	return "a"
}

// podsName names the set with the addresses of a list's pods.
func (f family) podsName(l list, v version) string {
	name := f.sets + map[policy.Direction]string{policy.Egress: "from-", policy.Ingress: "to-"}[l.direction]
	if l.chain == "" {
		return name + "open-" + string(v)
	}
	return name + strings.ToLower(short(l.chain)) + "-" + string(v)
}

func (f family) podsSet(l list, v version) desired.IPSet {
	return desired.IPSet{Name: f.podsName(l, v), Type: desired.IPSetAddr, IPv6: f.ipv6}
}

// setName names the set that stands for one of the compiler's.
func (f family) setName(s *policy.Set) string {
	kind := map[policy.SetKind]string{policy.PodSet: "pods-", policy.PortSet: "ports-", policy.RangeSet: "ranges-"}[s.Kind]
	return f.sets + kind + strings.ToLower(short(s.ID))
}

func (f family) set(s *policy.Set) desired.IPSet {
	kind := map[policy.SetKind]desired.IPSetType{policy.PodSet: desired.IPSetAddr, policy.PortSet: desired.IPSetAddrPort, policy.RangeSet: desired.IPSetNet}[s.Kind]
	return desired.IPSet{Name: f.setName(s), Type: kind, IPv6: f.ipv6}
}

// has reports whether sets of the family can have an address: there is no place in them for the one of all zeros,
// which no packet of a pod has.
func (f family) has(a netip.Addr) bool { return a.Is6() == f.ipv6 && !a.IsUnspecified() }

func host(a netip.Addr) desired.IPSetMember {
	return desired.IPSetMember{Prefix: netip.PrefixFrom(a, a.BitLen())}
}

// members are those of a PodSet or a PortSet.
func (f family) members(s *policy.Set, list []policy.Member) (out []desired.IPSetMember) {
	for _, m := range list {
		if !f.has(m.Addr) {
			continue
		}
		x := host(m.Addr)
		if s.Kind == policy.PortSet {
			x.Protocol, x.Port = uint8(s.Protocol), m.Port
		}
		out = append(out, x)
	}
	return out
}

// ranges are the members of a RangeSet: prefixes, of one bit or more each, as hash:net takes them.
func (f family) ranges(s *policy.Set) (out []desired.IPSetMember) {
	for _, r := range s.Ranges {
		if r.From.Is6() != f.ipv6 {
			continue
		}
		for from := r.From; ; {
			p := largest(from, r.To)
			out = append(out, desired.IPSetMember{Prefix: p})
			if from = last(p).Next(); !from.IsValid() || r.To.Less(from) {
				break
			}
		}
	}
	return out
}

// largest is the prefix of the most addresses that begins with from and goes no further than to.
func largest(from, to netip.Addr) netip.Prefix {
	p := netip.PrefixFrom(from, from.BitLen())
	for bits := p.Bits() - 1; bits > 0; bits-- {
		wider := netip.PrefixFrom(from, bits)
		if wider.Masked().Addr() != from || to.Less(last(wider)) {
			break
		}
		p = wider
	}
	return p
}

// last is the last address of a prefix.
func last(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// all are the members of a set that is new.
func (f family) all(d policy.SetDelta) []desired.IPSetMember {
	if d.Set.Kind == policy.RangeSet {
		return f.ranges(d.Set)
	}
	return f.members(d.Set, d.Add)
}
