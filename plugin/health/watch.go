package health

import (
	"context"
	"net/http"
	"time"

	"github.com/coredns/coredns/plugin"
	"github.com/prometheus/client_golang/prometheus"
)

// CoreDNS's own series: how long a health check takes tells how busy the process is.
var (
	duration = prometheus.NewHistogram(prometheus.HistogramOpts{
		Namespace:                   plugin.Namespace,
		Subsystem:                   pluginName,
		Name:                        "request_duration_seconds",
		Buckets:                     plugin.SlimTimeBuckets,
		NativeHistogramBucketFactor: plugin.NativeHistogramBucketFactor,
		Help:                        "Histogram of the time (in seconds) each request took.",
	})
	failures = prometheus.NewCounter(prometheus.CounterOpts{
		Namespace: plugin.Namespace,
		Subsystem: pluginName,
		Name:      "request_failures_total",
		Help:      "The number of times the health check failed.",
	})
)

const (
	every    = time.Second     // how often the process asks itself
	patience = 3 * time.Second // and how long it waits
	slow     = time.Second     // from here on it warns
)

// watch asks the process's own health until ctx is done.
func watch(ctx context.Context, url string) {
	client := &http.Client{Timeout: patience, Transport: &http.Transport{}} // never through a proxy
	defer client.CloseIdleConnections()
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			ask(ctx, client, url)
		case <-ctx.Done():
			return
		}
	}
}

func ask(ctx context.Context, client *http.Client, url string) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		log.Errorf("health checks of the process's own: %v", err)
		return
	}
	began := time.Now()
	resp, err := client.Do(req)
	if ctx.Err() != nil {
		if err == nil {
			resp.Body.Close()
		}
		return
	}
	took := time.Since(began)
	duration.Observe(took.Seconds())
	switch {
	case err != nil:
		failures.Inc()
		log.Warningf("health check at %s failed: %v", url, err)
		return
	case took > slow:
		log.Warningf("health check at %s took %s: the process is short of time", url, took)
	}
	resp.Body.Close()
}
