package agent

import (
	"context"
	"slices"
	"time"

	"github.com/braidnet/braid/internal/desired"
	"github.com/braidnet/braid/internal/kernel/ipt"
	"github.com/braidnet/braid/internal/kernel/nft"
	"github.com/braidnet/braid/netagent/agent/tools"
	"github.com/braidnet/braid/netagent/service"
	"github.com/braidnet/braid/netagent/service/iptables"
	"github.com/braidnet/braid/netagent/service/nftables"
)

const (
	// lookEvery is how often Watch looks whether somebody else changed the kernel's rules. It looks at
	// one number instead of listening to events, since a listener makes the kernel write a message for
	// every element of our own transactions too, some kilobytes of its memory each. A look costs microseconds;
	// with what a repair takes it is how long services are gone after a flush.
	lookEvery = 200 * time.Millisecond
	// harmShare is in the place of tools.RepairShare where the last comparison found that somebody meddles with ours.
	// Tables that are gone wait for neither.
	harmShare = 2
	// quietAudit is how often all rules are compared although nothing tells of a change.
	quietAudit = 10 * time.Minute
	// blindAudit is how often where changes cannot be seen, and how often at least a step is made at all.
	// It grows with the cluster, so that it costs one part of the time in blindShare.
	blindAudit = time.Minute
	blindShare = 100
)

// ruleset tells changes of the namespace's rules by others from our own.
type ruleset struct {
	generation func() (uint32, error) // a number that is another after a change
	gone       func() bool            // tables or chains of ours are not there or empty, as after a flush; nil when that cannot be asked cheaply
	close      func()
	commits    func() uint32 // how many we made, each of which raises the generation by one; nil when that is not known
	known      uint32        // generation when we last looked
	counted    uint32        // commits then
	foreign    bool          // somebody else changed something since trust
}

// newRuleset returns what sees changes of a dataplane's rules, nil for one that cannot be watched.
func newRuleset(dp service.Dataplane) (*ruleset, error) {
	var commits func() uint32
	var gone func(*nft.Conn) bool
	switch dp := dp.(type) {
	case *nftablesPlane:
		commits, gone = dp.conn.Commits, dp.gone
	case *iptablesPlane:
		if dp.variant == ipt.Legacy {
			return dp.watchLegacy()
		}
		commits, gone = dp.commits, dp.gone
	default:
		return nil, nil
	}
	conn, err := nft.Open()
	if err != nil {
		return nil, err
	}
	return &ruleset{generation: conn.Generation, gone: func() bool { return gone(conn) }, close: conn.Close, commits: commits}, nil
}

func (p *iptablesPlane) watchLegacy() (*ruleset, error) {
	families := make([]bool, len(p.families))
	for i, f := range p.families {
		families[i] = f.ipv6
	}
	tables, err := ipt.NewWatch(families...)
	if err != nil {
		return nil, err
	}
	return &ruleset{generation: tables.Sum, gone: func() bool { return p.shrunk(tables) }, close: tables.Close}, nil
}

// look notes changes since the last look, but for our own. Where these are not counted, every change may be
// somebody else's, or hide one: so a write of ours is followed by a comparison, which writes nothing. When the kernel does
// not answer, somebody may have changed something.
func (r *ruleset) look() {
	now, err := r.generation()
	var made uint32
	if r.commits != nil {
		n := r.commits()
		made, r.counted = n-r.counted, n
	}
	if err != nil || now-r.known != made {
		r.foreign = true
	}
	r.known = now
}

// trust takes everything up to now for seen, or for written by us.
func (r *ruleset) trust() {
	r.look()
	r.foreign = false
}

// repair returns what tells, after the next write, whether that has put right what somebody else changed.
// Where our writes are not counted it may have been what is new.
func (r *ruleset) repair() func() bool {
	foreign := r.foreign
	if r.commits == nil {
		before := r.known
		return func() bool { return foreign && r.known != before }
	}
	before := r.commits()
	return func() bool { return foreign && r.commits() != before }
}

// Watch calls kick when somebody else changed rules in the kernel, until ctx ends. Our own writes do
// not kick. Where changes cannot be seen it returns at once; the audit repairs then.
func (s *services) Watch(ctx context.Context, kick func()) {
	if s.rules == nil {
		return
	}
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if s.touched(time.Now()) {
			kick()
		}
	}
}

// touched reports whether somebody else changed rules and it is time to compare. It waits for the end
// of a step, in the middle of which our own writes could not be told from others'.
func (s *services) touched(now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.whole.IsZero() {
		return false // a Replace is due whatever happened
	}
	s.rules.look()
	return s.suspect(now)
}

// suspect reports whether the kernel's rules may be other than we left them, and it is time to compare.
func (s *services) suspect(now time.Time) bool {
	if s.rules == nil || !s.rules.foreign {
		return false
	}
	share := time.Duration(tools.RepairShare)
	if s.harmed {
		share = harmShare
	}
	return now.Sub(s.whole) >= share*s.took || s.rules.gone != nil && s.rules.gone()
}

// gone reports whether a table of ours is not there at all, as after "nft flush ruleset". It costs one
// question to the kernel per family.
func (p *nftablesPlane) gone(conn *nft.Conn) bool {
	return slices.ContainsFunc(p.families, func(f desired.NFTFamily) bool {
		there, err := conn.Exists(f, nftables.TableName)
		return err == nil && !there
	})
}

// gone reports whether rules are missing that packets come to ours by, as after "iptables -F", of all chains or one. It
// costs a question to the kernel for each of its chains.
func (p *iptablesPlane) gone(conn *nft.Conn) bool {
	return slices.ContainsFunc(p.families, func(f *iptablesFamily) bool {
		family := desired.NFTIPv4
		if f.ipv6 {
			family = desired.NFTIPv6
		}
		return slices.ContainsFunc(iptables.FrontendTables, func(table string) bool {
			there, err := conn.HasRules(family, table, iptables.Entry)
			return err == nil && !there || slices.ContainsFunc(iptables.Entrances[table], func(e iptables.Entrance) bool {
				rules, err := conn.Verdicts(family, table, e.Chain)
				return err == nil && !slices.ContainsFunc(rules, func(v nft.Verdict) bool { return v.Chain == e.To })
			})
		})
	})
}

// commits counts our transactions.
func (p *iptablesPlane) commits() (n uint32) {
	for _, f := range p.families {
		n += f.tool.Commits()
	}
	return n
}

// shrunk reports whether a table has less in it than what we have written there, as after "iptables -F".
func (p *iptablesPlane) shrunk(tables *ipt.Watch) bool {
	return slices.ContainsFunc(p.families, func(f *iptablesFamily) bool {
		return slices.ContainsFunc(iptables.FrontendTables, func(table string) bool {
			there, err := tables.Entries(f.ipv6, table)
			return err == nil && there < f.renderer.Entries(table)
		})
	})
}

// auditDue reports whether it is time to compare although nothing tells of a change.
func (s *services) auditDue(now time.Time) bool {
	every := quietAudit
	if s.rules == nil || s.traffic != nil && s.traffic.failed != nil {
		every = max(blindAudit, blindShare*s.took)
	}
	return now.Sub(s.whole) >= every
}
