package enforce

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/braidnet/braid/internal/desired"
	"github.com/braidnet/braid/internal/kernel/ipset"
	"github.com/braidnet/braid/internal/kernel/ipt"
	"github.com/braidnet/braid/internal/kernel/link"
	"github.com/braidnet/braid/netagent/agent/tools"
	"github.com/braidnet/braid/netagent/policy"
	"github.com/braidnet/braid/netagent/policy/iptables"
)

const (
	// wholeAudit is how often all rules and sets are compared although nothing tells of a change: a member of a set
	// replaced by another changes no number.
	wholeAudit = time.Minute
	// lookEvery is how often it is looked whether rules are gone, at the price of a question to the kernel, and every
	// setsEvery-th time also how many members sets have. With what a repair takes it is how long policies may be open after a flush.
	lookEvery = 25 * time.Millisecond
	setsEvery = 4
)

// iptablesPlane enforces policies with iptables and ipset.
type iptablesPlane struct {
	log      *slog.Logger
	options  iptables.Options
	variant  ipt.Variant
	why      string // the reason for the variant
	links    *netlink.Handle
	families []familyTool
	sets     *ipset.Conn
	restore  func(t *ipt.Tool, input string) error // the tool's; tests put refusals between

	mu      sync.Mutex // held over a Write, and over a look of Watch
	eyes    *eyes
	state   *iptables.State
	known   bool
	whole   time.Time     // of the last comparison
	took    time.Duration // by it
	cleared bool          // what the other variant of the tools has left is gone
}

// familyTool is a family that the kernel has.
type familyTool struct {
	ipv6 bool
	*ipt.Tool
}

// newIPTables opens iptables and ipset of the network namespace it is called in, and changes nothing there. It
// fails where the kernel or the node cannot do what is needed; bridged is where new pods are behind a bridge.
func newIPTables(log *slog.Logger, o iptables.Options, bridged bool) (p *iptablesPlane, err error) {
	p = &iptablesPlane{log: log, options: o, restore: (*ipt.Tool).Restore}
	defer func() {
		if err != nil {
			p.Close()
			p = nil
		}
	}()
	if p.variant, p.why, err = ipt.Choose(tools.Traces); err != nil {
		return p, tools.HintIPTables(p.variant, err)
	}
	return p, p.open(bridged)
}

func (p *iptablesPlane) open(bridged bool) (err error) {
	if p.links, err = link.OpenAt(-1); err != nil {
		return err
	}
	if p.sets, err = ipset.Open(); err != nil {
		return err
	}
	var families []bool
	for _, ipv6 := range []bool{false, true} {
		if !ipt.Enabled(ipv6) {
			continue
		}
		tool, err := ipt.Find(ipv6, p.variant)
		if err == nil {
			err = tool.Check()
		}
		for _, kind := range []desired.IPSetType{desired.IPSetAddr, desired.IPSetNet, desired.IPSetAddrPort} {
			if err == nil {
				err = p.sets.Check(desired.IPSet{Type: kind, IPv6: ipv6})
			}
		}
		if err != nil {
			return tools.HintIPTables(p.variant, fmt.Errorf("policy mode iptables, variant %s (%s), %s: %w", p.variant, p.why, tools.Family(ipv6), err))
		}
		p.families = append(p.families, familyTool{ipv6, tool})
		families = append(families, ipv6)
	}
	if p.eyes, err = newEyes(p.variant, families); err != nil {
		return err
	}
	p.eyes.commits = p.commits
	p.state = iptables.NewState(families, p.options)
	_, err = p.links.LinkByName(p.options.Bridge)
	if bridged = bridged || err == nil; bridged && !link.HasBridgeFilter() {
		return fmt.Errorf("policy mode iptables: pods on bridge %s could send past the policies: %w", p.options.Bridge, link.ErrNoBridgeFilter)
	}
	return nil
}

// commits counts our transactions, where these are what raises the number that the eyes see.
func (p *iptablesPlane) commits() (n uint32) {
	for _, f := range p.families {
		if f.NFTables() {
			n += f.Commits()
		}
	}
	return n
}

// Name implements packetFilter.
func (p *iptablesPlane) Name() string { return "iptables" }

// Close gives up the sockets. The kernel stays as it is.
func (p *iptablesPlane) Close() {
	if p.links != nil {
		p.links.Close()
	}
	if p.sets != nil {
		p.sets.Close()
	}
	if p.eyes != nil {
		p.eyes.close()
	}
}

// Forget implements packetFilter.
func (p *iptablesPlane) Forget() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.forget()
}

func (p *iptablesPlane) forget() {
	p.state.Forget()
	p.known = false
}

// Known implements packetFilter.
func (p *iptablesPlane) Known() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.known
}

// Write implements packetFilter.
func (p *iptablesPlane) Write(delta policy.Delta, all func() policy.Delta) (changes []string, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	changed, err := link.EnsureBridgeFiltered(p.links, p.options.Bridge)
	if err != nil {
		return nil, fmt.Errorf("pods could send past the policies: %w", err)
	}
	if changed {
		changes = append(changes, "bridge "+p.options.Bridge+" shows its frames to iptables")
	}
	p.eyes.look()
	if !p.known || p.due(time.Now()) {
		more, err := p.replace(all())
		return append(changes, more...), err
	}
	plan, err := p.state.Apply(delta)
	if err != nil || plan.Empty() {
		return changes, err
	}
	if err := p.carryOut(plan); err != nil { // perhaps because somebody took away what it was to change
		more, again := p.replace(all())
		if again != nil {
			return changes, errors.Join(err, again)
		}
		return append(changes, more...), nil
	}
	foreign := p.eyes.foreign // not compared yet
	p.eyes.trust(p.state.Sizes())
	p.eyes.foreign = p.eyes.foreign || foreign
	return changes, nil
}

// Hold implements packetFilter.
func (p *iptablesPlane) Hold() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	have, err := p.read()
	if err != nil {
		return err
	}
	for _, f := range p.families {
		if !have[f.ipv6].InForce() {
			p.log.Warn("rules of policies are gone: until they are made anew, pods are cut off", "family", tools.Family(f.ipv6))
			plan, _ := p.state.Replace(policy.Delta{}, have)
			return p.carryOut(plan)
		}
	}
	return nil
}

// due reports whether it is time to compare everything.
func (p *iptablesPlane) due(now time.Time) bool {
	since := now.Sub(p.whole)
	return p.eyes.gone || p.eyes.foreign && since >= max(Audit, tools.RepairShare*p.took) || since >= max(wholeAudit, tools.RepairShare*p.took)
}

// replace compares the kernel with the compiled value as a whole.
func (p *iptablesPlane) replace(all policy.Delta) (why []string, err error) {
	p.forget()
	begin := time.Now()
	have, err := p.read()
	if err != nil {
		return nil, err
	}
	plan, why := p.state.Replace(all, have)
	p.took, p.whole = time.Since(begin), begin
	for _, w := range why {
		p.log.Warn("rules of policies were not as they have to be, and are put right", "what", w)
	}
	if err := p.carryOut(plan); err != nil {
		p.state.Forget()
		return why, err
	}
	p.known = true
	p.eyes.trust(p.state.Sizes())
	if !p.cleared {
		removed, err := removeIPTables(p.variant)
		if err != nil {
			p.log.Warn("policies: what another variant of iptables has left stays in force", "err", err)
		}
		p.cleared = true
		if why = append(why, removed...); len(removed) > 0 {
			p.eyes.foreign = true // sets that it referred to can go
		}
	}
	return why, nil
}

// read reads our rules and sets.
func (p *iptablesPlane) read() (map[bool]iptables.Contents, error) {
	out := map[bool]iptables.Contents{}
	for _, f := range p.families {
		saved, err := f.SaveTable(iptables.Table)
		if err != nil {
			return nil, err
		}
		out[f.ipv6] = iptables.Contents{Rules: saved[iptables.Table], Sets: map[string]iptables.Set{}}
	}
	list, err := p.sets.List(iptables.SetPrefix)
	if err != nil {
		return nil, err
	}
	for _, x := range list {
		have, ok := out[x.IPv6]
		if !iptables.Ours(x.Name) || !ok {
			continue
		}
		members, err := p.sets.Read(x.IPSet)
		if err != nil {
			return nil, err
		}
		have.Sets[x.Name] = iptables.Set{IPSet: x.IPSet, Members: members}
	}
	return out, nil
}

// carryOut makes the steps of a plan.
func (p *iptablesPlane) carryOut(plan iptables.Plan) error {
	if err := p.sets.Apply(plan.Before); err != nil {
		return err
	}
	for _, f := range p.families {
		if input := plan.Restore[f.ipv6]; input != "" {
			if err := p.restore(f.Tool, input); err != nil {
				return err
			}
		}
	}
	for _, op := range plan.After {
		err := p.sets.Apply([]desired.IPSetOp{op})
		if op.Verb == desired.IPSetDestroy && ipset.Busy(err) {
			p.log.Debug("a set of policies stays for now", "err", err) // the next comparison finds it
			continue
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Refused implements packetFilter.
func (p *iptablesPlane) Refused(err error) func(*policy.Section) bool {
	var set *ipset.RefusedError
	var line *ipt.RestoreError
	switch {
	case errors.As(err, &set):
		return func(s *policy.Section) bool { return iptables.Uses(s, set.Set, "") }
	case errors.As(err, &line) && strings.HasPrefix(line.Text, "-A "):
		return func(s *policy.Section) bool { return iptables.Uses(s, "", line.Text) }
	}
	return nil
}

// Counts implements packetFilter. Counters begin anew with a chain that is written anew, one by one; so there is one era.
func (p *iptablesPlane) Counts(marks []policy.Mark) (map[policy.Mark]uint64, uint64, error) {
	out := map[policy.Mark]uint64{}
	for _, f := range p.families {
		counts, err := f.Counts(iptables.Table)
		if err != nil {
			return nil, 0, err
		}
		for _, m := range marks {
			out[m] += counts[iptables.CountingChain(m)]
		}
	}
	return out, 1, nil
}

// Watch kicks when somebody takes rules or members of sets away, until ctx ends.
func (p *iptablesPlane) Watch(ctx context.Context, kick func()) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for n := 0; ; n++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		p.mu.Lock()
		switch {
		case p.known && n%setsEvery == 0:
			p.eyes.look()
		case p.known:
			p.eyes.lookAtRules()
		}
		due := p.known && p.due(time.Now())
		p.mu.Unlock()
		if due {
			kick()
		}
	}
}

// removeIPTables takes away what enforcement with iptables left, in all variants of the tools but one ("" for
// none), and says what. The sets go when no variant refers to them.
func removeIPTables(but ipt.Variant) (removed []string, err error) {
	sets, err := ipset.Open()
	if err != nil {
		return nil, nil // no sets, no rules
	}
	defer sets.Close()
	list, err := sets.List(iptables.SetPrefix)
	if err != nil || len(list) == 0 {
		return nil, err
	}
	var errs []error
	for _, v := range ipt.Variants {
		for _, ipv6 := range []bool{false, true} {
			tool, err := ipt.Find(ipv6, v)
			if v == but || err != nil || !ipt.Enabled(ipv6) {
				continue // without the tool or the family nothing of it can be here
			}
			saved, err := tool.Tables()
			if err == nil {
				if input := iptables.Cleanup(saved); input != "" {
					if err = tool.Restore(input); err == nil {
						removed = append(removed, fmt.Sprintf("iptables chains BRAIDPOL-… of %s (%s)", tools.Family(ipv6), v))
					}
				}
			}
			if err != nil {
				errs = append(errs, fmt.Errorf("policy rules of %s: %w", tools.Family(ipv6), err))
			}
		}
	}
	if but != "" || len(errs) > 0 {
		return removed, errors.Join(errs...)
	}
	n := 0
	for _, x := range list {
		if iptables.Ours(x.Name) {
			n++
			errs = append(errs, sets.Apply([]desired.IPSetOp{{Verb: desired.IPSetDestroy, Set: x.IPSet}}))
		}
	}
	if n > 0 {
		removed = append(removed, fmt.Sprintf("%d ipsets %s4-…, %s6-…", n, iptables.SetPrefix, iptables.SetPrefix))
	}
	return removed, errors.Join(errs...)
}
