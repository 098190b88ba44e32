package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/braidnet/braid/netagent/lab/cluster"
)

// readyFD is the descriptor over which the daemon tells `up` that its socket answers.
const readyFD = 3

// podGrace is how long a deleted pod serves on while the nodes learn of its end. They need some ten
// milliseconds on an idle machine; this leaves room for a busy one.
const podGrace = 2 * time.Second

// daemon keeps one lab running.
type daemon struct {
	o        *Options
	p        paths
	log      *slog.Logger
	programs []*program // the agents of all nodes, then their CoreDNS
	ctl      *cluster.Controller
	pods     *podRuntime

	mu      sync.Mutex
	phase   Phase
	failure string
	wanted  int           // pods there are to be, as far as known
	applied reportAnswer  // what became of the manifests of `up`
	changed chan struct{} // closed and replaced at every change of anything that Status shows
}

// daemonArgs are the arguments below `lab` that start the daemon; `down` knows it by them.
func daemonArgs(name string) []string { return []string{"daemon", "--name", name} }

// runDaemon is `lab daemon`. It ends on SIGTERM, leaving namespaces and files to `down`.
func runDaemon(ctx context.Context, name string, log *slog.Logger) error {
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, os.Interrupt)
	defer stop()
	// The terminal `up` ran in may go away; the lab stays.
	signal.Ignore(syscall.SIGHUP)
	o, err := loadOptions(name)
	if err != nil {
		return err
	}
	d := &daemon{o: o, p: o.paths(), log: log, phase: PhaseNetwork, changed: make(chan struct{})}
	if err := d.prepare(); err != nil {
		return fmt.Errorf("lab %s: %w", name, err)
	}
	l, err := net.Listen("unix", d.p.socket())
	if err != nil {
		return fmt.Errorf("lab %s: listen: %w", name, err)
	}
	server := &http.Server{Handler: d.handler(), ReadHeaderTimeout: 5 * time.Second,
		BaseContext: func(net.Listener) context.Context { return ctx }}
	defer server.Close()
	go func() {
		if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			log.Error("socket server ended", "err", err)
			stop()
		}
	}()
	if err := announce(); err != nil {
		return err
	}
	if err := d.run(ctx); err != nil && ctx.Err() == nil {
		log.Error("lab failed", "err", err)
		d.fail(err)
		<-ctx.Done() // stay to tell why; `down` ends this
	}
	return nil
}

// announce tells a waiting `up` that the socket answers. Without one there is nobody to tell.
func announce() error {
	f := os.NewFile(readyFD, "ready")
	if _, err := f.Stat(); err != nil {
		return nil
	}
	_, err := io.WriteString(f, "ready\n")
	return errors.Join(err, f.Close())
}

// prepare makes the lab's files.
func (d *daemon) prepare() error {
	if err := writePID(d.p.daemonPID()); err != nil {
		return err
	}
	dirs := []string{d.p.cluster(), d.p.logs(), filepath.Join(d.p.dir(), "pods")}
	for _, n := range d.o.nodes() {
		for _, what := range []string{"run", "state", "cni"} {
			dirs = append(dirs, d.p.node(n.name, what))
		}
	}
	if err := makeDirs(dirs...); err != nil {
		return err
	}
	if err := writeFile(d.p.agentYAML(), d.o.agentConfig()); err != nil {
		return err
	}
	if err := writeNsswitch(d.p); err != nil {
		return err
	}
	return writeFile(d.p.resolv(), outsideResolver(d.o).file())
}

// run builds the lab and keeps it running until ctx ends or a part of it cannot work.
func (d *daemon) run(ctx context.Context) (err error) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait() // after cancel: everything started here ends before this returns
	defer cancel()

	if err := buildTopology(d.o); err != nil {
		return err
	}
	world, err := serveOutside(nsPath(d.p.outsideNS()), d.o.families(), d.log)
	if err != nil {
		return err
	}
	defer world.Close()

	if err := d.startCluster(ctx); err != nil {
		return err
	}
	programs := d.makePrograms()
	d.setPhase(PhaseNodes)
	for _, p := range programs {
		wg.Go(func() { p.run(ctx) })
	}
	wg.Go(func() { d.followDNS(ctx) })
	wg.Go(func() { d.followAnnotations(ctx) })
	ended := make(chan error, 1)
	wg.Go(func() { ended <- d.ctl.Run(ctx) })
	wg.Go(func() { d.follow(ctx) })
	select {
	case <-ctx.Done():
		return nil
	case err := <-ended:
		if ctx.Err() != nil {
			return nil
		}
		return fmt.Errorf("cluster controller ended: %w", err)
	}
}

// startCluster makes the controller with the cluster's own objects and the user's manifests.
func (d *daemon) startCluster(ctx context.Context) error {
	var nodes []*corev1.Node
	for _, n := range d.o.nodes() {
		nodes = append(nodes, n.object(d.o.Created))
	}
	pods := newPodRuntime(d)
	cfg := cluster.Config{StateDir: d.p.cluster(), Nodes: nodes, Runtime: pods, Logger: d.log, Grace: podGrace}
	for _, f := range d.o.families() {
		cfg.ServiceCIDRs = append(cfg.ServiceCIDRs, f.serviceCIDR)
		cfg.BalancerCIDRs = append(cfg.BalancerCIDRs, f.balancers)
		cfg.DNSIPs = append(cfg.DNSIPs, f.dns)
	}
	ctl, err := cluster.New(cfg)
	if err != nil {
		return err
	}
	if err := ctl.AddObjects(dnsObjects(d.o, nil)...); err != nil {
		return fmt.Errorf("add kube-dns: %w", err)
	}
	files, err := d.o.keptManifests()
	if err != nil {
		return err
	}
	report := change(ctx, files, ctl.Apply)
	for _, problem := range report.Problems {
		d.log.Error("manifest", "problem", problem)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.ctl, d.pods, d.applied = ctl, pods, report
	return nil
}

// follow moves the phase on as nodes and pods become ready.
func (d *daemon) follow(ctx context.Context) {
	if d.waitFor(ctx, d.nodesReady) != nil {
		return
	}
	d.setPhase(PhasePods)
	err := d.ctl.Wait(ctx, func(_, total int) {
		d.mu.Lock()
		d.wanted = total
		d.mu.Unlock()
		d.bump()
	})
	if err != nil && ctx.Err() == nil {
		d.fail(err)
	}
	// A node's program may have ended while pods were starting.
	if err == nil && d.waitFor(ctx, d.nodesReady) == nil && d.settle(ctx) == nil {
		d.setPhase(PhaseUp)
	}
}

func (d *daemon) nodesReady() bool {
	for _, p := range d.programs {
		if !p.status().Ready {
			return false
		}
	}
	return true
}

// bump wakes everybody who waits for a change.
func (d *daemon) bump() {
	d.mu.Lock()
	defer d.mu.Unlock()
	close(d.changed)
	d.changed = make(chan struct{})
}

func (d *daemon) setPhase(p Phase) {
	d.mu.Lock()
	d.phase = p
	d.mu.Unlock()
	d.log.Info("lab", "phase", p)
	d.bump()
}

func (d *daemon) fail(err error) {
	d.mu.Lock()
	d.phase, d.failure = PhaseFailed, err.Error()
	d.mu.Unlock()
	d.bump()
}

// next returns a channel that is closed at the next change after this call.
func (d *daemon) next() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.changed
}

// waitFor blocks until cond holds; it is asked again after every change.
func (d *daemon) waitFor(ctx context.Context, cond func() bool) error {
	for {
		next := d.next()
		if cond() {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-next:
		}
	}
}

// status gathers what every verb that shows something shows.
func (d *daemon) status() Status {
	d.mu.Lock()
	s := Status{
		Name: d.o.Name, Phase: d.phase, Error: d.failure, Created: d.o.Created, Family: d.o.Family,
		Backend: d.o.Backend, ServiceMode: d.o.ServiceMode, Dir: d.p.dir(), Pods: d.wanted,
		Notes: d.applied.Notes, Problems: d.applied.Problems,
	}
	programs, ctl, pods := d.programs, d.ctl, d.pods
	d.mu.Unlock()
	for _, n := range d.o.nodes() {
		ns := NodeStatus{Name: n.name, IPs: n.ips, PodCIDRs: n.pods, NetNS: nsPath(d.p.nodeNS(n.name))}
		for _, p := range programs {
			switch {
			case p.node == n.name && p.name == agentProgram:
				ns.Agent = p.status()
			case p.node == n.name:
				ns.DNS = p.status()
			}
		}
		if pods != nil {
			ns.Pods = pods.podsOn(n.name)
		}
		s.Nodes = append(s.Nodes, ns)
	}
	if ctl != nil {
		s.addCluster(ctl)
		services, _ := filepath.Glob(filepath.Join(d.p.cluster(), "service.*.yaml")) // the pattern is well formed
		s.Services = len(services)
	}
	return s
}
