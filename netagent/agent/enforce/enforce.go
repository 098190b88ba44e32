// Package enforce keeps the kernel's rules of a node equal to what its policies mean: it isolates pods before they
// start, ends the connections that a change forbids, and tells what was denied. It works on what netagent/policy
// compiles, by nftables or iptables.
package enforce

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
	"github.com/braidnet/braid/netagent/agent/api"
	"github.com/braidnet/braid/netagent/policy"
)

// Config is what an Enforcer is told.
type Config struct {
	Node   string
	RunDir string      // where attachments are remembered
	Mode   string      // auto, nftables or iptables
	Drop   bool        // what no policy allows is dropped, not refused
	Tell   bool        // what is denied is told in the log
	Routed bool        // pods are not behind a bridge
	API    *api.Client // where Events about policies go; nil: nowhere
	Log    *slog.Logger
}

// Audit is how often the agent looks whether somebody changed the node's rules, which costs one
// question to the kernel.
const Audit = time.Second

// Enforcer keeps the kernel's rules of policy equal to the compiled value: whole once (adopting what an
// earlier run left), then only what changed, and whole again after an error and when somebody else
// changed rules. Until the first step is done the rules of an earlier run are in force, or none.
type Enforcer struct {
	log      *slog.Logger
	tell     bool // what is denied is told in the log
	compiler *policy.Compiler
	plane    packetFilter
	why      string // the reason for the plane
	others   otherMode
	links    *netlink.Handle
	flows    *flowEnder
	drops    *dropTeller
	counts   counters
	faults   faultKeeper
	events   *eventWriter // nil without an API server
	book     attachmentBook

	mu      sync.Mutex // held over a step
	inForce map[model.Key]policy.Target
	news    chan struct{} // closed when inForce has changed

	isolated, open atomic.Int64 // pods, for metrics
}

// New opens what enforcement needs of the kernel, and writes nothing yet. An error says what is missing, and what would do.
func New(c Config) (*Enforcer, error) {
	p := &Enforcer{log: c.Log, tell: c.Tell, compiler: policy.NewCompiler(c.Node), inForce: map[model.Key]policy.Target{}, news: make(chan struct{})}
	p.drops = newDropTeller(c.Log, p.compiler)
	p.book = attachmentBook{c.Log, attachmentsDir(c.RunDir)}
	var err error
	if p.plane, p.why, err = openPlane(c); err != nil {
		return nil, err
	}
	p.others = newOtherMode(p.plane)
	if p.links, err = link.OpenAt(-1); err != nil {
		p.Close()
		return nil, err
	}
	conn, err := conntrack.Open()
	if err != nil {
		p.Close()
		return nil, err
	}
	for _, a := range p.book.load() {
		p.compiler.Attach(a)
	}
	p.flows = &flowEnder{log: c.Log, conn: conn, compiler: p.compiler, kick: func() {}}
	if c.API != nil {
		p.events = newEventWriter(c.Log, c.Node, c.API)
		p.faults.report = p.events.set
	}
	return p, nil
}

// Run watches what others do to the rules, and tells of what is denied and what is not in force, until ctx ends. It kicks
// when a step is due.
func (p *Enforcer) Run(ctx context.Context, kick func()) {
	var wg sync.WaitGroup
	wg.Go(func() { p.plane.Watch(ctx, kick) })
	if p.events != nil {
		wg.Go(func() { p.events.run(ctx) })
	}
	if p.tell {
		wg.Go(func() { p.drops.run(ctx) })
	}
	wg.Wait()
}

// Hold keeps in force what an agent before left there, from the start of this one until the cluster's state is complete
// or ctx ends, which takes as long as the API server is away. Where that is gone, although pods are there that the agent
// before knew, pods are cut off. It is called before the first Step, and has returned by then.
func (p *Enforcer) Hold(ctx context.Context, complete <-chan struct{}) {
	p.prune()
	if len(p.book.load()) == 0 {
		return // the first agent here does not cut off those of another network
	}
	tick := time.NewTicker(Audit)
	defer tick.Stop()
	for last := ""; ; {
		if err := p.plane.Hold(); err != nil && err.Error() != last {
			last = err.Error()
			p.log.Warn("policy: what the agent before left in force is not looked after", "err", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-complete:
			return
		case <-tick.C:
		}
	}
}

// Apply hears of changes of the cluster, and reports whether a step is due.
func (p *Enforcer) Apply(rev uint64, changes []model.Change) bool {
	p.compiler.Apply(rev, changes)
	return p.compiler.Pending()
}

// Audited names the namespaces under audit that have pods on this node.
func (p *Enforcer) Audited() []string { return p.compiler.Audited() }

// Mode is what enforces policies, and why it is that.
func (p *Enforcer) Mode() (name, why string) { return p.plane.Name(), p.why }

// EndFlows is the step that ends the connections which a change forbids. It is due when OnFlows's kick is called.
func (p *Enforcer) EndFlows(ctx context.Context) (reconcile.Outcome, error) { return p.flows.step(ctx) }

// OnFlows says whom to tell that EndFlows is due.
func (p *Enforcer) OnFlows(kick func()) { p.flows.kick = kick }

// Close gives up the sockets. The kernel stays as it is.
func (p *Enforcer) Close() {
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

// Step brings the kernel to what policies mean now.
func (p *Enforcer) Step(context.Context) (reconcile.Outcome, error) {
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
func (p *Enforcer) settle(d policy.Delta) {
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

// Attach lets a new pod of this node be isolated, or opened, as policies say, and returns when the kernel
// has that. When ctx ends before, because the pod is not known yet, say, the pod is cut off until then.
func (p *Enforcer) Attach(ctx context.Context, attachment Attachment, kick func()) error {
	p.book.save(attachment)
	a := attachment.of()
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
func (p *Enforcer) prune() {
	p.compiler.Detach(func(name string) bool {
		there, err := link.HasLink(p.links, name)
		if there || err != nil {
			return true
		}
		p.book.forget(name)
		return false
	})
}
