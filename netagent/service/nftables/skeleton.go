package nftables

import (
	"crypto/sha256"
	"fmt"
	"strings"

	"github.com/braidnet/braid/internal/desired"
)

// Netfilter hooks (include/uapi/linux/netfilter.h) and the priorities nft calls dstnat and srcnat.
const (
	hookPrerouting  = 0
	hookOutput      = 3
	hookPostrouting = 4
	priorityDNAT    = -100
	prioritySNAT    = 100
)

// Skeleton is the static part of our table in one family. Its comment ends in a digest of everything
// static, so that a table of another version of Braid is recognised.
func Skeleton(f desired.NFTFamily) desired.NFTTable {
	t := desired.NFTTable{Family: f, Name: TableName, Sets: families[f].sets(), Chains: families[f].chains()}
	t.Comment = "Braid services, layout " + digest(&t)
	return t
}

func (f family) sets() []desired.NFTSet {
	service := []desired.NFTType{f.addr, desired.NFTInetProto, desired.NFTInetService}
	node := service[1:]
	chain := []desired.NFTType{desired.NFTVerdict}
	target := []desired.NFTType{f.addr, desired.NFTInetService}
	slot := func(key []desired.NFTType) []desired.NFTType {
		return append(append([]desired.NFTType(nil), key...), desired.NFTMark)
	}
	return []desired.NFTSet{
		{Name: setFrontends, Key: service, Value: chain, Comment: "service addresses: chain for the number of backends"},
		{Name: setSlots, Key: slot(service), Value: target, Comment: "service address and a number below that of its backends: backend"},
		{Name: setRejected, Key: service, Comment: "services without endpoints"},
		{Name: setDropped, Key: service, Comment: "services whose endpoints may not be used from here"},
		{Name: setNodeFrontends, Key: node, Value: chain, Comment: "node ports: as frontends"},
		{Name: setNodeSlots, Key: slot(node), Value: target, Comment: "node ports: as slots"},
		{Name: setNodeRejected, Key: node, Comment: "node ports without endpoints"},
		{Name: setNodeDropped, Key: node, Comment: "node ports whose endpoints may not be used from here"},
		{Name: setHairpins, Key: []desired.NFTType{f.addr, f.addr}, Comment: "backends on this node, which may reach themselves through a service"},
		{Name: setLocalPods, Key: []desired.NFTType{f.addr}, Interval: true, Comment: "pod addresses of this node"},
		{Name: setClusterPods, Key: []desired.NFTType{f.addr}, Interval: true, Comment: "pod addresses of all nodes"},
	}
}

func (f family) chains() []desired.NFTChain {
	chains := append(f.filterChains(), f.natChains()...)
	for _, node := range []bool{false, true} {
		// Every pick chain falls back on the one for a single backend, so that one is always there.
		chains = append(chains, Pick{Family: f.nft, Node: node, Backends: 1}.Chains()...)
	}
	return chains
}

// filterChains refuse connections to frontends without backends. They run before translation,
// while packets still carry the frontend's address.
func (f family) filterChains() []desired.NFTChain {
	service, node := key(f.destination(), protocol, destinationPort), key(protocol, destinationPort)
	const before = priorityDNAT - 10
	refuse := []desired.NFTRule{rule("connections to services without backends", newConnection(), goTo(chainNoBackends))}
	return []desired.NFTChain{
		{Name: chainRefuse, Rules: []desired.NFTRule{
			rule("refuse at once", isTCP(), reset()),
			rule("refuse at once", f.unreachable()),
		}},
		{Name: chainNodeNoBackends, Rules: []desired.NFTRule{
			rule("node port without endpoints", node, in(setNodeRejected), goTo(chainRefuse)),
			rule("node port with endpoints elsewhere only", node, in(setNodeDropped), drop()),
		}},
		{Name: chainNoBackends, Rules: []desired.NFTRule{
			rule("service without endpoints", service, in(setRejected), goTo(chainRefuse)),
			rule("service with endpoints elsewhere only", service, in(setDropped), drop()),
			rule("node ports are not served on loopback addresses", f.towards(f.loopback, true), leave()),
			rule("an address of this node: node ports", localDestination(), goTo(chainNodeNoBackends)),
		}},
		{Name: chainFilterPrerouting, Hook: &desired.NFTHook{Type: "filter", Hook: hookPrerouting, Priority: before}, Rules: refuse},
		{Name: chainFilterOutput, Hook: &desired.NFTHook{Type: "filter", Hook: hookOutput, Priority: before}, Rules: refuse},
	}
}

func (f family) natChains() []desired.NFTChain {
	service, node := key(f.destination(), protocol, destinationPort), key(protocol, destinationPort)
	enter := []desired.NFTRule{rule("new connections to services", jump(chainServices))}
	return []desired.NFTChain{
		{Name: chainServices, Rules: []desired.NFTRule{
			rule("service address: chain for its number of backends", service, verdict(setFrontends)),
			rule("node ports are not served on loopback addresses", f.towards(f.loopback, true), leave()),
			rule("node port: chain for its number of backends", localDestination(), node, verdict(setNodeFrontends)),
		}},
		{Name: chainPrerouting, Hook: &desired.NFTHook{Type: "nat", Hook: hookPrerouting, Priority: priorityDNAT}, Rules: enter},
		{Name: chainOutput, Hook: &desired.NFTHook{Type: "nat", Hook: hookOutput, Priority: priorityDNAT}, Rules: enter},
		{Name: chainMasquerade, Rules: []desired.NFTRule{
			rule("the mark has done its work", setMark(false)),
			rule("replace the source by the node's address", masquerade()),
		}},
		{Name: chainPostrouting, Hook: &desired.NFTHook{Type: "nat", Hook: hookPostrouting, Priority: prioritySNAT}, Rules: []desired.NFTRule{
			rule("service connections whose replies must come back through here", key(mark), anyBit(MasqueradeMark), goTo(chainMasquerade)),
			rule("a backend that reaches itself through a service", key(f.source(), f.destination()), in(setHairpins), destinationTranslated(), goTo(chainMasquerade)),
			rule("pods to the world outside", key(f.source()), in(setLocalPods), key(f.destination()), notIn(setClusterPods),
				f.towards(f.multicast, false), goTo(chainMasquerade)),
		}},
	}
}

// Chains are the chains that frontends with this number of backends need, those that others lead to
// first.
//
// Lookups of one packet are not one moment for the kernel: a transaction may land between finding
// the chain and the slot, and the slot drawn may be gone. Such a packet takes slot 0, which every frontend
// with backends has; and should even that be gone it is dropped rather than let through, because a
// connection once tracked without translation would stay so for all its retries.
func (p Pick) Chains() []desired.NFTChain {
	f := families[p.Family]
	pick := p
	pick.Masquerade = false
	fields := []field{protocol, destinationPort, random(p.Backends)}
	if !p.Node {
		fields = append([]field{f.destination()}, fields...)
	}
	last := rule("no backend any more: the client's retry decides anew", drop())
	if p.Backends > 1 {
		one := pick
		one.Backends = 1
		last = rule("the backend drawn left just now", goTo(one.chain()))
	}
	chains := []desired.NFTChain{{Name: pick.chain(), Rules: []desired.NFTRule{
		rule("source is no pod of this node: masquerade", key(f.source()), notIn(setLocalPods), setMark(true)),
		rule("to one of the backends at random", key(fields...), mapped(p.set(setSlots, setNodeSlots)), f.translate()),
		last,
	}}}
	if p.Masquerade {
		chains = append(chains, desired.NFTChain{Name: p.chain(), Rules: []desired.NFTRule{
			rule("every source: masquerade", setMark(true)),
			rule("", goTo(pick.chain())),
		}})
	}
	return chains
}

// digest identifies everything static: the skeleton, and one of each kind of pick chain.
func digest(t *desired.NFTTable) string {
	h := sha256.New()
	fmt.Fprintf(h, "%v %+v\n", t.Family, t.Sets)
	chains := t.Chains
	for _, node := range []bool{false, true} {
		chains = append(chains, Pick{t.Family, node, true, 2}.Chains()...)
	}
	for _, c := range chains {
		fmt.Fprintf(h, "chain %s %+v\n", c.Name, c.Hook)
		for _, r := range c.Rules {
			var words strings.Builder
			for _, e := range r.Exprs {
				fmt.Fprintf(&words, "%T%+v ", e, e)
			}
			fmt.Fprintf(h, "%s # %s\n", words.String(), r.Comment)
		}
	}
	return fmt.Sprintf("%x", h.Sum(nil)[:8])
}

// intact reports whether the kernel holds the skeleton of this version with its rules, and says
// what is wrong if not.
func intact(t *desired.NFTTable, have *desired.NFTContents) error {
	if have.Comment != t.Comment {
		return fmt.Errorf("its layout is %q, ours is %q", have.Comment, t.Comment)
	}
	for _, s := range t.Sets {
		if !have.Sets[s.Name] {
			return fmt.Errorf("set %s is missing", s.Name)
		}
	}
	if len(have.Sets) != len(t.Sets) {
		return fmt.Errorf("it has %d sets instead of %d", len(have.Sets), len(t.Sets))
	}
	static := map[string]bool{}
	for _, c := range t.Chains {
		static[c.Name] = true
		if err := sameRules(&c, have); err != nil {
			return err
		}
	}
	for name := range have.Rules {
		if static[name] {
			continue
		}
		p, ok := parsePick(t.Family, name)
		if !ok {
			return fmt.Errorf("chain %s is not ours", name)
		}
		for _, c := range p.Chains() {
			if err := sameRules(&c, have); err != nil {
				return err
			}
		}
	}
	return nil
}

// sameRules compares the comments of a chain's rules: the kernel gives expressions back in another
// form than it took them, and whoever alters our rules does not forge comments.
func sameRules(c *desired.NFTChain, have *desired.NFTContents) error {
	rules, ok := have.Rules[c.Name]
	if !ok {
		return fmt.Errorf("chain %s is missing", c.Name)
	}
	if len(rules) != len(c.Rules) {
		return fmt.Errorf("chain %s has %d rules instead of %d", c.Name, len(rules), len(c.Rules))
	}
	for i, r := range c.Rules {
		if rules[i] != r.Comment {
			return fmt.Errorf("rule %d of chain %s is not ours", i+1, c.Name)
		}
	}
	return nil
}

// parsePick is the inverse of Pick.chain.
func parsePick(f desired.NFTFamily, chain string) (Pick, bool) {
	p := Pick{Family: f}
	rest := chain
	rest, p.Node = strings.CutPrefix(rest, "node-")
	rest, p.Masquerade = strings.CutPrefix(rest, masqueradeWord+"-")
	if !p.Masquerade {
		rest = strings.TrimPrefix(rest, pickWord+"-")
	}
	_, err := fmt.Sscanf(rest, "%d", &p.Backends)
	return p, err == nil && p.Backends > 0 && p.chain() == chain
}
