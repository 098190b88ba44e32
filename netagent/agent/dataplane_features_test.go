package agent

import (
	"errors"
	"net/netip"
	"slices"
	"syscall"
	"testing"

	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/netagent/service"
)

// featurePlane is a lab whose node already runs the frontends of dpState; the checks of features
// know nothing of how a mode writes its rules.
type featurePlane struct {
	*dpLab
	dp  service.Dataplane
	net service.Net
}

func newFeaturePlane(t *testing.T, mode string) *featurePlane {
	t.Helper()
	f := &featurePlane{dpLab: newDPLab(t)}
	f.dp = f.construct(t, testedPlanes[mode])
	all, net := dpState()
	f.net = net
	f.must(t, "Replace", func() error { return f.dp.Replace(all, net) })
	return f
}

func (f *featurePlane) apply(t *testing.T, d service.Delta) {
	t.Helper()
	f.must(t, "Apply", func() error { return f.dp.Apply(d) })
}

func (f *featurePlane) set(t *testing.T, fronts ...service.Frontend) {
	t.Helper()
	f.apply(t, service.Delta{Set: fronts})
}

// wantSilence wants no answer, wantRefused an immediate one.
func (f *featurePlane) wantSilence(t *testing.T, from *dpHost, to netip.AddrPort) {
	t.Helper()
	if r, err := from.exchange("tcp", to, silence); !isTimeout(err) {
		t.Errorf("%s asked %s: answer %v, error %v, want silence", from.name, to, r, err)
	}
}

func (f *featurePlane) wantRefused(t *testing.T, network string, from *dpHost, to netip.AddrPort) {
	t.Helper()
	if r, err := from.exchange(network, to, patience); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("%s asked %s/%s: answer %v, error %v, want connection refused", from.name, to, network, r, err)
	}
}

// wantSources asks until every backend has told whom it saw.
func (f *featurePlane) wantSources(t *testing.T, from *dpHost, to netip.AddrPort, want map[string]netip.Addr) {
	t.Helper()
	var names []string
	for name := range want {
		names = append(names, name)
	}
	slices.Sort(names)
	f.wantNames(t, from, to, names...)
	for range dpTries {
		if r := f.ask(t, from, to); r.client != want[r.name] {
			t.Fatalf("%s asked %s: %s saw %s, want %s", from.name, to, r.name, r.client, want[r.name])
		}
	}
}

// wantMasqueraded asks as the node, from the address that clients outside know.
func (f *featurePlane) wantMasqueraded(t *testing.T, a *dpAddrs, to netip.AddrPort, want map[string]netip.Addr) {
	t.Helper()
	for range dpTries {
		r, err := f.node.getAs(a.node, to)
		if err != nil || r.client != want[r.name] {
			t.Fatalf("%s of the node asked %s: %s saw %s, want one of %v; error %v", a.node, to, r.name, r.client, want, err)
		}
	}
}

// TestFeatures checks what Frontend and Net say beyond balancing, packet by packet.
func TestFeatures(t *testing.T) {
	f := newFeaturePlane(t, "nftables")
	for i := range dpFamilies {
		a := &dpFamilies[i]
		t.Run(a.family, func(t *testing.T) {
			t.Run("external traffic local", func(t *testing.T) { f.checkExternalLocal(t, a) })
			t.Run("source ranges", func(t *testing.T) { f.checkSourceRanges(t, a) })
			t.Run("node port addresses", func(t *testing.T) { f.checkNodePortAddresses(t, a) })
			t.Run("service ranges", func(t *testing.T) { f.checkServiceRanges(t, a) })
		})
	}
}

// checkExternalLocal: externalTrafficPolicy Local keeps the address of clients outside and keeps them on this
// node; pods and the node are served by all.
func (f *featurePlane) checkExternalLocal(t *testing.T, a *dpAddrs) {
	const port = dpNodePort + 5
	both := func(local, everywhere []service.Backend) []service.Frontend {
		lb := dpFrontend("local", service.LoadBalancerIP, model.TCP, a.moved, dpPort, local...)
		lb.Masquerade, lb.Inside = service.MasqueradeNone, everywhere
		if len(everywhere) > 0 {
			lb.Empty = service.Drop
		}
		np := lb
		np.Key = service.Key{Kind: service.NodePort, Protocol: model.TCP, Addr: a.any, Port: port}
		return []service.Frontend{lb, np}
	}
	targets := []netip.AddrPort{netip.AddrPortFrom(a.moved, dpPort), netip.AddrPortFrom(a.node, port)}

	f.set(t, both([]service.Backend{a.backend1()}, a.both())...)
	for _, to := range targets {
		f.wantSources(t, f.client, to, map[string]netip.Addr{"pod1": a.client})
		f.wantSources(t, f.pod2, to, map[string]netip.Addr{"pod1": a.pod2}) // a pod of another node is outside
		f.wantSources(t, f.pod1, to, map[string]netip.Addr{"pod1": a.podGW1, "pod2": a.pod1})
		f.wantNames(t, f.node, to, "pod1", "pod2")
		f.wantMasqueraded(t, a, to, map[string]netip.Addr{"pod1": a.podGW1, "pod2": a.podGW2})
	}
	f.set(t, both(nil, []service.Backend{a.backend2()})...)
	for _, to := range targets {
		f.wantSilence(t, f.client, to)
		f.wantSources(t, f.pod1, to, map[string]netip.Addr{"pod2": a.pod1})
		f.wantMasqueraded(t, a, to, map[string]netip.Addr{"pod2": a.podGW2})
	}
	f.set(t, both(nil, nil)...)
	for _, to := range targets {
		for _, from := range []*dpHost{f.client, f.pod1, f.node} {
			f.wantRefused(t, "tcp", from, to)
		}
	}
	f.set(t, both([]service.Backend{a.backend1()}, nil)...) // no short-cut: the same for everybody
	for _, to := range targets {
		f.wantSources(t, f.client, to, map[string]netip.Addr{"pod1": a.client})
	}
	var gone []service.Key
	for _, x := range both(nil, nil) {
		gone = append(gone, x.Key)
	}
	f.apply(t, service.Delta{Delete: gone})
}

// checkSourceRanges: who is not on the list gets no answer, and that before anything else is said.
func (f *featurePlane) checkSourceRanges(t *testing.T, a *dpAddrs) {
	to := netip.AddrPortFrom(a.moved, dpPort)
	lb := dpFrontend("guarded", service.LoadBalancerIP, model.TCP, a.moved, dpPort, a.both()...)
	limit := func(list ...netip.Prefix) {
		t.Helper()
		lb.Filtered, lb.Sources = true, list
		f.set(t, lb)
	}
	one := func(x netip.Addr) netip.Prefix { return netip.PrefixFrom(x, x.BitLen()) }

	limit(one(a.pod1))
	f.wantNames(t, f.pod1, to, "pod1", "pod2")
	f.wantSilence(t, f.client, to)
	f.wantSilence(t, f.pod2, to)
	f.wantSilence(t, f.node, to)
	limit(netip.PrefixFrom(a.client, a.client.BitLen()-8).Masked(), one(a.pod2))
	f.wantNames(t, f.client, to, "pod1", "pod2")
	f.wantNames(t, f.pod2, to, "pod1", "pod2")
	f.wantSilence(t, f.pod1, to)
	low := netip.PrefixFrom(a.any, 1)
	high := a.any.AsSlice()
	high[0] = 0x80
	upper, _ := netip.AddrFromSlice(high)
	limit(low, netip.PrefixFrom(upper, 1))
	f.wantNames(t, f.node, to, "pod1", "pod2")
	limit()
	for _, from := range []*dpHost{f.client, f.pod1, f.node} {
		f.wantSilence(t, from, to)
	}
	lb.Backends = nil
	limit(one(a.pod1))
	f.wantRefused(t, "tcp", f.pod1, to)
	f.wantSilence(t, f.client, to)
	lb.Backends, lb.Filtered, lb.Sources = a.both(), false, nil
	f.set(t, lb)
	f.wantNames(t, f.client, to, "pod1", "pod2")
	f.apply(t, service.Delta{Delete: []service.Key{lb.Key}})
}

// checkNodePortAddresses: the node's other addresses serve no node ports.
func (f *featurePlane) checkNodePortAddresses(t *testing.T, a *dpAddrs) {
	at, other := netip.AddrPortFrom(a.node, dpNodePort), netip.AddrPortFrom(a.podGW1, dpNodePort)
	f.wantNames(t, f.client, other, "pod1", "pod2")
	net := f.net
	net.NodePorts = []netip.Prefix{netip.PrefixFrom(a.node, a.node.BitLen()-8).Masked()}
	f.apply(t, service.Delta{Net: &net})
	f.wantNames(t, f.client, at, "pod1", "pod2")
	f.wantNames(t, f.node, at, "pod1", "pod2")
	f.wantRefused(t, "tcp", f.client, other) // nobody listens there
	// An address that the node gets, and loses, counts from then on, without anybody telling us.
	late := a.client.Next().Next()
	f.node.addr(t, netip.PrefixFrom(late, late.BitLen()), "lan")
	f.wantNames(t, f.client, netip.AddrPortFrom(late, dpNodePort), "pod1", "pod2")
	f.node.Exec(t, "ip", "addr", "del", netip.PrefixFrom(late, late.BitLen()).String(), "dev", "lan")
	if _, err := f.client.exchange("tcp", netip.AddrPortFrom(late, dpNodePort), silence); err == nil {
		t.Error("an address that the node lost serves node ports")
	}
	net.NodePorts = nil
	f.apply(t, service.Delta{Net: &net})
	f.wantRefused(t, "tcp", f.client, at)
	f.apply(t, service.Delta{Net: &f.net})
	f.wantNames(t, f.client, other, "pod1", "pod2")
}

// checkServiceRanges: ports that a cluster IP does not have are refused, addresses that no service has get no answer.
func (f *featurePlane) checkServiceRanges(t *testing.T, a *dpAddrs) {
	net := f.net
	net.Services = []netip.Prefix{netip.PrefixFrom(a.web, a.web.BitLen()-8).Masked()}
	f.apply(t, service.Delta{Net: &net})
	everybody := []*dpHost{f.client, f.pod1, f.node}
	for _, from := range everybody {
		f.wantNames(t, from, netip.AddrPortFrom(a.web, dpPort), "pod1", "pod2")
		for _, ip := range []netip.Addr{a.web, a.none, a.dropped, a.udp} {
			f.wantRefused(t, "tcp", from, netip.AddrPortFrom(ip, dpPort+1))
		}
		f.wantSilence(t, from, netip.AddrPortFrom(a.moved, dpPort))
	}
	f.wantRefused(t, "udp", f.client, netip.AddrPortFrom(a.web, dpPort))
	one := dpFrontend("new", service.ClusterIP, model.TCP, a.moved, dpPort, a.both()...)
	two := dpFrontend("new", service.ClusterIP, model.UDP, a.moved, dpPort+2)
	other := netip.AddrPortFrom(a.moved, dpPort+1)
	f.set(t, one, two)
	f.wantRefused(t, "tcp", f.client, other)
	f.apply(t, service.Delta{Delete: []service.Key{one.Key}})
	f.wantRefused(t, "tcp", f.client, other) // it is still a cluster IP
	f.apply(t, service.Delta{Delete: []service.Key{two.Key}})
	for _, from := range everybody {
		f.wantSilence(t, from, other)
	}
	f.apply(t, service.Delta{Net: &f.net})
}
