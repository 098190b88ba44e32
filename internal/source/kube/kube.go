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
	Logger   *slog.Logger
	// Problems is called with all current problems, sorted by text, each time they change. The slice
	// is the caller's.
	Problems func([]Problem)
	// Retry is the pause after the first error; it doubles with each further one, to 30 s. Zero means
	// client-go's 800 ms.
	Retry time.Duration
}

const (
	defaultRetry = 800 * time.Millisecond
	maxRetry     = 30 * time.Second
	// healthyAfter is how long it must go well before the pause after an error starts small again.
	healthyAfter = 2 * time.Minute
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
	clients, err := newClients(cfg)
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
	for _, kind := range opts.Kinds {
		lw, err := clients.listWatch(kind, opts.NodeName)
		if err != nil {
			return err
		}
		s := &sink{kind: kind, store: store, board: board, have: map[model.Key]struct{}{}, bad: map[model.Key]struct{}{}}
		s.synced = func(n int) {
			log.Info("first list applied", "kind", kind, "objects", n, "took", time.Since(start))
			if left.Add(-1) == 0 {
				close(synced)
			}
		}
		r := &runner{kind: kind, sink: s, lw: lw, log: log, retry: opts.Retry}
		r.health = &health{kind: kind, host: cfg.Host, board: board, log: log}
		runners = append(runners, r)
	}
	log.Info("waiting for the API server", "host", cfg.Host, "kinds", opts.Kinds)
	for _, r := range runners {
		running.Go(func() { r.run(ctx) })
	}
	select {
	case <-synced:
		store.MarkSynced()
		log.Info("synced with the API server", "host", cfg.Host, "took", time.Since(start))
	case <-ctx.Done():
	}
	running.Wait()
	return nil
}

// runner keeps one reflector going.
type runner struct {
	kind   model.Kind
	sink   *sink
	lw     *cache.ListWatch
	health *health
	log    *slog.Logger
	retry  time.Duration
}

func (r *runner) run(ctx context.Context) {
	// The reflector's own lines go to our log; its V levels are below what slog calls Info.
	logger := logr.FromSlogHandler(r.log.With("kind", r.kind).Handler())
	ctx = klog.NewContext(ctx, logger)
	reflector := cache.NewReflectorWithOptions(r.health.watched(ctx, r.lw), resources[r.kind].empty, r.sink, cache.ReflectorOptions{
		Name:    "braid",
		Logger:  &logger,
		Backoff: r.backoff(),
	})
	delay := r.backoff().DelayWithReset(clock.RealClock{}, healthyAfter)
	// The condition never ends the loop, so the error is ctx's end.
	_ = delay.Until(ctx, true, true, func(ctx context.Context) (bool, error) {
		// List and watch requests were reported by health; this catches what is wrong with their answers.
		if err := reflector.ListAndWatchWithContext(ctx); err != nil && !r.health.seen(err) {
			r.health.note(ctx, "read", metav1.ListOptions{}, err)
		}
		return false, nil
	})
}

func (r *runner) backoff() *wait.Backoff {
	return &wait.Backoff{Duration: r.retry, Cap: maxRetry, Steps: 100, Factor: 2, Jitter: 1}
}
