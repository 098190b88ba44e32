package source

import (
	"errors"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"

	"github.com/braidnet/braid/internal/model"
)

// object decodes a manifest; the kind decides the type.
func object(t *testing.T, text string) runtime.Object {
	t.Helper()
	var head struct {
		APIVersion string `json:"apiVersion"`
		Kind       string `json:"kind"`
	}
	if err := yaml.Unmarshal([]byte(text), &head); err != nil {
		t.Fatal(err)
	}
	obj := Known(head.APIVersion, head.Kind)
	if obj == nil {
		t.Fatalf("%s %s is not known", head.APIVersion, head.Kind)
	}
	if err := yaml.UnmarshalStrict([]byte(text), obj); err != nil {
		t.Fatal(err)
	}
	return obj
}

func addrs(list ...string) []netip.Addr {
	var out []netip.Addr
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

func prefixes(list ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func origin(kind model.Kind, namespace, name string) model.Origin {
	return model.Origin{Ref: model.Ref{Kind: kind, Key: model.Key{Namespace: namespace, Name: name}}, File: "f.yaml", Line: 7}
}

const svcHead = "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\n"
const sliceHead = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: web-1, namespace: shop}\n"
const podHead = "apiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: shop}\n"
const nodeHead = "apiVersion: v1\nkind: Node\nmetadata: {name: n1}\n"

func svc(change func(*model.Service)) *model.Service {
	s := &model.Service{Origin: origin(model.KindService, "shop", "web"), Type: model.ClusterIP}
	change(s)
	return s
}

func TestConvert(t *testing.T) {
	pod := func(change func(*model.Pod)) *model.Pod {
		p := &model.Pod{Origin: origin(model.KindPod, "shop", "p"), Phase: model.PhasePending}
		change(p)
		return p
	}
	slice := func(change func(*model.EndpointSlice)) *model.EndpointSlice {
		s := &model.EndpointSlice{Origin: origin(model.KindEndpointSlice, "shop", "web-1")}
		change(s)
		return s
	}
	tests := []struct {
		name, in string
		want     model.Object
	}{
		{"namespace", "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, namespace: ignored, labels: {a: b}}",
			&model.Namespace{Origin: origin(model.KindNamespace, "", "shop"), Labels: labels.Set{"a": "b", "kubernetes.io/metadata.name": "shop"}}},
		{"node", nodeHead + "spec: {podCIDRs: [10.244.1.7/24, 'fd00:10:244:1::5/64'], podCIDR: 10.9.0.0/24}\n" +
			"status: {addresses: [{type: Hostname, address: n1}, {type: InternalIP, address: 192.168.0.1}, {type: ExternalIP, address: 1.2.3.4}, {type: InternalIP, address: 'fd00::1'}]}",
			&model.Node{Origin: origin(model.KindNode, "", "n1"), PodCIDRs: prefixes("10.244.1.0/24", "fd00:10:244:1::/64"), InternalIPs: addrs("192.168.0.1", "fd00::1")}},
		{"node with podCIDR only, own annotations only", "apiVersion: v1\nkind: Node\nmetadata: {name: n1, annotations: {braid.network/key: x, other/key: y}}\nspec: {podCIDR: 10.9.0.0/24}",
			&model.Node{Origin: origin(model.KindNode, "", "n1"), PodCIDRs: prefixes("10.9.0.0/24"), Annotations: map[string]string{"braid.network/key": "x"}}},
		{"node that is to go", "apiVersion: v1\nkind: Node\nmetadata: {name: n1, deletionTimestamp: 2024-01-01T00:00:00Z}\nspec: {taints: [{key: b, effect: NoSchedule}, {key: a, value: x, effect: NoExecute}]}",
			&model.Node{Origin: origin(model.KindNode, "", "n1"), Taints: []string{"a", "b"}, Terminating: true}},
		{"pod without status", podHead, pod(func(*model.Pod) {})},
		{"missing namespace", "apiVersion: v1\nkind: Pod\nmetadata: {name: p}",
			pod(func(p *model.Pod) { p.Namespace = "default" })},
		{"pod", "apiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: shop, uid: u1, labels: {a: b}, deletionTimestamp: 2024-01-01T00:00:00Z}\n" +
			"spec: {nodeName: n1, hostNetwork: true, initContainers: [{name: once, ports: [{containerPort: 1}]}, {name: side, restartPolicy: Always, ports: [{containerPort: 15000, name: proxy}]}],\n" +
			"  containers: [{name: c, ports: [{containerPort: 80, name: http}, {containerPort: 53, protocol: UDP}]}]}\n" +
			"status: {phase: Running, podIP: 9.9.9.9, podIPs: [{ip: 10.1.0.1}, {ip: 'fd00::1'}], conditions: [{type: Ready, status: 'True'}]}",
			pod(func(p *model.Pod) {
				p.UID, p.Labels, p.Node, p.HostNetwork, p.Terminating, p.Ready = "u1", labels.Set{"a": "b"}, "n1", true, true, true
				p.Phase, p.IPs = model.PhaseRunning, addrs("10.1.0.1", "fd00::1")
				p.Ports = []model.ContainerPort{{Name: "proxy", Protocol: model.TCP, Port: 15000}, {Name: "http", Protocol: model.TCP, Port: 80}, {Protocol: model.UDP, Port: 53}}
			})},
		{"pod with podIP only", podHead + "status: {podIP: 10.1.0.1, conditions: [{type: Ready, status: 'False'}]}", pod(func(p *model.Pod) { p.IPs = addrs("10.1.0.1") })},
		{"plain service", svcHead + "spec: {clusterIP: 10.96.0.1, clusterIPs: [10.96.0.1, 'fd00::1'], ports: [{port: 80, targetPort: http}, {name: dns, port: 53, protocol: UDP}, {name: s, port: 9, protocol: SCTP}]}",
			svc(func(s *model.Service) {
				s.ClusterIPs = addrs("10.96.0.1", "fd00::1")
				s.Ports = []model.ServicePort{{Protocol: model.TCP, Port: 80}, {Name: "dns", Protocol: model.UDP, Port: 53}, {Name: "s", Protocol: model.SCTP, Port: 9}}
			})},
		{"clusterIP only, leading zeros", svcHead + "spec: {clusterIP: 010.096.000.010, type: ClusterIP}", svc(func(s *model.Service) { s.ClusterIPs = addrs("10.96.0.10") })},
		{"headless", svcHead + "spec: {clusterIP: None, publishNotReadyAddresses: true}", svc(func(s *model.Service) { s.Headless, s.PublishNotReady = true, true })},
		{"headless by clusterIPs", svcHead + "spec: {clusterIPs: [None]}", svc(func(s *model.Service) { s.Headless = true })},
		{"not yet allocated", svcHead + "spec: {clusterIP: ''}", svc(func(*model.Service) {})},
		{"external name, with an address left over", svcHead + "spec: {type: ExternalName, externalName: db.example.com, clusterIP: 10.96.0.1}",
			svc(func(s *model.Service) { s.Type, s.ExternalName = model.ExternalName, "db.example.com" })},
		{"load balancer", svcHead + "spec: {type: LoadBalancer, ports: [{port: 80, nodePort: 30080}], externalIPs: ['::ffff:192.0.2.1'], loadBalancerSourceRanges: [' 10.1.2.3/8 ', 'fd00::1/64', '::ffff:10.0.0.0/104'],\n" +
			" externalTrafficPolicy: Local, internalTrafficPolicy: Local, healthCheckNodePort: 32000, trafficDistribution: PreferSameZone}\n" +
			"status: {loadBalancer: {ingress: [{ip: 198.51.100.1}, {ip: 198.51.100.2, ipMode: Proxy}, {hostname: lb.example.com, ip: ''}, {ip: 198.51.100.3, ipMode: VIP}]}}",
			svc(func(s *model.Service) {
				s.Type, s.Ports = model.LoadBalancer, []model.ServicePort{{Protocol: model.TCP, Port: 80, NodePort: 30080}}
				s.ExternalIPs, s.SourceRanges = addrs("192.0.2.1"), prefixes("10.0.0.0/8", "fd00::/64", "10.0.0.0/8")
				s.ExternalLocal, s.InternalLocal, s.HealthCheckNodePort, s.TrafficDistribution = true, true, 32000, "PreferSameZone"
				s.Ingress = []model.Ingress{{Addr: netip.MustParseAddr("198.51.100.1")}, {Addr: netip.MustParseAddr("198.51.100.2"), Proxy: true},
					{Hostname: "lb.example.com"}, {Addr: netip.MustParseAddr("198.51.100.3")}}
			})},
		{"affinity by default for three hours", svcHead + "spec: {sessionAffinity: ClientIP}", svc(func(s *model.Service) { s.Affinity = 3 * time.Hour })},
		{"affinity", svcHead + "spec: {sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 5}}}", svc(func(s *model.Service) { s.Affinity = 5 * time.Second })},
		{"no affinity", svcHead + "spec: {sessionAffinity: None, sessionAffinityConfig: {clientIP: {timeoutSeconds: 5}}}", svc(func(*model.Service) {})},
		{"slice with nil conditions", sliceHead + "addressType: IPv4\nendpoints: [{addresses: [10.1.0.1]}]",
			slice(func(s *model.EndpointSlice) {
				s.Endpoints = []model.Endpoint{{Addrs: addrs("10.1.0.1"), Ready: true, Serving: true}}
			})},
		{"slice", "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}, annotations: {endpoints.kubernetes.io/last-change-trigger-time: '2024-01-02T03:04:05.6Z'}}\n" +
			"addressType: IPv6\nports: [{name: http, port: 80}, {port: 53, protocol: UDP}, {name: all}]\n" +
			"endpoints: [{addresses: ['fd00::1', 'fd00::2'], conditions: {ready: false, serving: false, terminating: true}, hostname: h, nodeName: n1, zone: z, targetRef: {kind: Pod, name: p}, hints: {forZones: [{name: z1}], forNodes: [{name: n1}]}}]",
			slice(func(s *model.EndpointSlice) {
				s.Labels, s.IPv6 = labels.Set{"kubernetes.io/service-name": "web"}, true
				s.Service, s.LastChange = model.Key{Namespace: "shop", Name: "web"}, time.Date(2024, 1, 2, 3, 4, 5, 6e8, time.UTC)
				s.Ports = []model.EndpointPort{{Name: "http", Protocol: model.TCP, Port: 80}, {Protocol: model.UDP, Port: 53}, {Name: "all", Protocol: model.TCP}}
				s.Endpoints = []model.Endpoint{{Addrs: addrs("fd00::1", "fd00::2"), Terminating: true, Hostname: "h", Node: "n1", Zone: "z",
					Target: model.Ref{Kind: model.KindPod, Key: model.Key{Namespace: "shop", Name: "p"}}, HintZones: []string{"z1"}, HintNodes: []string{"n1"}}}
			})},
		{"slice of names", sliceHead + "addressType: FQDN\nendpoints: [{addresses: [example.com]}]", nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Convert(object(t, tt.in), model.Origin{File: "f.yaml", Line: 7})
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got\n%+v\nwant\n%+v", got, tt.want)
			}
		})
	}
}

func TestConvertErrors(t *testing.T) {
	tests := []struct{ name, in, want string }{
		{"address", svcHead + "spec: {clusterIPs: [10.0.0.1, 10.0.0.300]}", `spec.clusterIPs[1]: is "10.0.0.300", expected an IPv4 or IPv6 address`},
		{"single address", svcHead + "spec: {clusterIP: x}", `spec.clusterIP: is "x", expected an IPv4 or IPv6 address`},
		{"two faults", svcHead + "spec: {type: Loadbalancer, ports: [{port: 0, protocol: tcp}]}",
			`spec.type: is "Loadbalancer", expected ClusterIP, NodePort, LoadBalancer or ExternalName; spec.ports[0].protocol: is "tcp", expected TCP, UDP or SCTP; spec.ports[0].port: is 0, expected a port number from 1 to 65535`},
		{"range", svcHead + "spec: {loadBalancerSourceRanges: [10.0.0.0]}", `spec.loadBalancerSourceRanges[0]: is "10.0.0.0", expected a CIDR such as 10.0.0.0/8 or fd00::/64`},
		{"node port", svcHead + "spec: {ports: [{port: 80, nodePort: 30000}]}", `spec.ports[0].nodePort: is 30000 in a service of type ClusterIP, expected none, or spec.type NodePort or LoadBalancer`},
		{"headless and not", svcHead + "spec: {clusterIPs: [None, 10.0.0.1]}", `spec.clusterIPs: has both None and an address, expected either`},
		{"no external name", svcHead + "spec: {type: ExternalName}", `spec.externalName: is missing, expected a DNS name, because spec.type is ExternalName`},
		{"affinity", svcHead + "spec: {sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 0}}}", `spec.sessionAffinityConfig.clientIP.timeoutSeconds: is 0, expected 1 to 86400 seconds`},
		{"affinity kind", svcHead + "spec: {sessionAffinity: Cookie}", `spec.sessionAffinity: is "Cookie", expected None or ClientIP`},
		{"traffic policy", svcHead + "spec: {internalTrafficPolicy: Node}", `spec.internalTrafficPolicy: is "Node", expected Cluster or Local`},
		{"name", "apiVersion: v1\nkind: Pod\nmetadata: {namespace: x}", `metadata.name: is missing, expected the object's name`},
		{"slice family", sliceHead + "addressType: IPv6\nendpoints: [{addresses: [10.0.0.1]}]", `endpoints[0].addresses[0]: is 10.0.0.1, expected an address of the slice's addressType`},
		{"slice to the node itself", sliceHead + "addressType: IPv4\nendpoints: [{addresses: [127.0.0.1]}, {addresses: [169.254.169.254]}, {addresses: ['0.0.0.0']}]",
			`endpoints[0].addresses[0]: is 127.0.0.1, expected an address that others can reach: neither unspecified, nor loopback, nor link-local; ` +
				`endpoints[1].addresses[0]: is 169.254.169.254, expected an address that others can reach: neither unspecified, nor loopback, nor link-local; ` +
				`endpoints[2].addresses[0]: is 0.0.0.0, expected an address that others can reach: neither unspecified, nor loopback, nor link-local`},
		{"slice to the node itself, IPv6", sliceHead + "addressType: IPv6\nendpoints: [{addresses: ['::1']}, {addresses: ['fe80::1']}]",
			`endpoints[0].addresses[0]: is ::1, expected an address that others can reach: neither unspecified, nor loopback, nor link-local; ` +
				`endpoints[1].addresses[0]: is fe80::1, expected an address that others can reach: neither unspecified, nor loopback, nor link-local`},
		{"slice type", sliceHead + "endpoints: []", `addressType: is "", expected IPv4, IPv6 or FQDN`},
		{"endpoint without address", sliceHead + "addressType: IPv4\nendpoints: [{addresses: []}]", `endpoints[0].addresses: is empty, expected at least one address`},
		{"slice port", sliceHead + "addressType: IPv4\nports: [{port: 70000}]\nendpoints: []", `ports[0].port: is 70000, expected a port number from 1 to 65535`},
		{"two CIDRs of a family", nodeHead + "spec: {podCIDRs: [10.0.0.0/24, 10.0.1.0/24]}", `spec.podCIDRs[1]: is 10.0.1.0/24, a second one of its family, expected at most one per address family`},
		{"node address", nodeHead + "status: {addresses: [{type: InternalIP, address: n1}]}", `status.addresses[0].address: is "n1", expected an IPv4 or IPv6 address`},
		{"container port", podHead + "spec: {containers: [{name: c, ports: [{containerPort: -1}]}]}", `spec.containers[0].ports[0].containerPort: is -1, expected a port number from 1 to 65535`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Convert(object(t, tt.in), model.Origin{})
			if err == nil || err.Error() != tt.want || got != nil {
				t.Errorf("got %v, error\n%v\nwant\n%s", got, err, tt.want)
			}
			var fe *FieldError
			if !errors.As(err, &fe) || !strings.HasPrefix(tt.want, fe.Path+":") {
				t.Errorf("errors.As gives %+v", fe)
			}
		})
	}
	if _, err := Convert(&corev1.Secret{}, model.Origin{}); err == nil {
		t.Error("a Secret was converted")
	}
}

// TestKnownCoversTheModel checks that each kind of the model can be decoded and converted.
func TestKnownCoversTheModel(t *testing.T) {
	for _, k := range model.Kinds {
		found := false
		for _, v := range []string{"v1", "discovery.k8s.io/v1", "networking.k8s.io/v1"} {
			if o := Known(v, string(k)); o != nil {
				ref, ok := RefOf(o)
				found = ok && ref.Kind == k
			}
		}
		if !found {
			t.Errorf("kind %s is not known", k)
		}
	}
	if o := Known("apps/v1", "Deployment"); o != nil {
		t.Errorf("Deployment is known as %T", o)
	}
}

// TestStaticPod: a pod of the kubelet's own has the UID by which the runtime knows it, not that of its image in the API.
func TestStaticPod(t *testing.T) {
	o := object(t, "apiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: shop, uid: u1, annotations: {kubernetes.io/config.mirror: abc}}")
	got, err := Convert(o, model.Origin{})
	if p, _ := got.(*model.Pod); err != nil || p.UID != "abc" {
		t.Errorf("%+v, %v", got, err)
	}
}
