package stores

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"testing"

	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/internal/names"
	nt "github.com/braidnet/braid/internal/names/namestest"
)

// recorder stands in for the sources: it reports each start and each end.
type recorder struct {
	started, ended chan Source
}

func (f *recorder) run(ctx context.Context, src Source, _ []model.Kind, store *model.Store) error {
	f.started <- src
	nt.Apply(store, nt.Namespace("default"))
	store.MarkSynced()
	<-ctx.Done()
	f.ended <- src
	return ctx.Err()
}

func newRecorder() (*recorder, *Registry) {
	f := &recorder{make(chan Source, 16), make(chan Source, 16)}
	return f, New(f.run, slog.New(slog.NewTextHandler(io.Discard, nil)), nil)
}

var (
	few  = []model.Kind{model.KindNamespace, model.KindService}
	more = []model.Kind{model.KindNamespace, model.KindService, model.KindPod}
	a, b = Source{Manifests: "a"}, Source{Endpoint: "http://b"}
)

func TestOneStorePerSource(t *testing.T) {
	f, r := newRecorder()
	one := r.Acquire(a, more)
	two := r.Acquire(a, few)
	other := r.Acquire(b, few)
	if one.Store != two.Store || one.Index != two.Index {
		t.Error("a block that needs fewer kinds must share the store of the same source")
	}
	if other.Store == one.Store {
		t.Error("two sources share a store")
	}
	if wider := r.Acquire(b, more); wider.Store == other.Store {
		t.Error("a block that needs more kinds got a store without them")
	}
	for range 3 {
		<-f.started
	}
	<-one.Store.Synced()
	if !one.Index.HasNamespace("default") {
		t.Error("the index does not follow its store")
	}

	one.Release()
	one.Release() // must count once
	if got := r.Status(); len(got) != 3 || got[0].Users != 1 || !got[0].Synced || got[0].Source != "manifests a" {
		t.Fatalf("status = %+v", got)
	}
	two.Release()
	if src := <-f.ended; src != a {
		t.Errorf("%v was stopped, want %v", src, a)
	}
	if got := r.Status(); len(got) != 2 {
		t.Errorf("status = %+v, want both stores of %v", got, b)
	}
}

func TestReloadKeepsTheStore(t *testing.T) {
	f, r := newRecorder()
	old := r.Acquire(a, few)
	<-f.started
	<-old.Store.Synced()
	r.Begin()
	fresh := r.Acquire(a, few)
	old.Release()
	if fresh.Store != old.Store || !fresh.Store.HasSynced() || len(f.started) != 0 {
		t.Error("a reload must keep the store of an unchanged source")
	}
	fresh.Release()
	<-f.ended
}

func TestFailedReloadLeavesNothing(t *testing.T) {
	f, r := newRecorder()
	old := r.Acquire(a, few)
	r.Begin()
	r.Acquire(a, few)
	r.Acquire(b, few)
	r.Rollback()
	r.Rollback()
	if got := r.Status(); len(got) != 1 || got[0].Users != 1 {
		t.Fatalf("status = %+v, want the old configuration's store alone", got)
	}
	if src := <-f.ended; src != b {
		t.Errorf("%v was stopped, want %v", src, b)
	}
	old.Release()
	<-f.ended
}

func TestSourceThatGivesUpIsStartedAgain(t *testing.T) {
	starts := make(chan int, 2)
	n := 0
	run := func(ctx context.Context, _ Source, _ []model.Kind, store *model.Store) error {
		n++
		starts <- n
		if n == 1 {
			return errors.New("no such folder")
		}
		store.MarkSynced()
		<-ctx.Done()
		return nil
	}
	watched := 0
	r := New(run, slog.New(slog.NewTextHandler(io.Discard, nil)), func(*model.Store, *names.Index) { watched++ })
	l := r.Acquire(a, few)
	<-l.Store.Synced()
	if got := <-starts + <-starts; got != 3 {
		t.Errorf("starts add up to %d, want 1+2", got)
	}
	if watched != 1 {
		t.Errorf("the watcher was told of %d stores, want 1", watched)
	}
	l.Release()
	<-l.entry.done
}

func TestSourceString(t *testing.T) {
	for want, src := range map[string]Source{
		"manifests a":              a,
		"endpoint http://b":        b,
		"kubeconfig k":             {Kubeconfig: "k"},
		"kubeconfig k context dev": {Kubeconfig: "k", Context: "dev"},
		"in-cluster API server":    {},
	} {
		if got := src.String(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
