package service

import (
	"fmt"
	"slices"
	"testing"

	"github.com/braidnet/braid/internal/model"
)

func udp(s *model.Service) *model.Service {
	s.Ports[0].Protocol = model.UDP
	s.Ports = append(s.Ports, model.ServicePort{Name: "tcp", Protocol: model.TCP, Port: 80})
	return s
}

func udpSlice(s *model.EndpointSlice) *model.EndpointSlice {
	s.Ports[0].Protocol = model.UDP
	return s
}

// serving prints "key: keepers" of each UDP frontend of a service.
func (l lab) serving(svc string) (out []string) {
	l.Flush()
	for _, k := range l.Connectionless(model.Key{Namespace: "default", Name: svc}) {
		keep, exists := l.Serving(k)
		out = append(out, fmt.Sprint(k.Kind, " ", k, ": ", keep, exists))
	}
	return out
}

func TestServingIsWhoMayKeepFlows(t *testing.T) {
	svc := udp(testService("a", "10.96.0.1"))
	svc.Type, svc.InternalLocal, svc.Ports[0].NodePort = model.NodePort, true, 30053
	l := newLab(svc, udpSlice(testSlice("a-1", "a", ep("10.1.0.1", "r", "n1"), ep("10.1.0.2", "r", "n2"), ep("10.1.0.3", "st", "n1"), ep("10.1.0.4", "t", "n1"), ep("10.1.0.5", "", "n1"))))
	const keep = "[10.1.0.1:8080 10.1.0.2:8080 10.1.0.3:8080] true"
	if got, want := l.serving("a"), []string{"cluster IP 10.96.0.1:80/UDP: " + keep, "node port 0.0.0.0:30053/UDP: " + keep}; !slices.Equal(got, want) {
		t.Errorf("got %q\nwant %q", got, want)
	}
	key := l.Connectionless(svc.Key)[0]
	l.remove(svc)
	if _, exists := l.Serving(key); !exists {
		t.Error("before the next Flush the frontend is in force still")
	}
	l.Flush()
	if keep, exists := l.Serving(key); exists || len(keep) > 0 || len(l.Connectionless(svc.Key)) > 0 {
		t.Errorf("a service that is gone: %v %v", keep, exists)
	}
}

// An address that two services claim is the winner's, whoever asks.
func TestServingOfAContestedAddress(t *testing.T) {
	a, b := udp(testService("a", "10.96.0.1")), udp(testService("b", "10.96.0.2"))
	b.Type = model.LoadBalancer
	b.Ingress = []model.Ingress{{Addr: a.ClusterIPs[0]}}
	l := newLab(a, b, udpSlice(testSlice("a-1", "a", ep("10.1.0.1", "r", "n1"))), udpSlice(testSlice("b-1", "b", ep("10.1.0.2", "r", "n1"))))
	want := []string{"cluster IP 10.96.0.2:80/UDP: [10.1.0.2:8080] true", "cluster IP 10.96.0.1:80/UDP: [10.1.0.1:8080] true"}
	if got := l.serving("b"); !slices.Equal(got, want) {
		t.Errorf("got %q\nwant %q", got, want)
	}
	l.remove(a)
	want[1] = "cluster IP 10.96.0.1:80/UDP: [10.1.0.2:8080] true"
	if got := l.serving("b"); !slices.Equal(got, want) {
		t.Errorf("after the winner left: %q\nwant %q", got, want)
	}
}

func TestHealthCheckFamilies(t *testing.T) {
	svc := testService("a", "10.96.0.1")
	svc.Type, svc.ExternalLocal, svc.HealthCheckNodePort = model.LoadBalancer, true, 30500
	six := testSlice("a-6", "a", ep("fd00::1", "r", "n1"))
	six.IPv6 = true
	empty := testSlice("a-0", "a", ep("10.1.0.9", "r", "n1"))
	empty.Ports = nil // without ports there are no endpoints
	l := newLab(svc, six, empty, testSlice("a-1", "a", ep("10.1.0.1", "r", "n1"), ep("10.1.0.2", "r", "n2"), ep("10.1.0.3", "r", ""), ep("10.1.0.4", "st", "n1")))
	got, ok := l.HealthCheck(svc.Key)
	if want := "{30500 map[IPv4:1]} true"; fmt.Sprint(got, ok) != want {
		t.Errorf("got %v %v, want %s", got, ok, want)
	}
}

// TestHealthPorts: the ports of health checks are told with the addresses, as Services that ask for some come and go.
func TestHealthPorts(t *testing.T) {
	svc := testService("a", "10.96.0.1")
	svc.Type, svc.ExternalLocal, svc.HealthCheckNodePort = model.LoadBalancer, true, 30500
	l := newLab(svc, testService("b", "10.96.0.2"))
	if d := l.Flush(); d.Net == nil || len(d.Net.HealthPorts) != 1 || d.Net.HealthPorts[0] != 30500 {
		t.Errorf("%+v, want port 30500", d.Net)
	}
	other := *svc
	other.ClusterIPs = addrs("10.96.0.3")
	l.set(&other)
	if d := l.Flush(); d.Net != nil {
		t.Errorf("another cluster IP is no news of addresses: %+v", d.Net)
	}
	cluster := *svc
	cluster.ExternalLocal = false
	l.set(&cluster)
	if d := l.Flush(); d.Net == nil || len(d.Net.HealthPorts) != 0 {
		t.Errorf("%+v, want no ports", d.Net)
	}
}
