package agent

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/braidnet/braid/internal/reconcile"
	"github.com/braidnet/braid/netagent/service"
)

// services keeps the kernel's service rules equal to the frontend table: whole once (adopting what
// an earlier run left), then only what changed, and whole again after an error, when somebody else
// changed rules, and on each audit.
type services struct {
	planner   *service.Planner
	dataplane service.Dataplane
	others    []service.Dataplane // the other modes, whose leftovers go once ours is in force

	log *slog.Logger

	mu        sync.Mutex               // held over a step
	rules     *ruleset                 // nil where changes by others cannot be seen
	whole     time.Time                // when the kernel was last compared as a whole; zero = must be next
	took      time.Duration            // how long that was
	frontends map[service.Key]struct{} // what is programmed
}

func newServices(c Config) (*services, error) {
	cfg, err := c.services()
	if err != nil {
		return nil, err
	}
	dp, others, err := chooseDataplane(c.ServiceMode, c.Log)
	if err != nil {
		return nil, err
	}
	s := &services{planner: service.NewPlanner(cfg), dataplane: dp, others: others, log: c.Log}
	if commits, seen := observed(dp); seen {
		if s.rules, err = newRuleset(commits); err != nil {
			s.close()
			return nil, err
		}
	}
	return s, nil
}

// observed reports whether changes of a dataplane's rules raise the nftables generation, and how our
// own are counted, if they are.
func observed(dp service.Dataplane) (commits func() uint32, seen bool) {
	switch dp := dp.(type) {
	case *nftablesPlane:
		return dp.conn.Commits, true
	case *iptablesPlane:
		return nil, !slices.ContainsFunc(dp.families, func(f *iptablesFamily) bool { return !f.tool.NFTables() })
	}
	return nil, false
}

// close gives up the sockets. The kernel stays as it is.
func (s *services) close() {
	for _, dp := range append(s.others, s.dataplane) {
		if c, ok := dp.(interface{ Close() }); ok {
			c.Close()
		}
	}
	if s.rules != nil {
		s.rules.conn.Close()
	}
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
	var reasons []string
	for _, d := range dataplanes {
		dp, e := d.new(log)
		switch {
		case e != nil && mode == d.mode:
			return nil, nil, fmt.Errorf("service mode %s cannot work here: %w", mode, e)
		case e != nil:
			reasons = append(reasons, e.Error())
		case chosen == nil && (mode == "auto" || mode == d.mode):
			chosen = dp
		default:
			others = append(others, dp)
		}
	}
	if chosen == nil {
		return nil, nil, fmt.Errorf("no service mode works here: %s", strings.Join(reasons, "; "))
	}
	log.Info("service mode", "mode", chosen.Name(), "asked", mode, "refused", strings.Join(reasons, "; "))
	return chosen, others, nil
}

func (s *services) step(context.Context) (reconcile.Outcome, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.rules != nil {
		s.rules.look()
	}
	if s.whole.IsZero() || s.suspect(time.Now()) {
		return s.replace()
	}
	// The change first: it must not wait for an audit.
	out, err := s.apply()
	if err != nil || !s.auditDue(time.Now()) {
		return out, err
	}
	return s.replace()
}

func (s *services) replace() (reconcile.Outcome, error) {
	first, begin := s.whole.IsZero(), time.Now()
	s.whole = time.Time{}
	s.planner.Flush() // what All returns includes everything that was dirty
	all, net := s.planner.All()
	if s.rules != nil {
		s.rules.trust() // what others change from here on may have been read or not
	}
	if err := s.dataplane.Replace(all, net); err != nil {
		return reconcile.Outcome{}, err
	}
	s.settle(true)
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
		s.settle(false)
	}
	s.whole = time.Now()
	s.took = s.whole.Sub(begin)
	s.frontends = make(map[service.Key]struct{}, len(all))
	for i := range all {
		s.frontends[all[i].Key] = struct{}{}
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
		s.settle(true)
	}
	for _, k := range d.Delete {
		delete(s.frontends, k)
	}
	for i := range d.Set {
		s.frontends[d.Set[i].Key] = struct{}{}
	}
	return s.outcome(), nil
}

// settle looks at the generation after a write of ours. One that is not counted must not look like
// somebody else's; what others did during it, the next audit sees.
func (s *services) settle(counted bool) {
	if s.rules == nil {
		return
	}
	foreign := s.rules.foreign
	s.rules.look()
	if !counted || s.rules.commits == nil {
		s.rules.foreign = foreign
	}
}

func (s *services) outcome() reconcile.Outcome {
	return reconcile.Outcome{Summary: fmt.Sprintf("%s: %d frontends", s.dataplane.Name(), len(s.frontends))}
}

// notes lists what services ask for and this release does not do.
func (s *services) notes() (out []string) {
	for _, n := range s.planner.Notes() {
		out = append(out, n.String())
	}
	return out
}
