package kubernetes

import (
	"runtime/debug"
	"testing"
)

func TestListsShareOneSetting(t *testing.T) {
	percent := func() int {
		p := debug.SetGCPercent(100)
		debug.SetGCPercent(p)
		return p
	}
	defer debug.SetGCPercent(debug.SetGCPercent(150))
	var l listGC
	for i, step := range []struct {
		begins bool
		want   int
	}{{true, listPercent}, {true, listPercent}, {false, listPercent}, {true, listPercent}, {false, listPercent}, {false, 150}, {true, listPercent}, {false, 150}} {
		if l.tell(step.begins); percent() != step.want {
			t.Errorf("step %d: %d, want %d", i, percent(), step.want)
		}
	}
	debug.SetGCPercent(-1)
	if l.tell(true); percent() != -1 {
		t.Errorf("a collector that was off is at %d", percent())
	}
	if l.tell(false); percent() != -1 {
		t.Errorf("afterwards at %d", percent())
	}
}
