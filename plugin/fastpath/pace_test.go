package fastpath

import "testing"

// The bound is halved when a reader had to wait long, never below the least, and comes back by steps.
func TestPace(t *testing.T) {
	var p pace
	places := func() (n int) {
		for p.begin() {
			n++
		}
		for range n {
			p.end()
		}
		return n
	}
	step := func(want int) {
		t.Helper()
		if got := places(); got != want {
			t.Fatalf("%d places, want %d", got, want)
		}
	}
	step(maxBusy)
	p.waited(tooLong + 1)
	step(maxBusy / 2)
	p.waited(tooLong)
	step(maxBusy/2 + growth)
	for range 20 {
		p.waited(tooLong + 1)
	}
	step(minBusy)
	for range maxBusy {
		p.waited(0)
	}
	step(maxBusy)
	if n := p.busy.Load(); n != 0 {
		t.Errorf("%d are busy although all ended", n)
	}
}
