package dir

import (
	"fmt"
	"slices"
	"sort"

	"github.com/braidnet/braid/internal/model"
)

// notice is something to tell people about a file. Its key leaves out line numbers, so that a
// document that only moves in its file is not reported again.
type notice struct {
	key, text string
	warning   bool // the object is good: to be logged, not listed as a problem
}

// file is what one file says.
type file struct {
	given   map[model.Ref]model.Object // good documents, and the last good version of broken ones
	notices []notice
}

// book holds what every file says and decides which file's word counts: of files that give the same
// object the first in name order. It is pure; the folder's owner tells it of files that changed.
type book struct {
	files   map[string]*file
	claims  map[model.Ref][]string // names of the files that give an object, sorted
	shared  map[model.Ref]bool     // objects that more than one file gives
	touched map[model.Ref]bool     // objects whose claims changed since the last flush
}

func newBook() *book {
	return &book{
		files:   map[string]*file{},
		claims:  map[model.Ref][]string{},
		shared:  map[model.Ref]bool{},
		touched: map[model.Ref]bool{},
	}
}

// set replaces what a file says; nil means that the file is gone.
func (b *book) set(name string, f *file) {
	if old := b.files[name]; old != nil {
		for ref := range old.given {
			b.touched[ref] = true
			if f == nil || f.given[ref] == nil {
				b.unclaim(ref, name)
			}
		}
	}
	if f == nil {
		delete(b.files, name)
		return
	}
	b.files[name] = f
	for ref := range f.given {
		b.touched[ref] = true
		b.claim(ref, name)
	}
}

func (b *book) claim(ref model.Ref, name string) {
	list := b.claims[ref]
	at, have := slices.BinarySearch(list, name)
	if !have {
		b.claims[ref] = slices.Insert(list, at, name)
	}
	b.recount(ref)
}

func (b *book) unclaim(ref model.Ref, name string) {
	list := b.claims[ref]
	if at, have := slices.BinarySearch(list, name); have {
		b.claims[ref] = slices.Delete(list, at, at+1)
	}
	b.recount(ref)
}

func (b *book) recount(ref model.Ref) {
	delete(b.shared, ref)
	switch len(b.claims[ref]) {
	case 0:
		delete(b.claims, ref)
	case 1:
	default:
		b.shared[ref] = true
	}
}

// flush returns the updates that bring a store from the state of the last flush to this one, in the
// order of model.Kinds and then by key.
func (b *book) flush() []model.Update {
	updates := make([]model.Update, 0, len(b.touched))
	for ref := range b.touched {
		if names := b.claims[ref]; len(names) > 0 {
			updates = append(updates, model.Update{Ref: ref, Object: b.files[names[0]].given[ref]})
		} else {
			updates = append(updates, model.Delete(ref))
		}
	}
	clear(b.touched)
	sort.Slice(updates, func(i, j int) bool { return before(updates[i].Ref, updates[j].Ref) })
	return updates
}

// before orders objects by kind, as model.Kinds has them, then by namespace and name.
func before(a, b model.Ref) bool {
	if a.Kind != b.Kind {
		return slices.Index(model.Kinds, a.Kind) < slices.Index(model.Kinds, b.Kind)
	}
	if a.Namespace != b.Namespace {
		return a.Namespace < b.Namespace
	}
	return a.Name < b.Name
}

// notices returns what there is to tell: the notices of the files and the objects given twice.
func (b *book) notices() []notice {
	var out []notice
	for _, f := range b.files {
		out = append(out, f.notices...)
	}
	for ref := range b.shared {
		names := b.claims[ref]
		winner := b.files[names[0]].given[ref].From()
		for _, name := range names[1:] {
			loser := b.files[name].given[ref].From()
			out = append(out, givenTwice(loser, winner, "which comes first by file name and is used"))
		}
	}
	return out
}

// givenTwice says that the document at loser is not used because of the one at winner.
func givenTwice(loser, winner model.Origin, why string) notice {
	return notice{
		key: fmt.Sprintf("twice|%s|%s|%s", loser.File, winner.File, loser.Ref),
		text: fmt.Sprintf("%s:%d: %s: is also given at %s:%d, %s; expected one of the two to be deleted",
			loser.File, loser.Line, loser.Ref, winner.File, winner.Line, why),
	}
}
