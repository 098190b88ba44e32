package service

import (
	"net/netip"
	"reflect"
	"strings"
	"sync"
	"testing"

	"github.com/braidnet/braid/internal/model"
)

func TestChoice(t *testing.T) {
	const a, b, c = "10.244.1.1", "10.244.2.2", "10.244.3.3"
	for _, tc := range []struct {
		name  string
		zone  string
		local bool // internalTrafficPolicy
		eps   []model.Endpoint
		want  string
		why   string
	}{
		{name: "ready only", eps: []model.Endpoint{ep(a, "r", "n1"), ep(b, "", "n2"), ep(c, "st", "n3")}, want: a + ":8080*"},
		{name: "sorted", eps: []model.Endpoint{ep(c, "r", "n3"), ep(a, "r", "n1"), ep(b, "r", "n2")}, want: a + ":8080* " + b + ":8080 " + c + ":8080"},
		{name: "terminating as a last resort", eps: []model.Endpoint{ep(a, "st", "n1"), ep(b, "t", "n2"), ep(c, "s", "n3")}, want: a + ":8080*"},
		{name: "no slice", want: "reject", why: "no endpoints: no IPv4 EndpointSlice names the service"},
		{name: "empty slice", eps: []model.Endpoint{}, want: "reject", why: "no endpoints: 1 IPv4 EndpointSlice of the service is empty, its selector matches no pod with an address"},
		{name: "none ready", eps: []model.Endpoint{ep(a, "", "n1"), ep(b, "", "n2")}, want: "reject", why: "2 endpoints, none ready"},
		{name: "none ready, one ending", eps: []model.Endpoint{ep(a, "", "n1"), ep(b, "t", "n2")}, want: "reject", why: "2 endpoints, none ready (1 terminating)"},
		{name: "no node name: it may reach itself", eps: []model.Endpoint{ep(a, "r", "")}, want: a + ":8080*"},
		{name: "no node name is not local", local: true, eps: []model.Endpoint{ep(a, "r", "")}, want: "drop", why: "1 endpoint on other nodes, none on this one (internalTrafficPolicy: Local)"},

		{name: "local", local: true, eps: []model.Endpoint{ep(a, "r", "n1"), ep(b, "r", "n2")}, want: a + ":8080*"},
		{name: "local terminating although others are ready", local: true, eps: []model.Endpoint{ep(a, "st", "n1"), ep(b, "r", "n2")}, want: a + ":8080*"},
		{name: "local, only elsewhere", local: true, eps: []model.Endpoint{ep(b, "r", "n2"), ep(c, "", "n3")}, want: "drop", why: "1 endpoint on other nodes, none on this one (internalTrafficPolicy: Local)"},
		{name: "local, none anywhere", local: true, eps: []model.Endpoint{ep(a, "", "n1")}, want: "reject", why: "1 endpoint, none ready"},
		{name: "local ignores hints", local: true, zone: "z1", eps: []model.Endpoint{ep(a, "r", "n1", "z:z2"), ep(b, "r", "n2", "z:z1")}, want: a + ":8080*"},

		{name: "zone hints", zone: "z1", eps: []model.Endpoint{ep(a, "r", "n1", "z:z2"), ep(b, "r", "n2", "z:z1", "z:z2")}, want: b + ":8080"},
		{name: "zone hints, one without", zone: "z1", eps: []model.Endpoint{ep(a, "r", "n1"), ep(b, "r", "n2", "z:z1")}, want: a + ":8080* " + b + ":8080"},
		{name: "zone hints, none for ours", zone: "z9", eps: []model.Endpoint{ep(a, "r", "n1", "z:z2"), ep(b, "r", "n2", "z:z1")}, want: a + ":8080* " + b + ":8080"},
		{name: "zone hints, node without zone", eps: []model.Endpoint{ep(a, "r", "n1", "z:z2"), ep(b, "r", "n2", "z:z1")}, want: a + ":8080* " + b + ":8080"},
		{name: "hint of an endpoint that is not ready does not count", zone: "z1", eps: []model.Endpoint{ep(a, "", "n1"), ep(b, "r", "n2", "z:z1"), ep(c, "r", "n3", "z:z2")}, want: b + ":8080"},
		{name: "node hints before zone hints", zone: "z1", eps: []model.Endpoint{ep(a, "r", "n1", "n:n1", "z:z2"), ep(b, "r", "n2", "n:n2", "z:z1")}, want: a + ":8080*"},
		{name: "node hints for others, then zone", zone: "z1", eps: []model.Endpoint{ep(a, "r", "n3", "n:n3", "z:z2"), ep(b, "r", "n2", "n:n2", "z:z1")}, want: b + ":8080"},
		{name: "node hints incomplete", eps: []model.Endpoint{ep(a, "r", "n1", "n:n1"), ep(b, "r", "n2")}, want: a + ":8080* " + b + ":8080"},
		{name: "hints do not bind terminating ones", zone: "z1", eps: []model.Endpoint{ep(a, "st", "n1", "z:z2"), ep(b, "st", "n2", "z:z1")}, want: a + ":8080* " + b + ":8080"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			svc := testService("web", "10.96.0.1")
			svc.InternalLocal = tc.local
			objects := []model.Object{testNodeObject(testNode, tc.zone), svc}
			if tc.eps != nil {
				objects = append(objects, testSlice("web-1", "web", tc.eps...))
			}
			l := newLab(objects...)
			l.Flush()
			all, _ := l.All()
			if len(all) != 1 {
				t.Fatalf("frontends %+v, want one", all)
			}
			if got := outcome(all[0]); got != tc.want {
				t.Errorf("backends %q, want %q", got, tc.want)
			}
			if all[0].Why != tc.why {
				t.Errorf("why %q, want %q", all[0].Why, tc.why)
			}
		})
	}
}

func TestFrontendsOfKinds(t *testing.T) {
	slices4 := []model.Object{testSlice("web-1", "web", ep("10.244.1.1", "r", "n1"))}
	six := testSlice("web-6", "web", ep("fd00:10:244:1::1", "r", "n1"))
	six.IPv6 = true
	for _, tc := range []struct {
		name string
		edit func(*model.Service)
		more []model.Object
		want []string
	}{
		{name: "cluster IP", edit: func(*model.Service) {}, want: []string{"cluster IP 10.96.0.1:80/TCP -> 10.244.1.1:8080*"}},
		{name: "headless", edit: func(s *model.Service) { s.Headless, s.ClusterIPs = true, nil }},
		{name: "external name", edit: func(s *model.Service) { s.Type = model.ExternalName }},
		{name: "not allocated yet", edit: func(s *model.Service) { s.ClusterIPs = nil }},
		{name: "another proxy's, with an empty label", edit: func(s *model.Service) { s.Labels = map[string]string{labelProxyName: ""} }},
		{name: "node port", edit: func(s *model.Service) { s.Type, s.Ports[0].NodePort = model.NodePort, 30080 },
			want: []string{"node port 0.0.0.0:30080/TCP -> 10.244.1.1:8080*", "cluster IP 10.96.0.1:80/TCP -> 10.244.1.1:8080*"}},
		{name: "node port with internal traffic policy Local", edit: func(s *model.Service) {
			s.Type, s.Ports[0].NodePort, s.InternalLocal = model.NodePort, 30080, true
		}, more: []model.Object{testSlice("web-1", "web", ep("10.244.2.2", "r", "n2"))},
			want: []string{"node port 0.0.0.0:30080/TCP -> 10.244.2.2:8080", "cluster IP 10.96.0.1:80/TCP -> drop"}},
		{name: "both families", edit: func(s *model.Service) { s.ClusterIPs = addrs("10.96.0.1", "fd00:10:96::1") }, more: []model.Object{six},
			want: []string{"cluster IP 10.96.0.1:80/TCP -> 10.244.1.1:8080*", "cluster IP [fd00:10:96::1]:80/TCP -> [fd00:10:244:1::1]:8080*"}},
		{name: "load balancer", edit: func(s *model.Service) {
			s.Type = model.LoadBalancer
			s.Ingress = []model.Ingress{{Addr: netip.MustParseAddr("192.0.2.1")}, {Addr: netip.MustParseAddr("192.0.2.2"), Proxy: true},
				{Hostname: "lb.example"}, {Addr: netip.MustParseAddr("2001:db8::1")}, {Addr: netip.MustParseAddr("10.96.0.1")}}
		}, want: []string{"cluster IP 10.96.0.1:80/TCP -> 10.244.1.1:8080*", "load balancer IP 192.0.2.1:80/TCP -> 10.244.1.1:8080*"}},
		{name: "load balancer with source ranges", edit: func(s *model.Service) {
			s.Type, s.Ports[0].NodePort = model.LoadBalancer, 30080
			s.Ingress = []model.Ingress{{Addr: netip.MustParseAddr("192.0.2.1")}}
			s.SourceRanges = []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("2001:db8::/32")}
		}, want: []string{"node port 0.0.0.0:30080/TCP -> 10.244.1.1:8080*", "cluster IP 10.96.0.1:80/TCP -> 10.244.1.1:8080*",
			"load balancer IP 192.0.2.1:80/TCP -> 10.244.1.1:8080* for [10.0.0.0/8]"}},
		{name: "source ranges of the other family only", edit: func(s *model.Service) {
			s.Type = model.LoadBalancer
			s.Ingress = []model.Ingress{{Addr: netip.MustParseAddr("192.0.2.1")}}
			s.SourceRanges = []netip.Prefix{netip.MustParsePrefix("2001:db8::/32")}
		}, want: []string{"cluster IP 10.96.0.1:80/TCP -> 10.244.1.1:8080*", "load balancer IP 192.0.2.1:80/TCP -> 10.244.1.1:8080* for []"}},
		{name: "source ranges that admit all of the other family", edit: func(s *model.Service) {
			s.Type = model.LoadBalancer
			s.Ingress = []model.Ingress{{Addr: netip.MustParseAddr("192.0.2.1")}}
			s.SourceRanges = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("::/0")}
		}, want: []string{"cluster IP 10.96.0.1:80/TCP -> 10.244.1.1:8080*", "load balancer IP 192.0.2.1:80/TCP -> 10.244.1.1:8080* for [10.0.0.0/8]"}},
		{name: "only a source range that admits all, of the other family", edit: func(s *model.Service) {
			s.Type = model.LoadBalancer
			s.Ingress = []model.Ingress{{Addr: netip.MustParseAddr("192.0.2.1")}}
			s.SourceRanges = []netip.Prefix{netip.MustParsePrefix("::/0")}
		}, want: []string{"cluster IP 10.96.0.1:80/TCP -> 10.244.1.1:8080*", "load balancer IP 192.0.2.1:80/TCP -> 10.244.1.1:8080*"}},
		{name: "source ranges with the node in them admit the address itself", edit: func(s *model.Service) {
			s.Type = model.LoadBalancer
			s.Ingress = []model.Ingress{{Addr: netip.MustParseAddr("192.0.2.1")}}
			s.SourceRanges = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
		}, more: []model.Object{&model.Node{Origin: model.Origin{Ref: model.Ref{Kind: model.KindNode, Key: model.Key{Name: testNode}}}, InternalIPs: addrs("10.1.0.1")}},
			want: []string{"cluster IP 10.96.0.1:80/TCP -> 10.244.1.1:8080*", "load balancer IP 192.0.2.1:80/TCP -> 10.244.1.1:8080* for [10.0.0.0/8 192.0.2.1/32]"}},
		{name: "an endpoint of no known node, out of this one's pod range", edit: func(*model.Service) {},
			more: []model.Object{&model.Node{Origin: model.Origin{Ref: model.Ref{Kind: model.KindNode, Key: model.Key{Name: testNode}}}, PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24")}},
				testSlice("web-2", "web", ep("10.244.1.7", "r", ""), ep("10.244.2.2", "r", ""))},
			want: []string{"cluster IP 10.96.0.1:80/TCP -> 10.244.1.1:8080* 10.244.1.7:8080* 10.244.2.2:8080"}},
		{name: "external traffic policy Local", edit: func(s *model.Service) {
			s.Type, s.Ports[0].NodePort, s.ExternalLocal = model.LoadBalancer, 30080, true
			s.Ingress = []model.Ingress{{Addr: netip.MustParseAddr("192.0.2.1")}}
		}, more: []model.Object{testSlice("web-2", "web", ep("10.244.2.2", "r", "n2"))}, want: []string{
			"node port 0.0.0.0:30080/TCP -> 10.244.1.1:8080*, inside 10.244.1.1:8080* 10.244.2.2:8080",
			"cluster IP 10.96.0.1:80/TCP -> 10.244.1.1:8080* 10.244.2.2:8080",
			"load balancer IP 192.0.2.1:80/TCP -> 10.244.1.1:8080*, inside 10.244.1.1:8080* 10.244.2.2:8080"}},
		{name: "external traffic policy Local, endpoints elsewhere only", edit: func(s *model.Service) {
			s.Type, s.Ports[0].NodePort, s.ExternalLocal = model.NodePort, 30080, true
		}, more: []model.Object{testSlice("web-1", "web", ep("10.244.2.2", "r", "n2"))}, want: []string{
			"node port 0.0.0.0:30080/TCP -> drop, inside 10.244.2.2:8080", "cluster IP 10.96.0.1:80/TCP -> 10.244.2.2:8080"}},
		{name: "external traffic policy Local, no endpoints", edit: func(s *model.Service) {
			s.Type, s.Ports[0].NodePort, s.ExternalLocal = model.NodePort, 30080, true
		}, more: []model.Object{testSlice("web-1", "web")}, want: []string{
			"node port 0.0.0.0:30080/TCP -> reject", "cluster IP 10.96.0.1:80/TCP -> reject"}},
		{name: "a slice that is labelled headless", edit: func(*model.Service) {}, more: []model.Object{func() model.Object {
			s := testSlice("web-1", "web", ep("10.244.1.1", "r", "n1"))
			s.Labels = map[string]string{labelHeadless: ""}
			return s
		}()}, want: []string{"cluster IP 10.96.0.1:80/TCP -> reject"}},
		{name: "source ranges that admit all", edit: func(s *model.Service) {
			s.Type = model.LoadBalancer
			s.Ingress = []model.Ingress{{Addr: netip.MustParseAddr("192.0.2.1")}}
			s.SourceRanges = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("0.0.0.0/0")}
		}, want: []string{"cluster IP 10.96.0.1:80/TCP -> 10.244.1.1:8080*", "load balancer IP 192.0.2.1:80/TCP -> 10.244.1.1:8080*"}},
		{name: "same number, other protocol, other endpoints", edit: func(s *model.Service) {
			s.Ports = append(s.Ports, model.ServicePort{Name: "http", Protocol: model.UDP, Port: 80})
		}, want: []string{"cluster IP 10.96.0.1:80/TCP -> 10.244.1.1:8080*", "cluster IP 10.96.0.1:80/UDP -> reject"}},
		{name: "external IPs where they are allowed", edit: func(s *model.Service) { s.ExternalIPs = addrs("192.0.2.9", "198.51.100.1", "2001:db8::1") },
			want: []string{"cluster IP 10.96.0.1:80/TCP -> 10.244.1.1:8080*", "external IP 192.0.2.9:80/TCP -> 10.244.1.1:8080*"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			svc := testService("web", "10.96.0.1")
			tc.edit(svc)
			l := newLab(append(append([]model.Object{svc}, slices4...), tc.more...)...)
			if got := l.table(); !reflect.DeepEqual(got, tc.want) {
				t.Errorf("got  %q\nwant %q", got, tc.want)
			}
		})
	}
}

func TestMasquerade(t *testing.T) {
	svc := testService("web", "10.96.0.1")
	svc.Type, svc.Ports[0].NodePort = model.LoadBalancer, 30080
	svc.Ingress = []model.Ingress{{Addr: netip.MustParseAddr("192.0.2.1")}}
	l := newLab(svc)
	d := l.Flush()
	if len(d.Set) != 3 {
		t.Fatalf("got %+v, want three frontends", d.Set)
	}
	for _, f := range d.Set {
		want := MasqueradeAll
		if f.Kind == ClusterIP {
			want = MasqueradeForeign
		}
		if f.Masquerade != want {
			t.Errorf("%s %s: masquerade %d, want %d", f.Kind, f.Key, f.Masquerade, want)
		}
	}
}

func TestSlicesOfOneService(t *testing.T) {
	other := testSlice("web-2", "web", ep("10.244.2.2", "r", "n2"))
	other.Ports[0].Port = 9090
	nameless := testSlice("web-3", "web", ep("10.244.3.3", "r", "n3"))
	nameless.Ports = []model.EndpointPort{{Name: "other", Protocol: model.TCP, Port: 1}, {Name: "http", Protocol: model.TCP}}
	l := newLab(testService("web", "10.96.0.1"), other, nameless,
		testSlice("web-1", "web", ep("10.244.1.1", "r", "n1"), ep("10.244.4.4", "", "n4")),
		testSlice("web-4", "web", ep("10.244.4.4", "r", "n4"), ep("10.244.1.1", "", "")), // in the middle of a move
	)
	want := []string{"cluster IP 10.96.0.1:80/TCP -> 10.244.1.1:8080* 10.244.2.2:9090 10.244.4.4:8080"}
	if got := l.table(); !reflect.DeepEqual(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

func TestSliceMovesBetweenServices(t *testing.T) {
	s := testSlice("one", "a", ep("10.244.1.1", "r", "n1"))
	l := newLab(testService("a", "10.96.0.1"), testService("b", "10.96.0.2"), s)
	const onA, offA = "cluster IP 10.96.0.1:80/TCP -> 10.244.1.1:8080*", "cluster IP 10.96.0.1:80/TCP -> reject"
	const onB, offB = "cluster IP 10.96.0.2:80/TCP -> 10.244.1.1:8080*", "cluster IP 10.96.0.2:80/TCP -> reject"
	for _, step := range []struct {
		do   func()
		want []string
	}{
		{func() {}, []string{onA, offB}},
		{func() { l.set(testSlice("one", "b", s.Endpoints...)) }, []string{offA, onB}},
		{func() { l.set(testSlice("one", "", s.Endpoints...)) }, []string{offA, offB}},
		{func() { l.set(s) }, []string{onA, offB}},
		{func() { l.remove(s) }, []string{offA, offB}},
	} {
		step.do()
		if got := l.table(); !reflect.DeepEqual(got, step.want) {
			t.Errorf("got  %q\nwant %q", got, step.want)
		}
	}
}

func TestConflict(t *testing.T) {
	lb := testService("a", "10.96.0.9")
	lb.Type, lb.Ingress = model.LoadBalancer, []model.Ingress{{Addr: netip.MustParseAddr("10.96.0.1")}}
	b, c := testService("b", "10.96.0.1"), testService("c", "10.96.0.1")
	l := newLab(c, lb)
	holder := func() string {
		l.Flush()
		all, _ := l.All()
		for _, f := range all {
			if f.Addr == c.ClusterIPs[0] {
				return f.Origin.Name
			}
		}
		return "nobody"
	}
	for _, step := range []struct {
		do    func()
		want  string
		notes []string
	}{
		{func() {}, "c", []string{"Service default/a: status.loadBalancer.ingress: 10.96.0.1:80/TCP is held by Service default/c (cluster IP): not programmed for this service"}},
		{func() { l.set(b) }, "b", []string{
			"Service default/a: status.loadBalancer.ingress: 10.96.0.1:80/TCP is held by Service default/b (cluster IP): not programmed for this service",
			"Service default/c: spec.clusterIPs: 10.96.0.1:80/TCP is held by Service default/b (cluster IP): not programmed for this service"}},
		{func() { l.remove(c) }, "b", []string{"Service default/a: status.loadBalancer.ingress: 10.96.0.1:80/TCP is held by Service default/b (cluster IP): not programmed for this service"}},
		{func() { l.remove(b) }, "a", nil},
		{func() { l.remove(lb) }, "nobody", nil},
	} {
		step.do()
		if got := holder(); got != step.want {
			t.Errorf("held by %s, want %s", got, step.want)
		}
		var notes []string
		for _, n := range l.Notes() {
			notes = append(notes, n.String())
		}
		if !reflect.DeepEqual(notes, step.notes) {
			t.Errorf("notes %q\nwant  %q", notes, step.notes)
		}
	}
}

func TestNotes(t *testing.T) {
	s := testService("web", "10.96.0.1")
	s.Ports = append(s.Ports, model.ServicePort{Name: "https", Protocol: model.TCP, Port: 443})
	s.ExternalIPs = addrs("198.51.100.9", "192.0.2.9")
	s.File, s.Line = "a.yaml", 3
	l := newLab(s)
	l.Flush()
	var fields []string
	for _, n := range l.Notes() {
		fields = append(fields, n.Field)
		if !strings.HasPrefix(n.String(), "Service default/web (a.yaml:3): "+n.Field+": ") {
			t.Errorf("note %q does not name where it comes from", n)
		}
	}
	want := []string{"spec.externalIPs"} // the one that is not allowed, once
	if !reflect.DeepEqual(fields, want) {
		t.Errorf("notes on %q, want %q", fields, want)
	}
	l.remove(s)
	l.Flush()
	if n := l.Notes(); len(n) != 0 {
		t.Errorf("notes of a deleted service: %v", n)
	}
}

// TestOnlyWhatChanged: a change recomputes one service, and what comes out equal is not told.
func TestOnlyWhatChanged(t *testing.T) {
	l := newLab(testService("a", "10.96.0.1"), testService("b", "10.96.0.2"), testNodeObject(testNode, "z1", "10.244.1.0/24"))
	d := l.Flush()
	if len(d.Set) != 2 || d.Net == nil || d.Rev != l.store.Rev() {
		t.Fatalf("first delta %+v", d)
	}
	if l.Dirty() {
		t.Error("dirty after a flush")
	}
	l.set(testSlice("b-1", "b", ep("10.244.1.1", "r", "n1")))
	if jobs := len(l.in.dirty); jobs != 1 || !l.Dirty() {
		t.Errorf("%d services to recompute, want 1", jobs)
	}
	if d = l.Flush(); len(d.Set) != 1 || d.Set[0].Origin.Name != "b" || d.Net != nil {
		t.Errorf("delta %+v, want only b", d)
	}
	l.set(testSlice("b-1", "b", ep("10.244.1.1", "r", "n1"), ep("10.244.1.2", "t", "n1")))
	if d = l.Flush(); !d.Empty() || d.Rev != l.store.Rev() {
		t.Errorf("delta %+v for an endpoint that is not used, want an empty one of revision %d", d, l.store.Rev())
	}
	l.set(testNodeObject("n2", "z2", "10.244.2.0/24"))
	if jobs := len(l.in.dirty); jobs != 0 {
		t.Errorf("another node's change recomputes %d services", jobs)
	}
	if d = l.Flush(); d.Net == nil || len(d.Net.ClusterPods) != 2 || len(d.Net.LocalPods) != 1 {
		t.Errorf("delta %+v, want the new pod CIDR", d)
	}
	l.set(testNodeObject(testNode, "z9", "10.244.1.0/24"))
	if jobs := len(l.in.dirty); jobs != 2 {
		t.Errorf("this node's new zone recomputes %d services, want all 2", jobs)
	}
}

// TestFlushBesideApply is for the race detector: the store writes while another goroutine flushes.
func TestFlushBesideApply(t *testing.T) {
	l := newLab(testService("a", "10.96.0.1"))
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			l.Flush()
			l.All()
			l.Notes()
			select {
			case <-stop:
				return
			default:
			}
		}
	})
	for i := range 300 {
		eps := []model.Endpoint{ep("10.244.1.1", "r", "n1"), ep("10.244.1.2", "r", "n1")}
		l.set(testSlice("a-1", "a", eps[:1+i%2]...))
	}
	close(stop)
	wg.Wait()
	if got, want := l.table(), []string{"cluster IP 10.96.0.1:80/TCP -> 10.244.1.1:8080* 10.244.1.2:8080*"}; !reflect.DeepEqual(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
