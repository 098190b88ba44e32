package kubernetes

import (
	"runtime/debug"
	"testing"

	"github.com/braidnet/braid/internal/model"
)

func gcPercent() int {
	p := debug.SetGCPercent(100)
	debug.SetGCPercent(p)
	return p
}

func TestFirstListsLeaveTheCollectorAlone(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(150))
	var l listGC
	store := model.NewStore()
	tell := l.of(store)
	for i, step := range []struct {
		begins, synced bool
		want           int
	}{
		{true, false, 150}, {true, false, 150}, {false, false, 150}, // two kinds, and one is complete
		{false, true, 150}, // the other as well
		{true, true, listPercent}, {false, true, 150},
	} {
		if step.synced {
			store.MarkSynced()
		}
		if tell(step.begins); gcPercent() != step.want {
			t.Errorf("step %d: %d, want %d", i, gcPercent(), step.want)
		}
	}
}

func TestListsShareOneSetting(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(150))
	var l listGC
	for i, step := range []struct {
		begins bool
		want   int
	}{{true, listPercent}, {true, listPercent}, {false, listPercent}, {true, listPercent}, {false, listPercent}, {false, 150}, {true, listPercent}, {false, 150}} {
		if l.tell(step.begins); gcPercent() != step.want {
			t.Errorf("step %d: %d, want %d", i, gcPercent(), step.want)
		}
	}
	debug.SetGCPercent(-1)
	if l.tell(true); gcPercent() != -1 {
		t.Errorf("a collector that was off is at %d", gcPercent())
	}
	if l.tell(false); gcPercent() != -1 {
		t.Errorf("afterwards at %d", gcPercent())
	}
}
