package model

import (
	"reflect"
	"slices"
	"sort"
	"sync"
	"sync/atomic"
	"time"
)

// Change is one step of an object: Old nil = added, New nil = deleted.
type Change struct {
	Ref
	Old, New Object
}

// Update asks the store to set an object (Object non-nil) or to delete one (Object nil).
type Update struct {
	Ref
	Object Object
}

// Set returns the Update that stores o under its own identity.
func Set(o Object) Update { return Update{Ref: o.From().Ref, Object: o} }

// Delete returns the Update that removes the object r.
func Delete(r Ref) Update { return Update{Ref: r} }

// Subscriber receives what a writer applied. It is called by the writer, one call after the other,
// in order, and must return quickly: heavy work belongs on the subscriber's own goroutine.
type Subscriber func(rev uint64, changes []Change)

// Store keeps the cluster's objects. One source writes (Apply, MarkSynced); any number of readers
// and subscribers follow. The zero value is not usable: call NewStore.
type Store struct {
	write sync.Mutex // held over Apply and Subscribe, so that subscribers see one order

	mu      sync.RWMutex
	objects map[Kind]map[Key]Object
	rev     uint64

	subs   map[int]Subscriber
	nextID int

	syncOnce sync.Once
	synced   chan struct{}
	current  atomic.Int64 // unix nanoseconds, see Current
}

// stored are the kinds that a store has room for.
var stored = append(slices.Clone(Kinds), KindServiceImport)

// NewStore returns an empty store that is not synced.
func NewStore() *Store {
	s := &Store{
		objects: make(map[Kind]map[Key]Object, len(Kinds)),
		subs:    map[int]Subscriber{},
		synced:  make(chan struct{}),
	}
	for _, k := range stored {
		s.objects[k] = map[Key]Object{}
	}
	return s
}

// Apply stores one batch and tells the subscribers what really changed: updates that equal what is
// stored are dropped (a change of Origin's file or line alone is stored but not told). It returns
// the store's revision, which grows by one with each batch that changed something.
func (s *Store) Apply(updates []Update) uint64 {
	s.write.Lock()
	defer s.write.Unlock()

	s.mu.Lock()
	changes := make([]Change, 0, len(updates))
	for _, u := range updates {
		kind, ok := s.objects[u.Kind]
		if !ok {
			continue
		}
		old := kind[u.Key]
		switch {
		case u.Object == nil && old == nil:
			continue
		case u.Object == nil:
			delete(kind, u.Key)
		case old != nil && (old == u.Object || sameButOrigin(old, u.Object)):
			// Readers have the old one: with nothing new in it, a second copy would only take memory.
			if old.From() != u.Object.From() {
				kind[u.Key] = u.Object
			}
			continue
		default:
			kind[u.Key] = u.Object
		}
		changes = append(changes, Change{Ref: u.Ref, Old: old, New: u.Object})
	}
	if len(changes) > 0 {
		s.rev++
	}
	rev := s.rev
	s.mu.Unlock()

	if len(changes) == 0 {
		return rev
	}
	for _, sub := range s.subscribers() {
		sub(rev, changes)
	}
	return rev
}

// Subscribe first replays everything that is stored as one batch of additions (in the order of
// Kinds, sorted by key), then reports each later batch. The returned function ends the subscription.
func (s *Store) Subscribe(sub Subscriber) (cancel func()) {
	s.write.Lock()
	defer s.write.Unlock()
	var replay []Change
	for _, k := range stored {
		for _, o := range s.List(k) {
			replay = append(replay, Change{Ref: o.From().Ref, New: o})
		}
	}
	if len(replay) > 0 {
		sub(s.Rev(), replay)
	}
	id := s.nextID
	s.nextID++
	s.subs[id] = sub
	return func() {
		s.write.Lock()
		defer s.write.Unlock()
		delete(s.subs, id)
	}
}

func (s *Store) subscribers() []Subscriber {
	ids := make([]int, 0, len(s.subs))
	for id := range s.subs {
		ids = append(ids, id)
	}
	sort.Ints(ids)
	out := make([]Subscriber, len(ids))
	for i, id := range ids {
		out[i] = s.subs[id]
	}
	return out
}

// MarkSynced says that everything the source knew at its start has been applied. It may be called
// more than once.
func (s *Store) MarkSynced() { s.syncOnce.Do(func() { close(s.synced) }) }

// Synced returns a channel that is closed once the store holds a complete first state.
func (s *Store) Synced() <-chan struct{} { return s.synced }

// HasSynced reports whether MarkSynced was called.
func (s *Store) HasSynced() bool {
	select {
	case <-s.synced:
		return true
	default:
		return false
	}
}

// MarkCurrent says that the store holds everything the source held at the moment t or before.
func (s *Store) MarkCurrent(t time.Time) { s.current.Store(t.UnixNano()) }

// Current returns the newest moment of which the store is known to hold everything the source held,
// or the zero time when the source cannot tell.
func (s *Store) Current() time.Time {
	n := s.current.Load()
	if n == 0 {
		return time.Time{}
	}
	return time.Unix(0, n)
}

// Rev returns the number of batches that changed something.
func (s *Store) Rev() uint64 {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.rev
}

// Get returns the object r, or nil.
func (s *Store) Get(r Ref) Object {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.objects[r.Kind][r.Key]
}

// Known returns the object that is stored in place of o when there is nothing new in o, else o. Who reads
// everything again can let go of each copy at once.
func (s *Store) Known(o Object) Object {
	if old := s.Get(o.From().Ref); old != nil && old.From() == o.From() && sameButOrigin(old, o) {
		return old
	}
	return o
}

// Len returns how many objects of a kind are stored.
func (s *Store) Len(k Kind) int {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return len(s.objects[k])
}

// List returns all objects of a kind, sorted by key. It costs O(n log n): for start-up, audits and
// people, never for an event.
func (s *Store) List(k Kind) []Object {
	s.mu.RLock()
	out := make([]Object, 0, len(s.objects[k]))
	for _, o := range s.objects[k] {
		out = append(out, o)
	}
	s.mu.RUnlock()
	sort.Slice(out, func(i, j int) bool {
		a, b := out[i].From().Key, out[j].From().Key
		if a.Namespace != b.Namespace {
			return a.Namespace < b.Namespace
		}
		return a.Name < b.Name
	})
	return out
}

// sameButOrigin compares two objects of one kind without the place they were read from: moving a
// document inside its file must not wake anybody.
func sameButOrigin(a, b Object) bool {
	if reflect.TypeOf(a) != reflect.TypeOf(b) {
		return false
	}
	va, vb := reflect.ValueOf(a).Elem(), reflect.ValueOf(b).Elem()
	for i := 0; i < va.NumField(); i++ {
		if va.Type().Field(i).Name == "Origin" {
			continue
		}
		if !reflect.DeepEqual(va.Field(i).Interface(), vb.Field(i).Interface()) {
			return false
		}
	}
	return true
}
