package source

import (
	"log/slog"
	"sort"
	"sync"
	"time"
)

// Problem is something that a source could not use or could not read.
type Problem struct {
	Text  string    // begins with file:line where it is about a manifest
	Since time.Time // when it was first seen
}

// Board keeps the current problems of a source: it logs each once when it appears and once when it
// is over, and hands on the whole list each time that it changes. It may be used by many goroutines.
type Board struct {
	log    *slog.Logger
	notify func([]Problem)

	mu      sync.Mutex
	current map[string]Problem
}

// NewBoard returns an empty board. notify may be nil; it is called with the board locked, with a
// slice of its own, sorted by text.
func NewBoard(log *slog.Logger, notify func([]Problem)) *Board {
	return &Board{log: log, notify: notify, current: map[string]Problem{}}
}

// Set adds the problem with the given key, or gives it another text.
func (b *Board) Set(key, text string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.set(key, text) {
		b.tell()
	}
}

// Clear removes the problem with the given key, if there is one.
func (b *Board) Clear(key string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, have := b.current[key]; have {
		b.clear(key)
		b.tell()
	}
}

// Replace makes the given texts, by key, all the problems there are.
func (b *Board) Replace(all map[string]string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	changed := false
	for key, text := range all {
		changed = b.set(key, text) || changed
	}
	for key := range b.current {
		if _, still := all[key]; !still {
			b.clear(key)
			changed = true
		}
	}
	if changed {
		b.tell()
	}
}

// Len returns the number of current problems.
func (b *Board) Len() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.current)
}

func (b *Board) set(key, text string) (changed bool) {
	p, have := b.current[key]
	if have && p.Text == text {
		return false
	}
	if !have {
		p.Since = time.Now()
		b.log.Error("cannot be used, the last good state stays in force", "problem", text)
	}
	p.Text = text
	b.current[key] = p
	return true
}

func (b *Board) clear(key string) {
	p := b.current[key]
	delete(b.current, key)
	b.log.Info("problem is over", "problem", p.Text, "lasted", time.Since(p.Since).Round(time.Millisecond))
}

func (b *Board) tell() {
	if b.notify == nil {
		return
	}
	out := make([]Problem, 0, len(b.current))
	for _, p := range b.current {
		out = append(out, p)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Text < out[j].Text })
	b.notify(out)
}
