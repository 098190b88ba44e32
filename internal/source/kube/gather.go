package kube

import (
	"sync"
	"time"

	"github.com/braidnet/braid/internal/model"
)

// gatherFor is how long what came in after an outage is kept back at most: a kind may go on failing.
const gatherFor = 10 * time.Second

// gathering keeps back what sinks have for the store, from the end of an outage until everything of every kind was listed
// again. Otherwise the store would hold, for as long as lists take, states of the cluster that never were: the pods of
// now under the policies of before, say.
type gathering struct {
	store *model.Store

	mu      sync.Mutex
	missing map[*sink]struct{} // whose lists have not come
	updates []model.Update
	limit   *time.Timer
}

// begin keeps back everything until all sinks have been given complete lists.
func (g *gathering) begin(sinks []*sink) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.missing) == 0 {
		g.limit = time.AfterFunc(gatherFor, func() {
			g.mu.Lock()
			defer g.mu.Unlock()
			g.release()
		})
	}
	g.missing = map[*sink]struct{}{}
	for _, s := range sinks {
		g.missing[s] = struct{}{}
	}
}

// apply brings updates to the store, now or with the others. whole says that they are a complete list.
func (g *gathering) apply(s *sink, updates []model.Update, whole bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.missing) == 0 {
		g.store.Apply(updates)
		return
	}
	g.updates = append(g.updates, updates...)
	if whole {
		delete(g.missing, s)
	}
	if len(g.missing) == 0 {
		g.limit.Stop()
		g.release()
	}
}

// release applies what was kept back, as one batch. A timer that fires late finds nothing.
func (g *gathering) release() {
	g.missing = nil
	if len(g.updates) > 0 {
		g.store.Apply(g.updates)
	}
	g.updates = nil
}
