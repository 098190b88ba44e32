package cluster

import (
	"net/netip"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/braidnet/braid/internal/source/manifest"
)

// service reads "spec" of a service called default/NAME.
func service(t *testing.T, name, spec string) *corev1.Service {
	t.Helper()
	docs, errs := manifest.Parse("t.yaml", []byte("apiVersion: v1\nkind: Service\nmetadata: {name: "+name+", namespace: default}\nspec: "+spec), known)
	if len(errs) > 0 || len(docs) != 1 {
		t.Fatalf("%s: %v", spec, errs)
	}
	return docs[0].Object.(*corev1.Service)
}

// admit does what the controller does with a service.
func admit(s, old *corev1.Service, a *allocator) error {
	if err := admitService(s, old, a); err != nil {
		return err
	}
	a.release(keyOf(s))
	a.hold(s)
	return nil
}

// shape prints families, policy, which families the addresses are of, and which ports have node ports.
func shape(s *corev1.Service) string {
	var out []string
	for _, f := range s.Spec.IPFamilies {
		out = append(out, string(f))
	}
	if s.Spec.IPFamilyPolicy != nil {
		out = append(out, string(*s.Spec.IPFamilyPolicy))
	}
	for _, ip := range s.Spec.ClusterIPs {
		switch a, err := netip.ParseAddr(ip); {
		case err != nil:
			out = append(out, ip)
		case cidr4.Contains(a) || cidr6.Contains(a):
			out = append(out, string(familyOf(a)))
		default:
			out = append(out, "stray "+ip)
		}
	}
	return strings.Join(out, " ")
}

func TestServiceFamilies(t *testing.T) {
	dual, v4, v6 := []netip.Prefix{cidr4, cidr6}, []netip.Prefix{cidr4}, []netip.Prefix{cidr6}
	for _, c := range []struct {
		cidrs []netip.Prefix
		spec  string
		want  string // what shape prints, or "error: text"
	}{
		{dual, "{ports: [{port: 1}]}", "IPv4 SingleStack IPv4"},
		{[]netip.Prefix{cidr6, cidr4}, "{ports: [{port: 1}]}", "IPv6 SingleStack IPv6"},
		{dual, "{ports: [{port: 1}], ipFamilies: [IPv6]}", "IPv6 SingleStack IPv6"},
		{dual, "{ports: [{port: 1}], ipFamilyPolicy: PreferDualStack}", "IPv4 IPv6 PreferDualStack IPv4 IPv6"},
		{dual, "{ports: [{port: 1}], ipFamilyPolicy: RequireDualStack, ipFamilies: [IPv6]}", "IPv6 IPv4 RequireDualStack IPv6 IPv4"},
		{dual, "{ports: [{port: 1}], ipFamilies: [IPv6, IPv4]}", "IPv6 IPv4 RequireDualStack IPv6 IPv4"},
		{dual, "{ports: [{port: 1}], clusterIP: 'fd00:10:96::77'}", "IPv6 SingleStack IPv6"},
		{dual, "{ports: [{port: 1}], clusterIPs: ['fd00:10:96::77', 10.96.3.3]}", "IPv6 IPv4 RequireDualStack IPv6 IPv4"},
		{dual, "{ports: [{port: 1}], clusterIP: None, selector: {a: b}}", "IPv4 SingleStack None"},
		{dual, "{ports: [{port: 1}], clusterIP: None, selector: {a: b}, ipFamilyPolicy: PreferDualStack}", "IPv4 IPv6 PreferDualStack None"},
		{dual, "{ports: [{port: 1}], clusterIP: None}", "IPv4 IPv6 RequireDualStack None"},
		{dual, "{clusterIP: None, selector: {a: b}}", "IPv4 SingleStack None"},
		{dual, "{type: ExternalName, externalName: a.example}", ""},
		{v4, "{ports: [{port: 1}], ipFamilyPolicy: PreferDualStack}", "IPv4 PreferDualStack IPv4"},
		{v4, "{ports: [{port: 1}], clusterIP: None}", "IPv4 SingleStack None"},
		{v6, "{ports: [{port: 1}]}", "IPv6 SingleStack IPv6"},
		{v4, "{ports: [{port: 1}], ipFamilyPolicy: RequireDualStack}", "error: spec.ipFamilyPolicy"},
		{v4, "{ports: [{port: 1}], ipFamilies: [IPv6]}", "error: IPv6 is not a family of this playground"},
		{v4, "{ports: [{port: 1}], clusterIP: 'fd00:10:96::77'}", "error: spec.ipFamilies"},
		{dual, "{ports: [{port: 1}], clusterIP: 10.97.0.1}", "error: cluster IP 10.97.0.1 is not usable in 10.96.0.0/16"},
		{dual, "{ports: [{port: 1}], clusterIP: nonsense}", "error: spec.clusterIP"},
		{dual, "{ports: [{port: 1}], clusterIPs: [10.96.3.3, 10.96.3.4]}", "error: spec.clusterIPs"},
		{dual, "{ports: [{port: 1}], ipFamilies: [IPv6], clusterIP: 10.96.3.3}", "error: spec.ipFamilies"},
		{dual, "{ports: [{port: 1}], ipFamilyPolicy: SingleStack, ipFamilies: [IPv6, IPv4]}", "error: spec.ipFamilyPolicy"},
		{dual, "{ports: [{port: 1}], ipFamilyPolicy: Often}", "error: spec.ipFamilyPolicy"},
		{dual, "{ports: [{port: 1}], clusterIP: None, type: NodePort}", "error: spec.clusterIP"},
	} {
		s := service(t, "s", c.spec)
		err := admit(s, nil, newAllocator(c.cidrs, nil))
		if text, wrong := strings.CutPrefix(c.want, "error: "); wrong {
			if err == nil || !strings.Contains(err.Error(), text) {
				t.Errorf("%v %s: %v, want an error with %q", c.cidrs, c.spec, err, text)
			}
			continue
		}
		if got := shape(s); err != nil || got != c.want {
			t.Errorf("%v %s: %q, %v, want %q", c.cidrs, c.spec, got, err, c.want)
		}
		if len(s.Spec.ClusterIPs) > 0 && s.Spec.ClusterIP != s.Spec.ClusterIPs[0] {
			t.Errorf("%s: clusterIP %s, clusterIPs %v", c.spec, s.Spec.ClusterIP, s.Spec.ClusterIPs)
		}
	}
}

func TestServiceDefaults(t *testing.T) {
	s := service(t, "s", "{type: LoadBalancer, sessionAffinity: ClientIP, externalTrafficPolicy: Local, ports: [{name: d, port: 53, protocol: UDP}, {name: t, port: 53}, {name: web, port: 80, targetPort: http}]}")
	if err := admit(s, nil, newAllocator([]netip.Prefix{cidr4}, nil)); err != nil {
		t.Fatal(err)
	}
	p := s.Spec.Ports
	if p[1].Protocol != corev1.ProtocolTCP || p[0].TargetPort.IntValue() != 53 || p[2].TargetPort.StrVal != "http" {
		t.Errorf("ports: %+v", p)
	}
	if p[0].NodePort < 30000 || p[0].NodePort > 32767 || p[1].NodePort != p[0].NodePort || p[2].NodePort == p[0].NodePort {
		t.Errorf("node ports %d, %d, %d: UDP and TCP of one port share one", p[0].NodePort, p[1].NodePort, p[2].NodePort)
	}
	if h := s.Spec.HealthCheckNodePort; h < 30000 || h == p[0].NodePort || h == p[2].NodePort {
		t.Errorf("health check node port %d beside %d and %d", h, p[0].NodePort, p[2].NodePort)
	}
	if *s.Spec.SessionAffinityConfig.ClientIP.TimeoutSeconds != 10800 || *s.Spec.InternalTrafficPolicy != "Cluster" || !*s.Spec.AllocateLoadBalancerNodePorts {
		t.Errorf("spec: %+v", s.Spec)
	}
	plain := service(t, "plain", "{ports: [{port: 1}]}")
	if err := admit(plain, nil, newAllocator([]netip.Prefix{cidr4}, nil)); err != nil {
		t.Fatal(err)
	}
	if plain.Spec.Type != corev1.ServiceTypeClusterIP || plain.Spec.SessionAffinity != "None" || plain.Spec.ExternalTrafficPolicy != "" || plain.Spec.Ports[0].NodePort != 0 {
		t.Errorf("spec: %+v", plain.Spec)
	}
}

func TestServiceRefusals(t *testing.T) {
	a := newAllocator([]netip.Prefix{cidr4, cidr6}, nil)
	if err := admit(service(t, "first", "{type: NodePort, clusterIP: 10.96.0.50, ports: [{port: 1, nodePort: 30080}]}"), nil, a); err != nil {
		t.Fatal(err)
	}
	for spec, want := range map[string]string{
		"{clusterIP: 10.96.0.50, ports: [{port: 1}]}":                                                                  "cluster IP 10.96.0.50 belongs to Service default/first",
		"{type: NodePort, ports: [{port: 1, nodePort: 30080}]}":                                                        "spec.ports[0].nodePort: node port 30080 belongs to Service default/first",
		"{type: NodePort, ports: [{port: 1, nodePort: 30080, protocol: UDP}]}":                                         "belongs to Service default/first",
		"{type: NodePort, ports: [{port: 1, nodePort: 80}]}":                                                           "outside the range 30000-32767",
		"{type: NodePort, ports: [{name: a, port: 1, nodePort: 30001}, {name: b, port: 2, nodePort: 30001}]}":          "spec.ports[1].nodePort",
		"{ports: [{port: 1, nodePort: 30001}]}":                                                                        "needs type NodePort",
		"{ports: [{port: 1}, {port: 2}]}":                                                                              "spec.ports[0].name: is missing",
		"{ports: [{name: a, port: 1}, {name: a, port: 2}]}":                                                            "spec.ports[1].name",
		"{ports: [{name: a, port: 1}, {name: b, port: 1}]}":                                                            "listed twice",
		"{ports: [{port: 70000}]}":                                                                                     "spec.ports[0].port",
		"{ports: [{port: 1, targetPort: 70000}]}":                                                                      "spec.ports[0].targetPort",
		"{selector: {a: b}}":                                                                                           "spec.ports: is missing",
		"{type: Magic, ports: [{port: 1}]}":                                                                            "spec.type",
		"{type: ExternalName}":                                                                                         "spec.externalName",
		"{type: LoadBalancer, externalTrafficPolicy: Local, healthCheckNodePort: 30080, ports: [{port: 1}]}":           "spec.healthCheckNodePort",
		"{clusterIP: 10.96.0.51, clusterIPs: [10.96.0.52], ports: [{port: 1}]}":                                        "spec.clusterIPs: begins with",
		"{type: LoadBalancer, allocateLoadBalancerNodePorts: false, ports: [{port: 1, nodePort: 30080, name: taken}]}": "node port 30080",
	} {
		err := admit(service(t, "second", spec), nil, a)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", spec, err, want)
		}
	}
	free := service(t, "free", "{type: LoadBalancer, allocateLoadBalancerNodePorts: false, ports: [{port: 1}]}")
	if err := admit(free, nil, a); err != nil || free.Spec.Ports[0].NodePort != 0 {
		t.Errorf("allocateLoadBalancerNodePorts false: node port %d, %v", free.Spec.Ports[0].NodePort, err)
	}
	both := service(t, "both", "{type: NodePort, ports: [{name: a, port: 1, nodePort: 30053}, {name: b, port: 1, protocol: UDP, nodePort: 30053}]}")
	if err := admit(both, nil, a); err != nil {
		t.Errorf("one node port for two protocols of a service: %v", err)
	}
}

func TestServiceUpdatesKeepAllocations(t *testing.T) {
	a := newAllocator([]netip.Prefix{cidr4, cidr6}, nil)
	var old *corev1.Service
	step := func(spec string) *corev1.Service {
		t.Helper()
		s := service(t, "s", spec)
		if err := admit(s, old, a); err != nil {
			t.Fatalf("%s: %v", spec, err)
		}
		was := old
		old = s
		if was == nil {
			return s
		}
		return was
	}
	step("{type: NodePort, ports: [{name: a, port: 1}, {name: b, port: 2}], ipFamilyPolicy: PreferDualStack}")
	was := step("{type: NodePort, ports: [{name: bb, port: 2}, {name: c, port: 3}], ipFamilyPolicy: PreferDualStack}")
	if old.Spec.ClusterIPs[1] != was.Spec.ClusterIPs[1] || old.Spec.Ports[0].NodePort != was.Spec.Ports[1].NodePort {
		t.Errorf("was %+v, is %+v", was.Spec, old.Spec)
	}
	if holder, held := a.ports[was.Spec.Ports[0].NodePort]; held {
		t.Errorf("the node port of a port that is gone is still held by %s", holder)
	}
	was = step("{ports: [{port: 2}]}")
	if len(old.Spec.ClusterIPs) != 1 || old.Spec.ClusterIP != was.Spec.ClusterIP || old.Spec.Ports[0].NodePort != 0 || len(a.ports) != 0 || len(a.ips) != 1 {
		t.Errorf("after the way back to ClusterIP and one family: %+v, held %v %v", old.Spec, a.ips, a.ports)
	}
	for _, spec := range []string{"{clusterIP: 10.96.9.9, ports: [{port: 2}]}", "{clusterIP: None, ports: [{port: 2}]}", "{ipFamilies: [IPv6], ports: [{port: 2}]}"} {
		if err := admit(service(t, "s", spec), old, a); err == nil {
			t.Errorf("%s was accepted for a service that has %s", spec, old.Spec.ClusterIP)
		}
	}
	step("{type: ExternalName, externalName: a.example}")
	if len(a.ips) != 0 {
		t.Errorf("an ExternalName service holds %v", a.ips)
	}
	step("{ports: [{port: 2}]}")
}

func TestAllocatorUsesEverythingOnceAndDependsOnNamesOnly(t *testing.T) {
	small := netip.MustParsePrefix("10.0.0.0/28")
	reserved := netip.MustParseAddr("10.0.0.10")
	a := newAllocator([]netip.Prefix{small}, []netip.Addr{reserved})
	seen := map[netip.Addr]bool{}
	for i := 0; ; i++ {
		owner := types.NamespacedName{Namespace: "default", Name: strings.Repeat("x", i+1)}
		ip, err := a.pickIP(corev1.IPv4Protocol, owner)
		if err != nil {
			break
		}
		if seen[ip] || !small.Contains(ip) || ip == reserved || ip == netip.MustParseAddr("10.0.0.15") || ip == small.Addr() {
			t.Fatalf("address %s after %v", ip, seen)
		}
		seen[ip] = true
		a.ips[ip] = owner
	}
	if len(seen) != 13 { // 16 without network, broadcast and the reserved one
		t.Errorf("%d addresses of %s were given out, want 13", len(seen), small)
	}
	if err := a.checkIP(reserved, types.NamespacedName{}); err != nil {
		t.Errorf("the reserved address asked for by number: %v", err)
	}

	taken := map[int32]bool{}
	for range maxNodePort - minNodePort + 1 {
		p, err := a.pickPort(types.NamespacedName{Name: "s"}, "1", taken)
		if err != nil || taken[p] || p < minNodePort || p > maxNodePort {
			t.Fatalf("port %d, %v", p, err)
		}
		taken[p] = true
	}
	if p, err := a.pickPort(types.NamespacedName{Name: "s"}, "1", taken); err == nil {
		t.Errorf("port %d when all are taken", p)
	}

	names := []string{"web", "api", "db", "cache"}
	given := map[string]string{}
	for round := range 2 {
		fresh := newAllocator([]netip.Prefix{cidr4, cidr6}, []netip.Addr{dns4})
		for i := range names {
			name := names[(i*3+round)%len(names)]
			s := service(t, name, "{type: NodePort, ipFamilyPolicy: RequireDualStack, ports: [{port: 1}]}")
			if err := admit(s, nil, fresh); err != nil {
				t.Fatal(err)
			}
			text := strings.Join(s.Spec.ClusterIPs, " ")
			if was := given[name]; round > 0 && was != text {
				t.Errorf("%s got %s in one order and %s in another", name, was, text)
			}
			given[name] = text
		}
	}
}

func TestOffset(t *testing.T) {
	for _, c := range []struct {
		base string
		n    uint32
		want string
	}{
		{"10.96.0.0", 0, "10.96.0.0"}, {"10.96.0.0", 256, "10.96.1.0"}, {"10.96.0.255", 1, "10.96.1.0"},
		{"fd00:10:96::", 0xffff, "fd00:10:96::ffff"}, {"fd00::ffff:ffff", 1, "fd00::1:0:0"},
	} {
		if got := offset(netip.MustParseAddr(c.base), c.n).String(); got != c.want {
			t.Errorf("%s + %d = %s, want %s", c.base, c.n, got, c.want)
		}
	}
}
