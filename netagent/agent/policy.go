package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/braidnet/braid/internal/desired"
	"github.com/braidnet/braid/internal/kernel/conntrack"
	"github.com/braidnet/braid/internal/kernel/link"
	"github.com/braidnet/braid/internal/kernel/nft"
	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/internal/reconcile"
	"github.com/braidnet/braid/netagent/policy"
	"github.com/braidnet/braid/netagent/policy/nftables"
)

// policyAudit is how often the agent looks whether somebody changed the node's nftables, which costs one
// question to the kernel.
const policyAudit = time.Second

// policies keeps the kernel's policy tables equal to the compiled value: whole once (adopting what an
// earlier run left), then only what changed, and whole again after an error and when somebody else
// changed rules. Until the first step is done the tables of an earlier run are in force, or none.
type policies struct {
	log      *slog.Logger
	compiler *policy.Compiler
	options  nftables.Options
	links    *netlink.Handle
	conn     *nft.Conn
	families []desired.NFTFamily
	flows    *policyFlows

	mu         sync.Mutex // held over a step
	state      *nftables.State
	gateway    net.HardwareAddr // of the pods' bridge, as the kernel's table has it
	generation uint32           // of the ruleset when our tables were in order; 0 = not known
	looked     time.Time        // when it was asked for last
	inForce    map[model.Key]policy.Target
	news       chan struct{} // closed when inForce has changed
}

func newPolicies(c Config) (*policies, error) {
	o := nftables.Options{Bridge: link.PodBridge, Links: link.VethPrefix, Drop: c.PolicyDeny == "drop"}
	p := &policies{log: c.Log, compiler: policy.NewCompiler(c.Node), options: o, inForce: map[model.Key]policy.Target{}, news: make(chan struct{})}
	var err error
	if p.links, err = link.OpenAt(-1); err != nil {
		return nil, err
	}
	if p.conn, err = nft.Open(); err != nil {
		p.close()
		return nil, fmt.Errorf("policy: %w; set policy: off where the kernel has no nftables", err)
	}
	for _, f := range nftables.Families {
		if f == desired.NFTIPv6 && !haveIPv6() {
			continue
		}
		p.families = append(p.families, f)
		t := nftables.Skeleton(f, o)
		if err = p.conn.Check([]desired.NFTOp{{Verb: desired.NFTAddTable, Family: f, Table: t.Name, Def: &t}}); err != nil {
			break
		}
	}
	if err == nil {
		t, _ := nftables.Bridge(o, nil)
		err = p.conn.Check([]desired.NFTOp{{Verb: desired.NFTAddTable, Family: t.Family, Table: t.Name, Def: &t}})
	}
	if err != nil {
		p.close()
		return nil, fmt.Errorf("policy: this kernel cannot enforce it (nf_tables with nft_reject and nft_ct, also for bridges, is needed; policy: off runs without): %w", err)
	}
	p.state = nftables.NewState(p.families, o)
	conn, err := conntrack.Open()
	if err != nil {
		p.close()
		return nil, err
	}
	p.flows = &policyFlows{log: c.Log, conn: conn, compiler: p.compiler, kick: func() {}}
	return p, nil
}

// close gives up the sockets. The kernel stays as it is.
func (p *policies) close() {
	p.links.Close()
	if p.conn != nil {
		p.conn.Close()
	}
	if p.flows != nil {
		p.flows.conn.Close()
	}
}

func (p *policies) step(context.Context) (reconcile.Outcome, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out reconcile.Outcome
	p.prune()
	delta, again := p.compiler.Flush(), p.generation == 0
	changes, err := p.program(delta)
	out.Changes = changes
	if err != nil {
		p.state.Forget() // nobody knows now what the kernel holds
		p.generation = 0
		return out, fmt.Errorf("policy: %w", err)
	}
	if again { // of what failed before nothing was noted
		delta = p.compiler.All()
		clear(p.inForce)
	}
	p.settle(delta)
	isolated := 0
	for _, t := range p.inForce {
		if t.Ingress != nil || t.Egress != nil {
			isolated++
		}
	}
	out.Summary = fmt.Sprintf("nftables: %d pods, %d of them isolated", len(p.inForce), isolated)
	return out, nil
}

// program brings the kernel to the compiled value, of which delta is the newest part.
func (p *policies) program(delta policy.Delta) (changes []string, err error) {
	generation, whole := p.generation, p.generation == 0
	if now := time.Now(); p.generation == 0 || now.Sub(p.looked) >= policyAudit {
		p.looked = now
		if generation, err = p.conn.Generation(); err != nil {
			return nil, err
		}
		whole = p.generation == 0 || generation != p.generation
	}
	before := p.conn.Commits()
	ops, err := p.state.Apply(delta)
	if err == nil {
		err = p.conn.Apply(ops)
	}
	if whole { // also when that failed, because somebody took away what it was to change
		changes, err = p.replace()
	}
	if err != nil {
		return changes, err
	}
	fenced, err := p.fence(whole)
	// What others did meanwhile makes another number of it, and the next look compares as a whole.
	p.generation = generation + p.conn.Commits() - before
	return append(changes, fenced...), err
}

// replace compares the kernel with the compiled value as a whole.
func (p *policies) replace() ([]string, error) {
	have := nftables.Contents{}
	for _, f := range p.families {
		c, err := p.conn.Read(f, nftables.TableName)
		if err != nil {
			return nil, err
		}
		have[f] = c
	}
	ops, why := p.state.Replace(p.compiler.All(), have)
	for _, w := range why {
		p.log.Warn("nftables table is made anew", "reason", w)
	}
	return why, p.conn.Apply(ops)
}

// fence keeps pods from going past the node's IP stack.
func (p *policies) fence(whole bool) ([]string, error) {
	var gateway net.HardwareAddr
	l, err := p.links.LinkByName(p.options.Bridge)
	var missing netlink.LinkNotFoundError
	switch {
	case err == nil:
		gateway = l.Attrs().HardwareAddr
	case !errors.As(err, &missing):
		return nil, fmt.Errorf("look up bridge %s: %w", p.options.Bridge, err)
	}
	if !whole && slices.Equal(gateway, p.gateway) {
		return nil, nil
	}
	have, err := p.conn.Read(desired.NFTBridge, nftables.TableName)
	if err != nil {
		return nil, err
	}
	ops, why := nftables.ReplaceBridge(p.options, gateway, have)
	if err := p.conn.Apply(ops); err != nil {
		return nil, err
	}
	p.gateway = gateway
	if why == "" {
		return nil, nil
	}
	return []string{why}, nil
}

// settle notes what is in the kernel now, and whom to tell.
func (p *policies) settle(d policy.Delta) {
	for _, t := range d.DeleteTargets {
		delete(p.inForce, t.Pod)
	}
	for _, t := range d.Targets {
		p.inForce[t.Pod] = t
	}
	if len(d.Targets) > 0 {
		close(p.news)
		p.news = make(chan struct{})
	}
	p.flows.changed(d)
}

// attach lets a new pod of this node be isolated, or opened, as policies say, and returns when the kernel
// has that. When ctx ends before, because the pod is not known yet, say, the pod is cut off until then.
func (p *policies) attach(ctx context.Context, a policy.Attachment, kick func()) error {
	p.compiler.Attach(a)
	kick()
	for {
		p.mu.Lock()
		t, news := p.inForce[a.Pod], p.news
		p.mu.Unlock()
		if t.UID == a.UID || a.UID == "" || t.UID == "" {
			if !slices.ContainsFunc(a.Addrs, func(x netip.Addr) bool { return !slices.Contains(t.Addrs, x) }) {
				return nil
			}
		}
		select {
		case <-news:
		case <-ctx.Done():
			return fmt.Errorf("pod %s is cut off until the agent knows it: %w", a.Pod, ctx.Err())
		}
	}
}

// prune forgets attachments whose links are gone.
func (p *policies) prune() {
	p.compiler.Detach(func(name string) bool {
		there, err := link.HasLink(p.links, name)
		return there || err != nil
	})
}

// removePolicyTables takes away what enforcement left in the kernel, and says what.
func removePolicyTables() (removed []string, err error) {
	conn, err := nft.Open()
	if err != nil {
		return nil, nil // no nftables, no tables
	}
	defer conn.Close()
	var ops []desired.NFTOp
	for _, f := range append([]desired.NFTFamily{desired.NFTBridge}, nftables.Families...) {
		if there, err := conn.Exists(f, nftables.TableName); err == nil && there {
			removed = append(removed, fmt.Sprintf("nftables table %s %s", f, nftables.TableName))
			ops = append(ops, desired.NFTOp{Verb: desired.NFTDeleteTable, Family: f, Table: nftables.TableName, Join: len(ops) > 0})
		}
	}
	if err := conn.Apply(ops); err != nil {
		return nil, fmt.Errorf("remove the tables of policy: %w", err)
	}
	return removed, nil
}

// notePolicies tells the compiler of changes, or the log that nobody enforces them.
func (a *Agent) notePolicies(rev uint64, changes []model.Change) {
	if a.policies != nil {
		a.policies.compiler.Apply(rev, changes)
		if a.policies.compiler.Pending() {
			a.byName["policy"].Kick()
		}
		return
	}
	if slices.ContainsFunc(changes, func(c model.Change) bool { return c.Kind == model.KindNetworkPolicy && c.Old == nil }) {
		a.warnPolicy.Do(func() {
			a.log.Warn("NetworkPolicy objects are read but NOT enforced: pods are open to each other (policy: off)")
		})
	}
}

// endEnforcement takes away what an agent that enforced policy has left: without one that follows the
// cluster, new pods would be refused for ever.
func (a *Agent) endEnforcement() {
	removed, err := removePolicyTables()
	if err != nil {
		a.log.Error("policy is off, and its tables are still in force", "err", err)
	}
	for _, r := range removed {
		a.log.Warn("policy is off: removed what was in force", "what", r)
	}
}
