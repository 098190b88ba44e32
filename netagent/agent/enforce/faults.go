package enforce

import (
	"log/slog"
	"time"

	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/netagent/policy"
)

const (
	// retryClosedPolicies is how often policies that the kernel refused are tried again: it may have had no memory,
	// say, and has some now.
	retryClosedPolicies = 30 * time.Second
	// namedRefusals bounds how often what a refusal names is closed and the rest is tried; halving finds the others.
	namedRefusals = 16
	// isolatePatience bounds the search for those to blame. Who was not tried by then stays closed until the next retry.
	isolatePatience = 5 * time.Second
)

// faultKeeper keeps what is not in force as written. The zero value is ready.
type faultKeeper struct {
	closed map[model.Key]bool // by us, because the kernel refused them
	tried  time.Time
	told   map[model.Key]policy.Fault
	report func([]policy.Fault) // is told of all that there are, when they have changed; may be nil
}

// retry opens closed policies again when it is time.
func (f *faultKeeper) retry(c *policy.Compiler, now time.Time) {
	if len(f.closed) == 0 || now.Sub(f.tried) < retryClosedPolicies {
		return
	}
	f.tried = now
	var list []model.Key
	for k := range f.closed {
		list = append(list, k)
	}
	clear(f.closed)
	c.Reopen(list)
}

func (f *faultKeeper) close(c *policy.Compiler, list []model.Key, why string) {
	if f.closed == nil {
		f.closed = map[model.Key]bool{}
	}
	if len(f.closed) == 0 {
		f.tried = time.Now()
	}
	for _, k := range list {
		f.closed[k] = true
	}
	c.Close(list, why)
}

func (f *faultKeeper) open(c *policy.Compiler, list []model.Key) {
	for _, k := range list {
		delete(f.closed, k)
	}
	c.Reopen(list)
}

// isolate closes the policies that the kernel refused, and writes the rest. What it cannot put right is the
// error that it returns, and then it leaves all policies open, as they were.
func (p *Enforcer) isolate(delta policy.Delta, cause error) (changes []string, err error) {
	deadline := time.Now().Add(isolatePatience)
	err = cause
	var named []model.Key
	for range namedRefusals {
		refused := p.plane.Refused(err)
		if refused == nil {
			break
		}
		list := p.compiler.Policies(refused)
		if len(list) == 0 {
			break
		}
		named = append(named, list...)
		p.faults.close(p.compiler, list, err.Error())
		if changes, err = p.rewrite(); err == nil {
			return changes, nil
		}
	}
	// The error names no policy: the kernel has checked the whole, say. With all that may be to blame closed the rest
	// must be taken, else it is no policy's fault.
	changed := map[string]bool{}
	for _, s := range delta.Sections {
		changed[s.ID] = true
	}
	for _, suspect := range []func(*policy.Section) bool{
		func(s *policy.Section) bool { return changed[s.ID] },
		func(*policy.Section) bool { return true },
	} {
		list := p.compiler.Policies(suspect)
		if len(list) == 0 {
			continue
		}
		p.faults.close(p.compiler, list, cause.Error())
		if changes, err = p.rewrite(); err == nil {
			return changes, p.halve(list, deadline)
		}
		p.faults.open(p.compiler, list)
	}
	p.faults.open(p.compiler, named)
	return nil, cause
}

// halve opens closed policies again, those of them that the kernel takes.
func (p *Enforcer) halve(list []model.Key, deadline time.Time) error {
	if time.Now().After(deadline) {
		return nil
	}
	p.faults.open(p.compiler, list)
	_, err := p.plane.Write(p.compiler.Flush(), p.compiler.All)
	if err == nil {
		return nil
	}
	p.faults.close(p.compiler, list, err.Error())
	if _, err := p.rewrite(); err != nil { // the state before, which was taken
		return err
	}
	if len(list) == 1 {
		return nil
	}
	for _, half := range [][]model.Key{list[:len(list)/2], list[len(list)/2:]} {
		if err := p.halve(half, deadline); err != nil {
			return err
		}
	}
	return nil
}

// rewrite writes everything after a refusal.
func (p *Enforcer) rewrite() ([]string, error) {
	p.plane.Forget()
	return p.plane.Write(p.compiler.Flush(), p.compiler.All)
}

// tell logs what of policies is not in force and what is again, and returns it as notes for people.
func (f *faultKeeper) tell(log *slog.Logger, now []policy.Fault) (notes []string) {
	is := map[model.Key]policy.Fault{}
	changed := len(now) != len(f.told)
	for _, x := range now {
		notes = append(notes, x.String())
		is[x.Policy.Key] = x
		if was, ok := f.told[x.Policy.Key]; !ok || was.Closed != x.Closed {
			log.Error("a policy is not in force as it is written; what is not allows nothing", "policy", x.Policy.Key, "closed", x.Closed, "why", x.Why)
			changed = true
		} else if was != x {
			changed = true
		}
	}
	for k := range f.told {
		if _, still := is[k]; !still {
			log.Info("a policy is in force as it is written", "policy", k)
			changed = true
		}
	}
	f.told = is
	if changed && f.report != nil {
		f.report(now)
	}
	return notes
}
