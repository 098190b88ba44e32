package agent

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/braidnet/braid/internal/model"
)

// collector reads the agent's state at scrape time, so that no counter can drift from `status`.
type collector struct{ a *Agent }

var (
	descUp       = prometheus.NewDesc("braid_subsystem_ready", "1 when the subsystem's newest known state is in the kernel, or for some seconds on its way there.", []string{"subsystem"}, nil)
	descRevision = prometheus.NewDesc("braid_subsystem_revision", "Revision of the cluster state that the subsystem has programmed.", []string{"subsystem"}, nil)
	descSteps    = prometheus.NewDesc("braid_sync_total", "Attempts to bring the kernel to the desired state.", []string{"subsystem"}, nil)
	descErrors   = prometheus.NewDesc("braid_sync_errors_total", "Attempts that failed.", []string{"subsystem"}, nil)
	descTook     = prometheus.NewDesc("braid_sync_last_duration_seconds", "Length of the last successful attempt.", []string{"subsystem"}, nil)
	descSynced   = prometheus.NewDesc("braid_sync_last_timestamp_seconds", "End of the last successful attempt, unix time.", []string{"subsystem"}, nil)
	descStore    = prometheus.NewDesc("braid_store_revision", "Revision of the cluster state that the source has delivered.", nil, nil)
	descObjects  = prometheus.NewDesc("braid_store_objects", "Objects of the cluster state by kind.", []string{"kind"}, nil)
	descProblems = prometheus.NewDesc("braid_source_problems", "Documents or objects that could not be used.", nil, nil)
)

// Describe implements prometheus.Collector.
func (c collector) Describe(ch chan<- *prometheus.Desc) { prometheus.DescribeByCollect(c, ch) }

// Collect implements prometheus.Collector.
func (c collector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	counter := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, v, labels...)
	}
	r, now := c.a.report(), time.Now()
	gauge(descStore, float64(r.Revision))
	gauge(descProblems, float64(len(r.Problems)))
	for _, k := range model.Kinds {
		gauge(descObjects, float64(r.Objects[string(k)]), string(k))
	}
	if c.a.overlay != nil {
		c.a.overlay.collectUserPath(counter)
		if p := c.a.overlay.paths; p != nil {
			p.collect(gauge)
		}
	}
	for _, s := range r.Subsystems {
		ready := 0.0
		if s.Problem(now) == "" {
			ready = 1
		}
		gauge(descUp, ready, s.Name)
		gauge(descRevision, float64(s.Revision), s.Name)
		counter(descSteps, float64(s.Steps), s.Name)
		counter(descErrors, float64(s.Errors), s.Name)
		gauge(descTook, s.Took.Seconds(), s.Name)
		if !s.Synced.IsZero() {
			gauge(descSynced, float64(s.Synced.UnixMilli())/1000, s.Name)
		}
	}
}

func (a *Agent) registry() *prometheus.Registry {
	r := prometheus.NewRegistry()
	mode := ""
	if a.services != nil {
		mode = a.services.dataplane.Name()
	}
	a.proxy.register(r, mode)
	if a.services != nil && a.services.traffic != nil {
		r.MustRegister(a.services.traffic)
	}
	if a.policies != nil {
		r.MustRegister(a.policies)
	}
	if a.policies != nil || a.services != nil {
		r.MustRegister(nodeConnections)
	}
	r.MustRegister(collector{a}, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return r
}

// sliCollector tells of each subsystem whether it is well, in the form that Kubernetes components have for service level
// indicators (KEP-3466): a gauge of the moment. Their counter of past checks has no meaning here, where nothing is
// checked between two scrapes.
type sliCollector struct{ a *Agent }

var descCheck = prometheus.NewDesc("kubernetes_healthcheck", "This metric records the result of a single healthcheck.", []string{"name", "type"}, nil)

// Describe implements prometheus.Collector.
func (c sliCollector) Describe(ch chan<- *prometheus.Desc) { ch <- descCheck }

// Collect implements prometheus.Collector.
func (c sliCollector) Collect(ch chan<- prometheus.Metric) {
	check := func(name, kind string, well bool) {
		v := 0.0
		if well {
			v = 1
		}
		ch <- prometheus.MustNewConstMetric(descCheck, prometheus.GaugeValue, v, name, kind)
	}
	now := time.Now()
	for _, l := range c.a.loops {
		s := l.Status()
		_, stuck := l.Stuck(now)
		check(s.Name, "healthz", !stuck)
		check(s.Name, "readyz", s.Problem(now) == "")
	}
}

func (a *Agent) sliRegistry() *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(sliCollector{a})
	return r
}
