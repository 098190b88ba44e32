package policy

import (
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"
)

// pair is a label.
type pair struct{ key, value string }

// index finds those of many selectors that match given labels without trying them all: a selector that
// demands a value of a label is only tried on objects that have it.
type index[T comparable] struct {
	byPair map[pair]map[T]labels.Selector
	others map[T]labels.Selector // demand no value
}

func newIndex[T comparable]() *index[T] {
	return &index[T]{byPair: map[pair]map[T]labels.Selector{}, others: map[T]labels.Selector{}}
}

func (x *index[T]) add(sel labels.Selector, v T) {
	p, ok := demanded(sel)
	if !ok {
		x.others[v] = sel
		return
	}
	if x.byPair[p] == nil {
		x.byPair[p] = map[T]labels.Selector{}
	}
	x.byPair[p][v] = sel
}

// remove takes out what was added with the same selector.
func (x *index[T]) remove(sel labels.Selector, v T) {
	p, ok := demanded(sel)
	if !ok {
		delete(x.others, v)
		return
	}
	delete(x.byPair[p], v)
	if len(x.byPair[p]) == 0 {
		delete(x.byPair, p)
	}
}

// match calls found for everything whose selector matches.
func (x *index[T]) match(set labels.Set, found func(T)) {
	for v, sel := range x.others {
		if sel.Matches(set) {
			found(v)
		}
	}
	for k, value := range set {
		for v, sel := range x.byPair[pair{k, value}] {
			if sel.Matches(set) {
				found(v)
			}
		}
	}
}

// demanded returns a label that everything the selector matches has.
func demanded(sel labels.Selector) (pair, bool) {
	requirements, _ := sel.Requirements()
	for _, r := range requirements {
		switch r.Operator() {
		case selection.Equals, selection.DoubleEquals, selection.In:
			if values := r.ValuesUnsorted(); len(values) == 1 {
				return pair{r.Key(), values[0]}, true
			}
		}
	}
	return pair{}, false
}

// canonical is a text that equal selectors have in common, however they were written.
func canonical(sel labels.Selector) string {
	requirements, selectable := sel.Requirements()
	if !selectable {
		return "!" // matches nothing
	}
	texts := make([]string, len(requirements))
	for i, r := range requirements {
		texts[i] = r.String()
		if values := r.ValuesUnsorted(); len(values) == 1 && (r.Operator() == selection.In || r.Operator() == selection.DoubleEquals) {
			texts[i] = r.Key() + "=" + values[0]
		}
	}
	slices.Sort(texts)
	return strings.Join(slices.Compact(texts), ",")
}

// describe is a selector for people.
func describe(sel labels.Selector) string {
	if text := canonical(sel); text != "" {
		return text
	}
	return "all"
}
