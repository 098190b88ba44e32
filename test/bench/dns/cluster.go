package main

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/braidnet/braid/test/bench/bulkapi"
)

const namespace = "prod"

// cluster is what the servers know: services with endpoints, a headless one with a hundred, an alias.
func cluster(o *options) []bulkapi.Object {
	out := []bulkapi.Object{&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "default"}}}
	for i := range o.services {
		name := fmt.Sprintf("service-%d", i)
		s := newService(name)
		s.Labels = map[string]string{"app": name, "team": "red", "app.kubernetes.io/managed-by": "Helm", "app.kubernetes.io/part-of": "shop"}
		s.Spec.ClusterIP = clusterIP(i)
		s.Spec.ClusterIPs = []string{s.Spec.ClusterIP}
		s.Spec.Ports = []corev1.ServicePort{{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP}, {Name: "https", Port: 443, Protocol: corev1.ProtocolTCP}}
		out = append(out, s)
		if o.endpoints > 0 {
			out = append(out, newSlice(name, i*o.endpoints, o.endpoints))
		}
	}
	many := newService("many")
	many.Spec.ClusterIP, many.Spec.ClusterIPs = corev1.ClusterIPNone, []string{corev1.ClusterIPNone}
	alias := newService("alias")
	alias.Spec.Type, alias.Spec.ExternalName = corev1.ServiceTypeExternalName, "host-1.example.test"
	return append(out, many, newSlice("many", 5<<20, 100), alias)
}

func clusterIP(i int) string { return fmt.Sprintf("10.96.%d.%d", i/250, 1+i%250) }

func newService(name string) *corev1.Service {
	return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}, Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeClusterIP}}
}

func newSlice(service string, first, n int) *discoveryv1.EndpointSlice {
	tcp, yes := corev1.ProtocolTCP, true
	names, numbers := []string{"http", "https"}, []int32{8080, 8443}
	s := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: service + "-abcde", Labels: map[string]string{discoveryv1.LabelServiceName: service}},
		AddressType: discoveryv1.AddressTypeIPv4}
	for i := range names {
		s.Ports = append(s.Ports, discoveryv1.EndpointPort{Name: &names[i], Port: &numbers[i], Protocol: &tcp})
	}
	for k := range n {
		at := first + k
		node, zone := fmt.Sprintf("node-%d", at%500), fmt.Sprintf("zone-%d", at%3)
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{
			Addresses:  []string{fmt.Sprintf("10.%d.%d.%d", 128+at>>16, at>>8&255, at&255)},
			Conditions: discoveryv1.EndpointConditions{Ready: &yes}, NodeName: &node, Zone: &zone,
			TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: namespace, Name: fmt.Sprintf("%s-7d4b9c6f58-%05d", service, k)},
		})
	}
	return s
}

// workload is one sort of question.
type workload struct {
	name    string
	edns    bool
	outside bool // not a name of the cluster
	nice    int  // who asks: less than 0 goes first on their processor
	lines   []string
}

func cases(o *options) []workload {
	n := min(o.services, 5000)
	each := func(count int, format ...string) (out []string) {
		for i := range count {
			for _, f := range format {
				out = append(out, strings.ReplaceAll(f, "#", fmt.Sprint(i)))
			}
		}
		return out
	}
	var ptr []string
	for i := range n {
		ptr = append(ptr, fmt.Sprintf("%d.%d.96.10.in-addr.arpa PTR", 1+i%250, i/250))
	}
	const svc = ".prod.svc.cluster.local"
	return []workload{
		{name: "mix: A, AAAA, search path", lines: each(n, "service-#"+svc+" A", "service-#"+svc+" AAAA", "service-#"+svc+".default.svc.cluster.local A")},
		{name: "service, A", lines: each(n, "service-#"+svc+" A")},
		{name: "service, AAAA (no such records)", lines: each(n, "service-#"+svc+" AAAA")},
		{name: "search path, NXDOMAIN", lines: each(n, "www-#.example.com"+svc+" A", "www-#.example.com.svc.cluster.local A", "www-#.example.com.cluster.local A")},
		{name: "headless, 100 addresses", edns: true, lines: []string{"many" + svc + " A"}},
		{name: "SRV", lines: each(n, "_http._tcp.service-#"+svc+" SRV")},
		{name: "PTR", lines: ptr},
		{name: "ExternalName", lines: []string{"alias" + svc + " A"}},
		{name: "forwarded, in the cache", outside: true, lines: each(100, "host-#.example.test A")},
		{name: "forwarded, not in the cache", outside: true, lines: each(400000, "fresh-#.example.test A")},
	}
}
