package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/braidnet/braid/internal/kernel/netns/nstest"
	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/netagent/service"
)

// portsLab runs health check ports in a namespace of their own.
type portsLab struct {
	*nstest.NS
	*healthPorts
	store   *model.Store
	healthy atomic.Bool
	notes   string
}

func newPortsLab(t *testing.T) *portsLab { return newPortsLabAt(t, service.Config{Node: "n1"}) }

func newPortsLabAt(t *testing.T, c service.Config) *portsLab {
	t.Helper()
	l := &portsLab{NS: nstest.New(t), store: model.NewStore()}
	p := service.NewPlanner(c)
	p.Flush()
	l.healthPorts = newHealthPorts(p, l.healthy.Load, slog.New(slog.DiscardHandler))
	l.healthy.Store(true)
	l.store.Subscribe(func(rev uint64, changes []model.Change) { p.Apply(rev, changes); l.note(changes) })
	t.Cleanup(l.healthPorts.close)
	return l
}

// apply changes the cluster and opens and closes ports.
func (l *portsLab) apply(t *testing.T, u ...model.Update) {
	t.Helper()
	l.store.Apply(u)
	l.again(t)
}

func (l *portsLab) again(t *testing.T) {
	t.Helper()
	l.Run(t, func() error {
		out, err := l.step(t.Context())
		l.notes = strings.Join(out.Notes, "\n")
		return err
	})
}

// probe asks as a load balancer does and returns "code weight body", or the error.
func (l *portsLab) probe(t *testing.T, addr string) string {
	t.Helper()
	var c net.Conn
	if err := l.Do(func() (err error) { c, err = net.Dial("tcp", addr); return err }); err != nil {
		return err.Error()
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(context.Context, string, string) (net.Conn, error) { return c, nil }}}
	r, err := client.Get("http://node/any/path?at=all")
	if err != nil {
		return err.Error()
	}
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	if h := r.Header; h.Get("Content-Type") != "application/json" || h.Get("X-Content-Type-Options") != "nosniff" {
		t.Errorf("headers %v", h)
	}
	var parsed struct {
		Service             struct{ Namespace, Name string }
		LocalEndpoints      int
		ServiceProxyHealthy bool
	}
	if err := json.Unmarshal(body, &parsed); err != nil {
		t.Fatalf("%v in %s", err, body)
	}
	return fmt.Sprintf("%d weight %s %s/%s %d %v", r.StatusCode, r.Header.Get("X-Load-Balancing-Endpoint-Weight"),
		parsed.Service.Namespace, parsed.Service.Name, parsed.LocalEndpoints, parsed.ServiceProxyHealthy)
}

func (l *portsLab) want(t *testing.T, addr, want string) {
	t.Helper()
	if got := l.probe(t, addr); !strings.Contains(got, want) {
		t.Errorf("%s: %s, want %s", addr, got, want)
	}
}

func portsObject(kind model.Kind, name string) model.Origin {
	return model.Origin{Ref: model.Ref{Kind: kind, Key: model.Key{Namespace: "shop", Name: name}}}
}

func balanced(name string, port uint16) *model.Service {
	return &model.Service{Origin: portsObject(model.KindService, name), Type: model.LoadBalancer, ExternalLocal: true, HealthCheckNodePort: port,
		ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.1"), netip.MustParseAddr("fd00:96::1")},
		Ports:      []model.ServicePort{{Name: "a", Protocol: model.TCP, Port: 80}}}
}

func portsSlice(name, svc string, ipv6 bool, eps ...model.Endpoint) *model.EndpointSlice {
	return &model.EndpointSlice{Origin: portsObject(model.KindEndpointSlice, name), Service: model.Key{Namespace: "shop", Name: svc}, IPv6: ipv6,
		Ports: []model.EndpointPort{{Name: "a", Protocol: model.TCP, Port: 8080}, {Name: "b", Protocol: model.TCP, Port: 8081}}, Endpoints: eps}
}

func endpointAt(addr, node string, ready bool) model.Endpoint {
	return model.Endpoint{Addrs: []netip.Addr{netip.MustParseAddr(addr)}, Node: node, Ready: ready, Serving: true, Terminating: !ready}
}

const (
	probe4, probe6 = "127.0.0.1:30500", "[::1]:30500"
	refused        = "connection refused"
)

func TestHealthCheckPortCountsReadyEndpointsHere(t *testing.T) {
	l := newPortsLab(t)
	l.apply(t, model.Set(balanced("web", 30500)))
	l.want(t, probe4, "503 weight 0 shop/web 0 true")
	l.apply(t, model.Set(portsSlice("web-1", "web", false, endpointAt("10.244.1.1", "n1", true), endpointAt("10.244.2.1", "n2", true), endpointAt("10.244.1.9", "n1", false))),
		model.Set(portsSlice("web-2", "web", false, endpointAt("10.244.1.1", "n1", true), endpointAt("10.244.1.2", "n1", true))),
		model.Set(portsSlice("web-3", "web", true, endpointAt("fd00:244::1", "n1", true))))
	l.want(t, probe4, "200 weight 2 shop/web 2 true")
	l.want(t, probe6, "200 weight 1 shop/web 1 true")
	l.healthy.Store(false)
	l.want(t, probe4, "503 weight 2 shop/web 2 false")
	l.healthy.Store(true)
	l.apply(t, model.Set(portsSlice("web-1", "web", false, endpointAt("10.244.1.1", "n1", false), endpointAt("10.244.2.1", "n2", true))), model.Delete(portsSlice("web-2", "web", false).Ref))
	l.want(t, probe4, "503 weight 0 shop/web 0 true") // only a terminating one is left here
	l.want(t, probe6, "200 weight 1")
}

func TestHealthCheckPortFollowsItsService(t *testing.T) {
	l := newPortsLab(t)
	for what, change := range map[string]func(*model.Service){
		"policy Cluster":    func(s *model.Service) { s.ExternalLocal = false },
		"no load balancer":  func(s *model.Service) { s.Type = model.NodePort },
		"no port":           func(s *model.Service) { s.HealthCheckNodePort = 0 },
		"of another proxy":  func(s *model.Service) { s.Labels = map[string]string{"service.kubernetes.io/service-proxy-name": "x"} },
		"of one family now": func(s *model.Service) { s.ClusterIPs = s.ClusterIPs[1:] },
	} {
		l.apply(t, model.Set(balanced("web", 30500)))
		l.want(t, probe4, "503 weight 0 shop/web")
		s := balanced("web", 30500)
		change(s)
		l.apply(t, model.Set(s))
		if got := l.probe(t, probe4); !strings.Contains(got, refused) {
			t.Errorf("%s: %s, want a closed port", what, got)
		}
	}
	l.apply(t, model.Set(balanced("web", 30501)))
	l.want(t, probe4, refused)
	l.want(t, "127.0.0.1:30501", "503 weight 0 shop/web")
	// One batch gives the port to another service.
	l.apply(t, model.Set(balanced("web", 30502)), model.Set(balanced("api", 30501)))
	l.want(t, "127.0.0.1:30501", "shop/api")
	l.want(t, "127.0.0.1:30502", "shop/web")
	l.apply(t, model.Delete(balanced("web", 0).Ref), model.Delete(balanced("api", 0).Ref))
	for _, a := range []string{"127.0.0.1:30501", "127.0.0.1:30502", "[::1]:30501"} {
		l.want(t, a, refused)
	}
}

func TestHealthCheckPortInUseIsNotedAndTriedAgain(t *testing.T) {
	l := newPortsLab(t)
	var other net.Listener
	l.Run(t, func() (err error) { other, err = net.Listen("tcp4", ":30500"); return err })
	l.apply(t, model.Set(balanced("web", 30500)))
	if want := "Service shop/web: spec.healthCheckNodePort 30500 (IPv4) is not answered: another program on this node has it"; l.notes != want {
		t.Errorf("notes %q, want %q", l.notes, want)
	}
	l.want(t, probe6, "503 weight 0 shop/web")
	other.Close()
	l.again(t)
	l.want(t, probe4, "503 weight 0 shop/web")
	if l.notes != "" {
		t.Errorf("notes %q after all is well", l.notes)
	}
}

func TestHealthCheckPortIsServedWhereNodePortsAre(t *testing.T) {
	l := newPortsLabAt(t, service.Config{Node: "n1", NodePortAddresses: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}})
	l.Exec(t, "ip", "addr", "add", "192.0.2.7/24", "dev", "lo")
	l.Exec(t, "ip", "addr", "add", "198.51.100.7/24", "dev", "lo")
	l.apply(t, model.Set(balanced("web", 30500)))
	l.want(t, "192.0.2.7:30500", "503 weight 0 shop/web")
	l.want(t, "198.51.100.7:30500", "EOF")
}
