package service

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/braidnet/braid/internal/model"
)

// labelProxyName hands a Service to another proxy; whatever its value, Braid leaves it alone.
const labelProxyName = "service.kubernetes.io/service-proxy-name"

// labelHeadless marks headless services, and by their controller's hand their slices.
const labelHeadless = "service.kubernetes.io/headless"

func hasLabel(l map[string]string, name string) bool {
	_, ok := l[name]
	return ok
}

// plan is what one Service asks of this node.
type plan struct {
	frontends []*Frontend
	notes     []Note
	serving   map[portInFamily][]netip.AddrPort // of UDP and SCTP ports, see Planner.Serving
}

// place is what a plan depends on besides the Service and its slices.
type place struct {
	Config
	zone  string         // topology.kubernetes.io/zone of this node
	addrs []netip.Addr   // its InternalIPs
	pods  []netip.Prefix // its pod CIDRs
}

// mayHold reports whether an address can be one of the node's pods: where it has no range of the family, any can.
func (p *place) mayHold(a netip.Addr) bool {
	any := true
	for _, r := range p.pods {
		if r.Contains(a) {
			return true
		}
		any = any && r.Addr().Is4() != a.Is4()
	}
	return any
}

// compute decides everything about one Service. It depends on nothing but its arguments.
func compute(j job, at place) plan {
	if j.svc == nil || !proxied(j.svc) {
		return plan{}
	}
	slices.SortFunc(j.slices, func(a, b *model.EndpointSlice) int { return compareNames(a.Key, b.Key) })
	b := builder{place: at, svc: j.svc, seen: map[slot]struct{}{}}
	for _, ipv6 := range []bool{false, true} {
		vips := ofFamily(j.svc.ClusterIPs, ipv6)
		if len(vips) == 0 {
			continue // the service does not have the family
		}
		for i := range j.svc.Ports {
			port := &j.svc.Ports[i]
			p := gather(j.slices, ipv6, port, &at)
			b.port(port, vips, &p)
			b.serve(port, FamilyOf(vips[0]), &p)
		}
	}
	return b.plan
}

// proxied reports whether a Service has virtual addresses at all and they are ours to serve.
func proxied(s *model.Service) bool {
	return !hasLabel(s.Labels, labelProxyName) && !s.Headless && s.Type != model.ExternalName && len(s.ClusterIPs) > 0
}

// builder collects the plan of one Service.
type builder struct {
	plan
	place
	svc  *model.Service
	seen map[slot]struct{} // an address that appears twice in one Service (ingress = cluster IP) counts once
}

// port adds the frontends of one port in one family.
func (b *builder) port(port *model.ServicePort, vips []netip.Addr, p *pool) {
	everywhere := p.cluster(b.Node, b.zone)
	internal := Frontend{Masquerade: MasqueradeForeign}
	if b.MasqueradeAll {
		internal.Masquerade = MasqueradeAll
	}
	everywhere.fill(&internal)
	if b.svc.InternalLocal {
		p.local("internalTrafficPolicy").fill(&internal)
	}
	for _, a := range vips {
		b.add(ClusterIP, a, port, port.Port, internal)
	}

	outside := Frontend{Masquerade: MasqueradeAll}
	everywhere.fill(&outside)
	if b.svc.ExternalLocal {
		outside.Masquerade, outside.Inside = MasqueradeNone, everywhere.backends
		p.local("externalTrafficPolicy").fill(&outside)
	}
	ipv4 := vips[0].Is4()
	if port.NodePort != 0 && external(b.svc) {
		b.add(NodePort, unspecified(ipv4), port, port.NodePort, outside)
	}
	// Load balancers before external IPs: an address that is both keeps the filter of the first.
	for _, in := range b.svc.Ingress {
		if b.svc.Type == model.LoadBalancer && in.Addr.IsValid() && !in.Proxy && in.Addr.Is4() == ipv4 {
			f := outside
			f.Filtered, f.Sources = b.sources(in.Addr)
			b.add(LoadBalancerIP, in.Addr, port, port.Port, f)
		}
	}
	for _, a := range b.svc.ExternalIPs {
		if a.Is4() == ipv4 && b.allowed(a) {
			b.add(ExternalIP, a, port, port.Port, outside)
		}
	}
}

// fill makes the choice what a frontend's connections get.
func (c choice) fill(f *Frontend) { f.Backends, f.Empty, f.Why = c.backends, c.empty, c.why }

// add completes a frontend and adds it, unless the Service has one at its address and port already.
func (b *builder) add(k Kind, a netip.Addr, port *model.ServicePort, number uint16, f Frontend) {
	f.Key = Key{Kind: k, Protocol: port.Protocol, Addr: a, Port: number}
	f.Origin, f.PortName, f.Affinity = b.svc.Origin, port.Name, b.svc.Affinity
	s := slotOf(f.Key)
	if _, dup := b.seen[s]; dup {
		return
	}
	b.seen[s] = struct{}{}
	b.frontends = append(b.frontends, &f)
}

// allowed reports whether an external IP may be programmed, and notes it if not. Whoever may write a
// Service could take over any address with one, so it needs the administrator's word (CVE-2020-8554).
func (b *builder) allowed(a netip.Addr) bool {
	if slices.ContainsFunc(b.ExternalIPs, func(p netip.Prefix) bool { return p.Contains(a) }) {
		return true
	}
	n := Note{b.svc.Origin, "spec.externalIPs", fmt.Sprintf("%s is not programmed: the agent's setting external-ips does not allow it (CVE-2020-8554)", a)}
	if !slices.Contains(b.notes, n) { // a Service has a frontend for each port
		b.notes = append(b.notes, n)
	}
	return false
}

// sources returns who may use a load balancer's address. Each family goes by its own ranges, where one
// of length 0 admits everybody. Of a list that has none of the family, one of length 0 means everybody too,
// as 0.0.0.0/0 alone is often written; any other such list admits nobody: one that names who may come must not
// open a door that it does not mention.
func (b *builder) sources(vip netip.Addr) (filtered bool, list []netip.Prefix) {
	everybody := func(r netip.Prefix) bool { return r.Bits() == 0 }
	var own []netip.Prefix
	for _, r := range b.svc.SourceRanges {
		if r.Addr().Is4() == vip.Is4() {
			own = append(own, r)
		}
	}
	if len(own) == 0 {
		all := b.svc.SourceRanges
		return len(all) > 0 && !slices.ContainsFunc(all, everybody), nil
	}
	if slices.ContainsFunc(own, everybody) {
		return false, nil
	}
	for _, r := range own {
		// Where the node holds the load balancer's address itself, its own connections have that source.
		if slices.ContainsFunc(b.addrs, r.Contains) {
			return true, merge(append(own, netip.PrefixFrom(vip, vip.BitLen())))
		}
	}
	return true, merge(own)
}

// merge sorts prefixes and leaves out those that lie in others.
func merge(list []netip.Prefix) (out []netip.Prefix) {
	slices.SortFunc(list, comparePrefixes)
	for _, p := range list {
		if n := len(out); n == 0 || !out[n-1].Contains(p.Addr()) {
			out = append(out, p)
		}
	}
	return out
}

// external reports whether a Service is of a type that the outside may reach.
func external(s *model.Service) bool {
	return s.Type == model.NodePort || s.Type == model.LoadBalancer
}

func ofFamily(addrs []netip.Addr, ipv6 bool) []netip.Addr {
	return slices.DeleteFunc(slices.Clone(addrs), func(a netip.Addr) bool { return !a.IsValid() || a.Is4() == ipv6 })
}

func unspecified(ipv4 bool) netip.Addr {
	if ipv4 {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}
