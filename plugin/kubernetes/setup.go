package kubernetes

import (
	"context"
	"log/slog"
	"net/netip"
	"runtime/debug"
	"sync"
	"time"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"
	"github.com/coredns/coredns/plugin/pkg/upstream"
	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/klog/v2"

	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/plugin/kubernetes/stores"
)

// registry holds the process's stores; it outlives reloads.
var registry = stores.New(runSource, logger, observeProgramming)

// Sources describes the sources of cluster state that are in use.
func Sources() []stores.Status { return registry.Status() }

var logger = slog.New(logHandler{})

func init() {
	prometheus.MustRegister(programming, checks, drift, requestDuration, limiterDuration, requests, sourceMetrics{})
	observeRequests()
	plugin.Register(pluginName, setup)
}

// useOurLog sends what client-go says to CoreDNS's log, once: klog keeps it for the whole process.
var useOurLog = sync.OnceFunc(func() { klog.SetSlogLogger(logger) })

func setup(c *caddy.Controller) error {
	// CoreDNS calls once for each name of a server block and then uses the plugins of the first for all.
	if c.ServerBlockKeyIndex > 0 {
		return nil
	}
	useOurLog()
	cfg, err := parse(c)
	if err != nil {
		return plugin.Error(pluginName, err)
	}
	for _, w := range cfg.warnings {
		log.Warning(w)
	}
	k := &Kubernetes{cfg: cfg, upstream: upstream.New(), search: searchPath(resolvConf)}
	c.OnRestart(func() error {
		registry.Begin()
		return nil
	})
	c.OnRestartFailed(func() error {
		registry.Rollback()
		return nil
	})
	c.OnStartup(func() error {
		// Not earlier: a Corefile can be checked on a machine that is not of the cluster.
		if err := checkSource(cfg); err != nil {
			return plugin.Error(pluginName, err)
		}
		server := dnsserver.GetConfig(c)
		k.warnOfNeighbours(func(name string) bool { return server.Handler(name) != nil })
		k.start(registry, boundAddrs(server.ListenHosts))
		if n, ok := server.Handler("transfer").(notifier); ok {
			k.announce(n, k.announced())
		}
		for _, f := range k.whenLive {
			f()
		}
		return nil
	})
	c.OnShutdown(func() error {
		k.stop()
		return nil
	})
	dnsserver.GetConfig(c).AddPlugin(func(next plugin.Handler) plugin.Handler {
		k.Next = next
		return k
	})
	return nil
}

// tidy gives what reading the first state took back to the system: a cluster's DNS server is small again
// when it begins its work.
func tidy(ctx context.Context, store *model.Store) {
	select {
	case <-store.Synced():
		debug.FreeOSMemory()
	case <-ctx.Done():
	}
}

// stop gives back what start took, if it came to that.
func (k *Kubernetes) stop() {
	if l := k.live.Load(); l != nil {
		l.quit()
		l.lease.Release()
	}
}

// checkSource reports a source that cannot work before anything is started.
func checkSource(cfg *config) error {
	if err := sourceError(cfg.source); err != nil {
		return cfg.errorf("%s: %v", cfg.source, err)
	}
	return nil
}

// start takes the store and waits for its first state, but no longer than startup_timeout: a server
// that answers SERVFAIL tells its clients more than one that is not there.
func (k *Kubernetes) start(r *stores.Registry, bound []netip.Addr) {
	lease := r.Acquire(k.cfg.source, k.cfg.kinds())
	ctx, quit := context.WithCancel(context.Background())
	k.live.Store(&live{lease: lease, local: bound, ctx: ctx, quit: quit})
	if lease.Store.HasSynced() {
		return
	}
	go tidy(ctx, lease.Store)
	begin := time.Now()
	logger.Info("waiting for cluster state before serving", "source", k.cfg.source.String(), "at_most", k.cfg.startupTimeout)
	timeout := time.NewTimer(k.cfg.startupTimeout)
	defer timeout.Stop()
	select {
	case <-lease.Store.Synced():
		logger.Info("cluster state synced", "source", k.cfg.source.String(), "took", time.Since(begin).Round(time.Millisecond))
	case <-timeout.C:
		logger.Warn("serving with unsynced cluster state: names of the cluster answer SERVFAIL until it is complete",
			"source", k.cfg.source.String(), "waited", time.Since(begin).Round(time.Millisecond))
	}
}
