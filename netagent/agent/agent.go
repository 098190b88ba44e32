package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/internal/reconcile"
	"github.com/braidnet/braid/internal/source"
	"github.com/braidnet/braid/internal/source/dir"
	"github.com/braidnet/braid/internal/source/kube"
	"github.com/braidnet/braid/netagent/agent/api"
	"github.com/braidnet/braid/netagent/agent/enforce"
	"github.com/braidnet/braid/netagent/service"
	"github.com/braidnet/braid/netagent/status"
)

// Agent is one running node agent.
type Agent struct {
	cfg      Config
	log      *slog.Logger
	store    *model.Store
	started  time.Time
	services *services    // nil with service mode "none"
	overlay  *overlayLoop // nil with overlay "none"
	ledger   *ledger
	proxy    *proxyMetrics
	health   *healthPorts               // nil with service mode "none"
	policies *enforce.Enforcer          // nil with policy "off"
	forward  *forwarding                // nil for an agent that has no part in the pod network
	egress   *egressLoop                // nil where there is nothing to masquerade or guard
	podRules *podRules                  // nil without a folder for the CNI configuration
	podLinks *podLinks                  // the same
	loops    []*reconcile.Loop          // in the order they are reported
	byName   map[string]*reconcile.Loop // the same
	told     atomic.Uint64              // newest revision whose changes the loops have been told of

	warnPolicy sync.Once

	mu        sync.Mutex
	problems  []status.Problem
	toldFound map[string]status.Finding // what the log has said, by What
}

func newAgent(cfg Config) *Agent {
	l := newLedger()
	return &Agent{cfg: cfg, log: cfg.Log.With("node", cfg.Node), store: model.NewStore(), started: l.began,
		byName: map[string]*reconcile.Loop{}, ledger: l, proxy: newProxyMetrics(l), toldFound: map[string]status.Finding{}}
}

// Run runs the agent until ctx ends. It leaves the kernel as it is: traffic does not depend on a
// running agent, and the next one adopts what it finds.
func Run(ctx context.Context, cfg Config) error {
	if err := cfg.Validate(); err != nil {
		return err
	}
	a := newAgent(cfg)
	defer a.close()
	if err := a.build(); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)

	socket, err := listenSocket(cfg.Socket())
	if err != nil {
		return err
	}
	defer socket.Close()
	var wg sync.WaitGroup
	wg.Go(func() { a.serve(ctx, socket, a.adminHandler()) })
	if cfg.HTTP != "" {
		l, err := listenHTTP(ctx, cfg.HTTP)
		if err != nil {
			return err
		}
		wg.Go(func() { a.serve(ctx, l, a.healthHandler()) })
	}
	if cfg.HealthzBind != "" {
		l, err := listenProxyHealth(ctx, cfg.HealthzBind)
		if err != nil {
			return err
		}
		wg.Go(func() { a.serve(ctx, l, a.proxyHealthHandler()) })
	}
	wg.Go(func() {
		if err := a.runSource(ctx); err != nil && ctx.Err() == nil {
			cancel(fmt.Errorf("read the cluster from %s: %w", cfg.source(), err))
		}
	})
	a.work(ctx, &wg)
	wg.Wait()
	a.log.Info("stopped: the kernel stays as it is")
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) {
		return cause
	}
	return nil
}

// build makes the planners and their loops; nothing is written to the kernel yet.
func (a *Agent) build() error {
	if a.cfg.Overlay != "none" {
		o, err := newOverlayLoop(a.cfg, a.store)
		if err != nil {
			return err
		}
		a.overlay = o
		audit := 30 * time.Second
		if due := o.cfg.Keys.due(); due > 0 && a.cfg.Overlay == "wireguard" {
			audit = min(audit, due)
		}
		a.addLoop("overlay", o.step, audit)
	}
	a.buildOwnNode()
	e, err := newEgress(a.cfg)
	if err != nil {
		return err
	}
	if e != nil {
		a.egress = e
		a.addLoop("egress", e.step, egressAudit)
	}
	if err := a.buildForwarding(); err != nil {
		return err
	}
	if a.cfg.ServiceMode != "none" {
		s, err := newServices(a.cfg, a.ledger, a.proxy)
		if err != nil {
			return err
		}
		a.services = s
		a.addLoop("services", s.step, blindAudit)
		a.addLoop("conntrack", s.flows.step, quietAudit)
		s.flows.kick = a.byName["conntrack"].Kick
		if s.local != nil {
			a.addLoop("loopback", s.local.step, loopbackAudit)
			s.local.kick = a.byName["loopback"].Kick
		}
		a.health = newHealthPorts(s.planner, a.proxyHealthy, a.log)
		a.addLoop("health-ports", a.health.step, healthPortsRetry)
	}
	if a.cfg.Policy == "enforce" && a.cfg.CNIConfDir != "" { // pods of another pod network are not behind our bridge
		c := enforce.Config{Node: a.cfg.Node, RunDir: a.cfg.RunDir, Mode: a.cfg.PolicyMode, Drop: a.cfg.PolicyDeny == "drop",
			Tell: a.cfg.PolicyLog, Routed: a.cfg.PodMode == "routed", Log: a.cfg.Log}
		if a.cfg.Manifests == "" {
			c.API = &api.Client{Kubeconfig: a.cfg.Kubeconfig, Context: a.cfg.Context}
		}
		p, err := enforce.New(c)
		if err != nil {
			return err
		}
		a.policies = p
		a.addLoop("policy", p.Step, enforce.Audit)
		a.addLoop("policy-flows", p.EndFlows, 0)
		p.OnFlows(a.byName["policy-flows"].Kick)
	}
	if a.cfg.CNIConfDir != "" {
		a.addLoop("cni", a.cniStep, 10*time.Second)
		if a.overlay != nil {
			a.overlay.onMTU = a.byName["cni"].Kick
		}
	}
	if a.cfg.CNIConfDir != "" && (a.overlay != nil || a.services != nil) { // an agent that touches the kernel at all
		return a.buildPods()
	}
	return nil
}

// buildPods makes what looks after the CNI plugin's work.
func (a *Agent) buildPods() error {
	var err error
	if a.podRules, err = newPodRules(a.cfg.RunDir, a.log); err != nil {
		return err
	}
	a.addLoop("pod-rules", a.podRules.step, podRulesAudit)
	if a.podLinks, err = newPodLinks(a.log, a.podNetworkSpec); err != nil {
		return err
	}
	a.addLoop("pod-links", a.podLinks.step, podLinksAudit)
	if a.overlay != nil {
		a.overlay.onMTU = func() { a.byName["cni"].Kick(); a.byName["pod-links"].Kick() }
	}
	return nil
}

func (a *Agent) addLoop(name string, step reconcile.Step, audit time.Duration) {
	l := reconcile.New(reconcile.Config{Name: name, Step: step, Audit: audit, Revision: a.told.Load, Log: a.log})
	a.loops = append(a.loops, l)
	a.byName[name] = l
}

// work waits for the first full state, then starts the loops: overlay and services side by side,
// the CNI configuration when both are in force, so that no pod is made before it can be reached.
func (a *Agent) work(ctx context.Context, wg *sync.WaitGroup) {
	a.log.Info("waiting for the first full state of the cluster", "source", a.cfg.source())
	var held sync.WaitGroup
	if a.policies != nil {
		held.Go(func() { a.policies.Hold(ctx, a.store.Synced()) })
	}
	if a.overlay != nil {
		a.overlay.hold(ctx)
	}
	held.Wait()
	select {
	case <-ctx.Done():
		return
	case <-a.store.Synced():
	}
	a.log.Info("cluster state complete", "rev", a.store.Rev(), "took", time.Since(a.started).Round(time.Millisecond))
	if a.policies == nil && (a.overlay != nil || a.services != nil) { // an agent that touches the kernel at all
		a.endEnforcement()
	}
	rev := a.store.Rev()
	cancel := a.store.Subscribe(a.onChange)
	defer cancel()
	a.told.CompareAndSwap(0, rev) // a cluster with no objects left tells nothing
	if a.policies != nil {
		wg.Go(func() { a.policies.Run(ctx, a.byName["policy"].Kick) })
	}
	if a.policies != nil || a.services != nil {
		wg.Go(func() { nodeConnections.watch(ctx, a.log) })
	}
	if a.overlay != nil {
		wg.Go(func() { a.overlay.Watch(ctx, a.byName["overlay"].Kick) })
		if p := a.overlay.paths; p != nil {
			wg.Go(func() { p.run(ctx) })
		}
	}
	if a.podLinks != nil {
		wg.Go(func() { a.podLinks.Watch(ctx, a.byName["pod-links"].Kick) })
	}
	if a.services != nil {
		wg.Go(func() { a.services.Watch(ctx, a.byName["services"].Kick) })
	}
	cni := a.byName["cni"]
	for _, l := range a.loops {
		if l != cni && l != a.byName["conntrack"] {
			wg.Go(func() { l.Run(ctx) })
		}
	}
	for _, name := range []string{"overlay", "services", "egress", "forward", "policy"} {
		l := a.byName[name]
		if l == nil {
			continue
		}
		select {
		case <-ctx.Done():
			return
		case <-l.Ready():
		}
	}
	if a.services != nil { // flows that are ended before the rules are right would be made again as they were
		wg.Go(func() { a.byName["conntrack"].Run(ctx) })
	}
	a.tellFound()
	debug.FreeOSMemory() // the first lists and the rules made of them took twice what is kept
	if cni != nil {
		wg.Go(func() { cni.Run(ctx) })
	}
	<-ctx.Done()
}

// close gives up what build opened. The kernel stays as it is.
func (a *Agent) close() {
	if a.overlay != nil {
		if err := a.overlay.Close(); err != nil {
			a.log.Warn("close the overlay's sockets", "err", err)
		}
	}
	if a.policies != nil {
		a.policies.Close()
	}
	if a.egress != nil {
		a.egress.close()
	}
	if a.forward != nil {
		a.forward.close()
	}
	if a.podRules != nil {
		a.podRules.close()
	}
	if a.podLinks != nil {
		if err := a.podLinks.close(); err != nil {
			a.log.Warn("close the sockets of pods' links", "err", err)
		}
	}
	if a.services != nil {
		a.health.close()
		a.services.close()
	}
}

// onChange is the store's subscriber: it marks what depends on the changes and returns. A revision
// counts as told only when all that it concerns are marked: who reads it before that must not take
// the old state for the new one.
func (a *Agent) onChange(rev uint64, changes []model.Change) {
	defer a.told.Store(rev)
	if a.services != nil {
		a.services.planner.Apply(rev, changes)
		a.ledger.note(rev, changes)
		if a.services.planner.Dirty() {
			a.proxy.asked(time.Now())
			a.byName["services"].Kick()
		}
		if a.health.note(changes) {
			a.byName["health-ports"].Kick()
		}
	}
	if a.egress != nil {
		a.egress.planner.Apply(rev, changes)
		if a.egress.planner.Dirty() {
			a.byName["egress"].Kick()
		}
	}
	if a.forward != nil && a.forward.note(rev, changes) {
		a.byName["forward"].Kick()
	}
	a.notePolicies(rev, changes)
	if !slices.ContainsFunc(changes, func(c model.Change) bool { return c.Kind == model.KindNode }) {
		return
	}
	for _, name := range []string{"overlay", "own-node", "cni", "pod-links"} {
		if l := a.byName[name]; l != nil {
			l.Kick()
		}
	}
}

func (a *Agent) setProblems(list []source.Problem) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.problems = a.problems[:0]
	for _, p := range list {
		a.problems = append(a.problems, status.Problem(p))
	}
}

func (a *Agent) runSource(ctx context.Context) error {
	if a.cfg.Manifests != "" {
		return dir.Run(ctx, a.cfg.Manifests, a.store, dir.Options{Logger: a.log, Problems: a.setProblems})
	}
	rest, err := kube.Config(a.cfg.Kubeconfig, a.cfg.Context)
	if err != nil {
		return err
	}
	if a.cfg.Kubeconfig == "" {
		go explainUnreachable(ctx, a.log, rest.Host)
	}
	return kube.Run(ctx, rest, a.store, kube.Options{Kinds: model.Kinds, Trim: service.Trim, Logger: a.log, Problems: a.setProblems})
}
