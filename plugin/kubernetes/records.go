package kubernetes

import (
	"net/netip"

	"github.com/coredns/coredns/plugin/pkg/dnsutil"
	"github.com/miekg/dns"

	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/internal/names"
)

func header(name string, typ uint16, ttl uint32) dns.RR_Header {
	return dns.RR_Header{Name: name, Rrtype: typ, Class: dns.ClassINET, Ttl: ttl}
}

// address returns the A or AAAA record of an address.
func address(name string, a netip.Addr, ttl uint32) dns.RR {
	if a.Is4() {
		return &dns.A{Hdr: header(name, dns.TypeA, ttl), A: a.AsSlice()}
	}
	return &dns.AAAA{Hdr: header(name, dns.TypeAAAA, ttl), AAAA: a.AsSlice()}
}

// addresses returns records for the distinct addresses of the family that was asked for; none for
// other types.
func (k *Kubernetes) addresses(q question, addrs []netip.Addr) (out []dns.RR) {
	if !isAddress(q.typ) {
		return nil
	}
	seen := make(map[netip.Addr]struct{}, len(addrs))
	for _, a := range addrs {
		if a.Is4() != (q.typ == dns.TypeA) {
			continue
		}
		if _, dup := seen[a]; !dup {
			seen[a] = struct{}{}
			out = append(out, address(q.name, a, k.cfg.ttl))
		}
	}
	return out
}

// srv returns one record per distinct target and port, and the targets' addresses. Targets of a
// headless service are its endpoints' names, of others the service's own.
func (k *Kubernetes) srv(q question, n names.Name, targets []names.Target) (records, extra []dns.RR) {
	type portOf struct {
		target string
		port   uint16
	}
	type addrOf struct {
		target string
		addr   netip.Addr
	}
	base := serviceName(model.Key{Namespace: n.Namespace, Name: n.Object}, q.zone)
	ports, addrs := map[portOf]struct{}{}, map[addrOf]struct{}{}
	for _, t := range targets {
		if t.Port == 0 {
			continue
		}
		name := base
		if t.IsEndpoint() {
			name = t.Labels() + "." + base
		}
		if _, dup := ports[portOf{name, t.Port}]; !dup {
			ports[portOf{name, t.Port}] = struct{}{}
			records = append(records, &dns.SRV{Hdr: header(q.name, dns.TypeSRV, k.cfg.ttl), Weight: weight(len(targets)), Port: t.Port, Target: name})
		}
		if _, dup := addrs[addrOf{name, t.Addr}]; !dup {
			addrs[addrOf{name, t.Addr}] = struct{}{}
			extra = append(extra, address(name, t.Addr, k.cfg.ttl))
		}
	}
	return records, extra
}

// weight shares 100 among all addresses and ports, of both families, before duplicates go: that is
// how CoreDNS has always counted, so a dual-stack service with one port gets 50.
func weight(n int) uint16 { return uint16(max(1, 100/n)) }

// soa returns the zone's SOA. Its own TTL bounds negative caching together with MINIMUM (RFC 2308).
func (k *Kubernetes) soa(zone string) dns.RR {
	return &dns.SOA{
		Hdr:     header(zone, dns.TypeSOA, min(k.cfg.ttl, 300)),
		Ns:      dnsutil.Join("ns.dns", zone),
		Mbox:    dnsutil.Join("hostmaster", zone),
		Serial:  k.index().Serial(k.class(zone)),
		Refresh: 7200,
		Retry:   1800,
		Expire:  86400,
		Minttl:  k.cfg.ttl,
	}
}

func (k *Kubernetes) cname(owner, target string) *dns.CNAME {
	return &dns.CNAME{Hdr: header(owner, dns.TypeCNAME, k.cfg.ttl), Target: dns.Fqdn(target)}
}
