package kubernetes

import (
	"context"
	"net/url"
	"strings"
	"time"

	"github.com/coredns/coredns/plugin"
	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/client-go/tools/metrics"

	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/plugin/kubernetes/stores"
)

// Series of CoreDNS's own about requests to the API server, under the names that dashboards know.
var (
	requestDuration = clientHistogram("rest_client_request_duration_seconds", "Request latency in seconds. Broken down by verb and host.")
	limiterDuration = clientHistogram("rest_client_rate_limiter_duration_seconds", "Client side rate limiter latency in seconds. Broken down by verb and host.")
	requests        = prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: plugin.Namespace,
		Subsystem: pluginName,
		Name:      "rest_client_requests_total",
		Help:      "Number of HTTP requests, partitioned by status code, method, and host.",
	}, []string{"code", "method", "host"})
)

// Series of ours about the comparison of a store with its API server.
var (
	checks = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "braid_dns_source_checks_total",
		Help: "Comparisons with the API server by what came out: equal, drift or error.",
	}, []string{"source", "kind", "result"})
	drift = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "braid_dns_source_drift_objects_total",
		Help: "Objects that differed from the API server although no event told so; they were read anew.",
	}, []string{"source", "kind"})
)

func countCheck(src stores.Source, kind model.Kind, differed int, err error) {
	result := "equal"
	switch {
	case err != nil:
		result = "error"
	case differed > 0:
		result = "drift"
		drift.WithLabelValues(src.String(), string(kind)).Add(float64(differed))
	}
	checks.WithLabelValues(src.String(), string(kind), result).Inc()
}

func clientHistogram(name, help string) *prometheus.HistogramVec {
	return prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Namespace:                   plugin.Namespace,
		Subsystem:                   pluginName,
		Name:                        name,
		Help:                        help,
		Buckets:                     prometheus.DefBuckets,
		NativeHistogramBucketFactor: plugin.NativeHistogramBucketFactor,
	}, []string{"verb", "host"})
}

// observeRequests feeds the series; client-go has one place for that in a process.
func observeRequests() {
	metrics.Register(metrics.RegisterOpts{
		RequestLatency:     latencies{requestDuration},
		RateLimiterLatency: latencies{limiterDuration},
		RequestResult:      results{requests},
	})
}

type latencies struct{ *prometheus.HistogramVec }

func (l latencies) Observe(_ context.Context, verb string, u url.URL, latency time.Duration) {
	l.WithLabelValues(verb, strings.ToValidUTF8(u.Host, "\uFFFD")).Observe(latency.Seconds())
}

type results struct{ *prometheus.CounterVec }

func (r results) Increment(_ context.Context, code, method, host string) {
	r.WithLabelValues(code, method, strings.ToValidUTF8(host, "\uFFFD")).Inc()
}
