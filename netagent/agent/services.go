package agent

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/braidnet/braid/internal/reconcile"
	"github.com/braidnet/braid/netagent/service"
)

// services keeps the kernel's service rules equal to the frontend table: whole once (adopting what
// an earlier run left), then only what changed, and whole again after an error and on each audit.
type services struct {
	planner   *service.Planner
	dataplane service.Dataplane
	others    []service.Dataplane // the other modes, whose leftovers go once ours is in force

	log *slog.Logger

	whole    time.Time           // when the kernel was last compared as a whole; zero = must be next
	backends map[service.Key]int // what is programmed
}

// serviceAudit is how often the rules in the kernel are compared with what they should be.
const serviceAudit = time.Minute

func newServices(c Config) (*services, error) {
	dp, others, err := chooseDataplane(c.ServiceMode, c.Log)
	if err != nil {
		return nil, err
	}
	return &services{planner: service.NewPlanner(service.Config{Node: c.Node}), dataplane: dp, others: others, log: c.Log}, nil
}

// dataplanes lists the constructors in the order `auto` prefers them.
var dataplanes = []struct {
	mode string
	new  func(*slog.Logger) (service.Dataplane, error)
}{
	{"nftables", newNFTables},
	{"iptables", newIPTables},
}

// chooseDataplane returns the renderer for the mode and those whose rules must not stay beside it.
func chooseDataplane(mode string, log *slog.Logger) (chosen service.Dataplane, others []service.Dataplane, err error) {
	var reasons []any
	for _, d := range dataplanes {
		dp, e := d.new(log)
		switch {
		case e != nil && mode == d.mode:
			return nil, nil, fmt.Errorf("service mode %s cannot work here: %w", mode, e)
		case e != nil:
			reasons = append(reasons, d.mode, e)
		case chosen == nil && (mode == "auto" || mode == d.mode):
			chosen = dp
		default:
			others = append(others, dp)
		}
	}
	if chosen == nil {
		return nil, nil, fmt.Errorf("no service mode works here: %v", reasons)
	}
	log.Info("service mode", "mode", chosen.Name(), "asked", mode, "refused", fmt.Sprint(reasons...))
	return chosen, others, nil
}

func (s *services) step(context.Context) (reconcile.Outcome, error) {
	if time.Since(s.whole) >= serviceAudit {
		return s.replace()
	}
	return s.apply()
}

func (s *services) replace() (reconcile.Outcome, error) {
	first := s.whole.IsZero()
	s.whole = time.Time{}
	s.planner.Flush() // what All returns includes everything that was dirty
	all, net := s.planner.All()
	if err := s.dataplane.Replace(all, net); err != nil {
		return reconcile.Outcome{}, err
	}
	if first { // ours is in force: what another mode left would translate twice
		for _, o := range s.others {
			removed, err := o.Cleanup()
			if err != nil {
				return reconcile.Outcome{}, fmt.Errorf("remove rules left by service mode %s: %w", o.Name(), err)
			}
			for _, r := range removed {
				s.log.Info("removed what another service mode left", "removed", r)
			}
		}
	}
	s.whole = time.Now()
	s.backends = make(map[service.Key]int, len(all))
	for i := range all {
		s.backends[all[i].Key] = len(all[i].Backends)
	}
	return s.outcome(), nil
}

func (s *services) apply() (reconcile.Outcome, error) {
	d := s.planner.Flush()
	if !d.Empty() {
		if err := s.dataplane.Apply(d); err != nil {
			s.whole = time.Time{}
			return reconcile.Outcome{}, err
		}
	}
	for _, k := range d.Delete {
		delete(s.backends, k)
	}
	for i := range d.Set {
		s.backends[d.Set[i].Key] = len(d.Set[i].Backends)
	}
	return s.outcome(), nil
}

func (s *services) outcome() reconcile.Outcome {
	return reconcile.Outcome{Summary: fmt.Sprintf("%s: %d frontends", s.dataplane.Name(), len(s.backends))}
}

// notes lists what services ask for and this release does not do.
func (s *services) notes() (out []string) {
	for _, n := range s.planner.Notes() {
		out = append(out, n.String())
	}
	return out
}
