package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/braidnet/braid/internal/kernel/ipt"
	"github.com/braidnet/braid/internal/kernel/sysctl"
	"github.com/braidnet/braid/internal/reconcile"
	"github.com/braidnet/braid/netagent/service"
)

// services keeps the kernel's service rules equal to the frontend table: whole once (adopting what
// an earlier run left), then only what changed, and whole again after an error, when somebody else
// changed rules, and on each audit.
type services struct {
	planner   *service.Planner
	dataplane service.Dataplane
	remains   []remains // of the other modes: they go once ours is in force
	asked     string    // the setting service-mode
	refused   string    // why `auto` took none of the modes before the chosen one

	log     *slog.Logger
	ledger  *ledger
	metrics *proxyMetrics
	flows   *flowKeeper
	traffic *traffic        // nil unless it is counted
	local   *loopbackRoutes // nil unless node ports are served on loopback addresses

	mu        sync.Mutex               // held over a step
	rules     *ruleset                 // nil where changes by others cannot be seen
	whole     time.Time                // when the kernel was last compared as a whole; zero = must be next
	took      time.Duration            // how long that was
	harmed    bool                     // that found rules of ours changed by somebody else
	frontends map[service.Key]struct{} // what is programmed
	leftOut   *leftOutError            // what the kernel's tools refused; nil when nothing
}

func newServices(c Config, l *ledger, m *proxyMetrics) (*services, error) {
	cfg, err := c.services()
	if err != nil {
		return nil, err
	}
	if c.Conntrack.TCPBeLiberal { // before the rules, which look at it; what is wrong with it the tuner says
		_, _ = sysctl.Set("net/netfilter/nf_conntrack_tcp_be_liberal", "1")
	}
	dp, refused, err := chooseDataplane(c.ServiceMode, c.Log)
	if err != nil {
		return nil, err
	}
	s := &services{planner: service.NewPlanner(cfg), dataplane: dp, remains: remainsBeside(dp, c.Log),
		asked: c.ServiceMode, refused: refused, log: c.Log, ledger: l, metrics: m}
	if s.flows, err = newFlowKeeper(s.planner, c, m); err != nil {
		s.close()
		return nil, err
	}
	if s.rules, err = newRuleset(dp); err != nil {
		s.close()
		return nil, err
	}
	if c.ServiceCounters {
		if s.traffic, err = newTraffic(c.Log); err != nil {
			s.close()
			return nil, err
		}
		if s.rules != nil && s.rules.commits != nil {
			rules := s.rules.commits
			s.rules.commits = func() uint32 { return rules() + s.traffic.write.Commits() }
		}
		if s.rules != nil && s.rules.gone != nil {
			gone := s.rules.gone
			s.rules.gone = func() bool { return gone() || s.traffic.gone() }
		}
	} else {
		s.remains = append(s.remains, trafficRemains{})
	}
	if cfg.Loopback {
		if s.local, err = newLoopbackRoutes(c.Log); err != nil {
			s.close()
			return nil, err
		}
	}
	return s, nil
}

// close gives up the sockets. The kernel stays as it is.
func (s *services) close() {
	for _, r := range append(s.remains, s.dataplane) {
		if c, ok := r.(interface{ Close() }); ok {
			c.Close()
		}
	}
	if s.rules != nil {
		s.rules.close()
	}
	if s.flows != nil {
		s.flows.conn.Close()
	}
	if s.local != nil {
		s.local.close()
	}
	if s.traffic != nil {
		s.traffic.close()
	}
}

// write lets do write to the kernel what the planner had at its last Flush: everything, or what changed.
// Then all that b notes is in force.
func (s *services) write(full bool, b batch, do func() error) error {
	begin := time.Now()
	err := s.except(do())
	s.metrics.synced(s.dataplane.Name(), full, begin, time.Now(), err)
	if p, ok := s.dataplane.(*iptablesPlane); ok {
		s.metrics.wroteRules(p)
	}
	if err != nil {
		s.ledger.putBack(b)
		s.whole = time.Time{}
		return err
	}
	s.inForce(b)
	return nil
}

// inForce says that the kernel has all that b notes.
func (s *services) inForce(b batch) {
	s.ledger.settle(b)
	s.metrics.inForce(s.planner, b, time.Now())
	s.flows.inForce(b.services)
}

// dataplanes lists the constructors in the order `auto` prefers them.
var dataplanes = []struct {
	mode string
	new  func(*slog.Logger) (service.Dataplane, error)
}{
	{"nftables", newNFTables},
	{"iptables", newIPTables},
}

// NewDataplane opens the renderer of a service mode ("auto", "nftables", "iptables") in the network
// namespace of the calling thread, for programs that have no API server to watch. Nothing is changed yet.
func NewDataplane(mode string, log *slog.Logger) (service.Dataplane, error) {
	dp, _, err := chooseDataplane(mode, log)
	return dp, err
}

// chooseDataplane returns the renderer for the mode, and why others before it in the list were refused.
func chooseDataplane(mode string, log *slog.Logger) (chosen service.Dataplane, refused string, err error) {
	var reasons []string
	for _, d := range dataplanes {
		if mode != "auto" && mode != d.mode {
			continue
		}
		dp, err := d.new(log)
		switch {
		case err == nil:
			return dp, strings.Join(reasons, "; "), nil
		case mode == d.mode:
			return nil, "", fmt.Errorf("service mode %s cannot work here: %w", mode, err)
		}
		reasons = append(reasons, err.Error())
	}
	return nil, "", fmt.Errorf("no service mode works here: %s", strings.Join(reasons, "; "))
}

// remains are rules that an earlier run in another mode may have left.
type remains interface {
	Name() string
	Cleanup() (removed []string, err error)
}

// closedRemains are those that this process may not look for.
type closedRemains struct {
	mode string
	err  error
}

func (r closedRemains) Name() string               { return r.mode }
func (r closedRemains) Cleanup() ([]string, error) { return nil, r.err }

// remainsBeside returns those of all modes but the chosen one's; with nil those of all.
func remainsBeside(chosen service.Dataplane, log *slog.Logger) (out []remains) {
	if _, ok := chosen.(*nftablesPlane); !ok {
		switch dp, err := newNFTables(log); {
		case err == nil:
			out = append(out, dp)
		case errors.Is(err, os.ErrPermission):
			out = append(out, closedRemains{"nftables", err})
		} // and where it cannot work, nothing of it can be
	}
	for _, v := range ipt.Variants {
		if dp, ok := chosen.(*iptablesPlane); !ok || dp.variant != v {
			out = append(out, iptablesRemains{v})
		}
	}
	return out
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
	b := s.ledger.take()
	s.planner.Flush() // what All returns includes everything that was dirty
	all, net := s.planner.All()
	if first && s.local == nil { // before what an earlier run's rules guard is open without them
		if _, err := setLoopback(nil); err != nil {
			return reconcile.Outcome{}, err
		}
	}
	var repaired func() bool
	if s.rules != nil {
		repaired = s.rules.repair()
		s.rules.trust() // what others change from here on may have been read or not
	}
	if err := s.write(true, b, func() error { return s.dataplane.Replace(all, net) }); err != nil {
		return reconcile.Outcome{}, err
	}
	if s.local != nil {
		s.local.replaced(all)
	}
	if s.traffic != nil {
		s.traffic.replaced(all)
	}
	s.settle()
	if first { // ours is in force: what another mode left would translate twice
		if err := s.sweep(); err != nil {
			return reconcile.Outcome{}, err
		}
		s.settle()
	}
	s.whole = time.Now()
	s.took = s.whole.Sub(begin)
	s.frontends = make(map[service.Key]struct{}, len(all))
	for i := range all {
		s.frontends[all[i].Key] = struct{}{}
	}
	s.harmed = false
	if !first && repaired != nil && repaired() {
		s.harmed = s.rules.commits != nil // else nobody knows whether those were ours
		s.flows.repaired(s.frontends)
	}
	return s.outcome(), nil
}

// sweep removes what other modes left. Tables that may not be read are no fault of ours: in the tables of
// iptables-legacy the agent has business only with more rights than it needs for other modes.
func (s *services) sweep() error {
	for _, r := range s.remains {
		removed, err := r.Cleanup()
		if errors.Is(err, os.ErrPermission) {
			s.log.Info("not looked for what another service mode may have left", "of", r.Name(), "err", err)
		} else if err != nil {
			return fmt.Errorf("remove rules left by service mode %s: %w", r.Name(), err)
		}
		for _, what := range removed {
			s.log.Info("removed what another service mode left", "removed", what)
		}
	}
	return nil
}

func (s *services) apply() (reconcile.Outcome, error) {
	b := s.ledger.take()
	d := s.planner.Flush()
	if d.Empty() && s.leftOut == nil {
		s.inForce(b)
	} else { // what was left out is tried again
		if err := s.write(false, b, func() error { return s.dataplane.Apply(d) }); err != nil {
			return reconcile.Outcome{}, err
		}
		s.settle()
	}
	if s.local != nil {
		s.local.applied(d)
	}
	if s.traffic != nil && !d.Empty() {
		s.traffic.applied(d)
		s.settle()
	}
	for _, k := range d.Delete {
		delete(s.frontends, k)
	}
	for i := range d.Set {
		s.frontends[d.Set[i].Key] = struct{}{}
	}
	return s.outcome(), nil
}

// except takes note of frontends that were left out. They are no failure of the step: everything
// else is in force, and the node must not wait for them to be ready.
func (s *services) except(err error) error {
	s.leftOut = nil
	if errors.As(err, &s.leftOut) {
		return nil
	}
	return err
}

// settle looks at the generation after a write of ours, so that it is not taken for somebody else's. What others
// did during it is seen: services would be gone until the next audit.
func (s *services) settle() {
	if s.rules != nil {
		s.rules.look()
	}
}

func (s *services) outcome() reconcile.Outcome {
	out := reconcile.Outcome{Summary: fmt.Sprintf("%s: %d frontends", s.dataplane.Name(), len(s.frontends))}
	if s.leftOut != nil {
		out.Summary += fmt.Sprintf(", %d of them left out", len(s.leftOut.notes))
		out.Notes = s.leftOut.notes
	}
	if s.traffic != nil && s.traffic.failed != nil {
		out.Notes = append(slices.Clone(out.Notes), fmt.Sprintf("service-counters: %v", s.traffic.failed))
	}
	return out
}

// notes lists what services ask for and this release does not do.
func (s *services) notes() (out []string) {
	for _, n := range s.planner.Notes() {
		out = append(out, n.String())
	}
	return out
}
