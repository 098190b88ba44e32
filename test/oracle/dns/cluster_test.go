package dns

import (
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"net/netip"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/braidnet/braid/internal/source"
	"github.com/braidnet/braid/test/oracle/fakeapi"
)

// cluster is a generated state and the names that lead into it.
type cluster struct {
	*rand.Rand
	generation int
	local      []netip.Addr // of this machine: endpoints there make a service the name server's own
	objects    []fakeapi.Object
	names      []string     // relative to a forward zone
	addrs      []netip.Addr // whose reverse names are worth asking for
	used       map[netip.Addr]bool
}

var (
	namespaces   = []string{"default", "prod", "kube-system", "ns-1", "1st", "svc", "pod", "x--y", strings.Repeat("n", 63)}
	serviceNames = []string{"web", "api-2", "db", "1password", "10-0-0-1", "svc", "pod", "a", "dns", "ns", "tcp", "any",
		"x--y", "dns-version", strings.Repeat("s", 63)}
	portNames = []string{"", "http", "https", "dns", "dns-tcp", "p1", "1p", "x-y"}
	hostnames = []string{"db-0", "db-1", "0", "web", "10-244-0-9", strings.Repeat("h", 63)}
	protocols = []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP}
	externals = []string{"www.example.net", "WWW.Example.net.", "alias.example.net", "only4.example.net", "none.example.net",
		"back.example.net", "big.example.net", "unserved.test", "web.prod.svc.cluster.local", "db.default.svc.cluster.local.",
		"ext-0.prod.svc.cluster.local", "ext-1.prod.svc.cluster.local", "ext-2.prod.svc.cluster.local", "nothing.prod.svc.cluster.local",
		"prod.svc.cluster.local", "cluster.local", "Web.Prod.svc.Cluster.Local", "10-0-0-7.default.pod.cluster.local", "192.0.2.7", "2001:db8::7"}
)

func pick[T any](r *rand.Rand, list []T) T { return list[r.IntN(len(list))] }

func (c *cluster) chance(percent int) bool { return c.IntN(100) < percent }

// generate returns the cluster of a seed. Pods and slices of different generations have different
// names, so that each generation is new to both programs.
func generate(seed uint64, generation int, local []netip.Addr) *cluster {
	c := &cluster{Rand: rand.New(rand.NewPCG(seed, uint64(generation))), generation: generation, local: local, used: map[netip.Addr]bool{}}
	for _, taken := range []string{"fd00:10:96::80", "fd00:10:96::81", "fd00:10:96::85"} { // by handCluster
		c.used[netip.MustParseAddr(taken)] = true
	}
	for _, ns := range namespaces {
		if ns == "prod" || ns == "default" || c.chance(80) {
			c.objects = append(c.objects, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ns}})
		}
		c.names = append(c.names, ns+".svc", ns+".pod")
		for _, name := range serviceNames {
			if c.chance(45) || (ns == "prod" && name == "web") {
				c.service(ns, name)
			} else {
				c.names = append(c.names, name+"."+ns+".svc")
			}
		}
		c.pods(ns)
	}
	for i := range 4 {
		c.external("prod", fmt.Sprintf("ext-%d", i))
	}
	c.orphans()
	c.sets()
	label(c.objects)
	return c
}

// label gives objects labels that depend on nothing but their names.
func label(objects []fakeapi.Object) {
	for _, o := range objects {
		h := fnv.New32a()
		h.Write([]byte(o.GetNamespace() + "/" + o.GetName()))
		n := h.Sum32()
		labels := map[string]string{"app": []string{"web", "db", "both"}[n%3], "team": []string{"red", "blue"}[n%2]}
		if name := o.GetNamespace() + o.GetName(); strings.Contains(name, "sync-") || o.GetName() == "hand" {
			labels["app"], labels["team"] = "web", "red"
		}
		if n%7 == 0 && !strings.Contains(o.GetNamespace(), "sync-") {
			delete(labels, "app")
		}
		for k, v := range o.GetLabels() {
			labels[k] = v
		}
		o.SetLabels(labels)
	}
}

// sets adds services of a cluster set, with slices of three clusters.
func (c *cluster) sets() {
	for _, ns := range []string{"prod", "default"} {
		for i, name := range []string{"far", "web", "both", "empty"} {
			o := &source.ServiceImport{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}, Spec: source.ServiceImportSpec{Type: "Headless"}}
			if c.chance(50) {
				o.Spec.Type, o.Spec.IPs = "ClusterSetIP", []string{c.addr4(98, byte(i)).String()}
			}
			ports := c.ports()
			if len(ports) == 0 { // CoreDNS knows no addresses of an import without ports
				ports = []port{{"http", corev1.ProtocolTCP, 80}}
			}
			for _, p := range ports {
				o.Spec.Ports = append(o.Spec.Ports, source.ServiceImportPort{Name: p.name, Protocol: p.protocol, Port: int32(p.number)})
			}
			c.objects = append(c.objects, o)
			base := name + "." + ns + ".svc"
			c.names = append(c.names, base, base, "_tcp."+base, "east."+base, "nowhere."+base)
			for _, p := range ports {
				c.names = append(c.names, "_"+p.name+"._"+strings.ToLower(string(p.protocol))+"."+base, p.name+"."+strings.ToLower(string(p.protocol))+"."+base)
			}
			for _, cluster := range []string{"east", "west"} {
				if name != "empty" && c.chance(70) {
					c.importSlice(ns, name, cluster, ports)
				}
			}
		}
	}
}

func (c *cluster) importSlice(ns, name, cluster string, ports []port) {
	s := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: fmt.Sprintf("set-%s-g%d-%s", name, c.generation, cluster),
		Labels: map[string]string{"multicluster.kubernetes.io/service-name": name, "multicluster.kubernetes.io/source-cluster": cluster}}, AddressType: discoveryv1.AddressTypeIPv4}
	if name == "both" { // of the cluster and of the set
		s.Labels[discoveryv1.LabelServiceName] = "web"
	}
	for _, p := range ports {
		number := int32(p.number)
		s.Ports = append(s.Ports, discoveryv1.EndpointPort{Name: &p.name, Protocol: &p.protocol, Port: &number})
	}
	for range 1 + c.IntN(3) {
		a := c.addr4(245, 1) // nobody asks for their reverse names: stock CoreDNS does not answer at all
		e := discoveryv1.Endpoint{Addresses: []string{a.String()}}
		if c.chance(40) {
			e.Hostname = &hostnames[c.IntN(2)]
		}
		if c.chance(15) {
			e.Conditions.Ready = new(bool)
		}
		s.Endpoints = append(s.Endpoints, e)
		for _, label := range []string{dashed(a), hostnames[0]} {
			c.names = append(c.names, label+"."+cluster+"."+name+"."+ns+".svc", label+"."+name+"."+ns+".svc")
		}
	}
	c.objects = append(c.objects, s)
}

func (c *cluster) addr4(a, b byte) netip.Addr {
	for {
		ip := netip.AddrFrom4([4]byte{10, a, b, byte(1 + c.IntN(250))})
		if !c.used[ip] {
			c.used[ip] = true
			return ip
		}
		b++
	}
}

func (c *cluster) addr6(group uint16) netip.Addr {
	for {
		ip := netip.AddrFrom16([16]byte{0xfd, 0, 0, 0x10, byte(group >> 8), byte(group)})
		raw := ip.As16()
		for i := 6; i < 16; i++ {
			if c.chance(25) {
				raw[i] = byte(c.IntN(256))
			}
		}
		ip = netip.AddrFrom16(raw)
		if !c.used[ip] && ip.IsValid() {
			c.used[ip] = true
			return ip
		}
	}
}

func (c *cluster) service(ns, name string) {
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}}
	kind := c.IntN(10)
	if kind == 0 {
		c.external(ns, name)
		return
	}
	s.Spec.Type = []corev1.ServiceType{corev1.ServiceTypeClusterIP, corev1.ServiceTypeNodePort, corev1.ServiceTypeLoadBalancer}[c.IntN(3)]
	v4, v6 := c.addr4(96, byte(c.IntN(8))), c.addr6(0x96)
	switch {
	case kind < 4:
		s.Spec.Type, s.Spec.ClusterIPs = corev1.ServiceTypeClusterIP, []string{corev1.ClusterIPNone}
	case kind < 7:
		s.Spec.ClusterIPs = []string{v4.String()}
	case kind == 7:
		s.Spec.ClusterIPs = []string{v6.String()}
	case kind == 8:
		s.Spec.ClusterIPs = []string{v4.String(), v6.String()}
	default:
		s.Spec.ClusterIPs = []string{v6.String(), v4.String()}
	}
	c.addrs = append(c.addrs, v4, v6)
	c.outside(s)
	ports := c.ports()
	for _, p := range ports {
		s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{Name: p.name, Protocol: p.protocol, Port: int32(p.number)})
	}
	c.objects = append(c.objects, s)
	c.serviceNames(ns, name, ports)
	for i := range c.IntN(4) {
		c.slice(ns, name, i, ports)
	}
}

// outside gives some services external addresses.
func (c *cluster) outside(s *corev1.Service) {
	external := func() string {
		a := netip.AddrFrom4([4]byte{192, 0, 2, byte(1 + c.IntN(250))})
		c.addrs = append(c.addrs, a)
		return a.String()
	}
	if c.chance(15) {
		s.Spec.ExternalIPs = []string{external()}
	}
	if s.Spec.Type != corev1.ServiceTypeLoadBalancer {
		return
	}
	switch c.IntN(4) {
	case 0:
		s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: external()}, {IP: c.addr6(0x77).String()}}
	case 1:
		s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{Hostname: pick(c.Rand, []string{"www.example.net", "only4.example.net", "none.example.net"})}}
	case 2:
		s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: external()}, {IP: external()}}
	}
}

type port struct {
	name     string
	protocol corev1.Protocol
	number   int
}

// ports returns up to four ports; only one alone may have no name.
func (c *cluster) ports() (out []port) {
	n := c.IntN(5)
	for i := range n {
		p := port{pick(c.Rand, portNames), pick(c.Rand, protocols), 1 + c.IntN(65535)}
		if n > 1 && p.name == "" {
			p.name = fmt.Sprintf("q%d", i)
		}
		out = append(out, p)
	}
	return out
}

func (c *cluster) serviceNames(ns, name string, ports []port) {
	base := name + "." + ns + ".svc"
	c.names = append(c.names, base, base, base, "x."+base, "_tcp."+base, "_udp."+base, "tcp."+base, "_."+base, "*."+base, "any."+base,
		"_http._tcp."+base, "http.tcp."+base, "_._tcp."+base, "_http._."+base, "_._."+base, "a.b.c."+base, "_http._tcp.x."+base, "a.pin._zone."+base,
		"east.pin._zone."+base, "west.prefer._zone."+base, "a.b.pin._zone."+base, "north.prefer._zone."+base, "_zone."+base, "pin._zone."+base, "east.near._zone."+base, "x.east."+base)
	for _, p := range ports {
		proto := strings.ToLower(string(p.protocol))
		c.names = append(c.names, "_"+p.name+"._"+proto+"."+base, p.name+"."+proto+"."+base, "_"+proto+"."+base, "_"+p.name+"._sctp."+base)
	}
}

func (c *cluster) external(ns, name string) {
	target := pick(c.Rand, externals)
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name},
		Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: target}}
	if c.chance(20) {
		s.Spec.Ports = []corev1.ServicePort{{Name: "http", Port: 80}}
	}
	c.objects = append(c.objects, s)
	base := name + "." + ns + ".svc"
	c.names = append(c.names, base, base, base, base, "x."+base, "_http._tcp."+base)
}

func (c *cluster) slice(ns, service string, i int, ports []port) {
	s := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: fmt.Sprintf("%.40s-g%d-%d", service, c.generation, i),
		Labels: map[string]string{discoveryv1.LabelServiceName: service}}}
	s.AddressType = discoveryv1.AddressTypeIPv4
	if c.chance(40) {
		s.AddressType = discoveryv1.AddressTypeIPv6
	}
	for _, p := range ports {
		number := int32(p.number)
		ep := discoveryv1.EndpointPort{Name: &p.name, Protocol: &p.protocol, Port: &number}
		if c.chance(4) {
			ep.Port = nil
		}
		s.Ports = append(s.Ports, ep)
	}
	n := c.IntN(5)
	if c.chance(3) {
		n = 60 // more than a UDP answer holds
	}
	for range n {
		s.Endpoints = append(s.Endpoints, c.endpoint(ns, service, s.AddressType))
	}
	c.objects = append(c.objects, s)
}

func (c *cluster) endpoint(ns, service string, family discoveryv1.AddressType) discoveryv1.Endpoint {
	var e discoveryv1.Endpoint
	base := service + "." + ns + ".svc"
	for range 1 + c.IntN(8)/7 {
		var a netip.Addr
		switch {
		case family == discoveryv1.AddressTypeIPv6:
			a = c.addr6(uint16(0x240 + c.IntN(3)))
		case len(c.local) > 0 && c.chance(2):
			a = pick(c.Rand, c.local)
		case len(c.addrs) > 0 && c.chance(10): // hostNetwork pods share addresses; some are even cluster IPs
			if a = pick(c.Rand, c.addrs); !a.Is4() {
				a = c.addr4(244, 7)
			}
		default:
			a = c.addr4(244, byte(c.IntN(4)))
		}
		e.Addresses = append(e.Addresses, a.String())
		c.addrs = append(c.addrs, a)
		c.names = append(c.names, dashed(a)+"."+base, dashed(a)+"."+ns+".pod")
	}
	if c.chance(30) {
		h := pick(c.Rand, hostnames)
		e.Hostname = &h
		c.names = append(c.names, h+"."+base, "_tcp."+h+"."+base)
	}
	if c.chance(60) {
		pod := pick(c.Rand, []string{"web-7d4b9-x2x", "db-0", "a.dotted.pod", strings.Repeat("p", 63), strings.Repeat("p", 64), "0"})
		e.TargetRef = &corev1.ObjectReference{Kind: "Pod", Namespace: ns, Name: pod}
		if len(pod) < 64 {
			c.names = append(c.names, pod+"."+base)
		}
	}
	if zone := pick(c.Rand, []string{"", "east", "west", "a.b"}); zone != "" {
		e.Zone = &zone
	}
	switch c.IntN(10) {
	case 0:
		e.Conditions.Ready = new(bool)
	case 1:
		serving := true
		e.Conditions = discoveryv1.EndpointConditions{Ready: new(bool), Serving: &serving, Terminating: &serving}
	case 2, 3, 4:
		ready := true
		e.Conditions.Ready = &ready
	}
	return e
}

func (c *cluster) pods(ns string) {
	for i := range c.IntN(6) {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: fmt.Sprintf("pod-g%d-%d", c.generation, i)}}
		p.Status.Phase = pick(c.Rand, []corev1.PodPhase{corev1.PodRunning, corev1.PodRunning, corev1.PodRunning, corev1.PodPending, corev1.PodSucceeded, corev1.PodFailed, corev1.PodUnknown})
		ips := []netip.Addr{c.addr4(244, 9), c.addr6(0x999)}
		if c.chance(20) {
			ips[0], ips[1] = ips[1], ips[0]
		}
		for _, ip := range ips[:c.IntN(3)] {
			p.Status.PodIPs = append(p.Status.PodIPs, corev1.PodIP{IP: ip.String()})
		}
		c.objects = append(c.objects, p)
		for _, ip := range ips {
			c.addrs = append(c.addrs, ip)
			c.names = append(c.names, dashed(ip)+"."+ns+".pod", dashed(ip)+".default.pod", "x."+dashed(ip)+"."+ns+".pod")
		}
	}
}

// orphans adds what should not be there, and is at times.
func (c *cluster) orphans() {
	c.slice("prod", "gone", 0, []port{{"http", corev1.ProtocolTCP, 80}})
	c.slice("ghost", "web", 0, []port{{"http", corev1.ProtocolTCP, 80}})
	c.service("ghost", "web") // its namespace does not exist
	c.names = append(c.names, "gone.prod.svc", "ghost.svc", "ghost.pod", "10-0-0-1.ghost.pod")
}

// dashed writes an address as a label.
func dashed(a netip.Addr) string {
	s := strings.NewReplacer(".", "-", ":", "-").Replace(a.String())
	if strings.HasSuffix(s, "-") {
		s += "0"
	}
	return s
}
