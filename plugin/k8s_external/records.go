package k8s_external

import (
	"context"
	"net/netip"
	"slices"

	"github.com/coredns/coredns/plugin/pkg/dnsutil"
	"github.com/miekg/dns"

	"github.com/braidnet/braid/internal/names"
)

func (e *External) header(name string, typ uint16, ttl uint32) dns.RR_Header {
	return dns.RR_Header{Name: name, Rrtype: typ, Class: dns.ClassINET, Ttl: ttl}
}

func (e *External) address(name string, a netip.Addr) dns.RR {
	if a.Is4() {
		return &dns.A{Hdr: e.header(name, dns.TypeA, e.cfg.ttl), A: a.AsSlice()}
	}
	return &dns.AAAA{Hdr: e.header(name, dns.TypeAAAA, e.cfg.ttl), AAAA: a.AsSlice()}
}

// addresses answers A, AAAA and CNAME. A host name of a load balancer is an alias, and followed; a name
// has one alias and nothing beside it (RFC 2181 section 10.1), so addresses win, then the first host.
func (e *External) addresses(ctx context.Context, q question, targets []names.OutsideTarget, out *reply) {
	var seen []netip.Addr
	host := ""
	for _, t := range targets {
		switch {
		case t.Host != "":
			if host == "" {
				host = t.Host
			}
		case !slices.Contains(seen, t.Addr):
			seen = append(seen, t.Addr)
		}
	}
	for _, a := range seen {
		if q.typ != dns.TypeCNAME && a.Is4() == (q.typ == dns.TypeA) {
			out.records = append(out.records, e.address(q.name, a))
		}
	}
	if host == "" || len(seen) > 0 {
		return
	}
	out.records = []dns.RR{&dns.CNAME{Hdr: e.header(q.name, dns.TypeCNAME, e.cluster.TTL()), Target: dns.Fqdn(host)}}
	if q.typ != dns.TypeCNAME {
		m := e.lookup(ctx, q, host, q.typ)
		out.records, out.truncated = append(out.records, m.Answer...), m.Truncated
	}
}

// lookup asks the server we run in; what cannot be resolved is left to the client. In a transfer, which
// has no client, what is behind an alias is not of the zone.
func (e *External) lookup(ctx context.Context, q question, host string, typ uint16) *dns.Msg {
	if q.state.W == nil {
		return new(dns.Msg)
	}
	m, err := e.upstream.Lookup(ctx, q.state, dns.Fqdn(host), typ)
	if err != nil || m == nil {
		log.Warningf("no answer for %s, which %s is an alias of: %v", host, q.name, err)
		return new(dns.Msg)
	}
	return m
}

// srv answers with one record per distinct target and port, and the targets' addresses.
func (e *External) srv(ctx context.Context, q question, n names.Name, targets []names.OutsideTarget, out *reply) {
	base := dnsutil.Join(n.Object, n.Namespace, q.zone)
	type portOf struct {
		target string
		port   uint16
	}
	type addrOf struct {
		target string
		addr   netip.Addr
	}
	ports, addrs := map[portOf]bool{}, map[addrOf]bool{}
	for _, t := range targets {
		if t.Port == 0 {
			continue
		}
		name := base
		switch {
		case t.Host != "":
			name = dns.Fqdn(t.Host)
		case t.IsEndpoint():
			name = t.Labels() + "." + base
		}
		if p := (portOf{name, t.Port}); !ports[p] {
			ports[p] = true
			// Like those of kubernetes: shared among all addresses and ports, before duplicates go.
			weight := uint16(max(1, 100/len(targets)))
			out.records = append(out.records, &dns.SRV{Hdr: e.header(q.name, dns.TypeSRV, e.cluster.TTL()), Weight: weight, Port: t.Port, Target: name})
		}
		if a := (addrOf{name, t.Addr}); !addrs[a] {
			addrs[a] = true
			if t.Host == "" {
				out.extra = append(out.extra, e.address(name, t.Addr))
				continue
			}
			for _, typ := range []uint16{dns.TypeA, dns.TypeAAAA} {
				out.extra = append(out.extra, e.lookup(ctx, q, t.Host, typ).Answer...)
			}
		}
	}
}
