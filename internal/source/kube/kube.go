// Package kube fills a model.Store from a Kubernetes API server. Each kind has a client-go reflector
// (list, watch, resume, relist) whose store converts an object before anything keeps it, so full
// objects live only from the wire to the conversion.
//
// Nothing that goes wrong empties the store: while the server is away, or an object cannot be
// converted, the last good state stays in force and is reported as a problem.
package kube

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
	"k8s.io/utils/clock"

	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/internal/source"
)

// Problem is something that the API server did not give, or an object that cannot be used.
type Problem = source.Problem

// Options tune Run. The zero value is fine.
type Options struct {
	Kinds    []model.Kind // what to read; empty means model.Kinds
	NodeName string       // when set, of pods only those of this node are read
	// Selectors choose among the objects of a kind; the server applies them.
	Selectors map[model.Kind]Selector
	// Trim may make a value smaller before anything keeps it, or nil for one that is not wanted. It must
	// not change what it is given.
	Trim        func(model.Object) model.Object
	MaxInflight int // how many requests wait for an answer at once; 0 = any number
	// CheckEvery is how often the number of objects is compared with the server's, and every sixth time
	// their names and versions; 0 = never. Checked is told of each
	// comparison: how many objects differed, and were read anew, or why it was not possible.
	CheckEvery time.Duration
	Checked    func(kind model.Kind, differed int, err error)
	// Listing, when set, is called as a list of everything of a kind begins to come in, and again when it
	// is complete or given up. It takes memory meanwhile. Calls for different kinds overlap.
	Listing func(begins bool)
	Logger  *slog.Logger
	// Problems is called with all current problems, sorted by text, each time they change. The slice
	// is the caller's.
	Problems func([]Problem)
	// Retry is the pause after the first error; it doubles with each further one: to 1.5 s while the server cannot be
	// reached, to 30 s where it refuses. Up to as much again is added by chance. Zero means client-go's 800 ms.
	Retry time.Duration
}

// Selector is a label selector and a field selector, in Kubernetes' words; empty ones choose all.
type Selector struct{ Labels, Fields string }

const (
	defaultRetry = 800 * time.Millisecond
	maxRetry     = 30 * time.Second
	// healthyAfter is how long it must go well before the pause after an error starts small again.
	healthyAfter = 2 * time.Minute
	// beat is how often the store is marked current while nothing is wrong.
	beat = 2 * time.Second
)

// Run keeps the store equal to what the API server has of the kinds asked for, until ctx is done. It
// marks the store synced when the first list of every kind was applied. It returns an error only for
// a cfg or kinds that cannot work; a server that cannot be reached is asked again for ever.
func Run(ctx context.Context, cfg *rest.Config, store *model.Store, opts Options) error {
	if len(opts.Kinds) == 0 {
		opts.Kinds = model.Kinds
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if opts.Retry <= 0 {
		opts.Retry = defaultRetry
	}
	clients, err := newClients(cfg, opts)
	if err != nil {
		return fmt.Errorf("set up a client for the API server at %s: %w", cfg.Host, err)
	}
	log, start := opts.Logger, time.Now()
	board := source.NewBoard(log, opts.Problems)
	var running sync.WaitGroup
	var left atomic.Int64 // kinds whose first list has not come
	left.Store(int64(len(opts.Kinds)))
	synced := make(chan struct{})
	var runners []*runner
	gather := &gathering{store: store}
	away := &outage{retry: opts.Retry, ready: clients.ready}
	for _, kind := range opts.Kinds {
		lw, err := clients.listWatch(kind, opts)
		if err != nil {
			return err
		}
		s := &sink{kind: kind, store: store, gather: gather, board: board, trim: opts.Trim, listing: opts.Listing, have: map[model.Key]held{}, bad: map[model.Key]struct{}{}}
		s.synced = func(n int) {
			log.Info("first list applied", "kind", kind, "objects", n, "took", time.Since(start))
			if left.Add(-1) == 0 {
				close(synced)
			}
		}
		r := &runner{kind: kind, sink: s, lw: lw, log: log, retry: opts.Retry}
		r.versions = func(ctx context.Context) (map[model.Key]uint64, error) { return clients.versions(ctx, kind, opts) }
		r.count = func(ctx context.Context) (int, bool, error) { return clients.count(ctx, kind, opts) }
		r.health = &health{kind: kind, host: cfg.Host, board: board, log: log, outage: away}
		runners = append(runners, r)
	}
	away.over = func() { relist(gather, runners) }
	log.Info("waiting for the API server", "host", cfg.Host, "kinds", opts.Kinds)
	for _, r := range runners {
		running.Go(func() { r.run(ctx) })
	}
	select {
	case <-synced:
		store.MarkSynced()
		log.Info("synced with the API server", "host", cfg.Host, "took", time.Since(start))
		for _, r := range runners {
			running.Go(func() { r.checkNow(ctx, opts) })
		}
		keepCurrent(ctx, store, runners)
	case <-ctx.Done():
	}
	running.Wait()
	return nil
}

// relist reads everything of every kind anew, and tells the store of it as one change.
func relist(gather *gathering, runners []*runner) {
	var sinks []*sink
	for _, r := range runners {
		sinks = append(sinks, r.sink)
	}
	gather.begin(sinks)
	for _, r := range runners {
		r.again()
	}
}

// keepCurrent marks the store as current, again and again, while every kind's requests succeed. A
// connection that dies in silence is found out by the client's own probes, within a minute.
func keepCurrent(ctx context.Context, store *model.Store, runners []*runner) {
	tick := time.NewTicker(beat)
	defer tick.Stop()
	for {
		if !slices.ContainsFunc(runners, func(r *runner) bool { return !r.health.fine() }) {
			store.MarkCurrent(time.Now())
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// runner keeps one reflector going.
type runner struct {
	kind     model.Kind
	sink     *sink
	lw       *cache.ListWatch
	versions func(context.Context) (map[model.Key]uint64, error)
	count    func(context.Context) (int, bool, error)
	health   *health
	log      *slog.Logger
	retry    time.Duration

	mu   sync.Mutex
	stop context.CancelFunc // ends the reflector that runs now; a new one takes its place
}

func (r *runner) run(ctx context.Context) {
	// The reflector's own lines go to our log; its V levels are below what slog calls Info.
	logger := logr.FromSlogHandler(r.log.With("kind", r.kind).Handler())
	ctx = klog.NewContext(ctx, logger)
	var reflector *cache.Reflector
	var current context.Context
	fresh := func() {
		// Namespaces come as metadata or, from an old server, whole: no type is expected of them.
		var expected any = resources[r.kind].empty
		if r.kind == model.KindNamespace {
			expected = nil
		}
		reflector = cache.NewReflectorWithOptions(r.health.watched(ctx, r.lw), expected, r.sink, cache.ReflectorOptions{
			Name:    "braid",
			Logger:  &logger,
			Backoff: r.backoff(),
		})
		r.mu.Lock()
		defer r.mu.Unlock()
		current, r.stop = context.WithCancel(ctx)
	}
	fresh()
	delay := r.backoff().DelayWithReset(clock.RealClock{}, healthyAfter)
	// The condition never ends the loop, so the error is ctx's end.
	_ = delay.Until(ctx, true, true, func(context.Context) (bool, error) {
		for again := true; again && ctx.Err() == nil; {
			if current.Err() != nil {
				fresh()
			}
			// List and watch requests were reported by health; this catches what is wrong with their answers.
			err := reflector.ListAndWatchWithContext(current)
			again = current.Err() != nil // whoever stopped it does not want to wait
			if err != nil && !again && !r.health.seen(err) {
				r.health.note(ctx, "read", metav1.ListOptions{}, err)
			}
			r.sink.endList()
		}
		return false, nil
	})
}

// again reads everything of the kind anew.
func (r *runner) again() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.stop != nil {
		r.stop()
	}
}

func (r *runner) backoff() *wait.Backoff {
	return &wait.Backoff{Duration: r.retry, Cap: maxRetry, Steps: 100, Factor: 2, Jitter: 1}
}
