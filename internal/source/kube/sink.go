package kube

import (
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/cache"

	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/internal/source"
)

// sink is what a reflector stores into: it converts each object and passes the model's value on. It
// is used by its reflector's goroutine only.
type sink struct {
	kind   model.Kind
	store  *model.Store
	board  *source.Board
	have   map[model.Key]struct{} // what this reflector has put into the store
	bad    map[model.Key]struct{} // objects on the board
	synced func(objects int)      // called after the first Replace; nil afterwards
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
func convert(obj any) (*slim, error) {
	switch o := obj.(type) {
	case *slim:
		return o, nil
	case cache.DeletedFinalStateUnknown:
		return convert(o.Obj)
	case runtime.Object:
		ref, ok := source.RefOf(o)
		if !ok {
			break
		}
		value, err := source.Convert(o, model.Origin{})
		return &slim{ObjectMeta: metav1.ObjectMeta{Namespace: ref.Namespace, Name: ref.Name}, ref: ref, obj: value, err: err}, nil
	}
	return nil, fmt.Errorf("the API server sent a %T, expected an object of the model", obj)
}

// Transformer makes the reflector convert objects of a streamed list as they come.
func (s *sink) Transformer() cache.TransformFunc {
	return func(obj any) (any, error) { return convert(obj) }
}

// Add takes in a new object.
func (s *sink) Add(obj any) error { return s.Update(obj) }

// Update takes in a new version of an object.
func (s *sink) Update(obj any) error {
	o, err := convert(obj)
	if err != nil {
		return err
	}
	if u, ok := s.update(o); ok {
		s.store.Apply([]model.Update{u})
	}
	return nil
}

// update returns what an object means for the store, if anything.
func (s *sink) update(o *slim) (model.Update, bool) {
	if o.err != nil {
		s.bad[o.ref.Key] = struct{}{}
		s.board.Set(o.ref.String(), fmt.Sprintf("%s: %v; its last good version stays in force", o.ref, o.err))
		return model.Update{}, false
	}
	s.good(o.ref)
	if o.obj == nil {
		_, had := s.have[o.ref.Key]
		delete(s.have, o.ref.Key)
		return model.Delete(o.ref), had
	}
	s.have[o.ref.Key] = struct{}{}
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
	o, err := convert(obj)
	if err != nil {
		return err
	}
	s.good(o.ref)
	delete(s.have, o.ref.Key)
	s.store.Apply([]model.Update{model.Delete(o.ref)})
	return nil
}

// Replace takes in a complete list: what this reflector stored and the list lacks was deleted while
// nobody watched. All of it reaches the store as one batch.
func (s *sink) Replace(list []any, _ string) error {
	listed := make(map[model.Key]struct{}, len(list))
	updates := make([]model.Update, 0, len(list))
	for i, item := range list {
		o, err := convert(item)
		if err != nil {
			return err
		}
		list[i] = nil // the list is ours: let go of the full object
		listed[o.ref.Key] = struct{}{}
		if u, ok := s.update(o); ok {
			updates = append(updates, u)
		}
	}
	for key := range s.have {
		if _, still := listed[key]; !still {
			ref := model.Ref{Kind: s.kind, Key: key}
			delete(s.have, key)
			updates = append(updates, model.Delete(ref))
		}
	}
	for key := range s.bad {
		if _, still := listed[key]; !still {
			s.good(model.Ref{Kind: s.kind, Key: key})
		}
	}
	s.store.Apply(updates)
	if s.synced != nil {
		s.synced(len(s.have))
		s.synced = nil
	}
	return nil
}

// Resync does nothing: the store's readers are told of changes only.
func (s *sink) Resync() error { return nil }
