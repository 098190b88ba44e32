package main

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"time"
)

// Count is what became of the probes of one name.
type Count struct {
	OK, Failed int
	Slow       int // successful, but only after slowFrom
	// Starved ran out of time so late that this program cannot have run meanwhile: they say nothing of the network.
	Starved int
	Worst   time.Duration // of the successful ones
	// FirstFailed and LastFailed are when the first and the last of those were begun that failed.
	FirstFailed, LastFailed time.Time
	Errors                  []string // the first few, with their times
}

const (
	// slowFrom is where a connection needed its SYN sent again.
	slowFrom = 900 * time.Millisecond
	// starvedFrom is twice the time that the slowest probe has.
	starvedFrom = 2 * attempts * patience
	maxErrors   = 5
)

// epoch is what was begun between two calls of take.
type epoch struct {
	running sync.WaitGroup
	mu      sync.Mutex
	byName  map[string]*Count
}

// counts hands out epochs.
type counts struct {
	mu  sync.Mutex
	now *epoch
}

func newCounts() *counts { return &counts{now: &epoch{byName: map[string]*Count{}}} }

// begin notes the begin of a probe, and returns what has to be called at its end.
func (c *counts) begin(name string) func(error) {
	c.mu.Lock()
	e := c.now
	e.running.Add(1)
	c.mu.Unlock()
	start := time.Now()
	return func(err error) {
		defer e.running.Done()
		e.add(name, start, err)
	}
}

func (e *epoch) add(name string, start time.Time, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	n := e.byName[name]
	if n == nil {
		n = &Count{}
		e.byName[name] = n
	}
	took := time.Since(start)
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded) && took > starvedFrom:
		n.Starved++
		return
	case err != nil:
		n.Failed++
		if n.Failed == 1 || start.Before(n.FirstFailed) {
			n.FirstFailed = start
		}
		if n.LastFailed.Before(start) {
			n.LastFailed = start
		}
		if len(n.Errors) < maxErrors {
			n.Errors = append(n.Errors, fmt.Sprintf("%s after %s: %v", start.Format("15:04:05.000"), took.Round(time.Millisecond), err))
		}
		return
	case took >= slowFrom:
		n.Slow++
	}
	n.OK++
	n.Worst = max(n.Worst, took)
}

// take returns what became of the probes begun since the last call. It waits for those under way.
func (c *counts) take() map[string]*Count {
	c.mu.Lock()
	e := c.now
	c.now = &epoch{byName: map[string]*Count{}}
	c.mu.Unlock()
	e.running.Wait()
	return e.byName
}
