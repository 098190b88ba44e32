package agent

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/braidnet/braid/internal/kernel/conntrack"
	"github.com/braidnet/braid/internal/kernel/link"
	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/internal/reconcile"
	"github.com/braidnet/braid/netagent/policy"
)

// policyAudit is how often the agent looks whether somebody changed the node's rules, which costs one
// question to the kernel.
const policyAudit = time.Second

// policies keeps the kernel's rules of policy equal to the compiled value: whole once (adopting what an
// earlier run left), then only what changed, and whole again after an error and when somebody else
// changed rules. Until the first step is done the rules of an earlier run are in force, or none.
type policies struct {
	log      *slog.Logger
	compiler *policy.Compiler
	plane    policyPlane
	why      string // the reason for the plane
	others   otherMode
	links    *netlink.Handle
	flows    *policyFlows
	drops    *policyDrops
	counts   policyCounts
	faults   policyFaults
	events   *policyEvents // nil without an API server
	book     attachmentBook

	mu      sync.Mutex // held over a step
	inForce map[model.Key]policy.Target
	news    chan struct{} // closed when inForce has changed

	isolated, open atomic.Int64 // pods, for metrics
}

func newPolicies(c Config) (*policies, error) {
	p := &policies{log: c.Log, compiler: policy.NewCompiler(c.Node), inForce: map[model.Key]policy.Target{}, news: make(chan struct{})}
	p.drops = newPolicyDrops(c.Log, p.compiler)
	p.book = attachmentBook{c.Log, attachmentsDir(c.RunDir)}
	var err error
	if p.plane, p.why, err = newPolicyPlane(c); err != nil {
		return nil, err
	}
	p.others = newOtherMode(p.plane)
	if p.links, err = link.OpenAt(-1); err != nil {
		p.close()
		return nil, err
	}
	conn, err := conntrack.Open()
	if err != nil {
		p.close()
		return nil, err
	}
	for _, a := range p.book.load() {
		p.compiler.Attach(a)
	}
	p.flows = &policyFlows{log: c.Log, conn: conn, compiler: p.compiler, kick: func() {}}
	return p, nil
}

// close gives up the sockets. The kernel stays as it is.
func (p *policies) close() {
	if p.plane != nil {
		p.plane.Close()
	}
	if p.links != nil {
		p.links.Close()
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
	p.faults.retry(p.compiler, time.Now())
	delta, again := p.compiler.Flush(), !p.plane.Known()
	changes, err := p.plane.Write(delta, p.compiler.All)
	if err != nil {
		again = true // of what failed nothing was noted
		changes, err = p.isolate(delta, err)
	}
	out.Changes = changes
	if err != nil {
		p.plane.Forget() // nobody knows now what the kernel holds
		return out, fmt.Errorf("policy: %w", err)
	}
	if again {
		delta = p.compiler.All()
		clear(p.inForce)
	}
	p.settle(delta)
	p.counts.follow(delta, again)
	out.Changes = append(out.Changes, p.others.clear(p.log)...)
	isolated := 0
	for _, t := range p.inForce {
		if t.Ingress != nil || t.Egress != nil {
			isolated++
		}
	}
	p.isolated.Store(int64(isolated))
	p.open.Store(int64(len(p.inForce) - isolated))
	out.Summary = fmt.Sprintf("%s: %d pods, %d of them isolated", p.plane.Name(), len(p.inForce), isolated)
	out.Notes = p.faults.tell(p.log, p.compiler.Faults())
	return out, nil
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
	p.book.save(a)
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
		if there || err != nil {
			return true
		}
		p.book.forget(name)
		return false
	})
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
			a.log.Warn("NetworkPolicy objects are read but NOT enforced by this agent", "because", a.cfg.notEnforced())
		})
	}
}

// endEnforcement takes away what an agent that enforced policy has left: without one that follows the
// cluster, new pods would be refused for ever.
func (a *Agent) endEnforcement() {
	removed, err := removePolicy()
	if err != nil {
		a.log.Error("policy is off, and its tables are still in force", "err", err)
	}
	for _, r := range removed {
		a.log.Warn("policy is off: removed what was in force", "what", r)
	}
}
