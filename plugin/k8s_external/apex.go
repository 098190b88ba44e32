package k8s_external

import (
	"net/netip"
	"slices"

	"github.com/coredns/coredns/plugin/pkg/dnsutil"
	"github.com/miekg/dns"

	"github.com/braidnet/braid/internal/names"
)

// apex answers for a zone's own name.
func (e *External) apex(q question) reply {
	out := reply{exists: true, fixed: true}
	switch q.typ {
	case dns.TypeSOA:
		out.records = []dns.RR{e.soa(q.zone)}
	case dns.TypeNS:
		host := dnsutil.Join("ns1", e.cfg.apex, q.zone)
		out.records = []dns.RR{&dns.NS{Hdr: e.header(q.zone, dns.TypeNS, e.cfg.ttl), Ns: host}}
		for _, a := range e.serverAddrs() {
			out.extra = append(out.extra, e.address(dnsutil.Join("ns1", e.cfg.apex, q.name), a))
		}
	}
	return out
}

// belowApex answers for the names that the zone needs for itself: "dns" holds "ns1", nothing else.
func (e *External) belowApex(q question, lower, apex string) reply {
	out := reply{fixed: true}
	switch lower {
	case apex:
		out.exists = true
	case "ns1." + apex:
		out.exists = true
		for _, a := range e.serverAddrs() {
			if (q.typ == dns.TypeA && a.Is4()) || (q.typ == dns.TypeAAAA && a.Is6()) {
				out.records = append(out.records, e.address(q.name, a))
			}
		}
	}
	return out
}

// serverAddrs returns the addresses by which this name server is reached from outside: those of the
// services that have it among their endpoints or, when there is no such service, its own.
func (e *External) serverAddrs() (out []netip.Addr) {
	add := func(list ...netip.Addr) {
		for _, a := range list {
			if !slices.Contains(out, a) {
				out = append(out, a)
			}
		}
	}
	own := e.cluster.OwnServices()
	for _, o := range own {
		s := e.cluster.Index().Service(o.Service)
		switch {
		case s == nil:
		case e.cfg.headless && s.Headless:
			for _, p := range o.Peers {
				add(p.Addr)
			}
		default:
			add(names.ExternalAddrs(s)...)
		}
	}
	if len(own) == 0 {
		add(e.cluster.Local()...)
	}
	return out
}

func (e *External) soa(zone string) dns.RR {
	return &dns.SOA{
		Hdr:     e.header(zone, dns.TypeSOA, e.cfg.ttl),
		Ns:      dnsutil.Join("ns1", e.cfg.apex, zone),
		Mbox:    dnsutil.Join("hostmaster", e.cfg.apex, zone),
		Serial:  e.cluster.Index().Serial(names.ExternalZone),
		Refresh: 7200,
		Retry:   1800,
		Expire:  86400,
		Minttl:  e.cfg.ttl,
	}
}
