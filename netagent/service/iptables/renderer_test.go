package iptables

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/netagent/service"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func origin(name string) model.Origin {
	return model.Origin{Ref: model.Ref{Kind: model.KindService, Key: model.Key{Namespace: "default", Name: name}}}
}

func frontend(name string, kind service.Kind, p model.Protocol, at string, backends ...service.Backend) service.Frontend {
	ap := netip.MustParseAddrPort(at)
	f := service.Frontend{
		Key:    service.Key{Kind: kind, Protocol: p, Addr: ap.Addr(), Port: ap.Port()},
		Origin: origin(name), PortName: "http", Backends: backends, Masquerade: service.MasqueradeAll,
	}
	if kind == service.ClusterIP {
		f.Masquerade = service.MasqueradeForeign
	}
	return f
}

func far(at string) service.Backend { return service.Backend{AddrPort: netip.MustParseAddrPort(at)} }

func near(at string) service.Backend {
	return service.Backend{AddrPort: netip.MustParseAddrPort(at), Local: true}
}

func prefixes(list ...string) (out []netip.Prefix) {
	for _, p := range list {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

// goldenState has one of everything, and enough cluster IPs for a dispatch chain to split.
func goldenState(ipv6 bool) ([]service.Frontend, service.Net) {
	vip, pod, unspec := "10.96.0.%d:%d", "10.244.%d.7:%d", "0.0.0.0:%d"
	net := service.Net{LocalPods: prefixes("10.244.1.0/24", "fd00:10:244:1::/64"),
		ClusterPods: prefixes("10.244.1.0/24", "10.244.2.0/24", "10.244.3.0/24", "fd00:10:244:1::/64", "fd00:10:244:2::/64")}
	if ipv6 {
		vip, pod, unspec = "[fd00:10:96::%x]:%d", "[fd00:10:244:%d::7]:%d", "[::]:%d"
	}
	backends := []service.Backend{
		near(fmt.Sprintf(pod, 1, 8080)), far(fmt.Sprintf(pod, 2, 8080)), far(fmt.Sprintf(pod, 3, 8080)),
	}
	net.Services = prefixes("10.96.0.0/16", "fd00:10:96::/112")
	net.NodePorts = prefixes("64.0.0.0/2", "192.0.2.0/24", "2001:db8::/64")
	sources, local := prefixes("192.0.2.0/28", "198.51.100.7/32"), backends[:1]
	if ipv6 {
		sources = prefixes("2001:db8::/124", "2001:db8:1::7/128")
	}
	sticky := frontend("sticky", service.ClusterIP, model.TCP, fmt.Sprintf(vip, 5, 80), backends...)
	sticky.Affinity = 3 * time.Hour
	here := frontend("here", service.LoadBalancerIP, model.TCP, fmt.Sprintf(vip, 201, 80), local...)
	here.Masquerade, here.Inside, here.Filtered, here.Sources = service.MasqueradeNone, backends, true, sources
	here.Affinity = time.Minute
	elsewhere := frontend("elsewhere", service.NodePort, model.UDP, fmt.Sprintf(unspec, 30082))
	elsewhere.Masquerade, elsewhere.Inside, elsewhere.Empty = service.MasqueradeNone, backends[1:], service.Drop
	empty := frontend("empty", service.LoadBalancerIP, model.UDP, fmt.Sprintf(vip, 202, 80))
	empty.Filtered, empty.Sources = true, sources
	nobody := frontend("nobody", service.LoadBalancerIP, model.TCP, fmt.Sprintf(vip, 203, 80), backends...)
	nobody.Filtered = true
	drop := frontend("quiet", service.ClusterIP, model.TCP, fmt.Sprintf(vip, 3, 80))
	drop.Empty = service.Drop
	all := []service.Frontend{
		frontend("web", service.ClusterIP, model.TCP, fmt.Sprintf(vip, 1, 80), backends...),
		frontend("web", service.NodePort, model.TCP, fmt.Sprintf(unspec, 30080), backends...),
		frontend("web", service.LoadBalancerIP, model.TCP, fmt.Sprintf(vip, 200, 80), backends...),
		frontend("none", service.ClusterIP, model.TCP, fmt.Sprintf(vip, 2, 80)),
		frontend("none", service.ClusterIP, model.UDP, fmt.Sprintf(vip, 2, 80)),
		frontend("none", service.NodePort, model.TCP, fmt.Sprintf(unspec, 30081)),
		frontend("sig", service.ClusterIP, model.SCTP, fmt.Sprintf(vip, 4, 38412), far(fmt.Sprintf(pod, 2, 38412))),
		drop, sticky, here, elsewhere, empty, nobody,
	}
	for i := range 16 {
		all = append(all, frontend(fmt.Sprintf("more-%d", i), service.ClusterIP, model.UDP, fmt.Sprintf(vip, 16+i, 53), far(fmt.Sprintf(pod, 3, 53))))
	}
	return all, net
}

func TestGolden(t *testing.T) {
	for _, ipv6 := range []bool{false, true} {
		name := "testdata/all.ipv4.rules"
		if ipv6 {
			name = "testdata/all.ipv6.rules"
		}
		r := New(ipv6, false)
		all, net := goldenState(ipv6)
		r.Replace(all, net, nil)
		got := r.Pending()
		if *update {
			if err := os.WriteFile(name, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if got != string(want) {
			t.Errorf("%s differs from what is rendered; look at it and run the test with -update\n%s", name, got)
		}
	}
}

// TestOtherFamily: each renderer takes only what is its own from a table of both families.
func TestOtherFamily(t *testing.T) {
	for _, ipv6 := range []bool{false, true} {
		all4, net := goldenState(false)
		all6, _ := goldenState(true)
		mixed, alone := New(ipv6, false), New(ipv6, false)
		mixed.Replace(slices.Concat(all4, all6), net, nil)
		if own := all4; ipv6 {
			alone.Replace(all6, net, nil)
		} else {
			alone.Replace(own, net, nil)
		}
		if mixed.Pending() != alone.Pending() {
			t.Errorf("ipv6=%v: frontends of the other family changed the rules", ipv6)
		}
	}
}

// world is a random table under change, with the fake kernel that follows it.
type world struct {
	rnd    *rand.Rand
	ipv6   bool
	net    service.Net
	table  map[slot]service.Frontend
	kernel fakeKernel
	r      *Renderer
}

func (w *world) randomFrontend() service.Frontend {
	pick := func(list ...string) string { return list[w.rnd.IntN(len(list))] }
	vip, pod := pick("10.96.0.%d", "10.96.7.%d", "10.200.1.%d", "192.0.2.%d"), "10.244.%d.%d"
	unspec := netip.IPv4Unspecified()
	if w.ipv6 {
		vip, pod, unspec = pick("fd00:10:96::%x", "fd00:10:96::7:%x", "2001:db8::%x"), "fd00:10:244:%d::%x", netip.IPv6Unspecified()
	}
	f := service.Frontend{Origin: origin(pick("a", "b", "c")), Masquerade: service.MasqueradeAll, Empty: service.Empty(w.rnd.IntN(2))}
	f.Protocol = protocols[w.rnd.IntN(3)]
	f.Kind = []service.Kind{service.ClusterIP, service.NodePort, service.LoadBalancerIP, service.ExternalIP}[w.rnd.IntN(4)]
	if f.Kind == service.NodePort {
		f.Addr, f.Port = unspec, uint16(30000+w.rnd.IntN(200))
	} else {
		f.Addr, f.Port = netip.MustParseAddr(fmt.Sprintf(vip, w.rnd.IntN(60))), uint16(80+w.rnd.IntN(2))
	}
	backends := func() (list []service.Backend) {
		for i := range w.rnd.IntN(4) {
			list = append(list, service.Backend{
				AddrPort: netip.AddrPortFrom(netip.MustParseAddr(fmt.Sprintf(pod, i, 1+w.rnd.IntN(9))), 8080), Local: i == 1})
		}
		return list
	}
	f.Backends = backends()
	switch w.rnd.IntN(4) {
	case 0:
		f.Masquerade = service.MasqueradeForeign
	case 1:
		f.Masquerade, f.Inside = service.MasqueradeNone, backends()
	}
	if w.rnd.IntN(3) == 0 {
		f.Affinity = time.Duration(w.rnd.IntN(3000)) * 100 * time.Millisecond
	}
	if f.Kind == service.LoadBalancerIP && w.rnd.IntN(2) == 0 {
		f.Filtered = true
		if w.rnd.IntN(3) > 0 {
			f.Sources = w.own("192.0.2.0/28", "10.244.0.0/22", "2001:db8::/124", "fd00:10:244::/62")
		}
	}
	return f
}

// own keeps the prefixes of the world's family.
func (w *world) own(list ...string) (out []netip.Prefix) {
	for _, p := range prefixes(list...) {
		if p.Addr().Is4() != w.ipv6 {
			out = append(out, p)
		}
	}
	return out
}

func (w *world) randomDelta() (d service.Delta) {
	named := map[slot]bool{}
	for range w.rnd.IntN(30) {
		f := w.randomFrontend()
		s := slotOf(f.Key)
		old, there := w.table[s]
		if named[s] {
			continue
		}
		named[s] = true
		if there && w.rnd.IntN(3) > 0 {
			d.Delete = append(d.Delete, old.Key)
			delete(w.table, s)
			continue
		}
		if there && old.Key != f.Key { // as the planner tells a change of kind
			d.Delete = append(d.Delete, old.Key)
		}
		d.Set = append(d.Set, f)
		w.table[s] = f
	}
	if w.rnd.IntN(5) == 0 {
		w.net.LocalPods = prefixes(fmt.Sprintf("10.244.%d.0/24", w.rnd.IntN(3)), fmt.Sprintf("fd00:10:244:%d::/64", w.rnd.IntN(3)))
		w.net.Services = [][]netip.Prefix{nil, prefixes("10.96.0.0/16", "fd00:10:96::/112")}[w.rnd.IntN(2)]
		w.net.NodePorts = [][]netip.Prefix{nil, prefixes("0.0.0.0/0", "::/0"), prefixes("64.0.0.0/2", "127.0.0.0/9", "192.0.2.1/32", "2001:db8::1/128", "::/64")}[w.rnd.IntN(3)]
		w.net.HealthPorts = [][]uint16{nil, {32001}, {32001, 32002}}[w.rnd.IntN(3)]
		w.net.Loopback = w.rnd.IntN(2) == 0
		w.net.Local = []service.Local{{}, {Sources: w.own("10.244.0.0/16", "fd00:10:244::/48")}, {Link: "br0"}, {Link: "br0", Prefix: true}}[w.rnd.IntN(4)]
		net := w.net
		d.Net = &net
	}
	return d
}

func (w *world) all() (all []service.Frontend) {
	for _, f := range w.table {
		all = append(all, f)
	}
	return all
}

// sync writes what is pending, as the dataplane does.
func (w *world) sync(t *testing.T) {
	t.Helper()
	for more := true; more; {
		before := ""
		if w.r.Parts > 0 {
			before = w.kernel.reached()
		}
		in := w.r.Pending()
		if in != "" {
			if err := w.kernel.load(in); err != nil {
				t.Fatalf("the kernel would refuse: %v\n%s", err, in)
			}
		}
		if more = w.r.Commit(); more && w.kernel.reached() != before {
			t.Fatalf("a part of the change, but not all, is in the way of packets:\n%s", in)
		}
	}
	if in := w.r.Pending(); in != "" {
		t.Fatalf("pending after a commit:\n%s", in)
	}
}

// TestIncrementalEqualsWhole: after any sequence of deltas the kernel holds what a fresh start with
// the final table writes, every frontend is found by a packet to it, and a restart writes nothing.
func TestIncrementalEqualsWhole(t *testing.T) {
	for seed := range uint64(12) {
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
			w := &world{rnd: rand.New(rand.NewPCG(seed, 1)), ipv6: seed%2 == 1, table: map[slot]service.Frontend{}, kernel: newFakeKernel()}
			w.r = New(w.ipv6, false)
			w.r.Parts = int(seed%3) * 5
			w.r.Replace(nil, w.net, Saved(w.kernel))
			w.sync(t)
			for range 25 {
				w.r.Apply(w.randomDelta())
				w.sync(t)
			}
			fresh := &world{kernel: newFakeKernel(), r: New(w.ipv6, false)}
			fresh.r.Replace(w.all(), w.net, Saved(fresh.kernel))
			fresh.sync(t)
			if got, want := w.kernel.ours(), fresh.kernel.ours(); got != want {
				t.Fatalf("incremental and whole differ\n--- incremental\n%s\n--- whole\n%s", got, want)
			}
			w.checkPackets(t)
			restarted := New(w.ipv6, false)
			restarted.Replace(w.all(), w.net, Saved(w.kernel))
			if in := restarted.Pending(); in != "" {
				t.Fatalf("a restart writes:\n%s", in)
			}
			if err := w.kernel.load(Cleanup(Saved(w.kernel))); err != nil {
				t.Fatalf("cleanup: %v", err)
			}
			if got, want := w.kernel.ours(), newFakeKernel().ours(); got != want {
				t.Fatalf("after the cleanup:\n%s\nwant\n%s", got, want)
			}
		})
	}
}

// TestDispatchReshapes: address ranges come and go one after the other, so that chains which skipped
// the bits all addresses had in common must make room for a branch above them, and give it up again.
func TestDispatchReshapes(t *testing.T) {
	w := &world{table: map[slot]service.Frontend{}, kernel: newFakeKernel(), r: New(false, false)}
	w.r.Replace(nil, w.net, Saved(w.kernel))
	w.sync(t)
	step := func(form string, add bool) {
		var d service.Delta
		for i := range 40 {
			f := frontend("s", service.ClusterIP, model.TCP, fmt.Sprintf(form, i*5), far("10.244.2.7:80"))
			if add {
				d.Set, w.table[slotOf(f.Key)] = append(d.Set, f), f
			} else {
				d.Delete = append(d.Delete, f.Key)
				delete(w.table, slotOf(f.Key))
			}
		}
		w.r.Apply(d)
		w.sync(t)
		fresh := &world{kernel: newFakeKernel(), r: New(false, false)}
		fresh.r.Replace(w.all(), w.net, Saved(fresh.kernel))
		fresh.sync(t)
		if got, want := w.kernel.ours(), fresh.kernel.ours(); got != want {
			t.Fatalf("%s added %v: incremental and whole differ\n--- incremental\n%s\n--- whole\n%s", form, add, got, want)
		}
	}
	forms := []string{"10.96.3.%d:80", "10.96.77.%d:80", "10.200.1.%d:80", "192.0.2.%d:80", "10.96.3.250:%d"}
	for _, f := range forms {
		step(f, true)
	}
	for _, f := range []int{1, 4, 2, 0, 3} {
		step(forms[f], false)
	}
}

func TestNamesFitTheKernel(t *testing.T) {
	r := New(true, false)
	all, net := goldenState(true)
	r.Replace(all, net, nil)
	for id := range r.want {
		if len(id.name) > 28 || !strings.HasPrefix(id.name, Prefix) {
			t.Errorf("chain name %q (%d characters)", id.name, len(id.name))
		}
	}
}

func TestReplaceRepairsJumps(t *testing.T) {
	k := newFakeKernel()
	w := &world{kernel: k, r: New(false, false)}
	all, net := goldenState(false)
	w.r.Replace(all, net, Saved(k))
	w.sync(t)
	want := k.ours()

	// Somebody doubled one jump, removed another, and an older release left a chain and a jump to it.
	k["nat"]["OUTPUT"] = append(k["nat"]["OUTPUT"], k["nat"]["OUTPUT"][0])
	k["filter"]["INPUT"] = nil
	k["filter"]["BRAID-OLD"] = []string{"-j BRAID-OLDER"}
	k["filter"]["BRAID-OLDER"] = []string{"-j RETURN"}
	k["filter"]["FORWARD"] = append(k["filter"]["FORWARD"], `-p tcp -m comment --comment "old one" -g BRAID-OLD`)
	k["nat"][chainPostrouting] = k["nat"][chainPostrouting][1:]

	w.r.Replace(all, net, Saved(k))
	in := w.r.Pending()
	if n := strings.Count(in, "\n:"); n != 3 {
		t.Errorf("%d chains are written, want the changed one and the two old ones:\n%s", n, in)
	}
	w.sync(t)
	if got := k.ours(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// TestParts: very many new chains are written in parts, none larger than asked for but the last.
func TestParts(t *testing.T) {
	r, k := New(false, false), newFakeKernel()
	r.Parts = 50
	var all []service.Frontend
	for i := range 400 {
		all = append(all, frontend(fmt.Sprintf("s%d", i), service.ClusterIP, model.TCP, fmt.Sprintf("10.96.%d.%d:80", i/250, i%250+1), far("10.244.2.7:80")))
	}
	r.Replace(all, service.Net{}, Saved(k))
	parts := 1
	for ; ; parts++ {
		in := r.Pending()
		if err := k.load(in); err != nil {
			t.Fatalf("part %d: %v", parts, err)
		}
		if !r.Commit() {
			break
		}
		if n := strings.Count(in, "\n:"); n > r.Parts {
			t.Errorf("part %d has %d chains", parts, n)
		}
	}
	if parts < 400/50 {
		t.Errorf("%d parts", parts)
	}
	whole := New(false, false)
	whole.Replace(all, service.Net{}, Saved(k))
	if in := whole.Pending(); in != "" {
		t.Errorf("the parts are not the whole; missing:\n%s", in)
	}
	if got, want := r.Rules(), whole.Rules(); got["nat"].Total != want["nat"].Total || got["nat"].Last != want["nat"].Total {
		t.Errorf("counted %+v, want %+v", got, want)
	}
}

// BenchmarkApplyOneEndpoint is the event path: one backend more at 20,000 services.
func BenchmarkApplyOneEndpoint(b *testing.B) {
	r := New(false, false)
	var all []service.Frontend
	for i := range 20000 {
		all = append(all, frontend(fmt.Sprintf("s%d", i), service.ClusterIP, model.TCP, fmt.Sprintf("10.96.%d.%d:80", i/250, i%250+1), far("10.244.2.7:80")))
	}
	r.Replace(all, service.Net{}, nil)
	r.Commit()
	b.ReportAllocs()
	size := 0
	for i := 0; b.Loop(); i++ {
		f := all[i%len(all)]
		f.Backends = append(slices.Clone(f.Backends), far(fmt.Sprintf("10.244.3.%d:80", i%200)))
		r.Apply(service.Delta{Set: []service.Frontend{f}})
		size += len(r.Pending())
		r.Commit()
	}
	b.ReportMetric(float64(size)/float64(b.N), "input-bytes/op")
}
