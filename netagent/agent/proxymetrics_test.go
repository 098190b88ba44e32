package agent

import (
	"fmt"
	"math"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/netagent/service"
)

// gathered returns the metrics of a registry as Prometheus writes them: name{label="value"}. Of a
// histogram there are _count and _sum, and the largest bucket that is empty as _above.
func gathered(t *testing.T, r prometheus.Gatherer) map[string]float64 {
	t.Helper()
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]float64{}
	for _, f := range families {
		for _, m := range f.Metric {
			var labels []string
			for _, l := range m.Label {
				labels = append(labels, fmt.Sprintf("%s=%q", l.GetName(), l.GetValue()))
			}
			of := ""
			if len(labels) > 0 {
				of = "{" + strings.Join(labels, ",") + "}"
			}
			switch f.GetType() {
			case dto.MetricType_COUNTER:
				out[f.GetName()+of] = m.Counter.GetValue()
			case dto.MetricType_GAUGE:
				out[f.GetName()+of] = m.Gauge.GetValue()
			case dto.MetricType_HISTOGRAM:
				out[f.GetName()+"_count"+of] = float64(m.Histogram.GetSampleCount())
				out[f.GetName()+"_sum"+of] = m.Histogram.GetSampleSum()
				out[f.GetName()+"_buckets"+of] = float64(len(m.Histogram.Bucket))
				for _, b := range m.Histogram.Bucket {
					if b.GetCumulativeCount() == 0 && !math.IsInf(b.GetUpperBound(), 1) {
						out[f.GetName()+"_above"+of] = b.GetUpperBound()
					}
				}
			}
		}
	}
	return out
}

func wantMetrics(t *testing.T, r prometheus.Gatherer, want map[string]float64) {
	t.Helper()
	got := gathered(t, r)
	for name, v := range want {
		if have, ok := got[name]; !ok || have != v {
			t.Errorf("%s is %v (there: %v), want %v", name, have, ok, v)
		}
	}
}

// fakePlane takes everything, or fails.
type fakePlane struct {
	service.Dataplane
	err error
}

func (*fakePlane) Name() string                                    { return "nftables" }
func (p *fakePlane) Replace([]service.Frontend, service.Net) error { return p.err }
func (p *fakePlane) Apply(service.Delta) error                     { return p.err }

// metricsLab is the subsystem services without a kernel, behind a store.
type metricsLab struct {
	*services
	plane *fakePlane
	store *model.Store
	reg   *prometheus.Registry
}

func newMetricsLab(t *testing.T) *metricsLab {
	t.Helper()
	led := newLedger()
	p := service.NewPlanner(service.Config{Node: "n1"})
	m := newProxyMetrics(led)
	m.families = []string{"IPv4", "IPv6"} // whatever this machine has
	l := &metricsLab{plane: &fakePlane{}, store: model.NewStore(), reg: prometheus.NewRegistry()}
	flows := &flowKeeper{planner: p, metrics: m, kick: func() {}, known: map[service.Key][]netip.AddrPort{}, owned: map[model.Key][]service.Key{}, stale: map[service.Key]struct{}{}}
	l.services = &services{planner: p, dataplane: l.plane, ledger: led, metrics: m, flows: flows}
	m.register(l.reg, "nftables")
	l.store.Subscribe(func(rev uint64, changes []model.Change) {
		p.Apply(rev, changes)
		led.note(rev, changes)
		m.asked(time.Now())
	})
	return l
}

func (l *metricsLab) run(t *testing.T, fails bool) {
	t.Helper()
	if _, err := l.step(t.Context()); (err != nil) != fails {
		t.Fatalf("step: %v", err)
	}
}

func TestSyncMetrics(t *testing.T) {
	const v4 = `{ip_family="IPv4"}`
	l := newMetricsLab(t)
	before := seconds(time.Now())
	slice := portsSlice("web-1", "web", false, endpointAt("10.244.2.1", "n2", true))
	slice.LastChange = l.ledger.began.Add(-time.Hour) // of the time before this agent: not its delay
	l.store.Apply([]model.Update{model.Set(balanced("web", 30500)), model.Set(slice)})
	wantMetrics(t, l.reg, map[string]float64{
		"kubeproxy_sync_proxy_rules_service_changes_pending": 1, "kubeproxy_sync_proxy_rules_endpoint_changes_pending": 1,
		"kubeproxy_sync_proxy_rules_service_changes_total": 1, "kubeproxy_sync_proxy_rules_endpoint_changes_total": 1,
	})
	l.plane.err = fmt.Errorf("no")
	l.run(t, true)
	wantMetrics(t, l.reg, map[string]float64{
		"kubeproxy_sync_proxy_rules_service_changes_pending": 1, "kubeproxy_sync_proxy_rules_endpoint_changes_pending": 1,
		"kubeproxy_sync_proxy_rules_nftables_sync_failures_total" + v4: 1,
		"kubeproxy_sync_full_proxy_rules_duration_seconds_count" + v4:  1,
	})
	if _, there := gathered(t, l.reg)["kubeproxy_sync_proxy_rules_last_timestamp_seconds"+v4]; there {
		t.Error("a sync that failed has a timestamp")
	}
	l.plane.err = nil
	l.run(t, false)
	wantMetrics(t, l.reg, map[string]float64{
		"kubeproxy_sync_proxy_rules_service_changes_pending": 0, "kubeproxy_sync_proxy_rules_endpoint_changes_pending": 0,
		"kubeproxy_sync_full_proxy_rules_duration_seconds_count" + v4:         2,
		"kubeproxy_sync_full_proxy_rules_duration_seconds_buckets" + v4:       15,
		"kubeproxy_sync_proxy_rules_duration_seconds_count" + v4:              2,
		`kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family="IPv6"}`: 2,
		"kubeproxy_sync_proxy_rules_service_changes_total":                    1,
	})
	got := gathered(t, l.reg)
	if last, queued := got["kubeproxy_sync_proxy_rules_last_timestamp_seconds"+v4], got["kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds"+v4]; last < queued || queued < before {
		t.Errorf("began %f, queued %f, last %f", before, queued, last)
	}
	if n := got["kubeproxy_network_programming_duration_seconds_count"+v4]; n != 0 {
		t.Errorf("%v delays of changes before the agent's start", n)
	}
}

func TestNetworkProgrammingLatencyCountsFromThePod(t *testing.T) {
	l := newMetricsLab(t)
	l.ledger.began = time.Now().Add(-time.Hour)
	change := func(name string, ipv6 bool, ago time.Duration, ready bool) model.Update {
		addr := map[bool]string{false: "10.244.2.1", true: "fd00:244::1"}[ipv6]
		s := portsSlice(name, "web", ipv6, endpointAt(addr, "n2", ready))
		s.LastChange = time.Now().Add(-ago)
		return model.Set(s)
	}
	l.store.Apply([]model.Update{model.Set(balanced("web", 30500)), change("web-1", false, 10*time.Second, true), change("web-6", true, 130*time.Second, true)})
	l.plane.err = fmt.Errorf("no")
	l.run(t, true) // what did not reach the kernel still counts from when it began
	l.store.Apply([]model.Update{change("web-1", false, 20*time.Second, false)})
	l.plane.err = nil
	l.run(t, false)
	l.run(t, false) // nothing new: nothing more
	const m = "kubeproxy_network_programming_duration_seconds"
	wantMetrics(t, l.reg, map[string]float64{
		m + `_count{ip_family="IPv4"}`: 2, m + `_above{ip_family="IPv4"}`: 10, // both took longer, up to the next bucket
		m + `_count{ip_family="IPv6"}`: 1, m + `_above{ip_family="IPv6"}`: 120,
		m + `_buckets{ip_family="IPv4"}`: 80,
	})
	if sum := gathered(t, l.reg)[m+`_sum{ip_family="IPv4"}`]; sum < 30 {
		t.Errorf("the sum of 10 and 20 seconds and more is %v", sum)
	}
	// A deleted slice takes its time with it, as with kube-proxy.
	l.store.Apply([]model.Update{change("web-1", false, time.Second, true)})
	l.store.Apply([]model.Update{model.Delete(portsSlice("web-1", "web", false).Ref)})
	l.run(t, false)
	wantMetrics(t, l.reg, map[string]float64{m + `_count{ip_family="IPv4"}`: 2})
}

func TestNoLocalEndpoints(t *testing.T) {
	l := newMetricsLab(t)
	metric := func(policy, family string) string {
		return fmt.Sprintf("kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family=%q,traffic_policy=%q}", family, policy)
	}
	want := func(internal4, external4, internal6, external6 float64) {
		t.Helper()
		l.run(t, false)
		wantMetrics(t, l.reg, map[string]float64{metric("internal", "IPv4"): internal4, metric("external", "IPv4"): external4,
			metric("internal", "IPv6"): internal6, metric("external", "IPv6"): external6})
	}
	web, api := balanced("web", 30500), balanced("api", 30501)
	web.Ports[0].NodePort = 30080
	web.Ports = append(web.Ports, model.ServicePort{Name: "b", Protocol: model.TCP, Port: 81, NodePort: 30081})
	web.Ingress = []model.Ingress{{Addr: web.ClusterIPs[0].Next()}} // a frontend more, not a port
	api.ExternalLocal, api.InternalLocal = false, true
	api.ClusterIPs = api.ClusterIPs[:1]
	api.ClusterIPs[0] = api.ClusterIPs[0].Next().Next()
	l.store.Apply([]model.Update{model.Set(web), model.Set(api)})
	want(0, 0, 0, 0) // no endpoints anywhere is another thing
	l.store.Apply([]model.Update{model.Set(portsSlice("web-1", "web", false, endpointAt("10.244.2.1", "n2", true))),
		model.Set(portsSlice("api-1", "api", false, endpointAt("10.244.2.1", "n2", true)))})
	want(1, 2, 0, 0)
	l.store.Apply([]model.Update{model.Set(portsSlice("web-6", "web", true, endpointAt("fd00:244::1", "n2", true)))})
	want(1, 2, 0, 2)
	l.store.Apply([]model.Update{model.Set(portsSlice("web-1", "web", false, endpointAt("10.244.1.1", "n1", true)))})
	want(1, 0, 0, 2)
	l.store.Apply([]model.Update{model.Delete(web.Ref), model.Delete(api.Ref)})
	want(0, 0, 0, 0)
}

func newRegistry(m *proxyMetrics) *prometheus.Registry {
	r := prometheus.NewRegistry()
	m.register(r, "nftables")
	return r
}
