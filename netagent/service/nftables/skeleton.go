package nftables

import (
	"slices"

	"github.com/braidnet/braid/internal/desired"
	"github.com/braidnet/braid/internal/desired/nft"
)

// Netfilter hooks (include/uapi/linux/netfilter.h) and the priorities nft calls raw, dstnat and srcnat.
const (
	hookPrerouting  = 0
	hookOutput      = 3
	hookPostrouting = 4
	priorityRaw     = -300
	priorityDNAT    = -100
	prioritySNAT    = 100
)

// Skeleton is the static part of our table in one family. Its comment ends in a digest of everything
// static, so that a table of another version of Braid is recognised. Liberal is for a conntrack that is told
// to be so (net.netfilter.nf_conntrack_tcp_be_liberal): packets that it does not understand are left alone.
func Skeleton(f desired.NFTFamily, liberal bool) desired.NFTTable {
	t := desired.NFTTable{Family: f, Name: TableName, Sets: families[f].sets(), Chains: families[f].chains(liberal)}
	t.Comment = "Braid services, layout " + digest(&t)
	return t
}

func (f family) sets() (sets []desired.NFTSet) {
	service := []desired.NFTType{f.addr, desired.NFTInetProto, desired.NFTInetService}
	chain := []desired.NFTType{desired.NFTVerdict}
	target := []desired.NFTType{f.addr, desired.NFTInetService}
	number := []desired.NFTType{desired.NFTMark}
	for _, node := range []bool{false, true} {
		front, what := service, "service addresses"
		if node {
			front, what = service[1:], "node ports"
		}
		sets = append(sets,
			desired.NFTSet{Name: setFor(node, setFrontends), Key: front, Value: chain, Comment: what + ": chain for the number of backends"},
			desired.NFTSet{Name: setFor(node, setInside), Key: front, Value: chain, Comment: what + ": chain for pods of this node, where they take another way"},
			desired.NFTSet{Name: setFor(node, setSlots), Key: slices.Concat(front, number), Value: target, Comment: what + " and a number below that of their backends: backend"},
			desired.NFTSet{Name: setFor(node, setFiltered), Key: front, Value: chain, Comment: what + " for some sources only: chain for these"},
			desired.NFTSet{Name: setFor(node, setRejected), Key: front, Comment: what + " without endpoints"},
			desired.NFTSet{Name: setFor(node, setDropped), Key: front, Comment: what + " whose endpoints may not be used from here"},
			desired.NFTSet{Name: setFor(node, setSessions), Key: front, Value: slices.Concat(number, number), Comment: what + " with session affinity: zero, and a number for the service port"},
			desired.NFTSet{Name: setFor(node, setUsable), Key: slices.Concat(front, target), Comment: what + " with session affinity: backend"},
			desired.NFTSet{Name: setFor(node, setUsableInside), Key: slices.Concat(front, target), Comment: what + " with session affinity: backend for pods of this node"},
		)
	}
	one := []desired.NFTType{f.addr}
	return append(sets,
		desired.NFTSet{Name: setAffinity, Key: slices.Concat(one, number), Value: slices.Concat(target[1:], target), Dynamic: affinityLimit, Comment: "client and number of the service port: a port it asked for, the backend it got"},
		desired.NFTSet{Name: setClusterIPs, Key: one, Comment: "cluster IPs of services, with or without endpoints"},
		desired.NFTSet{Name: setHairpins, Key: slices.Concat(one, one), Comment: "backends on this node, which may reach themselves through a service"},
		desired.NFTSet{Name: setLocalPods, Key: one, Interval: true, Comment: "pod addresses of this node"},
		desired.NFTSet{Name: setPodSources, Key: one, Interval: true, Comment: "sources that count as pods of this node"},
		desired.NFTSet{Name: setPodLinks, Key: []desired.NFTType{desired.NFTIfName}, Interval: true, Comment: "devices by which pods of this node come in, where these count"},
		desired.NFTSet{Name: setClusterPods, Key: one, Interval: true, Comment: "pod addresses of all nodes"},
		desired.NFTSet{Name: setServiceRanges, Key: one, Interval: true, Comment: "where cluster IPs come from"},
		desired.NFTSet{Name: setNodeAddresses, Key: one, Interval: true, Comment: "those of this node's addresses that serve node ports"},
	)
}

func (f family) chains(liberal bool) []desired.NFTChain {
	chains := append(f.filterChains(liberal), f.natChains()...)
	for _, node := range []bool{false, true} {
		// All fall back on the chains for a single backend, so these are always there.
		for _, w := range []word{wordChoose, wordInside} {
			chains = append(chains, Pick{family: f.nft, node: node, word: w, backends: 1}.choose())
		}
	}
	return chains
}

// nodePorts are rules that lead packets to this node on to what to says about node ports.
func (f family) nodePorts(comment string, to ...nft.Words) []desired.NFTRule {
	match := []nft.Words{nft.LocalDestination(), nft.Key(f.destination()), nft.In(setNodeAddresses)}
	return []desired.NFTRule{nft.Rule(comment, append(match, to...)...)}
}

// filterChains refuse connections to frontends without backends, and drop those from sources that may
// not use the frontend. They run before translation, while packets still carry the frontend's address.
func (f family) filterChains(liberal bool) []desired.NFTChain {
	service, node := nft.Key(f.front(false)...), nft.Key(f.front(true)...)
	const before = priorityDNAT - 10
	// The node's own connections to a backend that is the node itself come in again, translated, by loopback.
	enter := []desired.NFTRule{nft.Rule("new connections: are they welcome", nft.State(nft.CtNew), nft.Untranslated(), nft.Goto(chainNew))}
	if !liberal {
		enter = append(enter, nft.Rule("what connection tracking cannot place", isTCP(), nft.State(nft.CtInvalid), nft.Goto(chainInvalid)))
	}
	return []desired.NFTChain{
		{Name: chainRefuse, Rules: []desired.NFTRule{
			nft.Rule("refuse at once", isTCP(), reset()),
			nft.Rule("refuse at once", f.unreachable()),
		}},
		{Name: setFor(true, chainNoBackends), Rules: []desired.NFTRule{
			nft.Rule("node port without endpoints", node, nft.In(setFor(true, setRejected)), nft.Goto(chainRefuse)),
			nft.Rule("node port with endpoints elsewhere only", node, nft.In(setFor(true, setDropped)), nft.Drop()),
		}},
		{Name: setFor(true, chainNew), Rules: []desired.NFTRule{
			nft.Rule("for some sources only: chain for these", node, nft.VerdictOf(setFor(true, setFiltered))),
			nft.Rule("", nft.Goto(setFor(true, chainNoBackends))),
		}},
		{Name: chainNoBackends, Rules: append([]desired.NFTRule{
			nft.Rule("service without endpoints", service, nft.In(setRejected), nft.Goto(chainRefuse)),
			nft.Rule("service with endpoints elsewhere only", service, nft.In(setDropped), nft.Drop()),
		}, f.nodePorts("an address of this node: node ports", nft.Goto(setFor(true, chainNew)))...)},
		{Name: chainNew, Rules: []desired.NFTRule{
			nft.Rule("for some sources only: chain for these", service, nft.VerdictOf(setFiltered)),
			nft.Rule("", nft.Goto(chainNoBackends)),
		}},
		{Name: chainInvalid, Rules: f.invalid()},
		{Name: chainFilterPrerouting, Hook: &desired.NFTHook{Type: "filter", Hook: hookPrerouting, Priority: before}, Rules: enter},
		{Name: chainFilterOutput, Hook: &desired.NFTHook{Type: "filter", Hook: hookOutput, Priority: before}, Rules: enter},
	}
}

// invalid are rules for TCP packets that connection tracking cannot place, a segment outside of the
// window, say. Such a packet is not translated. A backend's would reach a client, or this node for a
// connection that was given its address, as if it were of another connection, and be answered with a reset that ends the
// real one (kubernetes/kubernetes#74839). What goes to no pod and service and comes from no pod is left alone: to a router that
// sees one direction only, such packets are nothing special.
func (f family) invalid() []desired.NFTRule {
	return []desired.NFTRule{
		nft.Rule("a pod's, perhaps a backend's", nft.Key(f.source()), nft.In(setClusterPods), nft.Drop()),
		nft.Rule("to a pod of this node, perhaps a backend's", nft.Key(f.destination()), nft.In(setLocalPods), nft.Drop()),
		nft.Rule("to a service address", nft.Key(f.destination()), nft.In(setServiceRanges), nft.Drop()),
	}
}

func (f family) natChains() []desired.NFTChain {
	enter := []desired.NFTRule{nft.Rule("new connections to services", nft.Jump(chainServices))}
	return []desired.NFTChain{
		{Name: chainServices, Rules: append([]desired.NFTRule{
			nft.Rule("service address: chain for its number of backends", nft.Key(f.front(false)...), nft.VerdictOf(setFrontends)),
			nft.Rule("service address, but none of its ports", nft.Key(f.destination()), nft.In(setClusterIPs), nft.Goto(chainRefuse)),
			nft.Rule("no service has the address", nft.Key(f.destination()), nft.In(setServiceRanges), nft.Drop()),
		}, f.nodePorts("node port: chain for its number of backends", nft.Key(f.front(true)...), nft.VerdictOf(setFor(true, setFrontends)))...)},
		{Name: chainForeign, Rules: []desired.NFTRule{
			nft.Rule("a pod of this node, and not the node by an address among its pods'", nft.Key(f.source()), nft.In(setPodSources), nft.ForeignSource(), nft.Return()),
			nft.Rule("a pod of this node, by the device it comes in by", nft.Key(inputLink), nft.In(setPodLinks), nft.Return()),
			nft.Rule("all others: masquerade", setMark(true)),
		}},
		{Name: chainPrerouting, Hook: &desired.NFTHook{Type: "nat", Hook: hookPrerouting, Priority: priorityDNAT}, Rules: enter},
		{Name: chainOutput, Hook: &desired.NFTHook{Type: "nat", Hook: hookOutput, Priority: priorityDNAT}, Rules: enter},
		{Name: chainMasquerade, Rules: []desired.NFTRule{
			nft.Rule("the mark has done its work", setMark(false)),
			nft.Rule("replace the source by the node's address", masquerade()),
		}},
		{Name: chainPostrouting, Hook: &desired.NFTHook{Type: "nat", Hook: hookPostrouting, Priority: prioritySNAT}, Rules: []desired.NFTRule{
			nft.Rule("service connections whose replies must come back through here", nft.AnyBit(nft.Mark, MasqueradeMark), nft.Goto(chainMasquerade)),
			nft.Rule("a backend that reaches itself through a service", nft.Key(f.source(), f.destination()), nft.In(setHairpins), nft.Translated(), nft.Goto(chainMasquerade)),
		}},
	}
}
