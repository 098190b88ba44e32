package kube

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/braidnet/braid/internal/model"
)

// thorough is how many times the number of objects is compared for each time that all their versions
// are: metadata of a large cluster is some megabytes.
const thorough = 6

// settle is how long a difference must last to be one: until then a watch may still bring it.
const settle = 5 * time.Second

// checkNow compares what the reflector was told with what the server has, every now and then, until
// ctx is done. Watches do lose events, after restores of the server's database for one, and nobody
// else would notice before a restart.
func (r *runner) checkNow(ctx context.Context, opts Options) {
	if opts.CheckEvery <= 0 {
		return
	}
	pause := min(settle, opts.CheckEvery)
	for n := 1; ; n++ {
		// Not all kinds, nor all replicas, at once.
		if !waitFor(ctx, opts.CheckEvery/2+rand.N(opts.CheckEvery)) {
			return
		}
		differed, err := 0, error(nil)
		if n%thorough == 0 || !r.sameNumber(ctx) {
			differed, err = r.differences(ctx, pause)
		}
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			r.log.Warn("the store could not be compared with the API server", "kind", r.kind, "err", err)
		}
		if differed > 0 {
			r.log.Error("the store differed from the API server: events were lost; everything of the kind is read anew", "kind", r.kind, "objects", differed)
			r.again()
		}
		if opts.Checked != nil {
			opts.Checked(r.kind, differed, err)
		}
	}
}

// sameNumber reports whether the server has as many objects as the reflector was told of, or does not
// say how many. Where the question fails, the thorough one will say why.
func (r *runner) sameNumber(ctx context.Context) bool {
	there, known, err := r.count(ctx)
	return err == nil && (!known || there == len(r.sink.versions()))
}

func waitFor(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// differences counts the objects whose version is not the server's, the same wrong one at two looks,
// with the server's the same too.
func (r *runner) differences(ctx context.Context, pause time.Duration) (int, error) {
	first, err := r.look(ctx)
	if err != nil || len(first) == 0 {
		return 0, err
	}
	if !waitFor(ctx, pause) {
		return 0, nil
	}
	second, err := r.look(ctx)
	if err != nil {
		return 0, err
	}
	n := 0
	for key, d := range second {
		if first[key] == d {
			n++
		}
	}
	return n, nil
}

// difference is the version of an object here and there; 0 stands for none.
type difference struct{ here, there uint64 }

func (r *runner) look(ctx context.Context) (map[model.Key]difference, error) {
	there, err := r.versions(ctx)
	if err != nil {
		return nil, err
	}
	here := r.sink.versions()
	out := map[model.Key]difference{}
	for key, v := range there {
		if here[key] != v {
			out[key] = difference{here[key], v}
		}
	}
	for key, v := range here {
		if _, still := there[key]; !still {
			out[key] = difference{v, 0}
		}
	}
	return out, nil
}
