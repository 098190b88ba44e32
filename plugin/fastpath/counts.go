package fastpath

import (
	"sync/atomic"

	"github.com/coredns/coredns/plugin/metrics/vars"
	"github.com/coredns/coredns/plugin/pkg/rcode"
	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"
)

// counts are the metrics of plugin prometheus for one zone, each found once.
type counts struct {
	requests  [2]map[uint16]*counter // by family and type
	do        *counter
	duration  prometheus.Observer
	asked     prometheus.Observer
	answered  prometheus.Observer
	responses [2]*counter // NOERROR, NXDOMAIN
}

// counter is one counter of many. It does not exist before it counts, as in plugin prometheus.
type counter struct {
	vec    *prometheus.CounterVec
	labels []string
	found  atomic.Pointer[prometheus.Counter]
}

func (c *counter) inc() {
	p := c.found.Load()
	if p == nil {
		fresh := c.vec.WithLabelValues(c.labels...)
		p = &fresh
		c.found.Store(p)
	}
	(*p).Inc()
}

// newCounts returns the metrics of a server's zone. Answers are counted as those of one plugin: the
// first behind prometheus, whatever plugin made them.
func newCounts(server, zone, plugin string) *counts {
	const view = ""
	response := func(code int) *counter {
		return &counter{vec: vars.ResponseRcode, labels: []string{server, zone, view, rcode.ToString(code), plugin}}
	}
	c := &counts{
		do:        &counter{vec: vars.RequestDo, labels: []string{server, zone, view}},
		duration:  vars.RequestDuration.WithLabelValues(server, zone, view),
		asked:     vars.RequestSize.WithLabelValues(server, zone, view, "udp"),
		answered:  vars.ResponseSize.WithLabelValues(server, zone, view, "udp"),
		responses: [2]*counter{response(dns.RcodeSuccess), response(dns.RcodeNameError)},
	}
	for i, family := range []string{"1", "2"} {
		c.requests[i] = map[uint16]*counter{}
		for _, typ := range fast {
			c.requests[i][typ] = &counter{vec: vars.RequestCount, labels: []string{server, zone, view, "udp", family, dns.Type(typ).String()}}
		}
	}
	return c
}

// done is a query that was answered here, until its batch is sent.
type done struct {
	zone  *zone
	typ   uint16
	ipv4  bool
	do    bool
	rcode byte
	asked int // octets of the query
	whole int // octets of the answer before anything was left out of it
}

// add counts an answer that took so many seconds.
func (d *done) add(seconds float64) {
	c := d.zone.counts
	if c == nil {
		return
	}
	family, code := 1, 0
	if d.ipv4 {
		family = 0
	}
	if d.rcode == dns.RcodeNameError {
		code = 1
	}
	if d.do {
		c.do.inc()
	}
	c.requests[family][d.typ].inc()
	c.responses[code].inc()
	c.duration.Observe(seconds)
	c.answered.Observe(float64(d.whole))
	c.asked.Observe(float64(d.asked))
}
