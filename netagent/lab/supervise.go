package lab

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

const (
	firstBackOff = 100 * time.Millisecond
	longBackOff  = 10 * time.Second
	// settled is how long a program must have run for its next crash to count as the first again.
	settled = 10 * time.Second
	// programGrace is short: a lab that goes down has nobody left to serve, and CoreDNS would keep
	// serving for its lameduck time.
	programGrace = 500 * time.Millisecond
	askOften     = 100 * time.Millisecond // while a program is not ready
	askSeldom    = time.Second            // while it is
	askPatience  = 2 * time.Second
)

// program is one process of a node which the daemon keeps running, as a kubelet would.
type program struct {
	node, name string
	log        string // file its output is appended to
	entry      *entry
	self       string                      // the netagent binary, which makes the entry
	ask        func(context.Context) error // nil when the program answers as it should
	changed    func()                      // told after every change of state
	logger     *slog.Logger

	hold sync.Mutex // keeps the program from being started

	mu       sync.Mutex
	cmd      *exec.Cmd // nil while not running
	since    time.Time // of the current state
	restarts int
	ready    bool
	why      string // why it is not ready
	died     string // how it ended since it was last ready: worth more than what it says while starting again
}

// ProgramStatus is what a program of a node is doing.
type ProgramStatus struct {
	Ready    bool      `json:"ready"`
	PID      int       `json:"pid,omitempty"` // 0 = not running
	Since    time.Time `json:"since"`
	Restarts int       `json:"restarts"`
	Why      string    `json:"why,omitempty"` // why it is not ready
	Log      string    `json:"log"`
}

func (p *program) String() string { return "node/" + p.node + "/" + p.name }

func (p *program) status() ProgramStatus {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := ProgramStatus{Ready: p.ready, Since: p.since, Restarts: p.restarts, Why: p.why, Log: p.log}
	if p.died != "" && p.why != p.died {
		s.Why = p.died + "; started again: " + p.why
	}
	if p.cmd != nil {
		s.PID = p.cmd.Process.Pid
	}
	return s
}

// set changes the state and tells about it.
func (p *program) set(f func()) {
	p.mu.Lock()
	f()
	p.mu.Unlock()
	p.changed()
}

// run keeps the program running until ctx ends, then ends it.
func (p *program) run(ctx context.Context) {
	backOff := firstBackOff
	for ctx.Err() == nil {
		begun := time.Now()
		err := p.once(ctx)
		if ctx.Err() != nil {
			return
		}
		if time.Since(begun) > settled {
			backOff = firstBackOff
		}
		p.logger.Warn("program ended, starting it again", "program", p.String(), "err", err, "in", backOff, "log", p.log)
		why := fmt.Sprintf("ended: %v", err)
		if last := lastLines(p.log, 1); len(last) > 0 {
			why += ", its last words: " + last[0]
		}
		p.set(func() {
			p.cmd, p.ready, p.since, p.why, p.died = nil, false, time.Now(), why, why
			p.restarts++
		})
		select {
		case <-ctx.Done():
			return
		case <-time.After(backOff):
		}
		backOff = min(2*backOff, longBackOff)
	}
}

// once runs the program until it ends.
func (p *program) once(ctx context.Context) error {
	out, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer out.Close()
	cmd := p.entry.command(p.self)
	// A file, not a pipe: the program outlives a killed daemon and must not die of its own log.
	cmd.Stdout, cmd.Stderr = out, out
	// Its own process group keeps a terminal's Ctrl-C away from it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	// Started inside the namespace, so that `down` finds it there from its first instant.
	if err := p.start(cmd); err != nil {
		return err
	}
	p.logger.Info("program started", "program", p.String(), "pid", cmd.Process.Pid)

	asking, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { p.watch(asking) })
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case err = <-ended:
	case <-ctx.Done():
		endAll([]int{cmd.Process.Pid}, programGrace)
		err = <-ended
	}
	stop()
	wg.Wait()
	return err
}

func (p *program) start(cmd *exec.Cmd) error {
	p.hold.Lock()
	defer p.hold.Unlock()
	if err := inNS(p.entry.netns, cmd.Start); err != nil {
		return err
	}
	p.set(func() { p.cmd, p.since, p.why = cmd, time.Now(), "starting" })
	return nil
}

// watch asks the program whether it is ready, until ctx ends.
func (p *program) watch(ctx context.Context) {
	for {
		asking, cancel := context.WithTimeout(ctx, askPatience)
		err := p.ask(asking)
		cancel()
		if ctx.Err() != nil {
			return
		}
		p.answered(err)
		wait := askOften
		if err == nil {
			wait = askSeldom
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// answered takes the program's answer in. Only a change is told.
func (p *program) answered(err error) {
	why := ""
	if err != nil {
		why = err.Error()
	}
	p.mu.Lock()
	same := p.ready == (err == nil) && p.why == why
	turned := p.ready != (err == nil)
	p.ready, p.why = err == nil, why
	if err == nil {
		p.died = ""
	}
	if turned {
		p.since = time.Now()
	}
	p.mu.Unlock()
	if turned {
		p.logger.Info("program turned", "program", p.String(), "ready", err == nil, "why", why)
	}
	if !same {
		p.changed()
	}
}

// signal sends the running program a signal.
func (p *program) signal(sig syscall.Signal) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return fmt.Errorf("%s is not running: %s", p, p.why)
	}
	if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("signal %s: %w", p, err)
	}
	return nil
}

// makeDirs creates the folders a node's programs and the runtime use.
func makeDirs(dirs ...string) error {
	for _, d := range dirs {
		if err := os.MkdirAll(filepath.Clean(d), 0o755); err != nil {
			return err
		}
	}
	return nil
}
