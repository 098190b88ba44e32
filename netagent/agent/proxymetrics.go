package agent

import (
	"slices"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/netagent/agent/tools"
	"github.com/braidnet/braid/netagent/service"
)

// proxyMetrics are kube-proxy's metrics under its names and with its meaning (kube-proxy 1.36,
// pkg/proxy/metrics), for the dashboards and alerts that know them. A step writes both families at
// once, where kube-proxy has a loop for each: it counts for each.
type proxyMetrics struct {
	families []string // of this node: "IPv4" and "IPv6"
	ledger   *ledger
	noLocal  noLocalCount

	took, tookFull, tookPartial *prometheus.HistogramVec
	programming                 *prometheus.HistogramVec
	last, queued                *prometheus.GaugeVec
	noLocalTotal                *prometheus.GaugeVec
	failures                    map[string]*prometheus.CounterVec // by service mode
	partialFailures             *prometheus.CounterVec            // of mode iptables
	cleanupFailures             *prometheus.CounterVec            // of mode nftables
	rules, rulesLast            *prometheus.GaugeVec              // of mode iptables
	cleanTook                   *prometheus.HistogramVec
	cleaned                     *prometheus.CounterVec
	healthz, livez              codeCount
	counts                      []prometheus.Collector // of the ledger
}

// codeCount counts answers by status code.
type codeCount struct{ *prometheus.CounterVec }

func (c codeCount) count(code int) { c.WithLabelValues(strconv.Itoa(code)).Inc() }

func newProxyMetrics(l *ledger) *proxyMetrics {
	const family = "ip_family"
	opts := func(name, help string) prometheus.Opts {
		return prometheus.Opts{Subsystem: "kubeproxy", Name: name, Help: help}
	}
	histogram := func(name, help string, buckets []float64) *prometheus.HistogramVec {
		o := opts(name, help)
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{Subsystem: o.Subsystem, Name: o.Name, Help: o.Help, Buckets: buckets}, []string{family})
	}
	gauge := func(name, help string, labels ...string) *prometheus.GaugeVec {
		return prometheus.NewGaugeVec(prometheus.GaugeOpts(opts(name, help)), labels)
	}
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts(opts(name, help)), labels)
	}
	steps := prometheus.ExponentialBuckets(0.001, 2, 15)
	m := &proxyMetrics{
		families: []string{string(service.IPv4)}, ledger: l,
		took:         histogram("sync_proxy_rules_duration_seconds", "SyncProxyRules latency in seconds", steps),
		tookFull:     histogram("sync_full_proxy_rules_duration_seconds", "SyncProxyRules latency in seconds for full resyncs", steps),
		tookPartial:  histogram("sync_partial_proxy_rules_duration_seconds", "SyncProxyRules latency in seconds for partial resyncs", steps),
		programming:  histogram("network_programming_duration_seconds", "In Cluster Network Programming Latency in seconds", programmingBuckets()),
		last:         gauge("sync_proxy_rules_last_timestamp_seconds", "The last time proxy rules were successfully synced", family),
		queued:       gauge("sync_proxy_rules_last_queued_timestamp_seconds", "The last time a sync of proxy rules was queued", family),
		noLocalTotal: gauge("sync_proxy_rules_no_local_endpoints_total", "Number of services with a Local traffic policy and no endpoints", "traffic_policy", family),
		failures: map[string]*prometheus.CounterVec{
			"nftables": counter("sync_proxy_rules_nftables_sync_failures_total", "Cumulative proxy nftables sync failures", family),
			"iptables": counter("sync_proxy_rules_iptables_restore_failures_total", "Cumulative proxy iptables restore failures", family),
		},
		partialFailures: counter("sync_proxy_rules_iptables_partial_restore_failures_total", "Cumulative proxy iptables partial restore failures", family),
		cleanupFailures: counter("sync_proxy_rules_nftables_cleanup_failures_total", "Cumulative proxy nftables cleanup failures", family),
		rules:           gauge("sync_proxy_rules_iptables_total", "Total number of iptables rules owned by the agent", "table", family),
		rulesLast:       gauge("sync_proxy_rules_iptables_last", "Number of iptables rules written by the agent in last sync", "table", family),
		cleanTook:       histogram("conntrack_reconciler_sync_duration_seconds", "ReconcileConntrackFlowsLatency latency in seconds", steps),
		cleaned:         counter("conntrack_reconciler_deleted_entries_total", "Cumulative conntrack flows deleted by conntrack reconciler", family),
		healthz:         codeCount{counter("proxy_healthz_total", "Cumulative proxy healthz HTTP status", "code")},
		livez:           codeCount{counter("proxy_livez_total", "Cumulative proxy livez HTTP status", "code")},
	}
	if tools.HaveIPv6() {
		m.families = append(m.families, string(service.IPv6))
	}
	number := func(pick func(services, slices changeCount) uint64) func() float64 {
		return func() float64 { return float64(pick(l.counts())) }
	}
	m.counts = []prometheus.Collector{
		prometheus.NewCounterFunc(prometheus.CounterOpts(opts("sync_proxy_rules_service_changes_total", "Cumulative proxy rules Service changes")),
			number(func(s, _ changeCount) uint64 { return s.seen })),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts(opts("sync_proxy_rules_service_changes_pending", "Pending proxy rules Service changes")),
			number(func(s, _ changeCount) uint64 { return s.seen - s.settled })),
		prometheus.NewCounterFunc(prometheus.CounterOpts(opts("sync_proxy_rules_endpoint_changes_total", "Cumulative proxy rules Endpoint changes")),
			number(func(_, e changeCount) uint64 { return e.seen })),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts(opts("sync_proxy_rules_endpoint_changes_pending", "Pending proxy rules Endpoint changes")),
			number(func(_, e changeCount) uint64 { return e.seen - e.settled })),
	}
	return m
}

// programmingBuckets are those of the service level indicator, in seconds: 0.25, 0.5, 1 to 59, then
// in steps of 5 to 115, then of 30 to 300.
func programmingBuckets() []float64 {
	return slices.Concat(prometheus.LinearBuckets(0.25, 0.25, 2), prometheus.LinearBuckets(1, 1, 59),
		prometheus.LinearBuckets(60, 5, 12), prometheus.LinearBuckets(120, 30, 7))
}

// register puts the metrics that concern this agent into a registry. mode is the service mode in
// force, "" for none.
func (m *proxyMetrics) register(r *prometheus.Registry, mode string) {
	r.MustRegister(m.healthz, m.livez)
	if mode == "" {
		return
	}
	r.MustRegister(m.took, m.tookFull, m.tookPartial, m.programming, m.last, m.queued, m.noLocalTotal, m.cleanTook, m.cleaned)
	r.MustRegister(m.counts...)
	if f := m.failures[mode]; f != nil {
		r.MustRegister(f)
	}
	switch mode {
	case "iptables":
		r.MustRegister(m.partialFailures, m.rules, m.rulesLast)
		m.begin(m.partialFailures)
	case "nftables": // what is not needed any more goes in the transaction that adds what is
		r.MustRegister(m.cleanupFailures)
		m.begin(m.cleanupFailures)
	}
}

// begin makes a counter show its zero.
func (m *proxyMetrics) begin(c *prometheus.CounterVec) {
	for _, f := range m.families {
		c.WithLabelValues(f)
	}
}

// wroteRules notes how many rules mode iptables has in the kernel.
func (m *proxyMetrics) wroteRules(p *iptablesPlane) {
	for _, f := range p.families {
		for table, n := range f.renderer.Rules() {
			m.rules.WithLabelValues(table, f.name).Set(float64(n.Total))
			m.rulesLast.WithLabelValues(table, f.name).Set(float64(n.Last))
		}
	}
}

// asked notes that a sync is due.
func (m *proxyMetrics) asked(now time.Time) {
	for _, f := range m.families {
		m.queued.WithLabelValues(f).Set(seconds(now))
	}
}

// synced notes the end of an attempt to write, which began at begin, of everything or of changes only.
func (m *proxyMetrics) synced(mode string, full bool, begin, end time.Time, err error) {
	kind := m.tookPartial
	if full {
		kind = m.tookFull
	}
	for _, f := range m.families {
		m.took.WithLabelValues(f).Observe(end.Sub(begin).Seconds())
		kind.WithLabelValues(f).Observe(end.Sub(begin).Seconds())
		if c := m.failures[mode]; err != nil && c != nil {
			c.WithLabelValues(f).Inc()
		}
		if err != nil && !full && mode == "iptables" {
			m.partialFailures.WithLabelValues(f).Inc()
		}
	}
}

// inForce notes that the kernel has everything up to and with b.
func (m *proxyMetrics) inForce(p *service.Planner, b batch, now time.Time) {
	for _, families := range b.triggers {
		for f, times := range families {
			for _, t := range times {
				m.programming.WithLabelValues(string(f)).Observe(now.Sub(t).Seconds())
			}
		}
	}
	for svc := range b.services {
		m.noLocal.set(svc, p.NoLocal(svc))
	}
	for _, f := range m.families {
		m.last.WithLabelValues(f).Set(seconds(now))
		m.noLocalTotal.WithLabelValues("internal", f).Set(float64(m.noLocal.internal[service.Family(f)]))
		m.noLocalTotal.WithLabelValues("external", f).Set(float64(m.noLocal.external[service.Family(f)]))
	}
}

func seconds(t time.Time) float64 { return float64(t.UnixNano()) / 1e9 }

// noLocalCount sums service.NoLocal over all Services, at the cost of those that changed.
type noLocalCount struct {
	of                 map[model.Key]service.NoLocal // those with any
	internal, external map[service.Family]int
}

func (c *noLocalCount) set(svc model.Key, now service.NoLocal) {
	if c.of == nil {
		*c = noLocalCount{map[model.Key]service.NoLocal{}, map[service.Family]int{}, map[service.Family]int{}}
	}
	was := c.of[svc]
	for f, n := range was.Internal {
		c.internal[f] -= n
	}
	for f, n := range was.External {
		c.external[f] -= n
	}
	for f, n := range now.Internal {
		c.internal[f] += n
	}
	for f, n := range now.External {
		c.external[f] += n
	}
	if len(now.Internal)+len(now.External) == 0 {
		delete(c.of, svc)
	} else {
		c.of[svc] = now
	}
}
