package nftables

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/braidnet/braid/internal/desired"
	"github.com/braidnet/braid/internal/desired/nft"
	"github.com/braidnet/braid/netagent/policy"
	"github.com/google/nftables/expr"
)

// logFields says which fields of a log expression are set: 1 << NFTA_LOG_GROUP, …_PREFIX and …_SNAPLEN.
const logFields = 1<<1 | 1<<2 | 1<<3

// setName names the set that stands for one of the compiler's.
func setName(s *policy.Set) string {
	return map[policy.SetKind]string{policy.PodSet: "pods-", policy.PortSet: "ports-", policy.RangeSet: "ranges-"}[s.Kind] + s.ID
}

func sectionName(id string) string { return "policy-" + id }

func chainName(c *policy.Chain) string { return CountingChain(policy.MarkOf(c)) }

// set is the set in one family; what it holds are members.
func (f family) set(s *policy.Set) desired.NFTSet {
	out := desired.NFTSet{Name: setName(s), Key: []desired.NFTType{f.addr}, Interval: s.Kind == policy.RangeSet, Comment: clip(s.About)}
	if s.Kind == policy.PortSet {
		out.Key = append(out.Key, desired.NFTInetService)
	}
	return out
}

// member is a member of a PodSet or a PortSet.
func member(s *policy.Set, m policy.Member) desired.NFTElement {
	e := desired.NFTElement{Set: setName(s), Key: string(m.Addr.AsSlice())}
	if s.Kind == policy.PortSet {
		e.Key += string(append(binary.BigEndian.AppendUint16(nil, m.Port), 0, 0))
	}
	return e
}

// ranges are the elements of a RangeSet in one family.
func (f family) ranges(s *policy.Set) (out []desired.NFTElement) {
	for _, r := range s.Ranges {
		if !f.has(r.From) {
			continue
		}
		e := desired.NFTElement{Set: setName(s), Key: string(r.From.AsSlice())}
		if next := r.To.Next(); next.IsValid() {
			e.End = string(next.AsSlice())
		}
		out = append(out, e)
	}
	return out
}

func (f family) has(a netip.Addr) bool { return a.Is4() == (f.nft == desired.NFTIPv4) }

// entries are a pod's elements in the maps.
func (f family) entries(t policy.Target) (out []desired.NFTElement) {
	lead := func(c *policy.Chain) string {
		if c == nil {
			return chainOpen
		}
		return chainName(c)
	}
	for _, a := range t.Addrs {
		if f.has(a) {
			out = append(out,
				desired.NFTElement{Set: mapEgress, Key: string(a.AsSlice()), Goto: lead(t.Egress), Comment: clip(t.Pod.String())},
				desired.NFTElement{Set: mapIngress, Key: string(a.AsSlice()), Goto: lead(t.Ingress), Comment: clip(t.Pod.String())})
		}
	}
	return out
}

// list is the chain for a list of policies: each is asked, and what none allows is refused.
func (o Options) list(c *policy.Chain) desired.NFTChain {
	out := desired.NFTChain{Name: chainName(c)}
	for _, tier := range c.Tiers {
		for _, s := range tier.Sections {
			out.Rules = append(out.Rules, rule("policy "+s.Policy.String(), nft.Jump(sectionName(s.ID))))
		}
	}
	out.Rules = append(out.Rules, o.deny(policy.MarkOf(c), "no rule matches: "+c.Policies())...)
	return out
}

// deny are the rules at the end of a chain: a packet is told of, counted, and refused unless it is only audited.
func (o Options) deny(m policy.Mark, why string) (out []desired.NFTRule) {
	if o.Log {
		out = append(out, rule("tell of it", nft.Words{
			&expr.Limit{Type: expr.LimitTypePkts, Rate: policy.LogRate, Unit: expr.LimitTimeSecond, Burst: policy.LogBurst},
			&expr.Log{Key: logFields, Group: policy.LogGroup, Snaplen: policy.LogBytes, Data: []byte(m.String())},
		}))
	}
	verdict := nft.Goto(chainRefuse)
	if m.Audit {
		verdict = nft.Accept()
	}
	return append(out, rule(why, nft.Words{&expr.Counter{}}, verdict))
}

// CountingChain is the chain whose last rule counts the packets of a mark.
func CountingChain(m policy.Mark) string {
	switch {
	case m.Chain != "":
		return m.Direction.String() + "-" + m.Chain
	case m.Direction == policy.Egress:
		return chainNobodys
	}
	return chainToNobody
}

// section are the chains for what one policy says about one direction, those that others lead to first.
// A rule that has several peers and several ports leads from each peer to a chain with the ports, so
// that a packet is never compared with each of the one for each of the other.
func (f family) section(s *policy.Section) []desired.NFTChain {
	main := desired.NFTChain{Name: sectionName(s.ID)}
	var out []desired.NFTChain
	for i := range s.Rules {
		r := &s.Rules[i]
		about := fmt.Sprintf("%s %s rule %d", s.Policy.Key, s.Direction, r.Index)
		peers, ports := f.peers(s.Direction, r), f.ports(r)
		verdict := nft.Accept()
		if len(peers) > 1 && len(ports) > 1 {
			sub := desired.NFTChain{Name: fmt.Sprintf("%s-%d", main.Name, r.Index)}
			for _, p := range ports {
				sub.Rules = append(sub.Rules, allow(about, p, nft.Accept()))
			}
			out = append(out, sub)
			ports, verdict = []nft.Words{nil}, nft.Jump(sub.Name)
		}
		for _, peer := range peers {
			for _, port := range ports {
				main.Rules = append(main.Rules, allow(about, peer, port, verdict))
			}
		}
	}
	return append(out, main)
}

// allow is a rule of a policy. Its comment has a digest of what it does, since comments are what tells
// whether the kernel still has our rules.
func allow(about string, parts ...nft.Words) desired.NFTRule {
	r := rule("", parts...)
	r.Comment = clip(digest(r) + " " + about)
	return r
}

// peers are the ways in which the other end can match: none when it cannot.
func (f family) peers(dir policy.Direction, r *policy.Rule) (out []nft.Words) {
	if r.AnyPeer {
		return []nft.Words{nil}
	}
	other := f.source()
	if dir == policy.Egress {
		other = f.destination()
	}
	for _, s := range r.Peers {
		out = append(out, append(nft.Key(other), nft.In(setName(s))...))
	}
	return out
}

// ports are the ways in which the destination's port can match.
func (f family) ports(r *policy.Rule) (out []nft.Words) {
	if r.AnyPort {
		return []nft.Words{nil}
	}
	for _, p := range r.Ports {
		w := nft.Is(nft.Protocol, byte(p.Protocol))
		if p.From > 0 || p.To < 65535 {
			w = append(w, between(p.From, p.To)...)
		}
		out = append(out, w)
	}
	for _, s := range r.Named {
		w := nft.Is(nft.Protocol, byte(s.Protocol))
		w = append(w, nft.Key(f.destination(), nft.DestinationPort)...)
		out = append(out, append(w, nft.In(setName(s))...))
	}
	return out
}

// Uses reports whether a section has one of the sets or chains, by their names in the kernel.
func Uses(s *policy.Section, sets, chains []string) bool {
	name := sectionName(s.ID)
	if slices.ContainsFunc(chains, func(c string) bool { return c == name || strings.HasPrefix(c, name+"-") }) {
		return true
	}
	return slices.ContainsFunc(s.Rules, func(r policy.Rule) bool {
		return slices.ContainsFunc(slices.Concat(r.Peers, r.Named), func(x *policy.Set) bool { return slices.Contains(sets, setName(x)) })
	})
}
