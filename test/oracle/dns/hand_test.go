package dns

import (
	"net/netip"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/braidnet/braid/internal/source"
	"github.com/braidnet/braid/test/oracle/fakeapi"
)

// handNames are the forms of names there are, one by one, relative to a zone; they lead into handCluster.
var handNames = []string{
	// What a zone holds by itself.
	"", "svc", "pod", "dns", "ns.dns", "x.dns", "ns.ns.dns", "dns-version", "x.dns-version", "nothing", "nothing.at.all", "apex.dns", "hostmaster",
	// Namespaces.
	"hand.svc", "hand.pod", "none.svc", "none.pod", "hidden.svc", "hidden.pod", "*.svc", "any.svc",
	// Services with cluster IPs: one port, two, none, both families, unnamed port.
	"web.hand.svc", "x.web.hand.svc", "multi.hand.svc", "noport.hand.svc", "dual.hand.svc", "six.hand.svc", "unnamed.hand.svc", "none.hand.svc", "web.none.svc", "web.hidden.svc",
	"*.hand.svc", "web.*.svc",
	// Ports: with and without underscores, wild, of another protocol, of a service without ports.
	"_http._tcp.web.hand.svc", "http.tcp.web.hand.svc", "_http._udp.web.hand.svc", "_none._tcp.web.hand.svc", "_._tcp.web.hand.svc", "_http._.web.hand.svc",
	"_._.web.hand.svc", "_HTTP._TCP.web.hand.svc", "_https._tcp.multi.hand.svc", "_dns._udp.multi.hand.svc", "_dns._tcp.multi.hand.svc", "_http._tcp.dual.hand.svc",
	"_tcp.web.hand.svc", "_udp.web.hand.svc", "_http.web.hand.svc", "_http._tcp.noport.hand.svc", "_tcp.noport.hand.svc", "_tcp.multi.hand.svc", "_udp.multi.hand.svc",
	"_x._http._tcp.web.hand.svc", "_tcp.hand.svc", "__http.__tcp.web.hand.svc", "_http._tcp.hand.svc",
	// Endpoints of services with cluster IPs, which CoreDNS has always served.
	"10-244-80-1.web.hand.svc", "10-244-80-2.web.hand.svc", "10-244-80-9.web.hand.svc", "web-x.web.hand.svc", "fd00-10-244--80.dual.hand.svc",
	// Headless: hostnames, addresses, pods' names, several addresses for one name, not ready, none ready, none at all.
	"db.hand.svc", "db-0.db.hand.svc", "db-1.db.hand.svc", "DB-0.db.hand.svc", "db-2.db.hand.svc", "db-pod-2.db.hand.svc", "10-244-81-3.db.hand.svc",
	"10-244-81-4.db.hand.svc", "_sql._tcp.db.hand.svc", "_sql._udp.db.hand.svc", "_tcp.db.hand.svc", "_sql._tcp.db-0.db.hand.svc", "fd00-10-244-81--0.db.hand.svc",
	"fd00-10-244-81--.db.hand.svc", "down.hand.svc", "bare.hand.svc", "_tcp.down.hand.svc", "portless.hand.svc", "_x._tcp.portless.hand.svc",
	"10-244-82-1.portless.hand.svc", "anyport.hand.svc", "_any._tcp.anyport.hand.svc", "large.hand.svc", "_l._tcp.large.hand.svc", "nopod.hand.svc", "empty.hand.svc",
	"fqdn.hand.svc", "www-example-net.fqdn.hand.svc", "10-244-83-3.hand.pod",
	// Zone-scoped names, of headless services and of others.
	"east.pin._zone.placed.hand.svc", "west.pin._zone.placed.hand.svc", "north.pin._zone.placed.hand.svc", "north.prefer._zone.placed.hand.svc", "a.b.pin._zone.placed.hand.svc",
	"EAST.Pin._Zone.placed.hand.svc", "_zone.placed.hand.svc", "pin._zone.placed.hand.svc", "prefer._zone.placed.hand.svc", "east.near._zone.placed.hand.svc", "east.pin._zone.web.hand.svc",
	"east.pin._zone.out.hand.svc", "east.pin._zone.none.hand.svc", "east.pin._zone.down.hand.svc", "_x._tcp.east.pin._zone.placed.hand.svc", "east.pin._zone.placed.hand.pod",
	// Cluster sets: by address, headless, endpoints by cluster, clusters alone, imports without endpoints.
	"far.hand.svc", "_http._tcp.far.hand.svc", "http._tcp.far.hand.svc", "http.tcp.far.hand.svc", "far-0.east.far.hand.svc", "far-0.west.far.hand.svc", "far-0.far.hand.svc", "east.far.hand.svc",
	"nowhere.far.hand.svc", "10-245-0-2.east.far.hand.svc", "set.hand.svc", "_http._tcp.set.hand.svc", "10-245-0-3.east.set.hand.svc", "lonely.hand.svc", "idle.hand.svc", "FAR-0.East.far.hand.svc",
	// Names of external addresses; in other zones they are what they look like.
	"lb.hand.svc", "_http._tcp.lb.hand.svc", "_none._tcp.lb.hand.svc", "x.lb.hand.svc", "lb-host.hand.svc", "lb-host2.hand.svc", "lb-both.hand.svc", "lb-none.hand.svc", "ext-headless.hand.svc",
	"ns1.dns.svc", "ns2.dns.svc", "a.ns1.dns.svc", "dns.svc", "_http._tcp.lb-host.hand.svc",
	// ExternalName.
	"out.hand.svc", "alias.hand.svc", "out-none.hand.svc", "out-refused.hand.svc", "out-v4.hand.svc", "out-v6.hand.svc", "in.hand.svc", "in-twice.hand.svc", "in-upper.hand.svc",
	"in-headless.hand.svc", "in-none.hand.svc", "in-apex.hand.svc", "in-ns.hand.svc", "in-pod.hand.svc", "self.hand.svc", "loop-a.hand.svc", "loop-b.hand.svc", "back.hand.svc", "only4.hand.svc",
	"big.hand.svc", "x.out.hand.svc", "_http._tcp.out.hand.svc", "chain-0.hand.svc", "chain-1.hand.svc", "chain-2.hand.svc", "chain-11.hand.svc", "chain-12.hand.svc",
	// Pods.
	"10-244-83-1.hand.pod", "10-244-83-2.hand.pod", "10-244-83-9.hand.pod", "10-244-83-1.none.pod", "10-244-83-1.hidden.pod", "fd00-10-244-83--1.hand.pod",
	"fd00-10-244-83--2.hand.pod", "FD00-10-244-83--1.hand.pod", "10-244-83.hand.pod", "10-244-83-256.hand.pod", "010-244-83-1.hand.pod", "1-2-3-4-5.hand.pod", "--1.hand.pod",
	"fd00-10-244-83-0-0-0-1.hand.pod", "--ffff-10-244-83-1.hand.pod", "x.10-244-83-1.hand.pod", "a.b.10-244-83-1.hand.pod", "abc.hand.pod", "10-244-83-1.hand.svc", "-.hand.pod", "---.hand.pod",
	// Labels that mean something elsewhere.
	"svc.svc", "pod.svc", "svc.pod", "svc.hand.svc", "pod.hand.svc", "web.hand.pod", "web.hand", "hand", "web.hand.svc.svc", "a.b.c.d.e.web.hand.svc",
	"\\000.hand.svc", "we\\b.hand.svc", "web\\.hand.svc", "web.hand\\.svc", "a\\032b.hand.svc", "\\195\\169.hand.svc", "\\095http._tcp.web.hand.svc",
}

// handReverse are full names that need no zone.
var handReverse = []string{
	"1.80.96.10.in-addr.arpa.", "1.80.244.10.in-addr.arpa.", "1.81.244.10.in-addr.arpa.", "3.81.244.10.in-addr.arpa.", "9.80.244.10.in-addr.arpa.", "1.83.244.10.in-addr.arpa.",
	"5.80.244.10.in-addr.arpa.", "80.96.10.in-addr.arpa.", "in-addr.arpa.", "10.in-addr.arpa.", "ip6.arpa.", "256.80.244.10.in-addr.arpa.", "01.80.96.10.in-addr.arpa.", "x.1.80.96.10.in-addr.arpa.",
	"1.84.96.10.in-addr.arpa.", "1.85.96.10.in-addr.arpa.", "4.3.2.1.0.0.0.0.ip6.arpa.", "x.ip6.arpa.", "svc.in-addr.arpa.", "81.2.0.192.in-addr.arpa.", "82.2.0.192.in-addr.arpa.", "84.2.0.192.in-addr.arpa.", "87.2.0.192.in-addr.arpa.", "2.0.192.in-addr.arpa.", "x.2.0.192.in-addr.arpa.", "1.86.244.10.in-addr.arpa.", "hand.svc.in-addr.arpa.", "web.hand.svc.ip6.arpa.", "dns-version.in-addr.arpa.",
	"ns.dns.in-addr.arpa.", "10-244-83-1.hand.pod.in-addr.arpa.", "WWW.example.net.", "example.net.", "none.example.net.", "unserved.test.", "local.", ".",
	reverseOf("fd00:10:96::80"), reverseOf("fd00:10:244::80"), reverseOf("fd00:10:244:81::"), reverseOf("fd00:10:244:83::1"), reverseOf("2001:db8::1"), reverseOf("::ffff:10.96.80.1"), reverseOf("::"),
	strings.ToUpper(reverseOf("fd00:10:96::80")),
}

func reverseOf(a string) string { return reverseName(netip.MustParseAddr(a)) }

// handCluster is the state that handNames ask about. It is part of every generation.
func handCluster() []fakeapi.Object {
	list := []fakeapi.Object{
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "hand"}},
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "hidden"}},
		service("hand/web", "10.96.80.1", "http/TCP/80"),
		slice("hand/web-1", "web", "http/TCP/8080", "10.244.80.1", "10.244.80.2!", "10.244.80.5=/web-x"),
		service("hand/multi", "10.96.80.2", "http/TCP/80 https/TCP/443 dns/UDP/53"),
		service("hand/noport", "10.96.80.3", ""),
		service("hand/dual", "10.96.80.4 fd00:10:96::80", "http/TCP/80"),
		slice("hand/dual-6", "dual", "http/TCP/8080", "fd00:10:244::80"),
		service("hand/six", "fd00:10:96::81", "http/TCP/80"),
		service("hand/unnamed", "10.96.80.5", "/TCP/80"),
		service("hand/empty", "10.96.80.6", "http/TCP/80"),
		slice("hand/empty-1", "empty", "http/TCP/80", "10.244.80.7!"),
		service("hidden/web", "10.96.84.1", "http/TCP/80"),
		service("hand/db", "None", "sql/TCP/5432"),
		slice("hand/db-4", "db", "sql/TCP/5432", "10.244.81.1=db-0/db-pod-0", "10.244.81.2=db-1/db-pod-1", "10.244.81.3=/db-pod-2", "10.244.81.4!"),
		slice("hand/db-4b", "db", "sql/TCP/5433", "10.244.81.5=db-0", "10.244.81.1=db-0/db-pod-0"),
		slice("hand/db-6", "db", "sql/TCP/5432", "fd00:10:244:81::1=db-0", "fd00:10:244:81::"),
		service("hand/down", "None", "x/TCP/1"), slice("hand/down-4", "down", "x/TCP/1", "10.244.81.9!"),
		service("hand/bare", "None", "x/TCP/1"),
		service("hand/portless", "None", ""), slice("hand/portless-4", "portless", "", "10.244.82.1", "10.244.82.2=p"),
		service("hand/anyport", "None", "any/TCP/1"), slice("hand/anyport-4", "anyport", "any/TCP/0", "10.244.82.3"),
		service("hand/large", "None", "l/TCP/1"), slice("hand/large-4", "large", "l/TCP/1", many(120)...),
		service("hand/nopod", "None", "x/TCP/1"), slice("hand/nopod-4", "nopod", "x/TCP/1", "10.244.82.9=/"+strings.Repeat("p", 64), "10.244.82.10=/a.b"),
		pod("hand/one", corev1.PodRunning, "10.244.83.1", "fd00:10:244:83::1"), pod("hand/done", corev1.PodSucceeded, "10.244.83.2", "fd00:10:244:83::2"),
	}
	placed := slice("hand/placed-1", "placed", "x/TCP/1", "10.244.86.1", "10.244.86.2", "10.244.86.3", "10.244.86.4")
	for i, zone := range []string{"east", "west", "a.b"} {
		placed.Endpoints[i].Zone = &zone
	}
	list = append(list, service("hand/placed", "None", "x/TCP/1"), placed)
	list = append(list, handSets()...)
	list = append(list, handOutside()...)
	fqdn := slice("hand/fqdn-1", "fqdn", "x/TCP/1", "www.example.net")
	fqdn.AddressType = discoveryv1.AddressTypeFQDN
	leaving := pod("hand/leaving", corev1.PodRunning, "10.244.83.3")
	leaving.DeletionTimestamp = &metav1.Time{Time: time.Unix(1, 0)}
	list = append(list, service("hand/fqdn", "None", "x/TCP/1"), fqdn, leaving)
	for name, target := range map[string]string{"out": "www.example.net", "alias": "alias.example.net.", "out-none": "none.example.net", "out-refused": "unserved.test",
		"out-v4": "192.0.2.1", "out-v6": "2001:db8::1", "in": "web.hand.svc.cluster.local", "in-twice": "in.hand.svc.cluster.local", "in-upper": "WEB.Hand.svc.Cluster.local",
		"in-headless": "db.hand.svc.cluster.local", "in-none": "none.hand.svc.cluster.local", "in-apex": "cluster.local", "in-ns": "hand.svc.cluster.local", "in-pod": "10-244-83-1.hand.pod.cluster.local",
		"self": "self.hand.svc.cluster.local", "loop-a": "loop-b.hand.svc.cluster.local", "loop-b": "loop-a.hand.svc.cluster.local", "back": "back.example.net", "only4": "only4.example.net",
		"big": "big.example.net", "chain-0": "web.hand.svc.cluster.local"} {
		list = append(list, externalName("hand/"+name, target))
	}
	for i := range 12 {
		list = append(list, externalName("hand/chain-"+itoa(i+1), "chain-"+itoa(i)+".hand.svc.cluster.local"))
	}
	return list
}

// handSets are services of a cluster set.
func handSets() []fakeapi.Object {
	imported := func(name, ip string) *source.ServiceImport {
		s := &source.ServiceImport{ObjectMeta: meta("hand/" + name), Spec: source.ServiceImportSpec{Type: "Headless", Ports: []source.ServiceImportPort{{Name: "http", Protocol: corev1.ProtocolTCP, Port: 80}}}}
		if ip != "" {
			s.Spec.Type, s.Spec.IPs = "ClusterSetIP", []string{ip}
		}
		return s
	}
	of := func(s *discoveryv1.EndpointSlice, name, cluster string) *discoveryv1.EndpointSlice {
		s.Labels = map[string]string{"multicluster.kubernetes.io/service-name": name, "multicluster.kubernetes.io/source-cluster": cluster}
		return s
	}
	return []fakeapi.Object{
		imported("far", ""), imported("set", "10.98.0.1"), imported("lonely", "10.98.0.2"), imported("idle", ""),
		of(slice("hand/far-e", "", "http/TCP/80", "10.245.0.1=far-0", "10.245.0.2"), "far", "east"),
		of(slice("hand/far-w", "", "http/TCP/80", "10.245.1.1=far-0", "10.245.1.2!"), "far", "west"),
		of(slice("hand/set-e", "", "http/TCP/80", "10.245.0.3"), "set", "east"),
	}
}

// handOutside are services that are reached from outside.
func handOutside() []fakeapi.Object {
	outside := func(name string, external []string, ingress ...corev1.LoadBalancerIngress) *corev1.Service {
		s := service("hand/"+name, "10.96.87."+itoa(10+len(name)), "http/TCP/80 https/TCP/443")
		s.Spec.Type, s.Spec.ExternalIPs, s.Status.LoadBalancer.Ingress = corev1.ServiceTypeLoadBalancer, external, ingress
		return s
	}
	headless := service("hand/ext-headless", "None", "http/TCP/80")
	headless.Spec.ExternalIPs = []string{"192.0.2.87"}
	return []fakeapi.Object{
		outside("lb", []string{"192.0.2.81"}, corev1.LoadBalancerIngress{IP: "192.0.2.82"}, corev1.LoadBalancerIngress{IP: "2001:db8::82"}),
		outside("lb-host", nil, corev1.LoadBalancerIngress{Hostname: "www.example.net"}),
		outside("lb-host2", nil, corev1.LoadBalancerIngress{Hostname: "www.example.net"}, corev1.LoadBalancerIngress{Hostname: "only4.example.net"}),
		outside("lb-both", []string{"192.0.2.83"}, corev1.LoadBalancerIngress{Hostname: "www.example.net"}),
		outside("lb-none", nil), headless, slice("hand/ext-headless-1", "ext-headless", "http/TCP/80", "10.244.87.1"),
	}
}

func many(n int) (out []string) {
	for i := range n {
		out = append(out, "10.244.90."+itoa(i+1))
	}
	return out
}

func meta(key string) metav1.ObjectMeta {
	ns, name, _ := strings.Cut(key, "/")
	return metav1.ObjectMeta{Namespace: ns, Name: name}
}

func service(key, ips, ports string) *corev1.Service {
	s := &corev1.Service{ObjectMeta: meta(key), Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeClusterIP, ClusterIPs: strings.Fields(ips)}}
	for _, p := range parsePorts(ports) {
		s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{Name: p.name, Protocol: p.protocol, Port: int32(p.number)})
	}
	return s
}

func externalName(key, target string) *corev1.Service {
	return &corev1.Service{ObjectMeta: meta(key), Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: target}}
}

// parsePorts reads "name/PROTOCOL/number ..."; number 0 stands for none.
func parsePorts(text string) (out []port) {
	for _, f := range strings.Fields(text) {
		p := strings.Split(f, "/")
		out = append(out, port{p[0], corev1.Protocol(p[1]), atoi(p[2])})
	}
	return out
}

// slice makes an EndpointSlice of endpoints "address[=hostname[/pod]][!]"; "!" is one that is not ready.
func slice(key, svc, ports string, endpoints ...string) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{ObjectMeta: meta(key), AddressType: discoveryv1.AddressTypeIPv4}
	if svc != "" {
		s.Labels = map[string]string{discoveryv1.LabelServiceName: svc}
	}
	for _, p := range parsePorts(ports) {
		ep := discoveryv1.EndpointPort{Name: &p.name, Protocol: &p.protocol}
		if number := int32(p.number); number > 0 {
			ep.Port = &number
		}
		s.Ports = append(s.Ports, ep)
	}
	for _, text := range endpoints {
		text, down := strings.CutSuffix(text, "!")
		addr, rest, _ := strings.Cut(text, "=")
		hostname, target, _ := strings.Cut(rest, "/")
		ready := !down
		e := discoveryv1.Endpoint{Addresses: []string{addr}, Conditions: discoveryv1.EndpointConditions{Ready: &ready}}
		if hostname != "" {
			e.Hostname = &hostname
		}
		if target != "" {
			e.TargetRef = &corev1.ObjectReference{Kind: "Pod", Namespace: s.Namespace, Name: target}
		}
		if strings.Contains(addr, ":") {
			s.AddressType = discoveryv1.AddressTypeIPv6
		}
		s.Endpoints = append(s.Endpoints, e)
	}
	return s
}

func pod(key string, phase corev1.PodPhase, ips ...string) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: meta(key), Status: corev1.PodStatus{Phase: phase}}
	for _, ip := range ips {
		p.Status.PodIPs = append(p.Status.PodIPs, corev1.PodIP{IP: ip})
	}
	return p
}
