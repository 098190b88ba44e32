package service

import (
	"net/netip"
	"slices"

	"github.com/braidnet/braid/internal/model"
)

// labelProxyName hands a Service to another proxy; whatever its value, Braid leaves it alone.
const labelProxyName = "service.kubernetes.io/service-proxy-name"

// plan is what one Service asks of this node.
type plan struct {
	frontends []*Frontend
	notes     []Note
}

// compute decides everything about one Service. It depends on nothing but its arguments.
func compute(j job, node, zone string) plan {
	if j.svc == nil || !proxied(j.svc) {
		return plan{}
	}
	slices.SortFunc(j.slices, func(a, b *model.EndpointSlice) int { return compareNames(a.Key, b.Key) })
	b := builder{svc: j.svc, seen: map[slot]struct{}{}}
	blocked := b.notes()
	for _, ipv6 := range []bool{false, true} {
		vips := ofFamily(j.svc.ClusterIPs, ipv6)
		if len(vips) == 0 {
			continue // the service does not have the family
		}
		for i := range j.svc.Ports {
			port := &j.svc.Ports[i]
			p := gather(j.slices, ipv6, port, node)
			b.port(port, vips, &p, node, zone, blocked)
		}
	}
	return b.plan
}

// proxied reports whether a Service has virtual addresses at all and they are ours to serve.
func proxied(s *model.Service) bool {
	_, other := s.Labels[labelProxyName]
	return !other && !s.Headless && s.Type != model.ExternalName && len(s.ClusterIPs) > 0
}

// builder collects the plan of one Service.
type builder struct {
	plan
	svc  *model.Service
	seen map[slot]struct{} // an address that appears twice in one Service (ingress = cluster IP) counts once
}

// port adds the frontends of one port in one family.
func (b *builder) port(port *model.ServicePort, vips []netip.Addr, p *pool, node, zone string, noLB bool) {
	everywhere := p.cluster(node, zone)
	internal := everywhere
	if b.svc.InternalLocal {
		internal = p.local("internalTrafficPolicy")
	}
	for _, a := range vips {
		b.add(ClusterIP, a, port, port.Port, MasqueradeForeign, internal)
	}
	if port.NodePort != 0 && external(b.svc) {
		b.add(NodePort, unspecified(vips[0]), port, port.NodePort, MasqueradeAll, everywhere)
	}
	if b.svc.Type != model.LoadBalancer || noLB {
		return
	}
	for _, in := range b.svc.Ingress {
		if in.Addr.IsValid() && !in.Proxy && in.Addr.Is4() == vips[0].Is4() {
			b.add(LoadBalancerIP, in.Addr, port, port.Port, MasqueradeAll, everywhere)
		}
	}
}

func (b *builder) add(k Kind, a netip.Addr, port *model.ServicePort, number uint16, m Masquerade, c choice) {
	f := &Frontend{
		Key:        Key{Kind: k, Protocol: port.Protocol, Addr: a, Port: number},
		Origin:     b.svc.Origin,
		PortName:   port.Name,
		Backends:   c.backends,
		Masquerade: m,
		Empty:      c.empty,
		Why:        c.why,
	}
	s := slotOf(f.Key)
	if _, dup := b.seen[s]; dup {
		return
	}
	b.seen[s] = struct{}{}
	b.frontends = append(b.frontends, f)
}

// external reports whether a Service is of a type that the outside may reach.
func external(s *model.Service) bool {
	return s.Type == model.NodePort || s.Type == model.LoadBalancer
}

func ofFamily(addrs []netip.Addr, ipv6 bool) []netip.Addr {
	return slices.DeleteFunc(slices.Clone(addrs), func(a netip.Addr) bool { return !a.IsValid() || a.Is4() == ipv6 })
}

func unspecified(like netip.Addr) netip.Addr {
	if like.Is4() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}
