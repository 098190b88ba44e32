package kubernetes

import (
	"runtime/debug"
	"sync"

	"github.com/braidnet/braid/internal/model"
)

// lists bounds the memory that the process takes while everything is read again, as after a restart of
// the API server: what comes in is garbage a moment later, and the collector lets as much of that pile
// up as there is of the rest. It then works more often; between lists, answers need the time.
var lists listGC

// listPercent is the collector's GOGC while lists come in.
const listPercent = 20

type listGC struct {
	mu     sync.Mutex
	open   int
	before int // GOGC without a list
}

// of returns what follows the lists of one store. Until the store has its first state nobody is answered,
// so the collector is left alone: with 10,000 services it would take as much time as all the rest.
func (l *listGC) of(store *model.Store) func(begins bool) {
	var mu sync.Mutex
	first := 0 // lists of the first state that are open
	return func(begins bool) {
		mu.Lock()
		defer mu.Unlock()
		switch {
		case begins && !store.HasSynced():
			first++
		case !begins && first > 0:
			first--
		default:
			l.tell(begins)
		}
	}
}

func (l *listGC) tell(begins bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if begins {
		if l.open++; l.open == 1 {
			if l.before = debug.SetGCPercent(listPercent); l.before < listPercent {
				debug.SetGCPercent(l.before) // somebody wants less still, or none at all
			}
		}
		return
	}
	if l.open--; l.open == 0 {
		debug.SetGCPercent(l.before)
		debug.FreeOSMemory()
	}
}
