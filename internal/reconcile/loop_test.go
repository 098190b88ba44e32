package reconcile

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

func TestLoopRetriesThenRecoversAndRemembersTheError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var calls int
		l := New(Config{Name: "x", Log: quiet, Revision: func() uint64 { return 7 }, Step: func(context.Context) (Outcome, error) {
			calls++
			if calls < 4 {
				return Outcome{}, errors.New("kernel says no")
			}
			return Outcome{Summary: "3 things"}, nil
		}})
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go l.Run(ctx)
		<-l.Ready()
		synctest.Wait()
		s := l.Status()
		if s.Failing || s.Error != "kernel says no" || s.Errors != 3 || s.Steps != 4 || s.Revision != 7 || s.Summary != "3 things" {
			t.Fatalf("status after recovery: %+v", s)
		}
		if s.ErrorAt.IsZero() || s.ErrorAt.After(s.Synced) {
			t.Errorf("the age of the last error is lost: %+v", s)
		}
	})
}

func TestKickDuringStepIsNotLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var calls atomic.Int32
		inStep, goOn := make(chan struct{}), make(chan struct{})
		l := New(Config{Name: "x", Log: quiet, Step: func(context.Context) (Outcome, error) {
			if calls.Add(1) == 1 {
				close(inStep)
				<-goOn
			}
			return Outcome{}, nil
		}})
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go l.Run(ctx)
		<-inStep
		l.Kick()
		l.Kick()
		close(goOn)
		synctest.Wait()
		if n := calls.Load(); n != 2 {
			t.Fatalf("%d steps, want 2: the kicks during the first step make exactly one more", n)
		}
		if l.Status().Pending {
			t.Error("nothing is pending any more")
		}
	})
}

func TestAuditRepeatsAndStuckIsSeen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var calls atomic.Int32
		block := make(chan struct{})
		l := New(Config{Name: "x", Log: quiet, Audit: 30 * time.Second, Step: func(ctx context.Context) (Outcome, error) {
			if calls.Add(1) == 4 {
				<-block
			}
			return Outcome{}, nil
		}})
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go l.Run(ctx)
		time.Sleep(91 * time.Second) // of the bubble's clock
		synctest.Wait()
		if n := calls.Load(); n != 4 {
			t.Fatalf("%d steps in 91 s with a 30 s audit, want 4", n)
		}
		if _, stuck := l.Stuck(time.Now()); stuck {
			t.Error("a loop that stepped a second ago is not stuck")
		}
		time.Sleep(2 * time.Minute)
		if _, stuck := l.Stuck(time.Now()); !stuck {
			t.Error("a step that hangs for two minutes must count as stuck")
		}
		close(block)
	})
}

func TestChangeIsPendingUntilItIsInForce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var calls atomic.Int32
		goOn := make(chan error)
		l := New(Config{Name: "x", Log: quiet, Step: func(context.Context) (Outcome, error) {
			calls.Add(1)
			return Outcome{}, <-goOn
		}})
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go l.Run(ctx)
		goOn <- nil
		synctest.Wait()
		l.Kick()
		synctest.Wait()
		if s := l.Status(); calls.Load() != 2 || !s.Pending || s.Problem(time.Now()) != "" {
			t.Errorf("a step is working on the change, so it is not in force, and not late: %+v", s)
		}
		time.Sleep(LateAfter + time.Second)
		if s := l.Status(); s.Problem(time.Now()) != "a change has been waiting for 11s" {
			t.Errorf("a change that waits this long must show: %q", s.Problem(time.Now()))
		}
		l.Kick() // comes during the step, which may have looked before it
		goOn <- errors.New("no")
		synctest.Wait()
		if s := l.Status(); !s.Pending || s.Problem(time.Now()) != "no" {
			t.Errorf("after a failure the change is pending still: %+v", s)
		}
		time.Sleep(2 * time.Second)
		goOn <- nil
		synctest.Wait()
		if s := l.Status(); s.Pending || !s.Since.IsZero() || s.Problem(time.Now()) != "" {
			t.Errorf("all is in force: %+v", s)
		}
	})
}

func TestKickCutsALongBackOffShort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var calls atomic.Int32
		var cured atomic.Bool
		l := New(Config{Name: "x", Log: quiet, Step: func(context.Context) (Outcome, error) {
			calls.Add(1)
			if !cured.Load() {
				return Outcome{}, errors.New("the node has no pod CIDRs")
			}
			return Outcome{}, nil
		}})
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go l.Run(ctx)
		for l.Status().Steps < 12 { // pauses have grown to half a minute
			time.Sleep(time.Second)
		}
		steps := calls.Load()
		for range 5 {
			l.Kick()
			time.Sleep(kickPause / 10)
		}
		if n := calls.Load() - steps; n > 1 {
			t.Errorf("%d steps in half a second: a failing kernel is hammered", n)
		}
		cured.Store(true)
		l.Kick()
		time.Sleep(2 * kickPause)
		if s := l.Status(); s.Failing {
			t.Errorf("the remedy came with a kick two seconds ago: %+v", s)
		}
	})
}

func TestLoopThatWaitsForOthersIsNotStuck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New(Config{Name: "x", Log: quiet, Audit: 10 * time.Second, Step: func(context.Context) (Outcome, error) { return Outcome{}, nil }})
		l.Kick()
		time.Sleep(time.Hour)
		if idle, stuck := l.Stuck(time.Now()); stuck {
			t.Errorf("never started, and called stuck for %s: the agent would be restarted for ever", idle)
		}
	})
}
