// Package nftables translates compiled policies to nftables: a verdict map for each direction leads from
// a pod's address to the chain of the policies that isolate it, which asks one chain for each policy;
// their rules look the other end up in sets. A pod elsewhere that comes or goes is an element or two.
//
// The tables are our own, apart from those of services: these are made anew when something is wrong with
// them, and policy must not be gone meanwhile. Our chains see packets when services have translated
// the destination and before anybody replaces the source, so both ends are the pods'.
//
// What a pod sends is judged in one base chain and what it gets in another: "accept" ends only the
// chain it is in, so a packet between two pods of the node is judged by both.
//
// Isolation is the empty state. Only addresses in the maps are let through the pods' bridge, so one that
// nobody has told of is refused. Dispatch is by address, because the node's IP stack sees all pods behind one
// bridge; that the address is the pod's own is for the anti-spoofing of the CNI plugin to see to.
//
// The package is pure: it makes lists of kernel changes and never touches the kernel.
package nftables

import (
	"crypto/sha256"
	"fmt"

	"github.com/braidnet/braid/internal/desired"
	"github.com/braidnet/braid/internal/desired/nft"
	"github.com/braidnet/braid/netagent/policy"
	"github.com/google/nftables/expr"
)

// TableName is the name of our tables, one for each family.
const TableName = desired.PolicyTable

// Families lists the families that tables are made for.
var Families = []desired.NFTFamily{desired.NFTIPv4, desired.NFTIPv6}

// Names of maps and chains. Those that come and go have a word and an ID.
const (
	mapEgress, mapIngress = desired.PolicyEgress, desired.PolicyIngress // a pod's address → chain
	chainFromPods         = "from-pods"
	chainToPods           = "to-pods"
	chainToNode           = "to-node"
	chainNobodys          = "from-unknown"
	chainToNobody         = "to-unknown"
	chainOpen             = "open"
	chainRefuse           = "refuse"
)

// Netfilter hooks (include/uapi/linux/netfilter.h) and priorities: that which nft calls filter, and the next one.
const (
	hookInput      = 1
	hookForward    = 2
	priorityFilter = 0
)

// Transport protocols (IANA).
const tcp, icmpv6 = 6, 58

// Messages that IPv6 cannot do without (RFC 4890 §4.4.1): multicast listener reports to the node, and neighbour discovery.
var (
	discovery = []byte{135, 136}
	toNode    = append([]byte{130, 131, 132, 133, 134, 143}, discovery...)
)

// Options say how a node's policy is enforced.
type Options struct {
	Bridge string // the interface behind which pods of the node are
	Links  string // how the names of the pods' links begin: those on the bridge, and those that are routed
	Drop   bool   // denied packets vanish, instead of being refused
	Log    bool   // denied packets are told of, see policy.Mark
	Owned  bool   // nobody but the agent can change the tables, see desired.NFTTable
}

// family holds what differs between IPv4 and IPv6.
type family struct {
	nft          desired.NFTFamily
	addr         desired.NFTType
	saddr, daddr uint32 // offsets of the addresses in the network header, bytes
	prohibited   uint8  // ICMP "administratively prohibited": type 3 code 13 (RFC 1812), type 1 code 1 (RFC 4443)
}

var families = map[desired.NFTFamily]family{
	desired.NFTIPv4: {desired.NFTIPv4, desired.NFTIPv4Addr, 12, 16, 13},
	desired.NFTIPv6: {desired.NFTIPv6, desired.NFTIPv6Addr, 8, 24, 1},
}

// Skeleton is the static part of our table in one family. Its comment ends in a digest of it, so that a
// table of another version of Braid, or with other options, is recognised.
func Skeleton(nf desired.NFTFamily, o Options) desired.NFTTable {
	f := families[nf]
	verdict, addr := []desired.NFTType{desired.NFTVerdict}, []desired.NFTType{f.addr}
	from := nft.Link(expr.MetaKeyIIFNAME, o.Bridge)
	hook := func(number uint32, priority int32) *desired.NFTHook {
		return &desired.NFTHook{Type: "filter", Hook: number, Priority: priority}
	}
	refuse := desired.NFTChain{Name: chainRefuse, Rules: []desired.NFTRule{
		// Where br_netfilter is at work, what a pod sends bears the mark of the bridge, and a reset would go straight back to
		// the sender with the pod's address as its source instead of the service's.
		rule("refuse at once, through the translation of services", from, nft.Translated(), nft.Words{&expr.Reject{Type: nft.RejectICMP, Code: f.prohibited}}),
		rule("refuse at once", nft.Is(nft.Protocol, tcp), nft.Words{&expr.Reject{Type: nft.RejectReset}}),
		rule("refuse at once", nft.Words{&expr.Reject{Type: nft.RejectICMP, Code: f.prohibited}}),
	}}
	if o.Drop {
		refuse.Rules = []desired.NFTRule{rule("drop", nft.Drop())}
	}
	t := desired.NFTTable{Family: nf, Name: TableName, Owned: o.Owned,
		Sets: []desired.NFTSet{
			{Name: mapEgress, Key: addr, Value: verdict, Comment: "pods of this node: chain for what they send"},
			{Name: mapIngress, Key: addr, Value: verdict, Comment: "pods of this node: chain for what they get"},
		},
		Chains: []desired.NFTChain{
			{Name: chainFromPods, Hook: hook(hookForward, priorityFilter), Rules: f.entry(discovery,
				o.pods(expr.MetaKeyIIFNAME, "a pod's", nft.Key(f.source()), mapEgress, chainNobodys)...)},
			{Name: chainToPods, Hook: hook(hookForward, priorityFilter+1), Rules: f.entry(discovery,
				o.pods(expr.MetaKeyOIFNAME, "to a pod", nft.Key(f.destination()), mapIngress, chainToNobody)...)},
			{Name: chainToNode, Hook: hook(hookInput, priorityFilter), Rules: f.entry(toNode,
				o.pods(expr.MetaKeyIIFNAME, "a pod's", nft.Key(f.source()), mapEgress, chainNobodys)...)},
			{Name: chainNobodys, Rules: o.deny(policy.Mark{Direction: policy.Egress}, "a pod's that is not known")},
			{Name: chainToNobody, Rules: o.deny(policy.Mark{Direction: policy.Ingress}, "to a pod that is not known")},
			{Name: chainOpen, Rules: []desired.NFTRule{rule("no policy isolates the pod", nft.Accept())}},
			refuse,
		},
	}
	t.Comment = layout(&t)
	return t
}

// pods looks up what isolates a pod, in what passes the pods' bridge or a routed pod's link; who is not known goes on
// in another chain.
func (o Options) pods(side expr.MetaKey, about string, address nft.Words, in, unknown string) (out []desired.NFTRule) {
	links := []nft.Words{nft.Link(side, o.Bridge)}
	if o.Links != "" {
		links = append(links, nft.LinkPrefix(side, o.Links))
	}
	for _, l := range links {
		out = append(out, rule(about+": what isolates it", l, address, nft.VerdictOf(in)), rule(about+" that is not known", l, nft.Goto(unknown)))
	}
	return out
}

// BaseChains names the chains by which packets come into our table.
func BaseChains(f desired.NFTFamily) []string {
	if f == desired.NFTBridge {
		return []string{chainFromPods}
	}
	return []string{chainFromPods, chainToPods, chainToNode}
}

// layout is a table's comment: it ends in a digest of everything static.
func layout(t *desired.NFTTable) string {
	h := sha256.New()
	fmt.Fprintf(h, "%v %v %+v\n", t.Family, t.Owned, t.Sets)
	for _, c := range t.Chains {
		fmt.Fprintf(h, "chain %s %+v\n", c.Name, c.Hook)
		for _, r := range c.Rules {
			fmt.Fprintf(h, "%s %s\n", digest(r), r.Comment)
		}
	}
	return fmt.Sprintf("Braid policy, layout %x", h.Sum(nil)[:8])
}

// entry begins a base chain with what policy has no say in, and goes on with rules.
func (f family) entry(messages []byte, rules ...desired.NFTRule) (out []desired.NFTRule) {
	out = append(out, rule("replies, and errors about what was allowed", nft.State(nft.CtEstablished|nft.CtRelated), nft.Accept()))
	if f.nft == desired.NFTIPv6 {
		for _, m := range messages {
			out = append(out, rule("neighbours", nft.Is(nft.Protocol, icmpv6), nft.Is(nft.MessageType, m), nft.Accept()))
		}
	}
	return append(out, rules...)
}

// digest identifies a rule by its expressions.
func digest(r desired.NFTRule) string {
	h := sha256.New()
	for _, e := range r.Exprs {
		fmt.Fprintf(h, "%T%+v ", e, e)
	}
	return fmt.Sprintf("%x", h.Sum(nil)[:4])
}
