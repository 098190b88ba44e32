package nftables

import (
	"github.com/google/nftables/expr"

	"github.com/braidnet/braid/internal/desired"
	"github.com/braidnet/braid/internal/desired/nft"
	"github.com/braidnet/braid/netagent/service"
)

// TrafficTable is the name of the tables that count what comes through services, one for each family. They are apart
// from the tables of services, and work beside each service mode.
const TrafficTable = "braid-traffic"

// Sets of the tables, with twins for node ports. Each element counts the packets that it is found for.
const (
	SetConnections = "connections" // by address, protocol, port: first packets
	SetPacketsIn   = "packets-in"  // by the address and port that the connection began with: from clients
	SetPacketsOut  = "packets-out" // the same, to clients
)

var trafficSets = map[string]string{SetConnections: "connections to", SetPacketsIn: "packets from clients of", SetPacketsOut: "packets to clients of"}

// TrafficSet is the set in which a frontend is counted, and its key there. It is the same from one start of the agent to
// the next, so the numbers go on.
func TrafficSet(set string, k service.Key) (name, key string) {
	return setFor(k.Kind == service.NodePort, set), string(entry(k))
}

// TrafficElements are a frontend's elements.
func TrafficElements(f *service.Frontend) (list []desired.NFTElement) {
	if !known(f.Protocol) {
		return nil
	}
	for _, set := range []string{SetConnections, SetPacketsIn, SetPacketsOut} {
		name, key := TrafficSet(set, f.Key)
		comment := f.Name() + " " + f.Kind.String()
		list = append(list, desired.NFTElement{Set: name, Key: key, Comment: comment[:min(len(comment), maxComment)]})
	}
	return list
}

// TrafficSkeleton is the static part of the table in one family.
//
// Connections are counted where the kernel asks for translations, which it does once for each, right before services
// are translated. Packets are counted when they come in, and the node's own when they leave, by the address
// that conntrack remembers; those of other connections cost a look at their state.
func TrafficSkeleton(nf desired.NFTFamily) desired.NFTTable {
	const translated, answers, toServices = "translated", "answers", "new-connections"
	f := families[nf]
	t := desired.NFTTable{Family: nf, Name: TrafficTable}
	for _, node := range []bool{false, true} {
		front, what := []desired.NFTType{f.addr, desired.NFTInetProto, desired.NFTInetService}, "service addresses"
		if node {
			front, what = front[1:], "node ports"
		}
		for _, set := range []string{SetConnections, SetPacketsIn, SetPacketsOut} {
			t.Sets = append(t.Sets, desired.NFTSet{Name: setFor(node, set), Key: front, Counter: true, Comment: trafficSets[set] + " " + what})
		}
	}
	count := func(set string) []desired.NFTRule {
		began := []nft.Field{f.originalDestination, nft.Protocol, originalPort}
		return []desired.NFTRule{
			nft.Rule("by the address that the client asked for", nft.Key(began...), nft.In(set), nft.Return()),
			nft.Rule("or the node port", nft.Key(began[1:]...), nft.In(setFor(true, set))),
		}
	}
	reply := nft.Words{&expr.Ct{Key: expr.CtKeyDIRECTION, Register: nft.Register0}, nft.Equal([]byte{1})[0]}
	ownAgain := nft.Is(nft.Meta(expr.MetaKeyIIF, 4), nft.Native(loopbackIndex)...)
	enter := nft.Rule("connections that are translated", nft.Translated(), nft.Goto(translated))
	begin := []desired.NFTRule{nft.Rule("what may be a service", nft.Jump(toServices))}
	t.Chains = []desired.NFTChain{
		{Name: toServices, Rules: []desired.NFTRule{
			nft.Rule("service address", nft.Key(f.front(false)...), nft.In(SetConnections), nft.Return()),
			nft.Rule("node port", nft.LocalDestination(), nft.Key(f.front(true)...), nft.In(setFor(true, SetConnections))),
		}},
		{Name: "nat-prerouting", Hook: &desired.NFTHook{Type: "nat", Hook: hookPrerouting, Priority: priorityDNAT - 1}, Rules: begin},
		{Name: "nat-output", Hook: &desired.NFTHook{Type: "nat", Hook: hookOutput, Priority: priorityDNAT - 1}, Rules: begin},
		{Name: answers, Rules: count(SetPacketsOut)},
		{Name: translated, Rules: append([]desired.NFTRule{nft.Rule("from a backend", reply, nft.Goto(answers))}, count(SetPacketsIn)...)},
		{Name: "count-prerouting", Hook: &desired.NFTHook{Type: "filter", Hook: hookPrerouting, Priority: priorityDNAT + 10}, Rules: []desired.NFTRule{
			nft.Rule("the node to itself: counted on the way out", ownAgain, nft.Return()), enter}},
		{Name: "count-output", Hook: &desired.NFTHook{Type: "filter", Hook: hookOutput, Priority: priorityDNAT + 10}, Rules: []desired.NFTRule{enter}},
	}
	t.Comment = "Braid traffic of services, layout " + digestOf(&t, t.Chains)
	return t
}

// TrafficChanges lists what turns the table that the kernel has, nil for none, into one with these elements. Elements that
// stay keep their numbers.
func TrafficChanges(f desired.NFTFamily, want []desired.NFTElement, have *desired.NFTContents) []desired.NFTOp {
	table := TrafficSkeleton(f)
	o := opList{family: f}
	if have != nil && intact(&table, nil, have) != nil {
		o.op(desired.NFTOp{Verb: desired.NFTDeleteTable})
		have = nil
	}
	if have == nil {
		o.op(desired.NFTOp{Verb: desired.NFTAddTable, Def: &table})
		have = &desired.NFTContents{}
	}
	e := edits{family: f}
	e.diff(have.Elements, want)
	for _, s := range table.Sets {
		s := e.set(s.Name)
		o.elements(desired.NFTDeleteElement, append(s.remove, s.was...))
		o.elements(desired.NFTAddElement, append(s.add, s.is...))
	}
	for i := range o.list {
		o.list[i].Table = TrafficTable
	}
	return o.list
}

func (f family) originalDestination(reg uint32) (expr.Any, uint32) {
	what := desired.CtDestinationIPv4
	if f.nft == desired.NFTIPv6 {
		what = desired.CtDestinationIPv6
	}
	return &expr.Ct{Key: what, Register: reg}, uint32(f.addr.Bytes)
}

func originalPort(reg uint32) (expr.Any, uint32) {
	return &expr.Ct{Key: expr.CtKeyPROTODST, Register: reg}, 2
}
