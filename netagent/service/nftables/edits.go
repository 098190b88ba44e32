package nftables

import (
	"cmp"
	"slices"
	"strings"

	"github.com/braidnet/braid/internal/desired"
)

// ordered are the sets in the order in which elements are added; they are removed in the opposite one.
// Transactions are cut by size, so packets may come between: a frontend appears after its backends, and after the
// sources it is limited to, and goes before them.
var ordered = func() (sets []string) {
	for _, set := range []string{setUsable, setUsableInside, setSessions, setSlots, setFiltered, setInside} {
		sets = append(sets, set, setFor(true, set))
	}
	sets = append(sets, setHairpins)
	for _, set := range []string{setFrontends, setRejected, setDropped} {
		sets = append(sets, set, setFor(true, set))
	}
	return append(sets, setClusterIPs)
}()

// intervals are the sets of ranges. In a table just made the ranges of services come before the services:
// until these do, connections to them are better dropped than tracked without translation.
var intervals = []string{setLocalPods, setPodSources, setPodLinks, setClusterPods, setServiceRanges, setNodeAddresses}

// pairs is how many changed elements are deleted and added again in one go: a compromise between
// long element lists and transactions that can be cut.
const pairs = 512

// edits collects the changes of one family's table and puts them in order.
type edits struct {
	family   desired.NFTFamily
	rebuild  *desired.NFTTable // delete the table and make it anew
	fresh    *desired.NFTTable // make the table, there is none
	chains   []desired.NFTChain
	unneeded []string // chains
	sets     map[string]*setEdits
}

type setEdits struct {
	add, remove []*desired.NFTElement
	was, is     []*desired.NFTElement // changed elements, pairwise
}

func (e *edits) set(name string) *setEdits {
	if e.sets == nil {
		e.sets = map[string]*setEdits{}
	}
	s := e.sets[name]
	if s == nil {
		s = &setEdits{}
		e.sets[name] = s
	}
	return s
}

// change notes that an element becomes another one with the same set and key; nil for absent.
func (e *edits) change(was, is *desired.NFTElement) {
	switch {
	case was == nil && is == nil:
	case was == nil:
		s := e.set(is.Set)
		s.add = append(s.add, is)
	case is == nil:
		s := e.set(was.Set)
		s.remove = append(s.remove, was)
	case *was != *is:
		s := e.set(is.Set)
		s.was, s.is = append(s.was, was), append(s.is, is)
	}
}

// elementID is what makes two elements the same one.
type elementID struct{ set, key string }

// diff notes what turns was into is. Elements that are in a list twice count once.
func (e *edits) diff(was, is []desired.NFTElement) {
	next := make(map[elementID]*desired.NFTElement, len(is))
	for i := range is {
		next[elementID{is[i].Set, is[i].Key}] = &is[i]
	}
	for i := range was {
		id := elementID{was[i].Set, was[i].Key}
		e.change(&was[i], next[id])
		delete(next, id)
	}
	for i := range is {
		if id := (elementID{is[i].Set, is[i].Key}); next[id] != nil {
			e.change(nil, next[id])
			delete(next, id)
		}
	}
}

// ops lists the changes in an order that can be cut into transactions anywhere but before joined ones.
func (e *edits) ops() []desired.NFTOp {
	o := opList{family: e.family}
	switch {
	case e.rebuild != nil:
		o.op(desired.NFTOp{Verb: desired.NFTDeleteTable})
		o.join = true // from the first packet on, the new table is complete
		o.op(desired.NFTOp{Verb: desired.NFTAddTable, Def: e.rebuild})
	case e.fresh != nil:
		o.op(desired.NFTOp{Verb: desired.NFTAddTable, Def: e.fresh})
	}
	slices.SortFunc(e.chains, func(a, b desired.NFTChain) int { return byRank(e.family, a.Name, b.Name) })
	for i := range e.chains {
		o.op(desired.NFTOp{Verb: desired.NFTAddChain, Chain: &e.chains[i]})
	}
	for _, name := range intervals { // no range may overlap another, so old ones go first
		s := e.set(name)
		o.replace(slices.Concat(s.remove, s.was), slices.Concat(s.add, s.is))
	}
	for _, name := range ordered {
		s := e.set(name)
		for i := 0; i < len(s.was); i += pairs {
			end := min(i+pairs, len(s.was))
			o.replace(s.was[i:end], s.is[i:end])
		}
		o.elements(desired.NFTAddElement, s.add)
	}
	for _, name := range slices.Backward(ordered) {
		o.elements(desired.NFTDeleteElement, e.set(name).remove)
	}
	slices.SortFunc(e.unneeded, func(a, b string) int { return byRank(e.family, b, a) })
	for _, name := range e.unneeded {
		o.op(desired.NFTOp{Verb: desired.NFTDeleteChain, Chain: &desired.NFTChain{Name: name}})
	}
	return o.list
}

// byRank compares chains by name, those that others lead to before these.
func byRank(f desired.NFTFamily, a, b string) int {
	p, _ := parsePick(f, a)
	q, _ := parsePick(f, b)
	return cmp.Or(cmp.Compare(p.rank(), q.rank()), strings.Compare(a, b))
}

// opList appends operations on one family's table.
type opList struct {
	family desired.NFTFamily
	join   bool
	list   []desired.NFTOp
}

func (o *opList) op(op desired.NFTOp) {
	op.Family, op.Table, op.Join = o.family, TableName, op.Join || o.join
	o.list = append(o.list, op)
}

func (o *opList) elements(verb desired.NFTVerb, list []*desired.NFTElement) {
	for _, el := range list {
		o.op(desired.NFTOp{Verb: verb, Element: el})
	}
}

// replace deletes and adds in one transaction: lookups find the old or the new element, never none.
func (o *opList) replace(was, is []*desired.NFTElement) {
	for i, el := range was {
		o.op(desired.NFTOp{Verb: desired.NFTDeleteElement, Element: el, Join: i > 0})
	}
	for _, el := range is {
		o.op(desired.NFTOp{Verb: desired.NFTAddElement, Element: el, Join: len(was) > 0})
	}
}
