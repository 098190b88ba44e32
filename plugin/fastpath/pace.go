package fastpath

import (
	"sync/atomic"
	"time"
)

// pace bounds how many questions of a group are on the slow path at once: as many as it can take without
// keeping readers from their sockets for long, which is where answers that are known wait. The bound
// grows step by step and is halved, as TCP's window is (AIMD, RFC 5681 section 3.1).
type pace struct {
	busy atomic.Int32
	less atomic.Int32 // maxBusy without this is the bound
}

const (
	maxBusy = 4096 // most of them wait for others, and each takes some 10 KiB meanwhile
	minBusy = 16
	growth  = 1 // of the bound at each turn that came soon
	// tooLong is how long a reader may wait for its turn.
	tooLong = 2 * time.Millisecond
)

// begin takes a place, or reports false; end gives it back.
func (p *pace) begin() bool {
	if p.busy.Add(1) > maxBusy-p.less.Load() {
		p.end()
		return false
	}
	return true
}

func (p *pace) end() { p.busy.Add(-1) }

// waited is told how long a reader waited for its turn. Readers that change the bound at once lose one
// of the changes, and more follow.
func (p *pace) waited(d time.Duration) {
	bound := maxBusy - p.less.Load()
	if d > tooLong {
		bound = max(bound/2, minBusy)
	} else {
		bound = min(bound+growth, maxBusy)
	}
	p.less.Store(maxBusy - bound)
}
