package tour

import (
	"bytes"
	"context"
	"net/netip"
	"strings"
	"testing"

	"github.com/braidnet/braid/internal/model"
)

func ref(k model.Kind, name string) model.Origin {
	return model.Origin{Ref: model.Ref{Kind: k, Key: model.Key{Namespace: "shop", Name: name}}}
}

func pod(name, node, ip string) *model.Pod {
	return &model.Pod{Origin: ref(model.KindPod, name), Node: node, Phase: model.PhaseRunning,
		IPs: []netip.Addr{netip.MustParseAddr(ip)}, Ports: []model.ContainerPort{{Protocol: model.TCP, Port: 80}}}
}

// smallCluster has one service over two pods, one without endpoints, and an ExternalName.
func smallCluster() *model.Store {
	s := model.NewStore()
	slice := &model.EndpointSlice{Origin: ref(model.KindEndpointSlice, "web-1"), Service: model.Key{Namespace: "shop", Name: "web"},
		Ports: []model.EndpointPort{{Name: "http", Protocol: model.TCP, Port: 80}}}
	for _, p := range []struct{ name, ip string }{{"web-a", "10.244.1.2"}, {"web-b", "10.244.2.2"}} {
		slice.Endpoints = append(slice.Endpoints, model.Endpoint{Addrs: []netip.Addr{netip.MustParseAddr(p.ip)}, Ready: true,
			Target: model.Ref{Kind: model.KindPod, Key: model.Key{Namespace: "shop", Name: p.name}}})
	}
	for name, ip := range map[string]string{"n1": "192.168.77.11", "n2": "192.168.77.12"} {
		s.Apply([]model.Update{model.Set(&model.Node{Origin: model.Origin{Ref: model.Ref{Kind: model.KindNode, Key: model.Key{Name: name}}},
			InternalIPs: []netip.Addr{netip.MustParseAddr(ip)}})})
	}
	s.Apply([]model.Update{model.Set(slice),
		model.Set(pod("web-a", "n1", "10.244.1.2")), model.Set(pod("web-b", "n2", "10.244.2.2")),
		model.Set(&model.Service{Origin: ref(model.KindService, "web"), ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.5")},
			Ports: []model.ServicePort{{Name: "http", Protocol: model.TCP, Port: 8080}}, Type: model.LoadBalancer,
			Ingress: []model.Ingress{{Addr: netip.MustParseAddr("198.51.100.7")}, {Addr: netip.MustParseAddr("192.0.2.7")},
				{Addr: netip.MustParseAddr("192.0.2.8"), Proxy: true}, {Hostname: "balancer.example"}}}),
		model.Set(&model.Service{Origin: ref(model.KindService, "void"), Type: model.ClusterIP, ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.6")},
			Ports: []model.ServicePort{{Protocol: model.TCP, Port: 80}}}),
		model.Set(&model.Service{Origin: ref(model.KindService, "ext"), Type: model.ExternalName, ExternalName: "outside.example"}),
	})
	return s
}

// right answers every question about smallCluster as a working network would.
func right() func(target, cmd string) Answer {
	turn := 0
	return func(target, cmd string) Answer {
		client := map[string]string{"shop/web-a": "10.244.1.2", "shop/web-b": "10.244.2.2", "outside": "192.168.77.1"}[target]
		switch {
		case strings.HasPrefix(cmd, "dig"):
			for q, a := range map[string]string{
				"web.shop.svc.cluster.local A": "10.96.0.5", "-x 10.96.0.5": "web.shop.svc.cluster.local.",
				"_http._tcp.web.shop.svc.cluster.local SRV": "0 100 8080 web.shop.svc.cluster.local.",
				"void.shop.svc.cluster.local A":             "10.96.0.6", "-x 10.96.0.6": "void.shop.svc.cluster.local.",
				"ext.shop.svc.cluster.local CNAME": "outside.example.", "outside.example A": "203.0.113.10",
				"10-244-1-2.shop.pod.cluster.local A": "10.244.1.2", "10-244-2-2.shop.pod.cluster.local A": "10.244.2.2",
				"ext.shop.svc.cluster.local A": "outside.example.\n203.0.113.10",
				"+search void A":               "10.96.0.6", "+search web A": "10.96.0.5",
			} {
				if strings.HasSuffix(cmd, " "+q) {
					return Answer{Out: a}
				}
			}
			return Answer{}
		case strings.HasPrefix(cmd, "sh -c dig no-such"):
			return Answer{Out: "NXDOMAIN"}
		case strings.HasSuffix(cmd, "ahosts $(hostname)"):
			return Answer{Out: client + "   STREAM x\n" + client + "   DGRAM"}
		case cmd == "getent ahosts void.shop":
			return Answer{Out: "10.96.0.6   STREAM void.shop.svc.cluster.local"}
		case strings.Contains(cmd, "void"):
			return Answer{Out: "curl: (7) refused", Code: 7}
		case strings.Contains(cmd, "203.0.113.10"):
			return Answer{Out: "client: " + map[string]string{"shop/web-a": "192.168.77.11", "shop/web-b": "192.168.77.12"}[target] + ":4711"}
		case strings.Contains(cmd, "10.244.1.2"):
			return Answer{Out: "pod: web-a\nclient: " + client + ":4711"}
		}
		turn++
		return Answer{Out: "pod: " + []string{"web-a", "web-b"}[turn%2] + "\nclient: " + client + ":4711"}
	}
}

func tourOf(t *testing.T, exec func(target, cmd string) Answer) (wrong int, text string) {
	t.Helper()
	var out bytes.Buffer
	asked, wrong, err := Run(context.Background(), Config{Store: smallCluster(), Out: &out,
		Outside: Outside{Name: "outside.example", Addrs: []string{"203.0.113.10"},
			Balancers: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}},
		Exec: func(_ context.Context, target string, argv ...string) Answer {
			return exec(target, strings.Join(argv, " "))
		}})
	if err != nil || asked < 10 {
		t.Fatalf("asked %d, %v", asked, err)
	}
	return wrong, out.String()
}

func TestTourAcceptsTheRightAnswers(t *testing.T) {
	wrong, text := tourOf(t, right())
	if wrong != 0 {
		t.Errorf("%d wrong:\n%s", wrong, text)
	}
	if strings.Contains(text, "192.0.2.8") {
		t.Errorf("an address that only a proxy serves was asked:\n%s", text)
	}
}

// Each way of being wrong must be seen, by exactly the question it concerns.
func TestTourSeesWrongAnswers(t *testing.T) {
	for name, broken := range map[string]struct {
		cmd    string // part of the question
		answer Answer
		count  int
	}{
		"wrong address":          {"dig +short +tries=2 +timeout=2 web.shop.svc.cluster.local A", Answer{Out: "10.96.0.9"}, 1},
		"no record":              {"-x 10.96.0.5", Answer{}, 1},
		"dig failed":             {"_http._tcp.web.shop", Answer{Out: "0 100 8080 web.shop.svc.cluster.local.", Code: 9}, 1},
		"timeout for refusal":    {"http://void.shop", Answer{Out: "curl: (28) timed out", Code: 28}, 1},
		"foreign backend":        {"http://web.shop", Answer{Out: "pod: stranger\nclient: 10.244.1.2:1"}, 1},
		"only one backend":       {"http://web.shop", Answer{Out: "pod: web-a\nclient: 10.244.1.2:1"}, 1},
		"source address changed": {"http://web.shop", Answer{Out: "pod: web-b\nclient: 10.244.1.1:1"}, 1},
		"alias not followed":     {"ext.shop.svc.cluster.local A", Answer{Out: "outside.example."}, 1},
		"own name elsewhere":     {"$(hostname)", Answer{Out: "127.0.1.1   STREAM x"}, 1},
		"library sees no name":   {"getent ahosts void.shop", Answer{Code: 2}, 1},
		"balancer drops":         {"http://198.51.100.7", Answer{Out: "curl: (28) timed out", Code: 28}, 2}, // from a pod and from outside
		"balancer out of sight":  {"http://192.0.2.7", Answer{Out: "curl: (28) timed out", Code: 28}, 1},
		"pods see NAT":           {"http://10.244.1.2", Answer{Out: "pod: web-a\nclient: 192.168.77.11:1"}, 1},
		"not masqueraded":        {"http://203.0.113.10", Answer{Out: "client: 10.244.1.2:1"}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			good, hit := right(), 0
			wrong, text := tourOf(t, func(target, cmd string) Answer {
				if strings.Contains(cmd, broken.cmd) {
					hit++
					return broken.answer
				}
				return good(target, cmd)
			})
			if hit == 0 {
				t.Fatalf("nobody asked %q:\n%s", broken.cmd, text)
			}
			if wrong != broken.count {
				t.Errorf("%d wrong, want %d:\n%s", wrong, broken.count, text)
			}
		})
	}
}
