package agent

import (
	"errors"
	"log/slog"
	"net/netip"
	"strings"
	"syscall"
	"testing"

	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/netagent/service"
)

// testedPlanes are the service modes. Two of them may never disagree, so the scenario below runs on
// each; it asks packets and knows nothing of how a mode writes its rules.
var testedPlanes = map[string]func(*slog.Logger) (service.Dataplane, error){
	"iptables": newIPTables,
	"nftables": newNFTables,
}

// Addresses of the scenario, per family. The client is outside of the cluster; pod1 runs on the node
// under test, pod2 on another node that is reached through it.
type dpAddrs struct {
	family                         string
	client, node, pod1, pod2       netip.Addr
	podGW1, podGW2                 netip.Addr
	loopback, any                  netip.Addr
	web, none, dropped, udp, moved netip.Addr // cluster IPs
	localPods, otherPods           netip.Prefix
}

var dpFamilies = []dpAddrs{
	newDPAddrs("IPv4", "192.0.2.", "10.244.1.", "10.244.2.", "10.96.0.", 24, "127.0.0.1", "0.0.0.0"),
	newDPAddrs("IPv6", "2001:db8::", "fd00:10:244:1::", "fd00:10:244:2::", "fd00:10:96::", 64, "::1", "::"),
}

func newDPAddrs(family, lan, pods1, pods2, vip string, bits int, loopback, unspecified string) dpAddrs {
	a := netip.MustParseAddr
	return dpAddrs{
		family: family, client: a(lan + "2"), node: a(lan + "1"),
		pod1: a(pods1 + "11"), pod2: a(pods2 + "12"), podGW1: a(pods1 + "1"), podGW2: a(pods2 + "1"),
		loopback: a(loopback), any: a(unspecified),
		web: a(vip + "10"), none: a(vip + "11"), dropped: a(vip + "12"), udp: a(vip + "13"), moved: a(vip + "14"),
		localPods: netip.PrefixFrom(a(pods1+"1"), bits).Masked(), otherPods: netip.PrefixFrom(a(pods2+"1"), bits).Masked(),
	}
}

const (
	dpPort     = 80    // service port
	dpTarget   = 8080  // where the pods listen
	dpNodePort = 30080 // of web
	dpEmptyNP  = 30081 // of none
)

func dpOrigin(name string) model.Origin {
	return model.Origin{Ref: model.Ref{Kind: model.KindService, Key: model.Key{Namespace: "default", Name: name}}}
}

// frontend makes a frontend with the masquerading that its kind has.
func dpFrontend(name string, kind service.Kind, proto model.Protocol, addr netip.Addr, port uint16, backends ...service.Backend) service.Frontend {
	f := service.Frontend{
		Key:    service.Key{Kind: kind, Protocol: proto, Addr: addr, Port: port},
		Origin: dpOrigin(name), PortName: "p", Backends: backends, Masquerade: service.MasqueradeAll,
	}
	if kind == service.ClusterIP {
		f.Masquerade = service.MasqueradeForeign
	}
	if len(backends) == 0 {
		f.Why = "no endpoints"
	}
	return f
}

func (a *dpAddrs) backend1() service.Backend {
	return service.Backend{AddrPort: netip.AddrPortFrom(a.pod1, dpTarget), Local: true}
}

func (a *dpAddrs) backend2() service.Backend {
	return service.Backend{AddrPort: netip.AddrPortFrom(a.pod2, dpTarget)}
}

func (a *dpAddrs) both() []service.Backend { return []service.Backend{a.backend1(), a.backend2()} }

// dpState is the table that the scenario starts from, both families.
func dpState() (all []service.Frontend, net service.Net) {
	for i := range dpFamilies {
		a := &dpFamilies[i]
		drop := dpFrontend("dropped", service.ClusterIP, model.TCP, a.dropped, dpPort)
		drop.Empty = service.Drop
		all = append(all,
			dpFrontend("web", service.ClusterIP, model.TCP, a.web, dpPort, a.both()...),
			dpFrontend("web", service.NodePort, model.TCP, a.any, dpNodePort, a.both()...),
			dpFrontend("none", service.ClusterIP, model.TCP, a.none, dpPort),
			dpFrontend("none", service.ClusterIP, model.UDP, a.none, dpPort),
			dpFrontend("none", service.NodePort, model.TCP, a.any, dpEmptyNP),
			dpFrontend("udp", service.ClusterIP, model.UDP, a.udp, dpPort, a.both()...),
			drop,
		)
		net.LocalPods = append(net.LocalPods, a.localPods)
		net.ClusterPods = append(net.ClusterPods, a.localPods, a.otherPods)
		net.NodePorts = append(net.NodePorts, netip.PrefixFrom(a.any, 0))
	}
	return all, net
}

// TestDataplanes is the scenario that every service mode must pass.
func TestDataplanes(t *testing.T) {
	for name, construct := range testedPlanes {
		t.Run(name, func(t *testing.T) { runDataplaneScenario(t, construct) })
	}
}

func runDataplaneScenario(t *testing.T, construct func(*slog.Logger) (service.Dataplane, error)) {
	l := newDPLab(t)
	l.foreignRules(t)
	dp := l.construct(t, construct)

	all, net := dpState()
	l.must(t, "Replace", func() error { return dp.Replace(all, net) })
	for i := range dpFamilies {
		a := &dpFamilies[i]
		t.Run(a.family, func(t *testing.T) {
			t.Run("balance", func(t *testing.T) { l.checkBalance(t, a) })
			t.Run("sources", func(t *testing.T) { l.checkSources(t, a) })
			t.Run("refuse", func(t *testing.T) { l.checkRefuse(t, a) })
			t.Run("udp", func(t *testing.T) { l.checkUDP(t, a) })
		})
	}

	t.Run("replace again writes nothing", func(t *testing.T) {
		before := l.rules(t)
		l.must(t, "Replace", func() error { return dp.Replace(all, net) })
		restarted := l.construct(t, construct)
		l.must(t, "Replace after a restart", func() error { return restarted.Replace(all, net) })
		if after := l.rules(t); after != before {
			t.Errorf("rules were written though nothing changed\n--- before\n%s\n--- after\n%s", before, after)
		}
		dp = restarted
	})
	for i := range dpFamilies {
		a := &dpFamilies[i]
		t.Run("changes "+a.family, func(t *testing.T) { l.checkChanges(t, dp, a) })
	}
	t.Run("leftovers", func(t *testing.T) { l.checkLeftovers(t, l.construct(t, construct), all, net) })
	t.Run("repair", func(t *testing.T) { l.checkRepair(t, l.construct(t, construct), all, net) })
	t.Run("cleanup", func(t *testing.T) { l.checkCleanup(t, dp, all, net) })
}

// checkBalance: both backends answer through cluster IP and node port, from outside, from a pod and
// from the node itself.
func (l *dpLab) checkBalance(t *testing.T, a *dpAddrs) {
	vip, np := netip.AddrPortFrom(a.web, dpPort), netip.AddrPortFrom(a.node, dpNodePort)
	l.wantNames(t, l.client, vip, "pod1", "pod2")
	l.wantNames(t, l.client, np, "pod1", "pod2")
	l.wantNames(t, l.pod1, vip, "pod1", "pod2")
	l.wantNames(t, l.pod1, np, "pod1", "pod2")
	l.wantNames(t, l.node, vip, "pod1", "pod2")
	l.wantNames(t, l.node, np, "pod1", "pod2")
}

// checkSources: what address a backend sees.
func (l *dpLab) checkSources(t *testing.T, a *dpAddrs) {
	vip, np := netip.AddrPortFrom(a.web, dpPort), netip.AddrPortFrom(a.node, dpNodePort)
	gateways := map[string]netip.Addr{"pod1": a.podGW1, "pod2": a.podGW2}
	for range dpTries {
		for _, to := range []netip.AddrPort{vip, np} {
			if r := l.ask(t, l.client, to); r.client != gateways[r.name] {
				t.Fatalf("%s asked %s: %s saw %s, want the node's address %s (masqueraded)", a.client, to, r.name, r.client, gateways[r.name])
			}
		}
		want := map[string]netip.Addr{
			"pod1": a.podGW1, // hairpin: the answer must come back through the node
			"pod2": a.pod1,   // pods see each other's real address through a cluster IP
		}
		if r := l.ask(t, l.pod1, vip); r.client != want[r.name] {
			t.Fatalf("pod1 asked %s: %s saw %s, want %s", vip, r.name, r.client, want[r.name])
		}
	}
}

// checkRefuse: no endpoints is answered at once, a traffic policy that forbids all is not answered,
// and a node port is none on a loopback address.
func (l *dpLab) checkRefuse(t *testing.T, a *dpAddrs) {
	for _, tc := range []struct {
		who  string
		from *dpHost
		to   netip.AddrPort
	}{
		{"client", l.client, netip.AddrPortFrom(a.none, dpPort)},
		{"pod1", l.pod1, netip.AddrPortFrom(a.none, dpPort)},
		{"node", l.node, netip.AddrPortFrom(a.none, dpPort)},
		{"client", l.client, netip.AddrPortFrom(a.node, dpEmptyNP)},
		{"node", l.node, netip.AddrPortFrom(a.loopback, dpNodePort)},
	} {
		if _, err := tc.from.get(tc.to); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("%s asked %s: error %v, want connection refused", tc.who, tc.to, err)
		}
	}
	if _, err := l.client.datagram(netip.AddrPortFrom(a.none, dpPort)); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("UDP without endpoints: error %v, want connection refused", err)
	}
	for who, from := range map[string]*dpHost{"client": l.client, "node": l.node} {
		if _, err := from.exchange("tcp", netip.AddrPortFrom(a.dropped, dpPort), silence); !isTimeout(err) {
			t.Errorf("%s asked a dropped frontend: error %v, want silence", who, err)
		}
	}
}

func (l *dpLab) checkUDP(t *testing.T, a *dpAddrs) {
	seen := map[string]bool{}
	for range dpTries {
		r, err := l.client.datagram(netip.AddrPortFrom(a.udp, dpPort))
		if err != nil {
			t.Fatal(err)
		}
		seen[r.name] = true
	}
	if !seen["pod1"] || !seen["pod2"] {
		t.Errorf("UDP reached %v, want both pods", seen)
	}
}

// checkChanges: deltas as they come while a service lives.
func (l *dpLab) checkChanges(t *testing.T, dp service.Dataplane, a *dpAddrs) {
	vip, np := netip.AddrPortFrom(a.web, dpPort), netip.AddrPortFrom(a.node, dpNodePort)
	web := func(b ...service.Backend) []service.Frontend {
		return []service.Frontend{
			dpFrontend("web", service.ClusterIP, model.TCP, a.web, dpPort, b...),
			dpFrontend("web", service.NodePort, model.TCP, a.any, dpNodePort, b...),
		}
	}
	apply := func(d service.Delta) { l.must(t, "Apply", func() error { return dp.Apply(d) }) }

	apply(service.Delta{Set: web(a.backend2())})
	l.wantNames(t, l.client, vip, "pod2")
	l.wantNames(t, l.client, np, "pod2")
	apply(service.Delta{Set: web()})
	for _, to := range []netip.AddrPort{vip, np} {
		if _, err := l.client.get(to); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("%s after its last endpoint left: error %v, want connection refused", to, err)
		}
	}
	apply(service.Delta{Set: web(a.both()...)})
	l.wantNames(t, l.client, vip, "pod1", "pod2")
	l.wantNames(t, l.client, np, "pod1", "pod2")

	// An address passes from one kind of frontend, and one service, to another within one delta.
	cluster := dpFrontend("moved", service.ClusterIP, model.TCP, a.moved, dpPort, a.backend1())
	lb := dpFrontend("taker", service.LoadBalancerIP, model.TCP, a.moved, dpPort, a.backend2())
	moved := netip.AddrPortFrom(a.moved, dpPort)
	apply(service.Delta{Set: []service.Frontend{cluster}})
	l.wantNames(t, l.client, moved, "pod1")
	apply(service.Delta{Delete: []service.Key{cluster.Key}, Set: []service.Frontend{lb}})
	l.wantNames(t, l.client, moved, "pod2")
	if r := l.ask(t, l.pod1, moved); r.client != a.podGW2 {
		t.Errorf("pod1 asked a load balancer address: pod2 saw %s, want the node's %s", r.client, a.podGW2)
	}
	apply(service.Delta{Delete: []service.Key{lb.Key}})
	if rules := l.rules(t); strings.Contains(rules, a.moved.String()) {
		t.Errorf("rules still name %s after its frontend was deleted", a.moved)
	}
}
