package services

import (
	"cmp"
	"fmt"
	"strings"

	v1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/braidnet/braid/internal/kernel/netns/nstest/wire"
)

// hints says which hints the endpoints of a service have.
type hints struct{ zones, nodes bool }

// slices makes the EndpointSlices of a service: also none, several with ports of their own, and some
// that look like its own and are not.
func (w *world) slices(s *v1.Service) (out []*discoveryv1.EndpointSlice) {
	h := hints{w.chance(35), w.chance(25)}
	listed := map[string]bool{}
	for i := range w.IntN(4) {
		ipv4 := w.chance(50)
		if n := len(s.Spec.IPFamilies); n > 0 && w.chance(90) {
			ipv4 = pick(w, s.Spec.IPFamilies...) == v1.IPv4Protocol
		}
		e := &discoveryv1.EndpointSlice{AddressType: discoveryv1.AddressTypeIPv4}
		if !ipv4 {
			e.AddressType = discoveryv1.AddressTypeIPv6
		}
		e.Labels = map[string]string{discoveryv1.LabelServiceName: s.Name}
		switch {
		case w.chance(2):
			e.Labels = nil
		case w.chance(2):
			e.Labels[discoveryv1.LabelServiceName] = "another"
		case s.Spec.ClusterIP == v1.ClusterIPNone && w.chance(90) || w.chance(3):
			e.Labels[v1.IsHeadlessService] = ""
		}
		e.Ports = w.endpointPorts(s)
		for range w.IntN(5) {
			// Now and then an address is listed twice.
			if x := w.endpoint(ipv4, h); !listed[x.Addresses[0]] || w.chance(5) {
				listed[x.Addresses[0]] = true
				e.Endpoints = append(e.Endpoints, x)
			}
		}
		if w.chance(2) {
			e.AddressType, e.Endpoints = discoveryv1.AddressTypeFQDN, []discoveryv1.Endpoint{{Addresses: []string{"example.org"}}}
		}
		// What a slice is for, and of which type, does not change while it lives: the type cannot, and kube-proxy
		// keeps for good what it knew of a slice whose label named another service.
		e.Namespace, e.Annotations = s.Namespace, map[string]string{"of": s.Name}
		e.Name = strings.ToLower(fmt.Sprintf("%s-%d-%s-for-%s", s.Name, i, e.AddressType, cmp.Or(e.Labels[discoveryv1.LabelServiceName], "nobody")))
		out = append(out, e)
	}
	return out
}

// endpointPorts makes the ports of one slice, where a service port may have any number or none.
func (w *world) endpointPorts(s *v1.Service) (out []discoveryv1.EndpointPort) {
	for i := range s.Spec.Ports {
		p := &s.Spec.Ports[i]
		if w.chance(10) {
			continue
		}
		name, protocol, number := p.Name, p.Protocol, pick[int32](w, 8080, 8080, 9090, p.Port)
		if w.chance(4) {
			protocol = pick(w, v1.ProtocolTCP, v1.ProtocolUDP)
		}
		port := discoveryv1.EndpointPort{Name: &name, Protocol: &protocol, Port: &number}
		if w.chance(3) {
			port.Port = nil
		}
		out = append(out, port)
	}
	return out
}

func (w *world) endpoint(ipv4 bool, h hints) discoveryv1.Endpoint {
	e := discoveryv1.Endpoint{Conditions: discoveryv1.EndpointConditions{
		Ready: w.condition(75), Serving: w.condition(75), Terminating: w.condition(25)}}
	this, other := thisNode, otherNode
	switch {
	case w.chance(5): // of the host's network
		e.Addresses, e.NodeName = []string{wire.Own(ipv4)[0].String()}, &this
	case w.chance(5):
		e.Addresses, e.NodeName = []string{addr(ipv4, "192.0.2.", "2001:db8::", 9)}, &other
	case w.chance(5): // nobody's pod
		e.Addresses = []string{addr(ipv4, "198.51.100.", "2001:db8:51::", 77)}
	case w.chance(45):
		e.Addresses, e.NodeName = []string{w.podAddr(ipv4, 1)}, &this
	default:
		e.Addresses, e.NodeName = []string{w.podAddr(ipv4, 2)}, &other
	}
	switch {
	case w.chance(4):
		e.NodeName = nil
	case w.chance(3):
		e.Addresses = append(e.Addresses, w.podAddr(ipv4, 2)) // an address that nobody uses
	}
	if w.chance(88) && (h.zones || h.nodes) {
		e.Hints = &discoveryv1.EndpointHints{}
		if h.zones {
			for range 1 + w.IntN(2) {
				e.Hints.ForZones = append(e.Hints.ForZones, discoveryv1.ForZone{Name: pick(w, "zone-a", "zone-b")})
			}
		}
		if h.nodes {
			e.Hints.ForNodes = append(e.Hints.ForNodes, discoveryv1.ForNode{Name: pick(w, thisNode, otherNode)})
		}
	}
	return e
}

func (w *world) podAddr(ipv4 bool, node int) string {
	return addr(ipv4, fmt.Sprintf("10.244.%d.", node), fmt.Sprintf("fd00:10:244:%d::", node), 11+w.IntN(4))
}

// condition is nil, or true with a chance.
func (w *world) condition(percent int) *bool {
	if w.chance(25) {
		return nil
	}
	is := w.chance(percent)
	return &is
}
