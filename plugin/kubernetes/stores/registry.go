// Package stores shares cluster state between the server blocks of one process and keeps it over
// reloads: one store and one name index per source, counted by their users. A reload starts the new
// configuration before it stops the old one, so an unchanged source is neither read again nor
// forgotten. The package does nothing when it is linked.
package stores

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/internal/names"
)

// Source says where a cluster's objects are read from: a folder of manifests, or an API server found
// through a kubeconfig file, an address, or (all empty) the service account of the pod we run in.
type Source struct {
	Manifests string

	Kubeconfig, Context string

	Endpoint                  string
	CertFile, KeyFile, CAFile string

	// Label selectors, in canonical form: of namespaces, and of all other kinds but nodes.
	Labels, NamespaceLabels string
	HeadlessOnly            bool // of EndpointSlices, only those of headless services

	// Limits on requests to the API server; 0 stands for its client's own.
	QPS                float32
	Burst, MaxInflight int

	CheckEvery time.Duration // how often the store is compared with the API server; 0 = never
}

// String names the source in logs and metrics.
func (s Source) String() string {
	text := "in-cluster API server"
	switch {
	case s.Manifests != "":
		text = "manifests " + s.Manifests
	case s.Kubeconfig != "" && s.Context != "":
		text = fmt.Sprintf("kubeconfig %s context %s", s.Kubeconfig, s.Context)
	case s.Kubeconfig != "":
		text = "kubeconfig " + s.Kubeconfig
	case s.Endpoint != "":
		text = "endpoint " + s.Endpoint
	}
	if s.Labels != "" {
		text += " labels " + s.Labels
	}
	if s.NamespaceLabels != "" {
		text += " namespace_labels " + s.NamespaceLabels
	}
	if s.HeadlessOnly {
		text += " endpoints headless"
	}
	return text
}

// Run reads a source into a store until ctx ends. When it returns earlier it is started again.
type Run func(ctx context.Context, src Source, kinds []model.Kind, store *model.Store) error

// Registry holds the stores in use.
type Registry struct {
	run   Run
	log   *slog.Logger
	watch func(*model.Store, *names.Index) // told of each new store before it is filled; may be nil

	mu      sync.Mutex
	entries []*entry
	pending []*Lease // acquired since Begin
}

type entry struct {
	src    Source
	kinds  []model.Kind
	store  *model.Store
	index  *names.Index
	users  int
	cancel context.CancelFunc
	done   chan struct{}
}

// New returns an empty registry. watch may be nil.
func New(run Run, log *slog.Logger, watch func(*model.Store, *names.Index)) *Registry {
	return &Registry{run: run, log: log, watch: watch}
}

// Lease is one user's hold on a store.
type Lease struct {
	Store *model.Store
	Index *names.Index

	registry *Registry
	entry    *entry
	once     sync.Once
}

// Acquire returns a lease on the store of a source that holds at least the given kinds, and starts
// to fill one when there is none.
func (r *Registry) Acquire(src Source, kinds []model.Kind) *Lease {
	r.mu.Lock()
	defer r.mu.Unlock()
	e := r.find(src, kinds)
	if e == nil {
		e = r.start(src, kinds)
		r.entries = append(r.entries, e)
	}
	e.users++
	l := &Lease{Store: e.store, Index: e.index, registry: r, entry: e}
	r.pending = append(r.pending, l)
	return l
}

func (r *Registry) find(src Source, kinds []model.Kind) *entry {
	for _, e := range r.entries {
		missing := func(k model.Kind) bool { return !slices.Contains(e.kinds, k) }
		if e.src == src && !slices.ContainsFunc(kinds, missing) {
			return e
		}
	}
	return nil
}

func (r *Registry) start(src Source, kinds []model.Kind) *entry {
	ctx, cancel := context.WithCancel(context.Background())
	e := &entry{src: src, kinds: slices.Clone(kinds), store: model.NewStore(), index: names.New(), cancel: cancel, done: make(chan struct{})}
	e.store.Subscribe(src.chosen(e.index.Apply))
	if r.watch != nil {
		r.watch(e.store, e.index)
	}
	go func() {
		defer close(e.done)
		r.keepRunning(ctx, e)
	}()
	return e
}

// Pauses before a source that gave up is started again.
const (
	firstPause = time.Second
	maxPause   = 30 * time.Second
)

func (r *Registry) keepRunning(ctx context.Context, e *entry) {
	for pause := firstPause; ; pause = min(2*pause, maxPause) {
		err := r.run(ctx, e.src, e.kinds, e.store)
		if ctx.Err() != nil {
			return
		}
		r.log.Error("source of cluster state ended", "source", e.src.String(), "err", err, "retry_in", pause)
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

// Release gives the lease back; the last user stops the source. Further calls do nothing.
func (l *Lease) Release() {
	l.once.Do(func() {
		r := l.registry
		r.mu.Lock()
		defer r.mu.Unlock()
		r.pending = slices.DeleteFunc(r.pending, func(p *Lease) bool { return p == l })
		l.entry.users--
		if l.entry.users > 0 {
			return
		}
		l.entry.cancel()
		r.entries = slices.DeleteFunc(r.entries, func(e *entry) bool { return e == l.entry })
	})
}

// Begin says that a new configuration is about to be started beside the running one.
func (r *Registry) Begin() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.pending = nil
}

// Rollback releases what was acquired since Begin: the new configuration failed, and nobody will
// tell it to shut down.
func (r *Registry) Rollback() {
	r.mu.Lock()
	failed := slices.Clone(r.pending)
	r.mu.Unlock()
	for _, l := range failed {
		l.Release()
	}
}

// Status describes one store.
type Status struct {
	Source string
	Users  int
	Synced bool
	Rev    uint64
	// Current is the moment as of which the store is complete; zero when the source cannot tell.
	Current time.Time
}

// Status lists the stores in use, in the order they were started.
func (r *Registry) Status() []Status {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]Status, len(r.entries))
	for i, e := range r.entries {
		out[i] = Status{Source: e.src.String(), Users: e.users, Synced: e.store.HasSynced(), Rev: e.store.Rev(), Current: e.store.Current()}
	}
	return out
}
