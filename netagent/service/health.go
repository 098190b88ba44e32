package service

import (
	"net/netip"

	"github.com/braidnet/braid/internal/model"
)

// HealthCheck is what a load balancer outside of the cluster wants to know about a Service on this
// node: where to ask, and how many endpoints it would reach here.
type HealthCheck struct {
	Port  uint16         // spec.healthCheckNodePort
	Local map[Family]int // ready endpoints on this node by distinct address, for each family the Service has
}

// Family is an address family under the name that the API has for it.
type Family string

// Address families.
const (
	IPv4 Family = "IPv4"
	IPv6 Family = "IPv6"
)

// FamilyOf is the family of an address.
func FamilyOf(a netip.Addr) Family {
	if a.Is4() {
		return IPv4
	}
	return IPv6
}

// HealthCheck returns the health check that a Service asks for, and whether it asks for one: it has to
// be of type LoadBalancer with externalTrafficPolicy Local. It reads what Apply was last told, so what
// it says may be ahead of the last Flush.
func (p *Planner) HealthCheck(svc model.Key) (HealthCheck, bool) {
	p.in.mu.Lock()
	defer p.in.mu.Unlock()
	s := p.in.services[svc]
	port := healthPort(s)
	if port == 0 {
		return HealthCheck{}, false
	}
	h := HealthCheck{Port: port, Local: map[Family]int{}}
	for _, a := range s.ClusterIPs {
		h.Local[FamilyOf(a)] = 0
	}
	seen := map[netip.Addr]struct{}{}
	for _, slice := range p.in.slices[svc] {
		for i := range slice.Endpoints {
			e := &slice.Endpoints[i]
			if !e.Ready || e.Node != p.in.at.Node || len(e.Addrs) == 0 || len(slice.Ports) == 0 {
				continue
			}
			seen[e.Addrs[0]] = struct{}{}
		}
	}
	for a := range seen {
		if _, has := h.Local[FamilyOf(a)]; has {
			h.Local[FamilyOf(a)]++
		}
	}
	return h, true
}

// healthPort is the health check node port of a Service, 0 where it asks for none; nil has none.
func healthPort(s *model.Service) uint16 {
	if s == nil || !proxied(s) || s.Type != model.LoadBalancer || !s.ExternalLocal {
		return 0
	}
	return s.HealthCheckNodePort
}

// NoLocal counts the ports of a Service, as of the last Flush, that a traffic policy Local closes on
// this node although the Service has endpoints elsewhere.
type NoLocal struct {
	Internal, External map[Family]int // by the policy that closes them
}

// NoLocal returns the counts of one Service; none where it is not known.
func (p *Planner) NoLocal(svc model.Key) NoLocal {
	p.out.mu.Lock()
	defer p.out.mu.Unlock()
	n := NoLocal{Internal: map[Family]int{}, External: map[Family]int{}}
	type counted struct {
		portInFamily
		internal bool
	}
	seen := map[counted]struct{}{}
	for _, f := range p.out.plans[svc].frontends {
		at := counted{portOf(f), f.Kind == ClusterIP}
		if _, dup := seen[at]; dup || len(f.Backends) > 0 || f.Empty != Drop {
			continue
		}
		seen[at] = struct{}{}
		if at.internal {
			n.Internal[at.family]++
		} else {
			n.External[at.family]++
		}
	}
	return n
}

// Connectionless lists the frontends of a Service, as of the last Flush, whose protocol makes flows that
// go on for as long as a client sends, wherever they were once sent to: UDP and SCTP. Of the kinds it
// tells NodePort and ClusterIP apart, which stands for every other one: as far as packets can.
func (p *Planner) Connectionless(svc model.Key) (keys []Key) {
	p.out.mu.Lock()
	defer p.out.mu.Unlock()
	for _, f := range p.out.plans[svc].frontends {
		k := f.Key
		if k.Kind != NodePort {
			k.Kind = ClusterIP
		}
		if k.Protocol != model.TCP {
			keys = append(keys, k)
		}
	}
	return keys
}

// Serving returns the endpoints that may keep the flows they have through a UDP or SCTP frontend, sorted,
// and whether there is such a frontend, both as of the last Flush. Like kube-proxy it asks neither for
// traffic policies nor for hints: they decide where a flow goes when it begins. An endpoint that
// terminates keeps its flows while it serves.
func (p *Planner) Serving(k Key) (keep []netip.AddrPort, exists bool) {
	p.out.mu.Lock()
	defer p.out.mu.Unlock()
	f := p.out.told[slotOf(k)]
	if f == nil {
		return nil, false
	}
	return p.out.plans[f.Origin.Key].serving[portOf(f)], true
}

// portInFamily is one port of a Service in one family.
type portInFamily struct {
	name     string
	protocol model.Protocol
	family   Family
}

func portOf(f *Frontend) portInFamily { return portInFamily{f.PortName, f.Protocol, FamilyOf(f.Addr)} }

// serve notes who may keep flows of a port.
func (b *builder) serve(port *model.ServicePort, f Family, p *pool) {
	if port.Protocol == model.TCP {
		return
	}
	if b.serving == nil {
		b.serving = map[portInFamily][]netip.AddrPort{}
	}
	at := portInFamily{port.Name, port.Protocol, f}
	for i := range p.endpoints {
		if e := &p.endpoints[i]; e.ready || e.serving {
			b.serving[at] = append(b.serving[at], e.addr)
		}
	}
}

// Net returns what is known of pod addresses as of the last Flush.
func (p *Planner) Net() Net {
	p.out.mu.Lock()
	defer p.out.mu.Unlock()
	return p.out.net
}
