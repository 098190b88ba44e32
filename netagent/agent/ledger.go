package agent

import (
	"sync"
	"time"

	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/netagent/service"
	"github.com/braidnet/braid/netagent/status"
)

// ledger is what the cluster changed about services and the kernel does not have yet. The store's
// writer notes; a step of the subsystem services takes, and settles what it took or puts it back.
type ledger struct {
	began time.Time // changes triggered before are not this agent's to be measured by

	mu       sync.Mutex
	open     batch
	services changeCount
	slices   changeCount
	revs     map[model.Key]status.Service // of the Services that there are
}

// changeCount counts changes of a kind.
type changeCount struct{ seen, settled uint64 }

// batch is a part of the ledger.
type batch struct {
	services map[model.Key]uint64                         // whose meaning may differ, by the newest revision that changed it
	triggers map[model.Key]map[service.Family][]time.Time // when pods or services changed that slices followed, by Service
	seen     struct{ services, slices uint64 }            // counts when it was taken
}

func newLedger() *ledger {
	return &ledger{began: time.Now(), open: newBatch(), revs: map[model.Key]status.Service{}}
}

func newBatch() batch {
	return batch{services: map[model.Key]uint64{}, triggers: map[model.Key]map[service.Family][]time.Time{}}
}

// note takes in changes of the store. The planner has to know of them already.
func (l *ledger) note(rev uint64, changes []model.Change) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range changes {
		switch c.Kind {
		case model.KindService:
			l.services.seen++
			l.open.services[c.Key] = rev
			if c.New == nil {
				delete(l.revs, c.Key)
			} else {
				l.revs[c.Key] = status.Service{Programmed: l.revs[c.Key].Programmed, InForce: l.revs[c.Key].InForce, Pending: true}
			}
		case model.KindEndpointSlice:
			l.slices.seen++
			old, _ := c.Old.(*model.EndpointSlice)
			now, _ := c.New.(*model.EndpointSlice)
			l.noteSlice(rev, old, now)
		}
	}
}

func (l *ledger) noteSlice(rev uint64, old, now *model.EndpointSlice) {
	for _, s := range []*model.EndpointSlice{old, now} {
		if s == nil || s.Service.Name == "" {
			continue
		}
		l.open.services[s.Service] = rev
		if at, known := l.revs[s.Service]; known {
			at.Pending = true
			l.revs[s.Service] = at
		}
	}
	if now == nil {
		delete(l.open.triggers, old.Service) // as kube-proxy: the time says nothing about a deletion
		return
	}
	if now.Service.Name == "" || !now.LastChange.After(l.began) {
		return
	}
	family := service.IPv4
	if now.IPv6 {
		family = service.IPv6
	}
	l.open.trigger(now.Service, family, now.LastChange)
}

func (b *batch) trigger(svc model.Key, f service.Family, times ...time.Time) {
	if b.triggers[svc] == nil {
		b.triggers[svc] = map[service.Family][]time.Time{}
	}
	b.triggers[svc][f] = append(b.triggers[svc][f], times...)
}

// take returns everything noted so far and leaves the ledger empty.
func (l *ledger) take() batch {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.open
	b.seen.services, b.seen.slices = l.services.seen, l.slices.seen
	l.open = newBatch()
	return b
}

// putBack returns a batch that did not reach the kernel.
func (l *ledger) putBack(b batch) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for svc, rev := range b.services {
		l.open.services[svc] = max(rev, l.open.services[svc])
	}
	for svc, families := range b.triggers {
		for f, times := range families {
			l.open.trigger(svc, f, times...)
		}
	}
}

// settle says that a batch is in the kernel.
func (l *ledger) settle(b batch) {
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.services.settled, l.slices.settled = b.seen.services, b.seen.slices
	for svc, rev := range b.services {
		if at, known := l.revs[svc]; known {
			_, again := l.open.services[svc]
			at.Programmed, at.InForce, at.Pending = rev, now, again
			l.revs[svc] = at
		}
	}
}

// programmed returns what is in force of each Service, by "namespace/name".
func (l *ledger) programmed() map[string]status.Service {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make(map[string]status.Service, len(l.revs))
	for svc, at := range l.revs {
		out[svc.String()] = at
	}
	return out
}

// counts returns how many changes of Services and EndpointSlices there were.
func (l *ledger) counts() (services, slices changeCount) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.services, l.slices
}
