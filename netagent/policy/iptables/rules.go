// Package iptables translates compiled policies to iptables rules and ipsets, for kernels without nftables and nodes
// whose services are in mode iptables. A first packet walks
//
//	FORWARD -> BRAIDPOL-FORWARD -> BRAIDPOL-FROM, when a pod sent it  -> BRAIDPOL-<hash>
//	                            -> BRAIDPOL-TO, when a pod is to get it -> BRAIDPOL-<hash>
//	INPUT   -> BRAIDPOL-INPUT   -> BRAIDPOL-FROM
//
// There is a chain for each list of policies that isolates a pod of this node in one direction, and a set with the
// pods' addresses that leads to it; the list of no policies has a set too, and an address in none is refused. So
// isolation is what there is without an agent, and a pod that comes or goes is a few members of sets. Which pods are on the
// other side is asked of sets that all rules share.
//
// "Allowed" is RETURN: it ends one chain only, so that what a pod sends and what another gets are both judged, and other
// programs' rules still are. That takes no packet mark, which others may use, and a chain has the rules of all policies of
// its list in it: from a chain of its own a rule could not return that far. Our rules come first in FORWARD and INPUT, since
// what others accept before we could not refuse.
//
// One restore changes all rules of a family at once, but sets are changed one by one. How a Plan is ordered makes up for it.
//
// The package is pure: it makes the input of tools and lists of kernel changes, and never touches the kernel.
package iptables

import (
	"crypto/sha256"
	"encoding/base32"
	"fmt"
	"slices"
	"strings"

	"github.com/braidnet/braid/internal/desired/xt"
	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/netagent/policy"
)

// Table is the table that our chains are in: the one whose rules may refuse.
const Table = "filter"

// Chains that always exist. Names may have 28 characters at most (XT_EXTENSION_MAXNAMELEN less NUL).
const (
	chainForward = xt.PolicyPrefix + "FORWARD"
	chainInput   = xt.PolicyPrefix + "INPUT"
	chainFrom    = xt.PolicyPrefix + "FROM"
	chainTo      = xt.PolicyPrefix + "TO"
	chainRefuse  = xt.PolicyPrefix + "REFUSE"
)

// jumps are our rules in chains of the kernel, each the first there.
var jumps = map[string]string{
	"FORWARD": xt.Rule(xt.Comment("braid policy"), "-j "+chainForward),
	"INPUT":   xt.Rule(xt.Comment("braid policy"), "-j "+chainInput),
}

// Options say how a node's policy is enforced.
type Options struct {
	Bridge string // the interface behind which pods of the node are
	Links  string // how the names of their own links begin, which pods without a bridge are behind
	Drop   bool   // denied packets vanish, instead of being refused
	Log    bool   // denied packets are told of, see policy.Mark
}

// Messages that IPv6 cannot do without (RFC 4890 §4.4.1): multicast listener reports to the node, and neighbour discovery.
var (
	discovery = []int{135, 136}
	toNode    = append([]int{130, 131, 132, 133, 134, 143}, discovery...)
)

// family holds what differs between IPv4 and IPv6.
type family struct {
	ipv6       bool
	sets       string // beginning of the names of our sets
	prohibited string // ICMP "administratively prohibited"
}

var families = map[bool]family{
	false: {false, SetPrefix + "4-", "icmp-admin-prohibited"},
	true:  {true, SetPrefix + "6-", "icmp6-adm-prohibited"},
}

// skeleton are the chains that depend on no policy.
func (f family) skeleton(o Options) map[string][]string {
	from := []string{
		xt.Rule("-i "+o.Bridge, xt.Comment("a pod sent it"), "-j "+chainFrom),
		xt.Rule("-i "+o.Links+"+", xt.Comment("a pod sent it"), "-j "+chainFrom),
	}
	to := []string{
		xt.Rule("-o "+o.Bridge, xt.Comment("a pod is to get it"), "-j "+chainTo),
		xt.Rule("-o "+o.Links+"+", xt.Comment("a pod is to get it"), "-j "+chainTo),
	}
	refuse := []string{
		// Where br_netfilter is at work, what a pod sends bears the mark of the bridge, and a reset would go straight back to
		// the sender with the pod's address as its source instead of the service's.
		xt.Rule("-i "+o.Bridge, "-m conntrack --ctstate DNAT", xt.Comment("refuse at once, through the translation of services"), "-j REJECT --reject-with "+f.prohibited),
		xt.Rule("-p tcp", xt.Comment("refuse at once"), "-j REJECT --reject-with tcp-reset"),
		xt.Rule(xt.Comment("refuse at once"), "-j REJECT --reject-with "+f.prohibited),
	}
	if o.Drop {
		refuse = []string{"-j DROP"}
	}
	return map[string][]string{
		chainForward: slices.Concat(f.entry(discovery), from, to),
		chainInput:   slices.Concat(f.entry(toNode), from),
		chainRefuse:  refuse,
	}
}

// entry begins a chain with what policy has no say in.
func (f family) entry(messages []int) []string {
	out := []string{xt.Rule("-m conntrack --ctstate RELATED,ESTABLISHED", xt.Comment("replies, and errors about what was allowed"), "-j RETURN")}
	if f.ipv6 {
		for _, m := range messages {
			out = append(out, xt.Rule("-p ipv6-icmp", fmt.Sprintf("-m icmp6 --icmpv6-type %d", m), xt.Comment("neighbours"), "-j RETURN"))
		}
	}
	return out
}

// list is what isolates pods in one direction: the ID of a policy.Chain, "" for none.
type list struct {
	direction policy.Direction
	chain     string
}

// short makes of an ID what fits into the kernel's names, with all of its bits.
func short(id string) string {
	sum := sha256.Sum256([]byte(id))
	return base32.StdEncoding.EncodeToString(sum[:10])
}

func chainName(id string) string { return xt.PolicyPrefix + short(id) }

// dispatch is the chain that leads addresses of pods to their lists, whose sets have the versions of inForce.
func (f family) dispatch(o Options, dir policy.Direction, inForce map[list]version, chains map[string]*policy.Chain) []string {
	end := "src"
	if dir == policy.Ingress {
		end = "dst"
	}
	match := func(l list) string {
		return fmt.Sprintf("-m set --match-set %s %s", f.podsName(l, inForce[l]), end)
	}
	out := []string{xt.Rule(match(list{dir, ""}), xt.Comment("no policy isolates the pod"), "-j RETURN")}
	for _, id := range xt.SortedNames(chains) {
		if c := chains[id]; c.Direction == dir {
			out = append(out, xt.Rule(match(list{dir, id}), xt.Comment(c.Policies()), "-g "+chainName(id)))
		}
	}
	return append(out, o.deny(policy.Mark{Direction: dir}, "a pod that is not known")...)
}

// rulesOf is the chain for a list of policies, ending in what becomes of packets that none allows.
func (f family) rulesOf(o Options, c *policy.Chain, sections map[string]*policy.Section) (out []string) {
	for _, tier := range c.Tiers {
		for _, ref := range tier.Sections {
			if s := sections[ref.ID]; s != nil {
				out = append(out, f.section(s)...)
			}
		}
	}
	return append(out, o.deny(policy.MarkOf(c), "no rule matches: "+c.Policies())...)
}

// deny are the rules at the end of a chain: a packet is told of, and refused unless it is only audited. The counter of
// the last one says how many there were.
func (o Options) deny(m policy.Mark, why string) (out []string) {
	if o.Log {
		out = append(out, xt.Rule(fmt.Sprintf("-m limit --limit %d/sec --limit-burst %d", policy.LogRate, policy.LogBurst), xt.Comment("tell of it"),
			fmt.Sprintf("-j NFLOG --nflog-prefix %q --nflog-group %d --nflog-size %d", m, policy.LogGroup, policy.LogBytes)))
	}
	verdict := "-g " + chainRefuse
	if m.Audit {
		verdict = "-j RETURN"
	}
	return append(out, xt.Rule(xt.Comment(why), verdict))
}

// CountingChain is the chain whose last rule counts the packets of a mark.
func CountingChain(m policy.Mark) string {
	switch {
	case m.Chain != "":
		return chainName(m.Chain)
	case m.Direction == policy.Egress:
		return chainFrom
	}
	return chainTo
}

// section is what one policy allows in one direction.
func (f family) section(s *policy.Section) (out []string) {
	for i := range s.Rules {
		r := &s.Rules[i]
		about := xt.Comment(fmt.Sprintf("%s %s rule %d", s.Policy.Key, s.Direction, r.Index))
		for _, peer := range f.peers(s.Direction, r) {
			for _, port := range f.ports(r) {
				out = append(out, xt.Rule(port.protocol, peer, port.match, about, "-j RETURN"))
			}
		}
	}
	return out
}

// peers are the ways in which the other end can match: none when it cannot.
func (f family) peers(dir policy.Direction, r *policy.Rule) (out []string) {
	if r.AnyPeer {
		return []string{""}
	}
	other := "src"
	if dir == policy.Egress {
		other = "dst"
	}
	for _, s := range r.Peers {
		out = append(out, fmt.Sprintf("-m set --match-set %s %s", f.setName(s), other))
	}
	return out
}

// portMatch is a way in which the destination's port can match.
type portMatch struct{ protocol, match string }

// multiportMax is how many numbers the match multiport takes; a range is two (XT_MULTI_PORTS).
const multiportMax = 15

func (f family) ports(r *policy.Rule) (out []portMatch) {
	if r.AnyPort {
		return []portMatch{{}}
	}
	name := func(p model.Protocol) string { return "-p " + strings.ToLower(p.String()) }
	for rest := r.Ports; len(rest) > 0; {
		p := rest[0].Protocol
		if rest[0].From == 0 && rest[0].To == 65535 {
			out, rest = append(out, portMatch{name(p), ""}), rest[1:]
			continue
		}
		var texts []string
		for numbers := 0; len(rest) > 0 && rest[0].Protocol == p && numbers < multiportMax; rest = rest[1:] {
			text, n := fmt.Sprint(rest[0].From), 1
			if rest[0].To != rest[0].From {
				text, n = fmt.Sprintf("%d:%d", rest[0].From, rest[0].To), 2
			}
			if numbers+n > multiportMax {
				break
			}
			texts, numbers = append(texts, text), numbers+n
		}
		out = append(out, portMatch{name(p), "-m multiport --dports " + strings.Join(texts, ",")})
	}
	for _, s := range r.Named {
		out = append(out, portMatch{name(s.Protocol), fmt.Sprintf("-m set --match-set %s dst,dst", f.setName(s))})
	}
	return out
}

// Uses reports whether a section is to blame for what the kernel or the tool refused: a set, or a line of the input
// ("-A CHAIN rule"), empty for none.
func Uses(s *policy.Section, set, line string) bool {
	for _, f := range families {
		for i := range s.Rules {
			for _, x := range slices.Concat(s.Rules[i].Peers, s.Rules[i].Named) {
				if f.setName(x) == set {
					return true
				}
			}
		}
		if _, rule, ok := strings.Cut(strings.TrimPrefix(line, "-A "), " "); ok && strings.HasPrefix(line, "-A ") && slices.Contains(f.section(s), rule) {
			return true
		}
	}
	return false
}
