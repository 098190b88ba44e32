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
