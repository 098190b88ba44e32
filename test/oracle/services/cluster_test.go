package services

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"

	v1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/braidnet/braid/internal/kernel/netns/nstest/wire"
)

const (
	thisNode  = "node-1"
	otherNode = "node-2"
)

// cluster is a state of the API server. Objects are never changed: the next state has others in their place.
type cluster struct {
	zone     string // of the node
	services []*v1.Service
	slices   []*discoveryv1.EndpointSlice
	restart  bool // ours starts anew instead of applying the change
}

func podCIDR(ipv4 bool) netip.Prefix {
	if ipv4 {
		return wire.Pods
	}
	return wire.Pods6
}

func clusterCIDR(ipv4 bool) netip.Prefix {
	if ipv4 {
		return netip.MustParsePrefix("10.244.0.0/16")
	}
	return netip.MustParsePrefix("fd00:10:244::/48")
}

func serviceCIDR(ipv4 bool) netip.Prefix {
	if ipv4 {
		return netip.MustParsePrefix("10.96.0.0/16")
	}
	return netip.MustParsePrefix("fd00:10:96::/112")
}

func nodeObject(zone string) *v1.Node {
	n := &v1.Node{ObjectMeta: metav1.ObjectMeta{Name: thisNode, Labels: map[string]string{}}}
	if zone != "" {
		n.Labels[v1.LabelTopologyZone] = zone
	}
	for _, is4 := range []bool{true, false} {
		n.Spec.PodCIDRs = append(n.Spec.PodCIDRs, podCIDR(is4).String())
		n.Status.Addresses = append(n.Status.Addresses, v1.NodeAddress{Type: v1.NodeInternalIP, Address: wire.Own(is4)[0].String()})
	}
	n.Spec.PodCIDR = n.Spec.PodCIDRs[0]
	return n
}

// otherNodeObject has the pods that are not masqueraded on their way out.
func otherNodeObject() *v1.Node {
	n := &v1.Node{ObjectMeta: metav1.ObjectMeta{Name: otherNode}}
	n.Spec.PodCIDRs = []string{"10.244.2.0/24", "fd00:10:244:2::/64"}
	n.Spec.PodCIDR = n.Spec.PodCIDRs[0]
	return n
}

// addr makes an address of a family from the ends of two prefixes.
func addr(ipv4 bool, prefix4, prefix6 string, host int) string {
	if ipv4 {
		return prefix4 + fmt.Sprint(host)
	}
	return prefix6 + fmt.Sprint(host)
}

// world makes clusters at random, as the API server would admit and complete them.
type world struct {
	*rand.Rand
	taken map[string]bool // addresses with ports, and node ports, of the cluster being made
}

func pick[T any](w *world, list ...T) T { return list[w.IntN(len(list))] }

func (w *world) chance(percent int) bool { return w.IntN(100) < percent }

// names are what services are called. The same name in two namespaces is two services.
var names = []metav1.ObjectMeta{
	{Namespace: "red", Name: "web"}, {Namespace: "blue", Name: "web"}, {Namespace: "red", Name: "dns"},
	{Namespace: "blue", Name: "db"}, {Namespace: "red", Name: "api"}, {Namespace: "blue", Name: "api"},
}

// next makes the state that follows another.
func (w *world) next(c *cluster) *cluster {
	n := &cluster{zone: c.zone, restart: w.chance(5)}
	if w.chance(5) {
		n.zone = pick(w, "", "zone-a", "zone-b")
	}
	w.taken = map[string]bool{}
	kept := map[string]*v1.Service{}
	for _, s := range c.services { // what stays keeps its addresses
		if !w.chance(60) {
			continue
		}
		if t := w.altered(s); w.chance(30) && w.claim(t) {
			s = t
		} else if !w.claim(s) {
			continue // another took what it had
		}
		kept[key(s)] = s
	}
	target := 1 + w.IntN(5)
	for _, i := range w.Perm(len(names)) {
		name := names[i].Namespace + "/" + names[i].Name
		s, known := kept[name]
		if !known && len(n.services) >= target {
			continue
		}
		if !known {
			s = w.service(names[i])
		}
		n.services = append(n.services, s)
		if known && w.chance(40) {
			n.slices = append(n.slices, slicesOf(c, s)...)
		} else {
			n.slices = append(n.slices, w.slices(s)...)
		}
	}
	return n
}

// slicesOf returns the slices that were made for a service.
func slicesOf(c *cluster, s *v1.Service) (out []*discoveryv1.EndpointSlice) {
	for _, e := range c.slices {
		if e.Namespace == s.Namespace && e.Annotations["of"] == s.Name {
			out = append(out, e)
		}
	}
	return out
}

// frontend is an address and port that a service asks for.
type frontend struct {
	kind     string
	addr     string // empty: all of the node's, in the family
	ipv4     bool
	port     *v1.ServicePort
	protocol uint8
	number   uint16
}

func (f frontend) claim() string { return fmt.Sprint(f.addr, f.ipv4, f.protocol, f.number) }

var protocols = map[v1.Protocol]uint8{v1.ProtocolTCP: wire.TCP, v1.ProtocolUDP: wire.UDP, v1.ProtocolSCTP: wire.SCTP}

// frontends lists what a service asks for, whether it gets it or not.
func frontends(s *v1.Service) (out []frontend) {
	if s.Spec.Type == v1.ServiceTypeExternalName || s.Spec.ClusterIP == v1.ClusterIPNone {
		return nil
	}
	for i := range s.Spec.Ports {
		p := &s.Spec.Ports[i]
		add := func(kind, a string, ipv4 bool, number int32) {
			out = append(out, frontend{kind, a, ipv4, p, protocols[p.Protocol], uint16(number)})
		}
		for _, a := range s.Spec.ClusterIPs {
			ipv4 := netip.MustParseAddr(a).Is4()
			add("cluster IP", a, ipv4, p.Port)
			if p.NodePort != 0 {
				add("node port", "", ipv4, p.NodePort)
			}
		}
		for _, in := range s.Status.LoadBalancer.Ingress {
			if in.IP != "" {
				add("load balancer", in.IP, netip.MustParseAddr(in.IP).Is4(), p.Port)
			}
		}
		for _, a := range s.Spec.ExternalIPs {
			add("external IP", a, netip.MustParseAddr(a).Is4(), p.Port)
		}
	}
	return out
}

// claim takes what a service asks for, unless some of it is taken by another.
func (w *world) claim(s *v1.Service) bool {
	list, own := frontends(s), map[string]bool{}
	for _, f := range list {
		if w.taken[f.claim()] || own[f.claim()] {
			return false
		}
		own[f.claim()] = true
	}
	for _, f := range list {
		w.taken[f.claim()] = true
	}
	for _, a := range s.Spec.ClusterIPs {
		w.taken[a] = true
	}
	return true
}

// service makes one that asks for nothing that is taken: what then happens nobody promises.
func (w *world) service(meta metav1.ObjectMeta) *v1.Service {
	for {
		if s := w.tryService(meta); w.claim(s) {
			return s
		}
	}
}

func (w *world) tryService(meta metav1.ObjectMeta) *v1.Service {
	s := &v1.Service{ObjectMeta: meta}
	s.Spec.Type = pick(w, v1.ServiceTypeClusterIP, v1.ServiceTypeClusterIP, v1.ServiceTypeNodePort, v1.ServiceTypeLoadBalancer, v1.ServiceTypeLoadBalancer)
	switch {
	case w.chance(4):
		s.Spec.Type, s.Spec.ExternalName = v1.ServiceTypeExternalName, "example.org"
		s.Spec.Ports = w.ports(s)
		return s
	case w.chance(4):
		s.Spec.Type, s.Spec.ClusterIP, s.Spec.ClusterIPs = v1.ServiceTypeClusterIP, v1.ClusterIPNone, []string{v1.ClusterIPNone}
		s.Spec.Ports = w.ports(s)
		return s
	}
	if w.chance(5) {
		s.Labels = map[string]string{"service.kubernetes.io/service-proxy-name": pick(w, "other", "")}
	}
	families := pick(w, []bool{true}, []bool{false}, []bool{true, false}, []bool{false, true})
	for _, ipv4 := range families {
		a := ""
		for a == "" || w.taken[a] {
			a = addr(ipv4, "10.96.0.", "fd00:10:96::", 1+w.IntN(20))
		}
		s.Spec.ClusterIPs = append(s.Spec.ClusterIPs, a)
		s.Spec.IPFamilies = append(s.Spec.IPFamilies, map[bool]v1.IPFamily{true: v1.IPv4Protocol, false: v1.IPv6Protocol}[ipv4])
	}
	s.Spec.ClusterIP = s.Spec.ClusterIPs[0]
	s.Spec.Ports = w.ports(s)
	if w.chance(30) {
		for range 1 + w.IntN(2) {
			s.Spec.ExternalIPs = append(s.Spec.ExternalIPs, w.outer(pick(w, families...), 20))
		}
		slices.Sort(s.Spec.ExternalIPs)
		s.Spec.ExternalIPs = slices.Compact(s.Spec.ExternalIPs)
	}
	if s.Spec.Type == v1.ServiceTypeLoadBalancer {
		w.loadBalancer(s, families)
	}
	w.policies(s)
	return s
}

// altered is a service after an edit that keeps its cluster IPs.
func (w *world) altered(s *v1.Service) *v1.Service {
	s = s.DeepCopy()
	if len(s.Spec.IPFamilies) == 0 {
		return s
	}
	families := []bool{}
	for _, f := range s.Spec.IPFamilies {
		families = append(families, f == v1.IPv4Protocol)
	}
	switch w.IntN(5) {
	case 0:
		w.policies(s)
	case 1:
		if s.Labels != nil {
			s.Labels = nil
		} else {
			s.Labels = map[string]string{"service.kubernetes.io/service-proxy-name": "other"}
		}
	case 2:
		s.Spec.ExternalIPs = nil
		if s.Spec.Type == v1.ServiceTypeClusterIP {
			s.Spec.ExternalTrafficPolicy = ""
		}
	case 3:
		if s.Spec.Type == v1.ServiceTypeLoadBalancer {
			s.Spec.LoadBalancerSourceRanges, s.Status.LoadBalancer.Ingress = nil, nil
			w.loadBalancer(s, families)
		}
	case 4: // the kinds of ports are kept, their numbers are not
		for i := range s.Spec.Ports {
			if p := &s.Spec.Ports[i]; p.NodePort != 0 {
				p.NodePort = int32(30000 + w.IntN(10))
			}
		}
	}
	return s
}

// outer makes an address for the outside, now and then the node's own.
func (w *world) outer(ipv4 bool, host int) string {
	if w.chance(10) {
		return wire.Own(ipv4)[0].String()
	}
	return addr(ipv4, "203.0.113.", "2001:db8:113::", host+w.IntN(4))
}

func (w *world) ports(s *v1.Service) (out []v1.ServicePort) {
	for i := range 1 + w.IntN(3) {
		p := v1.ServicePort{Name: fmt.Sprint("p", i), Port: pick[int32](w, 80, 443, 53), Protocol: pick(w, v1.ProtocolTCP, v1.ProtocolTCP, v1.ProtocolUDP, v1.ProtocolSCTP)}
		if slices.ContainsFunc(out, func(o v1.ServicePort) bool { return o.Port == p.Port && o.Protocol == p.Protocol }) {
			continue
		}
		external := s.Spec.Type == v1.ServiceTypeNodePort || s.Spec.Type == v1.ServiceTypeLoadBalancer
		if external {
			p.NodePort = int32(30000 + w.IntN(10))
		}
		if slices.ContainsFunc(out, func(o v1.ServicePort) bool {
			return external && o.NodePort == p.NodePort && o.Protocol == p.Protocol
		}) {
			continue
		}
		out = append(out, p)
	}
	if len(out) == 1 && w.chance(50) {
		out[0].Name = ""
	}
	return out
}

func (w *world) loadBalancer(s *v1.Service, families []bool) {
	if w.chance(30) {
		no := false
		s.Spec.AllocateLoadBalancerNodePorts = &no
		for i := range s.Spec.Ports {
			s.Spec.Ports[i].NodePort = 0
		}
	}
	for range w.IntN(3) {
		in := v1.LoadBalancerIngress{IP: w.outer(pick(w, families...), 10)}
		mode := pick(w, v1.LoadBalancerIPModeVIP, v1.LoadBalancerIPModeVIP, v1.LoadBalancerIPModeProxy)
		in.IPMode = &mode
		if w.chance(5) {
			in = v1.LoadBalancerIngress{Hostname: "lb.example.org"}
		}
		if !slices.ContainsFunc(s.Status.LoadBalancer.Ingress, func(o v1.LoadBalancerIngress) bool { return o.IP == in.IP }) && !slices.Contains(s.Spec.ExternalIPs, in.IP) {
			s.Status.LoadBalancer.Ingress = append(s.Status.LoadBalancer.Ingress, in)
		}
	}
	if w.chance(40) {
		all := []string{"10.9.0.0/16", "10.244.0.0/16", "192.0.2.0/24", "192.0.2.1/32", "198.18.0.0/16", "203.0.113.0/24", " 10.9.0.0/17 ", "0.0.0.0/0",
			"fd09::/64", "fd00:10:244::/48", "2001:db8::/64", "2001:db8::1/128", "2001:db8:51::/49", "2001:db8:113::/64", "::/0"}
		for range 1 + w.IntN(3) {
			s.Spec.LoadBalancerSourceRanges = append(s.Spec.LoadBalancerSourceRanges, pick(w, all...))
		}
	}
}

// policies sets what decides which endpoints are used.
func (w *world) policies(s *v1.Service) {
	s.Spec.SessionAffinity = v1.ServiceAffinityNone
	if w.chance(25) {
		s.Spec.SessionAffinity = v1.ServiceAffinityClientIP
		seconds := pick[int32](w, 60, 10800, 86400)
		s.Spec.SessionAffinityConfig = &v1.SessionAffinityConfig{ClientIP: &v1.ClientIPConfig{TimeoutSeconds: &seconds}}
	}
	policy := pick(w, v1.ServiceInternalTrafficPolicyCluster, v1.ServiceInternalTrafficPolicyCluster, v1.ServiceInternalTrafficPolicyLocal)
	s.Spec.InternalTrafficPolicy = &policy
	if s.Spec.Type != v1.ServiceTypeClusterIP || len(s.Spec.ExternalIPs) > 0 {
		s.Spec.ExternalTrafficPolicy = pick(w, v1.ServiceExternalTrafficPolicyCluster, v1.ServiceExternalTrafficPolicyLocal)
	}
	if w.chance(30) {
		d := pick(w, v1.ServiceTrafficDistributionPreferClose, v1.ServiceTrafficDistributionPreferSameZone, v1.ServiceTrafficDistributionPreferSameNode)
		s.Spec.TrafficDistribution = &d
	}
	s.Spec.PublishNotReadyAddresses = w.chance(20)
}
