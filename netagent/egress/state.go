package egress

import (
	"errors"
	"fmt"
	"slices"

	"github.com/braidnet/braid/internal/desired"
)

// Contents is what was read back from the kernel's nftables for each family; absent tables are nil.
type Contents map[desired.NFTFamily]*desired.NFTContents

// State is what nftables holds as far as we wrote it. The zero State with families needs a Replace
// before anything else. All changes of a call belong into one transaction. For one goroutine.
type State struct {
	Families []desired.NFTFamily
	known    map[desired.NFTFamily]held
}

type held struct {
	layout   string // of the table; empty: there is none
	elements []desired.NFTElement
}

// Forget makes the next change start from a Replace: after a transaction failed, nobody knows what the
// kernel holds.
func (s *State) Forget() { s.known = nil }

// ErrUnknown says that a Replace has to come first.
var ErrUnknown = errors.New("what the kernel holds is not known: replace everything first")

// Apply lists what turns the rules written last into these: for new nodes a few elements.
func (s *State) Apply(r *Rules) (ops []desired.NFTOp, err error) {
	if s.known == nil {
		return nil, ErrUnknown
	}
	ops, _ = s.change(r, func(nf desired.NFTFamily, table *desired.NFTTable) (held, bool, string) {
		h := s.known[nf]
		if h.layout != "" && h.layout != table.Comment {
			return h, true, "other settings"
		}
		return h, h.layout != "", ""
	})
	return ops, nil
}

// Replace lists what makes the kernel hold these rules and nothing else of ours, whatever it has, and says
// why for each table that has to be made anew. That happens within the transaction: no packet meets less than the whole.
func (s *State) Replace(r *Rules, have Contents) (ops []desired.NFTOp, why []string) {
	was := s.known
	s.known = map[desired.NFTFamily]held{}
	var meddled []string
	ops, why = s.change(r, func(nf desired.NFTFamily, table *desired.NFTTable) (held, bool, string) {
		got := have[nf]
		if got == nil && was[nf].layout != "" {
			return held{}, false, "it is missing"
		} else if got == nil {
			return held{}, false, ""
		}
		wrong := damage(table, got)
		if h := was[nf]; wrong == "" && h.layout == got.Comment && !sameElements(h.elements, got.Elements) {
			meddled = append(meddled, fmt.Sprintf("nftables table %s %s: elements were put right that somebody else had changed", nf, TableName))
		}
		return held{got.Comment, got.Elements}, true, wrong
	})
	return ops, append(why, meddled...)
}

func sameElements(a, b []desired.NFTElement) bool {
	return len(a) == len(b) && !slices.ContainsFunc(a, func(e desired.NFTElement) bool { return !slices.Contains(b, e) })
}

// change lists what brings each family from what there is to the rules: before tells what that is, whether there is a table, and
// what is wrong with it.
func (s *State) change(r *Rules, before func(desired.NFTFamily, *desired.NFTTable) (held, bool, string)) (ops []desired.NFTOp, why []string) {
	for _, nf := range s.Families {
		op := func(o desired.NFTOp) {
			o.Family, o.Table, o.Join = nf, TableName, len(ops) > 0
			ops = append(ops, o)
		}
		table, want := Table(nf, r)
		have, there, wrong := before(nf, &table)
		if r.Empty() {
			if there {
				op(desired.NFTOp{Verb: desired.NFTDeleteTable})
			}
			s.known[nf] = held{}
			continue
		}
		old := have.elements
		if !there || wrong != "" {
			if there {
				op(desired.NFTOp{Verb: desired.NFTDeleteTable})
			}
			if wrong != "" {
				why = append(why, fmt.Sprintf("nftables table %s %s is made anew: %s", nf, TableName, wrong))
			}
			op(desired.NFTOp{Verb: desired.NFTAddTable, Def: &table})
			old = nil
		}
		for i := range old { // no range may overlap another, so old ones go first
			if !slices.Contains(want, old[i]) {
				op(desired.NFTOp{Verb: desired.NFTDeleteElement, Element: &old[i]})
			}
		}
		for i := range want {
			if !slices.Contains(old, want[i]) {
				op(desired.NFTOp{Verb: desired.NFTAddElement, Element: &want[i]})
			}
		}
		s.known[nf] = held{table.Comment, want}
	}
	return ops, why
}

// damage says how the static part of the kernel's table differs from ours; empty when it does not. The comments of rules
// stand for the rules: the kernel gives expressions back in another form.
func damage(want *desired.NFTTable, have *desired.NFTContents) string {
	if have.Comment != want.Comment {
		return fmt.Sprintf("its layout is %q, ours is %q", have.Comment, want.Comment)
	}
	for _, set := range want.Sets {
		if !have.Sets[set.Name] {
			return "set " + set.Name + " is missing"
		}
	}
	for _, c := range want.Chains {
		var comments []string
		for _, r := range c.Rules {
			comments = append(comments, r.Comment)
		}
		if got, ok := have.Rules[c.Name]; !ok || !slices.Equal(got, comments) {
			return "the rules of chain " + c.Name + " are not ours"
		}
	}
	if len(have.Rules) != len(want.Chains) || len(have.Sets) != len(want.Sets) {
		return "it has chains or sets that are not ours"
	}
	return ""
}
