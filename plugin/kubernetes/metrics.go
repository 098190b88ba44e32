package kubernetes

import (
	"time"

	"github.com/coredns/coredns/plugin"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/internal/names"
)

// programming is CoreDNS's own series: how long after a change of endpoints it is in the answers.
var programming = prometheus.NewHistogramVec(prometheus.HistogramOpts{
	Namespace:                   plugin.Namespace,
	Subsystem:                   pluginName,
	Name:                        "dns_programming_duration_seconds",
	Help:                        "Seconds from the change that triggered an EndpointSlice to its being answered.",
	Buckets:                     prometheus.ExponentialBuckets(0.001, 2, 20),
	NativeHistogramBucketFactor: plugin.NativeHistogramBucketFactor,
}, []string{"service_kind"})

// observeProgramming feeds the histogram from a store. It must subscribe behind the index, so that
// what it measures can be asked for.
func observeProgramming(store *model.Store, index *names.Index) {
	store.Subscribe(func(_ uint64, changes []model.Change) {
		if !store.HasSynced() {
			return // the first state says when things changed before we ran
		}
		for _, c := range changes {
			if c.Kind != model.KindEndpointSlice {
				continue
			}
			s := names.SliceOf(c.New)
			if s == nil || s.LastChange.IsZero() {
				continue
			}
			kind := "cluster_ip"
			switch svc := index.Service(s.Service); {
			case svc == nil:
				continue
			case svc.Headless:
				kind = "headless_with_selector"
			}
			programming.WithLabelValues(kind).Observe(time.Since(s.LastChange).Seconds())
		}
	})
}

// sourceMetrics reports the state of each source when it is scraped.
type sourceMetrics struct{}

var (
	syncedDesc  = prometheus.NewDesc("braid_dns_source_synced", "1 once the source has given a complete first state.", []string{"source"}, nil)
	ageDesc     = prometheus.NewDesc("braid_dns_source_age_seconds", "Seconds since the answers were last known to be complete; absent before the first state, and when the source cannot tell.", []string{"source"}, nil)
	currentDesc = prometheus.NewDesc("braid_dns_source_current_timestamp_seconds", "The answers are complete as of this moment, unix time; absent when the source cannot tell.", []string{"source"}, nil)
	revDesc     = prometheus.NewDesc("braid_dns_source_revision", "Number of batches of changes taken from the source.", []string{"source"}, nil)
)

// Describe implements prometheus.Collector.
func (sourceMetrics) Describe(ch chan<- *prometheus.Desc) {
	ch <- syncedDesc
	ch <- revDesc
	ch <- currentDesc
	ch <- ageDesc
}

// Collect implements prometheus.Collector.
func (sourceMetrics) Collect(ch chan<- prometheus.Metric) {
	seen := map[string]bool{}
	for _, s := range registry.Status() {
		if seen[s.Source] { // a second store of one source, with more kinds
			continue
		}
		seen[s.Source] = true
		synced := 0.0
		if s.Synced {
			synced = 1
		}
		ch <- prometheus.MustNewConstMetric(syncedDesc, prometheus.GaugeValue, synced, s.Source)
		ch <- prometheus.MustNewConstMetric(revDesc, prometheus.GaugeValue, float64(s.Rev), s.Source)
		if !s.Current.IsZero() {
			ch <- prometheus.MustNewConstMetric(currentDesc, prometheus.GaugeValue, float64(s.Current.UnixMilli())/1000, s.Source)
			ch <- prometheus.MustNewConstMetric(ageDesc, prometheus.GaugeValue, max(0, time.Since(s.Current).Seconds()), s.Source)
		}
	}
}
