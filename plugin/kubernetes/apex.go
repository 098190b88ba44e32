package kubernetes

import (
	"net"
	"net/netip"

	"github.com/coredns/coredns/plugin/pkg/dnsutil"
	"github.com/miekg/dns"

	"github.com/braidnet/braid/internal/names"
)

// apex answers for names that only hold others: the zone itself has SOA and NS, the rest nothing.
func (k *Kubernetes) apex(q question) reply {
	out := reply{exists: true, fixed: true}
	if q.relative() != "" {
		return out
	}
	switch q.typ {
	case dns.TypeSOA:
		out.records = []dns.RR{k.soa(q.zone)}
	case dns.TypeNS:
		seen := map[string]bool{}
		for _, s := range k.nameServers(q.zone) {
			if !seen[s.name] {
				seen[s.name] = true
				out.records = append(out.records, &dns.NS{Hdr: header(q.name, dns.TypeNS, k.cfg.ttl), Ns: s.name})
			}
			out.extra = append(out.extra, address(s.name, s.addr, k.cfg.ttl))
		}
	}
	return out
}

// server is one name and address this name server is reached by.
type server struct {
	name string
	addr netip.Addr
}

// nameServers returns the names of all services that have this server among their endpoints; when
// there is none, "ns.dns" of the zone at the addresses the server is bound to.
func (k *Kubernetes) nameServers(zone string) (out []server) {
	seen := map[server]bool{}
	add := func(name string, a netip.Addr) {
		if s := (server{name, a}); !seen[s] {
			seen[s] = true
			out = append(out, s)
		}
	}
	local := k.live.Load().local
	for _, own := range k.ownServices(local) {
		svc := k.index().Service(own.Service)
		if svc == nil {
			continue
		}
		name := serviceName(own.Service, zone)
		for _, a := range svc.ClusterIPs {
			add(name, a)
		}
		if svc.Headless {
			// Like CoreDNS, not all of a large service: those that share a slice with us.
			for _, e := range own.Peers {
				add(e.Label(k.cfg.view.PodNames)+"."+name, e.Addr)
			}
		}
	}
	if len(out) == 0 {
		for _, a := range local {
			add(dnsutil.Join("ns.dns", zone), a)
		}
	}
	return out
}

func (k *Kubernetes) ownServices(local []netip.Addr) (out []names.Owner) {
	if k.cfg.view.NoEndpoints {
		return nil
	}
	for _, a := range local {
		out = append(out, k.index().Owners(a)...)
	}
	return out
}

func (k *Kubernetes) nameServerAddrs() []netip.Addr {
	var out []netip.Addr
	for _, s := range k.nameServers(k.cfg.primary) {
		out = append(out, s.addr)
	}
	return out
}

// boundAddrs returns the addresses a server listens on, from the hosts it was told to bind (with or
// without a prefix length) or, when it listens everywhere, those of the machine. Loopback addresses
// mean nothing to a client elsewhere and are left out.
func boundAddrs(hosts []string) (out []netip.Addr) {
	if len(hosts) == 0 || hosts[0] == "" {
		hosts = nil
		// An error leaves the list empty; NS then has no glue, nothing else depends on it.
		machine, _ := net.InterfaceAddrs()
		for _, a := range machine {
			hosts = append(hosts, a.String())
		}
	}
	for _, h := range hosts {
		a, err := netip.ParseAddr(h)
		if p, perr := netip.ParsePrefix(h); perr == nil {
			a, err = p.Addr(), nil
		}
		if err == nil && !a.IsLoopback() {
			out = append(out, a.Unmap().WithZone(""))
		}
	}
	return out
}
