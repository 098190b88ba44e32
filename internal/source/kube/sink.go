package kube

import (
	"fmt"
	"sync"
	"sync/atomic"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/cache"

	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/internal/source"
)

// sink is what a reflector stores into: it converts each object and passes the model's value on. It
// is used by its reflector's goroutine, but for versions.
type sink struct {
	kind   model.Kind
	store  *model.Store
	gather *gathering // nil: nothing is kept back
	board  *source.Board
	trim   func(model.Object) model.Object // may be nil
	bad    map[model.Key]struct{}          // objects on the board
	synced func(objects int)               // called after the first Replace; nil afterwards

	listing func(begins bool) // see Options; may be nil
	inList  atomic.Bool

	mu   sync.Mutex
	have map[model.Key]held // what the server has, as far as this reflector was told
}

// held is what a sink remembers of an object.
type held struct {
	version uint64 // see version
	stored  bool   // it is in the store
}

// versions returns the version of each object that the reflector was told of.
func (s *sink) versions() map[model.Key]uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make(map[model.Key]uint64, len(s.have))
	for key, h := range s.have {
		out[key] = h.version
	}
	return out
}

var _ cache.TransformingStore = (*sink)(nil)

// slim is an object that is already converted. The reflector collects these, instead of full
// objects, while a streamed list comes in; the metadata it needs is the name only.
type slim struct {
	metav1.ObjectMeta
	ref model.Ref
	obj model.Object // nil when the model has no use for the object
	err error
}

// convert returns the slim form of an object from the wire, or of one that has it already.
func (s *sink) convert(obj any) (*slim, error) {
	switch o := obj.(type) {
	case *slim:
		return o, nil
	case cache.DeletedFinalStateUnknown:
		return s.convert(o.Obj)
	case *metav1.PartialObjectMetadata: // only namespaces are asked for in that form
		return s.convert(&corev1.Namespace{ObjectMeta: o.ObjectMeta})
	case runtime.Object:
		ref, ok := source.RefOf(o)
		if !ok {
			break
		}
		value, err := source.Convert(o, model.Origin{})
		if s.trim != nil && value != nil {
			value = s.trim(value)
		}
		if value != nil && err == nil {
			value = s.store.Known(value)
		}
		m := o.(metav1.Object)
		return &slim{ObjectMeta: metav1.ObjectMeta{Namespace: ref.Namespace, Name: ref.Name, ResourceVersion: m.GetResourceVersion()}, ref: ref, obj: value, err: err}, nil
	}
	return nil, fmt.Errorf("the API server sent a %T, expected an object of the model", obj)
}

// Transformer makes the reflector convert objects of a streamed list as they come.
func (s *sink) Transformer() cache.TransformFunc {
	return func(obj any) (any, error) {
		if s.listing != nil && !s.inList.Swap(true) {
			s.listing(true)
		}
		return s.convert(obj)
	}
}

// endList says that a list that began is complete, or given up.
func (s *sink) endList() {
	if s.inList.Swap(false) {
		s.listing(false)
	}
}

// Add takes in a new object.
func (s *sink) Add(obj any) error { return s.Update(obj) }

// Update takes in a new version of an object.
func (s *sink) Update(obj any) error {
	o, err := s.convert(obj)
	if err != nil {
		return err
	}
	if u, ok := s.update(o); ok {
		s.apply([]model.Update{u}, false)
	}
	return nil
}

// apply brings updates to the store. whole says that they are a complete list.
func (s *sink) apply(updates []model.Update, whole bool) {
	if s.gather == nil {
		s.store.Apply(updates)
		return
	}
	s.gather.apply(s, updates, whole)
}

// update returns what an object means for the store, if anything.
func (s *sink) update(o *slim) (model.Update, bool) {
	s.mu.Lock()
	before := s.have[o.ref.Key]
	now := held{version(o.ResourceVersion), o.obj != nil || o.err != nil && before.stored}
	s.have[o.ref.Key] = now
	s.mu.Unlock()
	switch {
	case o.err != nil && o.obj != nil:
		s.bad[o.ref.Key] = struct{}{}
		rest := "that part of it allows nothing"
		if o.ref.Kind == model.KindNamespace {
			rest = "it is taken for one without"
		}
		s.board.Set(o.ref.String(), fmt.Sprintf("%s: %v; %s", o.ref, o.err, rest))
		return model.Set(o.obj), true
	case o.err != nil:
		s.bad[o.ref.Key] = struct{}{}
		s.board.Set(o.ref.String(), fmt.Sprintf("%s: %v; its last good version stays in force", o.ref, o.err))
		return model.Update{}, false
	}
	s.good(o.ref)
	if o.obj == nil {
		return model.Delete(o.ref), before.stored
	}
	return model.Set(o.obj), true
}

// good takes an object off the board.
func (s *sink) good(ref model.Ref) {
	if _, was := s.bad[ref.Key]; was {
		delete(s.bad, ref.Key)
		s.board.Clear(ref.String())
	}
}

// Delete takes an object away.
func (s *sink) Delete(obj any) error {
	o, err := s.convert(obj)
	if err != nil {
		return err
	}
	s.good(o.ref)
	s.mu.Lock()
	delete(s.have, o.ref.Key)
	s.mu.Unlock()
	s.apply([]model.Update{model.Delete(o.ref)}, false)
	return nil
}

// Replace takes in a complete list: what this reflector stored and the list lacks was deleted while
// nobody watched. All of it reaches the store as one batch.
func (s *sink) Replace(list []any, _ string) error {
	defer s.endList()
	listed := make(map[model.Key]struct{}, len(list))
	updates := make([]model.Update, 0, len(list))
	for i, item := range list {
		o, err := s.convert(item)
		if err != nil {
			return err
		}
		list[i] = nil // the list is ours: let go of the full object
		listed[o.ref.Key] = struct{}{}
		if u, ok := s.update(o); ok {
			updates = append(updates, u)
		}
	}
	s.mu.Lock()
	for key := range s.have {
		if _, still := listed[key]; !still {
			delete(s.have, key)
			updates = append(updates, model.Delete(model.Ref{Kind: s.kind, Key: key}))
		}
	}
	count := len(s.have)
	s.mu.Unlock()
	for key := range s.bad {
		if _, still := listed[key]; !still {
			s.good(model.Ref{Kind: s.kind, Key: key})
		}
	}
	s.apply(updates, true)
	if s.synced != nil {
		s.synced(count)
		s.synced = nil
	}
	return nil
}

// Resync does nothing: the store's readers are told of changes only.
func (s *sink) Resync() error { return nil }
