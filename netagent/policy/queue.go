package policy

import (
	"sync"

	"github.com/braidnet/braid/internal/model"
)

// queue holds changes until they are worked off: of each object the latest, in the order in which
// these came.
type queue struct {
	mu   sync.Mutex
	list []model.Change
	last map[model.Ref]int // index in list; older entries of an object count no more
}

func (q *queue) add(changes []model.Change) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, c := range changes {
		switch c.Kind {
		case model.KindNamespace, model.KindPod, model.KindNetworkPolicy:
			q.put(c)
		}
	}
	if len(q.list) > 2*len(q.last)+1024 {
		q.rebuild()
	}
}

func (q *queue) put(c model.Change) {
	if q.last == nil {
		q.last = map[model.Ref]int{}
	}
	q.last[c.Ref] = len(q.list)
	q.list = append(q.list, c)
}

// rebuild throws out what counts no more.
func (q *queue) rebuild() {
	list := q.latest()
	q.list, q.last = nil, nil
	for _, c := range list {
		q.put(c)
	}
}

func (q *queue) latest() []model.Change {
	out := make([]model.Change, 0, len(q.last))
	for i, c := range q.list {
		if q.last[c.Ref] == i {
			out = append(out, c)
		}
	}
	return out
}

func (q *queue) take() []model.Change {
	q.mu.Lock()
	defer q.mu.Unlock()
	out := q.latest()
	q.list, q.last = nil, nil
	return out
}

func (q *queue) waiting() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.list) > 0
}
