package service

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sort"
	"testing"
	"time"

	"github.com/braidnet/braid/internal/model"
)

var oneSeed = flag.Int64("seed", -1, "run the property test with this seed only")

// naive computes the whole table from the final objects, by asking for each address and port what
// Kubernetes promises. It shares no code with the planner, keeps no state and does not care for cost.
// A frontend is printed without the text of Why.
func naive(s *model.Store) (map[string]string, Net) {
	zone := ""
	var own []netip.Addr
	net := Net{NodePorts: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}}
	for _, o := range s.List(model.KindServiceCIDR) {
		for _, c := range o.(*model.ServiceCIDR).CIDRs {
			if !slices.Contains(net.Services, c) {
				net.Services = append(net.Services, c)
			}
		}
	}
	for _, o := range s.List(model.KindNode) {
		n := o.(*model.Node)
		if n.Name == testNode {
			zone = n.Labels["topology.kubernetes.io/zone"]
			own = n.InternalIPs
			net.LocalPods = append(net.LocalPods, n.PodCIDRs...)
		}
		for _, c := range n.PodCIDRs {
			known := false
			for _, k := range net.ClusterPods {
				known = known || k == c
			}
			if !known {
				net.ClusterPods = append(net.ClusterPods, c)
			}
		}
	}
	for _, list := range [][]netip.Prefix{net.LocalPods, net.ClusterPods, net.Services} {
		sort.Slice(list, func(i, j int) bool { return list[i].Addr().Less(list[j].Addr()) })
	}
	out := map[string]string{}
	claim := func(svc *model.Service, kind Kind, where string, p model.ServicePort, outcome string) {
		if _, taken := out[where]; !taken { // claims come in order of precedence
			out[where] = fmt.Sprintf("%s %s:%s %s session %s", kind, svc.Name, p.Name, outcome, svc.Affinity)
		}
	}
	// Cluster IPs first, then node ports, then load balancers: that, and names, is precedence.
	for _, kind := range []Kind{ClusterIP, NodePort, LoadBalancerIP, ExternalIP} {
		for _, o := range s.List(model.KindService) {
			svc := o.(*model.Service)
			if _, foreign := svc.Labels["service.kubernetes.io/service-proxy-name"]; foreign || svc.Headless || svc.Type == model.ExternalName {
				continue
			}
			for _, vip := range svc.ClusterIPs {
				for _, p := range svc.Ports {
					outside := "all " + naiveOutcome(s, svc, p, vip.Is6(), zone, false)
					if svc.ExternalLocal {
						outside = "none " + naiveOutcome(s, svc, p, vip.Is6(), zone, true)
						if inside := naiveOutcome(s, svc, p, vip.Is6(), zone, false); inside != "reject" {
							outside += " inside " + inside
						}
					}
					switch kind {
					case ClusterIP:
						claim(svc, kind, fmt.Sprint(vip, p.Protocol, p.Port), p, "foreign "+naiveOutcome(s, svc, p, vip.Is6(), zone, svc.InternalLocal))
					case NodePort:
						if p.NodePort > 0 && svc.Type != model.ClusterIP {
							claim(svc, kind, fmt.Sprint("node", vip.Is6(), p.Protocol, p.NodePort), p, outside)
						}
					case LoadBalancerIP:
						for _, in := range svc.Ingress {
							if svc.Type == model.LoadBalancer && !in.Proxy && in.Addr.Is6() == vip.Is6() {
								claim(svc, kind, fmt.Sprint(in.Addr, p.Protocol, p.Port), p, outside+naiveSources(svc, in.Addr, own))
							}
						}
					case ExternalIP:
						for _, a := range svc.ExternalIPs {
							if netip.MustParsePrefix("192.0.2.0/24").Contains(a) && !vip.Is6() {
								claim(svc, kind, fmt.Sprint(a, p.Protocol, p.Port), p, outside)
							}
						}
					}
				}
			}
		}
	}
	return out, net
}

// naiveSources says who may use a load balancer's address: of few clients, those that may.
func naiveSources(svc *model.Service, vip netip.Addr, own []netip.Addr) string {
	may := func(client netip.Addr) bool {
		mentioned, everybody := false, false
		for _, r := range svc.SourceRanges {
			if r.Addr().Is4() == vip.Is4() {
				mentioned = true
				if r.Bits() == 0 || r.Contains(client) {
					return true
				}
			}
			everybody = everybody || r.Bits() == 0
		}
		return len(svc.SourceRanges) == 0 || !mentioned && everybody
	}
	self := may(vip)
	for _, a := range own {
		self = self || a.Is4() == vip.Is4() && may(a)
	}
	return fmt.Sprint(" clients ", may(clients[0]), may(clients[1]), may(clients[2]), self)
}

// clients are addresses that ask: two of IPv4, one of IPv6.
var clients = addrs("10.1.2.3", "172.16.0.1", "2001:db8::9")

func naiveOutcome(s *model.Store, svc *model.Service, p model.ServicePort, six bool, zone string, onlyLocal bool) string {
	all := map[netip.AddrPort]model.Endpoint{}
	for _, o := range s.List(model.KindEndpointSlice) {
		slice := o.(*model.EndpointSlice)
		if slice.Service != svc.Key || slice.IPv6 != six {
			continue
		}
		for _, sp := range slice.Ports {
			if sp.Name != p.Name || sp.Protocol != p.Protocol || sp.Port == 0 {
				continue
			}
			for _, e := range slice.Endpoints {
				at := netip.AddrPortFrom(e.Addrs[0], sp.Port)
				old, dup := all[at]
				score := func(e model.Endpoint) (n int) {
					if e.Node == testNode {
						n++
					}
					if e.Serving && e.Terminating {
						n += 2
					}
					if e.Ready {
						n += 4
					}
					return n
				}
				if !dup || score(e) > score(old) {
					all[at] = e
				}
			}
		}
	}
	ready, ending := map[netip.AddrPort]bool{}, map[netip.AddrPort]bool{}
	for at, e := range all {
		if e.Ready {
			ready[at] = true
		} else if e.Serving && e.Terminating {
			ending[at] = true
		}
	}
	keep := func(from map[netip.AddrPort]bool, want func(model.Endpoint) bool) map[netip.AddrPort]bool {
		out := map[netip.AddrPort]bool{}
		for at := range from {
			if want(all[at]) {
				out[at] = true
			}
		}
		return out
	}
	isLocal := func(e model.Endpoint) bool { return e.Node == testNode }
	use := ready
	if onlyLocal {
		use = keep(ready, isLocal)
		if len(use) == 0 {
			use = keep(allOf(all, func(e model.Endpoint) bool { return e.Serving && e.Terminating }), isLocal)
		}
		if len(use) == 0 && len(ready)+len(ending) > 0 {
			return "drop"
		}
	} else {
		names := func(list []string, x string) bool {
			for _, l := range list {
				if l == x {
					return true
				}
			}
			return false
		}
		byNode := keep(ready, func(e model.Endpoint) bool { return names(e.HintNodes, testNode) })
		byZone := keep(ready, func(e model.Endpoint) bool { return zone != "" && names(e.HintZones, zone) })
		someNoNode := len(keep(ready, func(e model.Endpoint) bool { return len(e.HintNodes) == 0 })) > 0
		someNoZone := len(keep(ready, func(e model.Endpoint) bool { return len(e.HintZones) == 0 })) > 0
		switch {
		case len(byNode) > 0 && !someNoNode:
			use = byNode
		case len(byZone) > 0 && !someNoZone:
			use = byZone
		case len(ready) == 0:
			use = ending
		}
	}
	if len(use) == 0 {
		return "reject"
	}
	var list []string
	for at := range use {
		list = append(list, fmt.Sprint(at, isLocal(all[at]) || all[at].Node == "" && naiveHolds(s, all[at].Addrs[0])))
	}
	sort.Strings(list)
	return fmt.Sprint(list)
}

// naiveHolds says whether an address could be of one of the node's pods.
func naiveHolds(s *model.Store, a netip.Addr) bool {
	of := 0
	for _, o := range s.List(model.KindNode) {
		if n := o.(*model.Node); n.Name == testNode {
			for _, c := range n.PodCIDRs {
				if c.Contains(a) {
					return true
				}
				if c.Addr().Is4() == a.Is4() {
					of++
				}
			}
		}
	}
	return of == 0
}

func allOf(all map[netip.AddrPort]model.Endpoint, want func(model.Endpoint) bool) map[netip.AddrPort]bool {
	out := map[netip.AddrPort]bool{}
	for at, e := range all {
		if want(e) {
			out[at] = true
		}
	}
	return out
}

// printed brings a frontend into the form of naive.
func printed(f Frontend) (where, what string) {
	where = fmt.Sprint(f.Addr, f.Protocol, f.Port)
	if f.Kind == NodePort {
		where = fmt.Sprint("node", f.Addr.Is6(), f.Protocol, f.Port)
	}
	list := func(backends []Backend) string {
		var list []string
		for _, b := range backends {
			list = append(list, fmt.Sprint(b.AddrPort, b.Local))
		}
		sort.Strings(list)
		return fmt.Sprint(list)
	}
	outcome := map[Empty]string{Reject: "reject", Drop: "drop"}[f.Empty]
	if len(f.Backends) > 0 {
		outcome = list(f.Backends)
	}
	if len(f.Inside) > 0 {
		outcome += " inside " + list(f.Inside)
	}
	if f.Kind == LoadBalancerIP {
		may := func(client netip.Addr) bool {
			for _, r := range f.Sources {
				if r.Bits() == 0 || r.Contains(client) {
					return true
				}
			}
			return !f.Filtered
		}
		outcome += fmt.Sprint(" clients ", may(clients[0]), may(clients[1]), may(clients[2]), may(f.Addr))
	}
	masquerade := map[Masquerade]string{MasqueradeForeign: "foreign", MasqueradeAll: "all", MasqueradeNone: "none"}[f.Masquerade]
	return where, fmt.Sprintf("%s %s:%s %s %s session %s", f.Kind, f.Origin.Name, f.PortName, masquerade, outcome, f.Affinity)
}

// maker makes random objects from few names and addresses, so that they meet often.
type maker struct{ *rand.Rand }

func (m maker) pick(list ...string) string { return list[m.IntN(len(list))] }

func (m maker) one(n int) bool { return m.IntN(n) == 0 }

func (m maker) service() *model.Service {
	s := testService(m.pick("a", "b", "c"), m.pick("10.96.0.1", "10.96.0.2", "10.96.0.3"))
	s.Type = []model.ServiceType{model.ClusterIP, model.NodePort, model.LoadBalancer, model.ExternalName}[m.IntN(4)]
	if m.one(2) {
		s.ClusterIPs = append(s.ClusterIPs, addrs(m.pick("fd00:10:96::1", "fd00:10:96::2"))...)
	}
	s.Ports = append(s.Ports, model.ServicePort{Name: "dns", Protocol: model.UDP, Port: uint16(80 + m.IntN(2))})
	for i := range s.Ports {
		s.Ports[i].NodePort = uint16(m.IntN(3))
	}
	if m.one(8) {
		s.Headless, s.ClusterIPs = true, nil
	}
	if m.one(8) {
		s.Labels = map[string]string{labelProxyName: "x"}
	}
	s.Ingress = []model.Ingress{{Addr: addrs(m.pick("10.96.0.1", "192.0.2.1", "2001:db8::1"))[0], Proxy: m.one(3)}}
	for range m.IntN(3) {
		s.SourceRanges = append(s.SourceRanges, netip.MustParsePrefix(m.pick("10.0.0.0/8", "10.1.0.0/16", "172.16.0.0/12", "2001:db8::/32", "::/0")))
	}
	s.Affinity = time.Duration(m.IntN(3)) * time.Minute
	if m.one(3) {
		s.ExternalIPs = addrs(m.pick("192.0.2.1", "192.0.2.9", "198.51.100.1"))
	}
	s.InternalLocal, s.ExternalLocal = m.one(3), m.one(3)
	return s
}

func (m maker) slice() *model.EndpointSlice {
	s := testSlice(m.pick("s1", "s2", "s3", "s4"), m.pick("a", "b", "c", ""))
	s.IPv6 = m.one(3)
	s.Ports[0].Port = uint16(8080 * m.IntN(3))
	s.Ports = append(s.Ports, model.EndpointPort{Name: "dns", Protocol: model.UDP, Port: 53})
	hints := m.one(2)
	for range m.IntN(4) {
		e := ep(m.pick("10.244.1.1", "10.244.1.2", "10.244.1.3"), m.pick("r", "r", "", "s", "st", "t", "rt"), m.pick("n1", "n1", "n2", ""))
		if s.IPv6 {
			e.Addrs = addrs(m.pick("fd00::1", "fd00::2"))
		}
		if hints || m.one(4) {
			e.HintZones = []string{m.pick("z1", "z2")}
		}
		if m.one(3) {
			e.HintNodes = []string{m.pick("n1", "n2")}
		}
		s.Endpoints = append(s.Endpoints, e)
	}
	return s
}

func (m maker) node() *model.Node {
	n := testNodeObject(m.pick("n1", "n2", "n3"), m.pick("", "z1", "z2"))
	if m.one(2) {
		n.InternalIPs = addrs(m.pick("10.1.0.1", "192.0.2.77"), "2001:db8::1")
	}
	for _, form := range []string{"10.244.%d.0/24", "fd00:10:244:%d::/64"}[:m.IntN(3)] {
		n.PodCIDRs = append(n.PodCIDRs, netip.MustParsePrefix(fmt.Sprintf(form, m.IntN(3))))
	}
	return n
}

func (m maker) update() model.Update {
	var o model.Object
	switch m.IntN(6) {
	case 5:
		c := &model.ServiceCIDR{Origin: model.Origin{Ref: model.Ref{Kind: model.KindServiceCIDR, Key: model.Key{Name: m.pick("x", "y")}}}}
		c.CIDRs = []netip.Prefix{netip.MustParsePrefix(m.pick("10.96.0.0/24", "10.97.0.0/24")), netip.MustParsePrefix("fd00:10:96::/112")}
		o = c
	case 0:
		o = m.node()
	case 1, 2:
		o = m.service()
	default:
		o = m.slice()
	}
	if m.one(4) {
		return model.Delete(o.From().Ref)
	}
	return model.Set(o)
}

// TestDeltasAddUp: whatever happens in whatever order, with flushes in between, the deltas add up to
// what a naive look at the final objects gives, and All says the same.
func TestDeltasAddUp(t *testing.T) {
	seeds := int64(100)
	first := int64(0)
	if *oneSeed >= 0 {
		first, seeds = *oneSeed, *oneSeed+1
	}
	for seed := first; seed < seeds; seed++ {
		// Every batch is followed by the comparison, so the first failure is the shortest for its seed.
		if n, err := runProperty(seed, 60); err != nil {
			t.Fatalf("after %d batches: %v\nrun again with -run %s -seed %d", n, err, t.Name(), seed)
		}
	}
}

func runProperty(seed int64, batches int) (int, error) {
	m := maker{rand.New(rand.NewPCG(uint64(seed), 3))}
	l := newLab()
	told := map[Key]Frontend{}
	var net Net
	for i := range batches {
		var u []model.Update
		for range 1 + m.IntN(3) {
			u = append(u, m.update())
		}
		l.store.Apply(u)
		if m.one(3) {
			continue // let changes pile up before the flush
		}
		d := l.Flush()
		for _, k := range d.Delete {
			if _, ok := told[k]; !ok {
				return i, fmt.Errorf("delta deletes %s, which was never told", k)
			}
			delete(told, k)
		}
		for _, f := range d.Set {
			if old, ok := told[f.Key]; ok && equalFrontends(&old, &f) {
				return i, fmt.Errorf("delta repeats %s without a change", f.Key)
			}
			told[f.Key] = f
		}
		if d.Net != nil {
			net = *d.Net
		}
		if err := compareWithNaive(l, told, net); err != nil {
			return i, err
		}
	}
	return batches, nil
}

func compareWithNaive(l lab, told map[Key]Frontend, net Net) error {
	want, wantNet := naive(l.store)
	all, allNet := l.All()
	if len(all) != len(told) || len(told) != len(want) {
		return fmt.Errorf("%d frontends in All, %d told by deltas, %d expected: %v, want %v", len(all), len(told), len(want), all, want)
	}
	for _, f := range all {
		old := told[f.Key]
		if !equalFrontends(&old, &f) {
			return fmt.Errorf("All has %+v, the deltas add up to %+v", f, told[f.Key])
		}
		where, what := printed(f)
		if want[where] != what {
			return fmt.Errorf("%s is %q, want %q", where, what, want[where])
		}
		if (f.Why == "") != (len(f.Backends) > 0) {
			return fmt.Errorf("%s has %d backends and the reason %q", where, len(f.Backends), f.Why)
		}
	}
	if !equalNet(net, wantNet) || !equalNet(allNet, wantNet) {
		return fmt.Errorf("net %v, All has %v, want %v", net, allNet, wantNet)
	}
	return nil
}

// BenchmarkEndpointChange is the event path at 20,000 services.
func BenchmarkEndpointChange(b *testing.B) {
	p := NewPlanner(Config{Node: testNode})
	var initial []model.Change
	for i := range 20000 {
		s := testService(fmt.Sprint("s", i), fmt.Sprintf("10.%d.%d.%d", 96+i/60000, i/250%256, i%250+1))
		initial = append(initial, model.Change{Ref: s.Ref, New: s})
	}
	p.Apply(1, initial)
	p.Flush()
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		s := testSlice("x", fmt.Sprint("s", i%20000), ep("10.244.1.1", "r", "n1"), ep(fmt.Sprintf("10.244.2.%d", i%200), "r", "n2"))
		p.Apply(uint64(i), []model.Change{{Ref: s.Ref, New: s}})
		if d := p.Flush(); len(d.Set) == 0 {
			b.Fatal("nothing changed")
		}
	}
}
