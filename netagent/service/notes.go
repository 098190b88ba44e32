package service

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/braidnet/braid/internal/model"
)

// Note says that something a Service asks for is not done, or not done in full.
type Note struct {
	Origin model.Origin
	Field  string // the field that asks for it, as manifests spell it: "spec.sessionAffinity"
	Text   string // what happens instead
}

// String prints "Service default/web: spec.sessionAffinity: ...".
func (n Note) String() string { return fmt.Sprintf("%s: %s: %s", n.Origin, n.Field, n.Text) }

// Notes lists, as of the last Flush and sorted by service, what Services ask for and do not get,
// including addresses that another Service holds.
func (p *Planner) Notes() []Note {
	p.out.mu.Lock()
	defer p.out.mu.Unlock()
	var all []Note
	for _, pl := range p.out.plans {
		all = append(all, pl.notes...)
	}
	all = append(all, p.out.conflicts()...)
	slices.SortStableFunc(all, func(a, b Note) int {
		return cmp.Or(compareNames(a.Origin.Key, b.Origin.Key), cmp.Compare(a.Field, b.Field), cmp.Compare(a.Text, b.Text))
	})
	return all
}
