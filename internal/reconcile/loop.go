// Package reconcile runs one subsystem's "make the kernel what it should be" step, level-triggered:
// when kicked, after errors with back-off, and slowly for ever. It keeps what people ask about it:
// what is in force, since when, and the last error with its age.
package reconcile

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"
)

// Outcome is what one successful step reports.
type Outcome struct {
	Summary string   // what is programmed, for people: "nftables: 24 frontends, 61 backends"
	Notes   []string // what was asked for and is not done, each naming its object
	Changes []string // what the step changed, each with its reason; empty when all was right already
}

// Step brings the world to the desired state and says what it found. It must be safe to repeat.
type Step func(ctx context.Context) (Outcome, error)

// Status is the state of a Loop at one moment. Times are zero when the thing has not happened.
type Status struct {
	Name     string        `json:"name"`
	Ready    bool          `json:"ready"`          // the desired state was reached at least once
	Failing  bool          `json:"failing"`        // the newest attempt failed
	Pending  bool          `json:"pending"`        // a change is not in force yet: it waits, or a step works on it
	Since    time.Time     `json:"since,omitzero"` // when the oldest pending change came
	Revision uint64        `json:"revision"`
	Summary  string        `json:"summary,omitempty"`
	Notes    []string      `json:"notes,omitempty"`
	Synced   time.Time     `json:"synced,omitzero"` // end of the last successful step
	Took     time.Duration `json:"took,omitempty"`  // length of the last successful step, nanoseconds
	Error    string        `json:"error,omitempty"` // the last error, kept after recovery
	ErrorAt  time.Time     `json:"errorAt,omitzero"`
	Steps    uint64        `json:"steps"`
	Errors   uint64        `json:"errors"`
}

// LateAfter is how long a change may be pending before the subsystem counts as not ready.
const LateAfter = 10 * time.Second

// Problem says in one line why the newest desired state is not in force; "" when it is, or is on its
// way there for no longer than LateAfter.
func (s *Status) Problem(now time.Time) string {
	switch late := now.Sub(s.Since); {
	case s.Failing:
		return s.Error
	case !s.Ready:
		return "not programmed yet"
	case s.Pending && late > LateAfter:
		return fmt.Sprintf("a change has been waiting for %s", late.Round(time.Second))
	}
	return ""
}

// Config says how a Loop runs its Step.
type Config struct {
	Name     string
	Step     Step
	Audit    time.Duration // repeat the step this long after the last one; 0 = only when kicked
	Revision func() uint64 // newest revision of the input, asked before each step; nil = 0
	Log      *slog.Logger
	// MinRetry and MaxRetry bound the back-off after errors; zero means 100 ms and 30 s.
	MinRetry, MaxRetry time.Duration
}

// Loop runs a Step. Make it with New, start it with Run.
type Loop struct {
	cfg  Config
	kick chan struct{}

	mu        sync.Mutex
	status    Status
	kicks     uint64        // how many there were
	moved     time.Time     // last time the loop came round, its sign of life; zero until Run
	failedAt  time.Time     // first failure since the last success
	firstDone chan struct{} // closed after the first success
}

// New returns a loop that has not started.
func New(cfg Config) *Loop {
	if cfg.MinRetry == 0 {
		cfg.MinRetry = 100 * time.Millisecond
	}
	if cfg.MaxRetry == 0 {
		cfg.MaxRetry = 30 * time.Second
	}
	return &Loop{cfg: cfg, kick: make(chan struct{}, 1), firstDone: make(chan struct{}),
		status: Status{Name: cfg.Name}}
}

// Kick asks for a step soon. It never blocks; kicks that come while a step waits or runs are merged
// into one further step.
func (l *Loop) Kick() {
	l.mu.Lock()
	l.kicks++
	if !l.status.Pending {
		l.status.Pending, l.status.Since = true, time.Now()
	}
	l.mu.Unlock()
	select {
	case l.kick <- struct{}{}:
	default:
	}
}

// Ready returns a channel that is closed after the first successful step.
func (l *Loop) Ready() <-chan struct{} { return l.firstDone }

// Status returns a copy of the loop's state.
func (l *Loop) Status() Status {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.status
}

// Stuck reports for how long the loop has not come round, when that is longer than it should ever
// take: twice the larger of its audit interval and its longest back-off. A loop that was not started
// yet is not stuck: others may have to be ready before it.
func (l *Loop) Stuck(now time.Time) (time.Duration, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.moved.IsZero() {
		return 0, false
	}
	idle := now.Sub(l.moved)
	if l.cfg.Audit == 0 && !l.status.Pending {
		return idle, false
	}
	return idle, idle > 2*max(l.cfg.Audit, l.cfg.MaxRetry)
}

// kickPause is how long after a failure a kick is answered.
const kickPause = time.Second

// Run steps at once, then on kicks, on the audit interval, and after errors with growing, jittered
// pauses, until ctx ends. A kick cuts a pause short, since what it tells may be the remedy, but not
// below kickPause: a failing kernel is not hammered.
func (l *Loop) Run(ctx context.Context) {
	retry := l.cfg.MinRetry
	for ctx.Err() == nil {
		if l.step(ctx) != nil {
			pause := retry + rand.N(retry/4+1)
			l.wait(ctx, min(pause, kickPause), pause)
			retry = min(2*retry, l.cfg.MaxRetry)
			continue
		}
		retry = l.cfg.MinRetry
		l.wait(ctx, 0, l.cfg.Audit)
	}
}

// wait returns when most is over (0: never), and from least on for a kick, also one that came before.
func (l *Loop) wait(ctx context.Context, least, most time.Duration) {
	var end <-chan time.Time
	if most > 0 {
		end = time.After(most)
	}
	if least > 0 {
		select {
		case <-ctx.Done():
			return
		case <-time.After(least):
		}
	}
	select {
	case <-ctx.Done():
	case <-l.kick:
	case <-end:
	}
}

func (l *Loop) step(ctx context.Context) error {
	select { // this step answers every kick so far
	case <-l.kick:
	default:
	}
	start := time.Now()
	l.mu.Lock()
	kicks := l.kicks
	l.moved = start
	l.mu.Unlock()
	var rev uint64
	if l.cfg.Revision != nil {
		rev = l.cfg.Revision()
	}
	out, err := l.cfg.Step(ctx)
	if ctx.Err() != nil && err != nil {
		return err // interrupted by shutdown, which is no failure of the subsystem
	}
	l.record(rev, kicks, start, out, err)
	return err
}

// record notes the end of a step that began at start, when there had been this many kicks.
func (l *Loop) record(rev, kicks uint64, start time.Time, out Outcome, err error) {
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	s := &l.status
	l.moved = now
	s.Steps++
	if err != nil {
		// The same failure again is one line at debug level, not a flood.
		level := slog.LevelError
		if s.Failing && s.Error == err.Error() {
			level = slog.LevelDebug
		}
		l.cfg.Log.Log(context.Background(), level, "sync failed", "subsystem", s.Name, "rev", rev, "err", err)
		if !s.Failing {
			l.failedAt = now
		}
		s.Failing, s.Error, s.ErrorAt = true, err.Error(), now
		s.Errors++
		return
	}
	if s.Failing {
		l.cfg.Log.Info("sync works again", "subsystem", s.Name, "rev", rev, "failed-for", now.Sub(l.failedAt).Round(time.Millisecond))
	}
	for _, c := range out.Changes {
		l.cfg.Log.Debug("changed", "subsystem", s.Name, "rev", rev, "change", c)
	}
	s.Failing, s.Revision, s.Summary, s.Notes = false, rev, out.Summary, out.Notes
	switch {
	case l.kicks == kicks:
		s.Pending, s.Since = false, time.Time{}
	case s.Since.Before(start):
		s.Since = start // what waited longer is in force; the rest came during the step
	}
	s.Synced, s.Took = now, now.Sub(start)
	if !s.Ready {
		s.Ready = true
		close(l.firstDone)
		l.cfg.Log.Info("ready", "subsystem", s.Name, "rev", rev, "programmed", out.Summary, "took", s.Took.Round(time.Millisecond))
	}
}
