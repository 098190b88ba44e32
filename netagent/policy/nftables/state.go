package nftables

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/braidnet/braid/internal/desired"
	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/netagent/policy"
)

// State is what the kernel holds as far as we wrote it, and turns changes of the compiled value into
// changes of the kernel. The zero State knows nothing and needs a Replace before anything else. All
// changes of a call belong into one transaction: each is joined to the one before it. For one goroutine.
type State struct {
	families []desired.NFTFamily
	options  Options
	known    bool
	targets  map[model.Key]policy.Target
	chains   map[string][]string // of each section, the chains that the kernel has for it, those that others lead to first
}

// NewState makes a State for the families the kernel has.
func NewState(families []desired.NFTFamily, o Options) *State {
	return &State{families: families, options: o}
}

// Forget makes the next change start from a Replace: after a transaction failed, nobody knows what
// the kernel holds.
func (s *State) Forget() { s.known = false }

// Contents is what was read back from the kernel for each family; absent tables are nil.
type Contents map[desired.NFTFamily]*desired.NFTContents

// Replace lists the changes that make the kernel hold exactly the compiled value, which all tells of as
// policy.Compiler.All does, and says why for each table that has to be made anew. That happens within one
// transaction: no packet meets less than the whole.
func (s *State) Replace(all policy.Delta, have Contents) (ops []desired.NFTOp, why []string) {
	s.known, s.targets, s.chains = true, map[model.Key]policy.Target{}, map[string][]string{}
	for _, t := range all.Targets {
		s.targets[t.Pod] = t
	}
	for _, nf := range s.families {
		table, elements := s.whole(nf, all)
		reason := differs(&table, elements, have[nf])
		if reason == "" {
			continue
		}
		o := opList{family: nf}
		if have[nf] != nil {
			why = append(why, fmt.Sprintf("table %s %s: %s", nf, TableName, reason))
			o.add(desired.NFTOp{Verb: desired.NFTDeleteTable})
		}
		o.add(desired.NFTOp{Verb: desired.NFTAddTable, Def: &table})
		o.elements(desired.NFTAddElement, elements)
		ops = append(ops, o.list...)
	}
	return join(ops), why
}

// whole is the table with everything in it.
func (s *State) whole(nf desired.NFTFamily, all policy.Delta) (desired.NFTTable, []desired.NFTElement) {
	f, table := families[nf], Skeleton(nf, s.options)
	var elements []desired.NFTElement
	for _, d := range all.Sets {
		table.Sets = append(table.Sets, f.set(d.Set))
		elements = append(elements, f.ranges(d.Set)...)
		elements = append(elements, f.members(d.Set, d.Add)...)
	}
	for _, x := range all.Sections {
		chains := f.section(x)
		table.Chains = append(table.Chains, chains...)
		s.chains[x.ID] = names(chains)
	}
	for _, c := range all.Chains {
		table.Chains = append(table.Chains, s.options.list(c))
	}
	for _, t := range all.Targets {
		elements = append(elements, f.entries(t)...)
	}
	return table, elements
}

func (f family) members(s *policy.Set, members []policy.Member) (out []desired.NFTElement) {
	for _, m := range members {
		if f.has(m.Addr) {
			out = append(out, member(s, m))
		}
	}
	return out
}

func names(chains []desired.NFTChain) (out []string) {
	for _, c := range chains {
		out = append(out, c.Name)
	}
	return out
}

// differs says how the kernel's table differs from the one we want; empty when it does not.
func differs(want *desired.NFTTable, elements []desired.NFTElement, have *desired.NFTContents) string {
	switch {
	case have == nil:
		return "it is missing"
	case have.Comment != want.Comment:
		return fmt.Sprintf("its layout is %q, ours is %q", have.Comment, want.Comment)
	}
	for _, set := range want.Sets {
		if !have.Sets[set.Name] {
			return "set " + set.Name + " is missing"
		}
	}
	if len(have.Sets) != len(want.Sets) {
		return fmt.Sprintf("it has %d sets instead of %d", len(have.Sets), len(want.Sets))
	}
	for _, c := range want.Chains {
		comments := make([]string, len(c.Rules))
		for i, r := range c.Rules {
			comments[i] = r.Comment
		}
		got, ok := have.Rules[c.Name]
		if !ok || !slices.Equal(got, comments) {
			return "the rules of chain " + c.Name + " are not ours"
		}
	}
	if len(have.Rules) != len(want.Chains) {
		return fmt.Sprintf("it has %d chains instead of %d", len(have.Rules), len(want.Chains))
	}
	if len(have.Elements) != len(elements) {
		return fmt.Sprintf("it has %d elements instead of %d", len(have.Elements), len(elements))
	}
	there := make(map[desired.NFTElement]bool, len(have.Elements))
	for _, e := range have.Elements {
		there[e] = true
	}
	for _, e := range elements {
		if !there[e] {
			return "an element of " + e.Set + " is missing"
		}
	}
	return ""
}

var errUnknown = errors.New("what the kernel holds is not known: replace everything first")

// Apply lists the changes for a delta, looking at nothing that the delta does not touch.
func (s *State) Apply(d policy.Delta) ([]desired.NFTOp, error) {
	if !s.known {
		return nil, errUnknown
	}
	var ops []desired.NFTOp
	for _, nf := range s.families {
		ops = append(ops, s.apply(nf, d)...)
	}
	for _, x := range d.Sections {
		s.chains[x.ID] = names(families[s.families[0]].section(x))
	}
	for _, x := range d.DeleteSections {
		delete(s.chains, x.ID)
	}
	for _, t := range d.Targets {
		s.targets[t.Pod] = t
	}
	for _, t := range d.DeleteTargets {
		delete(s.targets, t.Pod)
	}
	return join(ops), nil
}

// apply makes what others refer to before them, and takes it away after them.
func (s *State) apply(nf desired.NFTFamily, d policy.Delta) []desired.NFTOp {
	f, o := families[nf], opList{family: nf}
	for _, x := range d.Sets {
		if x.New {
			set := f.set(x.Set)
			o.add(desired.NFTOp{Verb: desired.NFTAddSet, Set: &set})
			o.elements(desired.NFTAddElement, f.ranges(x.Set))
		}
		o.elements(desired.NFTDeleteElement, f.members(x.Set, x.Remove))
		o.elements(desired.NFTAddElement, f.members(x.Set, x.Add))
	}
	unneeded := s.sections(f, &o, d)
	for _, c := range d.Chains {
		chain := s.options.list(c)
		o.add(desired.NFTOp{Verb: desired.NFTAddChain, Chain: &chain})
	}
	s.entries(f, &o, d)
	for _, c := range d.DeleteChains {
		unneeded = append([]string{chainName(c)}, unneeded...)
	}
	for _, name := range unneeded {
		o.add(desired.NFTOp{Verb: desired.NFTDeleteChain, Chain: &desired.NFTChain{Name: name}})
	}
	for _, x := range d.Sets {
		if x.Gone {
			o.add(desired.NFTOp{Verb: desired.NFTDeleteSet, Set: &desired.NFTSet{Name: setName(x.Set)}})
		}
	}
	return o.list
}

// sections writes the chains of sections and returns those that are not needed any more, those that
// lead to others first.
func (s *State) sections(f family, o *opList, d policy.Delta) (unneeded []string) {
	for _, x := range d.Sections {
		chains := f.section(x)
		for i := range chains {
			if slices.Contains(s.chains[x.ID], chains[i].Name) {
				o.add(desired.NFTOp{Verb: desired.NFTFlushChain, Chain: &chains[i]})
			}
		}
		for i := range chains {
			o.add(desired.NFTOp{Verb: desired.NFTAddChain, Chain: &chains[i]})
		}
		is := names(chains)
		for _, name := range slices.Backward(s.chains[x.ID]) {
			if !slices.Contains(is, name) {
				unneeded = append(unneeded, name)
			}
		}
	}
	for _, x := range d.DeleteSections {
		for _, name := range slices.Backward(s.chains[x.ID]) {
			unneeded = append(unneeded, name)
		}
	}
	return unneeded
}

// entries changes the maps. An address may pass from one pod to another, so all that goes does so first.
func (s *State) entries(f family, o *opList, d policy.Delta) {
	was, is := map[string]desired.NFTElement{}, map[string]desired.NFTElement{}
	for _, t := range slices.Concat(d.Targets, d.DeleteTargets) {
		for _, e := range f.entries(s.targets[t.Pod]) {
			was[e.Set+e.Key] = e
		}
	}
	for _, t := range d.Targets {
		for _, e := range f.entries(t) {
			is[e.Set+e.Key] = e
		}
	}
	var remove, add []desired.NFTElement
	for _, k := range slices.Sorted(maps.Keys(was)) {
		if is[k] != was[k] {
			remove = append(remove, was[k])
		}
	}
	for _, k := range slices.Sorted(maps.Keys(is)) {
		if is[k] != was[k] {
			add = append(add, is[k])
		}
	}
	o.elements(desired.NFTDeleteElement, remove)
	o.elements(desired.NFTAddElement, add)
}

// opList collects operations on one family's table.
type opList struct {
	family desired.NFTFamily
	list   []desired.NFTOp
}

func (o *opList) add(op desired.NFTOp) {
	op.Family, op.Table = o.family, TableName
	o.list = append(o.list, op)
}

func (o *opList) elements(verb desired.NFTVerb, list []desired.NFTElement) {
	for i := range list {
		o.add(desired.NFTOp{Verb: verb, Element: &list[i]})
	}
}

// join makes one transaction of all.
func join(ops []desired.NFTOp) []desired.NFTOp {
	for i := range ops {
		ops[i].Join = i > 0
	}
	return ops
}
