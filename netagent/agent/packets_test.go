package agent

import (
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/braidnet/braid/internal/kernel/netns/nstest/wire"
	"github.com/braidnet/braid/internal/kernel/sysctl"
	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/netagent/egress"
	"github.com/braidnet/braid/netagent/service"
)

var (
	packetSeed  = flag.Int64("packet-seed", -1, "run TestPackets with this seed only")
	packetSeeds = flag.Int64("packet-seeds", 3, "how many seeds TestPackets runs")
)

// expected is what a packet may become.
type expected struct {
	what     string           // "translated", "refused", "dropped" or "passed"
	backends []netip.AddrPort // translated: to one of them
	masked   bool             // translated: with one of the node's addresses; a backend of this node that reaches itself always
}

// decide says what Kubernetes promises for the first packet of a connection. It knows the table and
// nothing of rules, and looks at everything.
func decide(all []service.Frontend, net service.Net, p wire.Packet) expected {
	inAny := func(list []netip.Prefix, a netip.Addr) bool {
		return slices.ContainsFunc(list, func(r netip.Prefix) bool { return r.Contains(a) })
	}
	own := wire.Own(p.Dst.Addr().Is4())
	toNode, fromNode := slices.Contains(own, p.Dst.Addr()) || p.Dst.Addr().IsLoopback(), p.Link() == ""
	if p.Link() != "" && (p.Src.Addr().IsLoopback() || p.Dst.Addr().IsLoopback()) {
		return expected{what: "dropped"}
	}
	fromPod := !fromNode && (inAny(net.PodSources(), p.Src.Addr()) || net.Local.Matches(p.Link()))
	var f *service.Frontend
	clusterIP := false
	for _, nodePorts := range []bool{false, true} {
		for i := range all {
			x := &all[i]
			clusterIP = clusterIP || x.Kind == service.ClusterIP && x.Addr == p.Dst.Addr()
			if x.Addr.Is4() != p.Dst.Addr().Is4() || uint8(x.Protocol) != p.Protocol || x.Port != p.Dst.Port() || (x.Kind == service.NodePort) != nodePorts || f != nil {
				continue
			}
			served := inAny(net.NodePorts, p.Dst.Addr()) && (net.Loopback || !p.Dst.Addr().IsLoopback())
			if nodePorts && toNode && served || x.Addr == p.Dst.Addr() {
				f = x
			}
		}
	}
	switch {
	case f == nil && (clusterIP || toNode):
		return expected{what: "refused"}
	case f == nil && inAny(net.Services, p.Dst.Addr()):
		return expected{what: "dropped"}
	case f == nil:
		return expected{what: "passed"}
	case f.Filtered && !inAny(f.Sources, p.Src.Addr()):
		return expected{what: "dropped"}
	}
	inside := f.Masquerade == service.MasqueradeNone && (fromPod || fromNode)
	list := f.Backends
	if inside {
		list = f.Inside
	}
	switch {
	case len(list) == 0 && f.Empty == service.Drop && !inside:
		return expected{what: "dropped"}
	case len(list) == 0:
		return expected{what: "refused"}
	}
	e := expected{what: "translated"}
	for _, b := range list {
		e.backends = append(e.backends, b.AddrPort)
	}
	switch f.Masquerade {
	case service.MasqueradeAll:
		e.masked = true
	case service.MasqueradeForeign:
		e.masked = !fromPod
	case service.MasqueradeNone:
		e.masked = fromNode
	}
	return e
}

// judge compares a packet's fate with what was expected, "" when it is right.
func judge(p wire.Packet, e expected, f wire.Fate) string {
	own := wire.Own(p.Dst.Addr().Is4())
	got := "dropped"
	switch {
	case f.Refused:
		got = "refused"
	case f.Sent != nil && f.Sent.Dst == p.Dst:
		got = "passed"
	case f.Sent != nil:
		got = fmt.Sprintf("translated to %s, from %s", f.Sent.Dst, f.Sent.Src)
	}
	if e.what != "translated" {
		if got != e.what {
			return fmt.Sprintf("%s, want it %s", got, e.what)
		}
		return ""
	}
	if f.Sent == nil || !slices.Contains(e.backends, f.Sent.Dst) {
		return fmt.Sprintf("%s, want it translated to one of %v", got, e.backends)
	}
	masked := e.masked || f.Sent.Dst.Addr() == p.Src.Addr() && p.Link() == "pods0"
	link := own[0] // the address of the device that it leaves by
	if wire.Pods.Contains(f.Sent.Dst.Addr()) || wire.Pods6.Contains(f.Sent.Dst.Addr()) {
		link = own[1]
	}
	if masked && f.Sent.Src.Addr() != link || !masked && f.Sent.Src != p.Src {
		return fmt.Sprintf("%s, want source masqueraded: %v", got, masked)
	}
	return ""
}

// world makes tables at random, of few addresses and ports, so that frontends are near each other.
type world struct{ *rand.Rand }

func pick[T any](w world, list ...T) T { return list[w.IntN(len(list))] }

func (w world) backends(ipv4 bool) (list []service.Backend) {
	for range w.IntN(4) {
		host, local := w.IntN(3)+11, w.IntN(2) == 0
		form := "10.244.%d.%d"
		if !ipv4 {
			form = "fd00:10:244:%d::%d"
		}
		node := 2
		if local {
			node = 1
		}
		b := service.Backend{AddrPort: netip.AddrPortFrom(netip.MustParseAddr(fmt.Sprintf(form, node, host)), pick[uint16](w, 8080, 9090)), Local: local}
		if !slices.Contains(list, b) {
			list = append(list, b)
		}
	}
	slices.SortFunc(list, func(a, b service.Backend) int { return a.AddrPort.Compare(b.AddrPort) })
	return list
}

func (w world) addr(kind service.Kind, ipv4 bool) netip.Addr {
	if kind == service.NodePort {
		return map[bool]netip.Addr{true: netip.IPv4Unspecified(), false: netip.IPv6Unspecified()}[ipv4]
	}
	net := map[service.Kind][2]string{service.ClusterIP: {"10.96.0.", "fd00:10:96::"}, service.LoadBalancerIP: {"203.0.113.1", "2001:db8:113::1"},
		service.ExternalIP: {"203.0.113.2", "2001:db8:113::2"}}[kind]
	text := net[0]
	if !ipv4 {
		text = net[1]
	}
	return netip.MustParseAddr(text + fmt.Sprint(w.IntN(4)+1))
}

func (w world) frontend() service.Frontend {
	ipv4 := w.IntN(2) == 0
	kind := pick(w, service.ClusterIP, service.ClusterIP, service.NodePort, service.LoadBalancerIP, service.ExternalIP)
	f := service.Frontend{PortName: pick(w, "a", "b"), Backends: w.backends(ipv4), Empty: pick(w, service.Reject, service.Drop)}
	f.Origin = dpOrigin(pick(w, "red", "green", "blue"))
	f.Key = service.Key{Kind: kind, Addr: w.addr(kind, ipv4), Port: pick[uint16](w, 80, 443), Protocol: pick(w, model.TCP, model.TCP, model.UDP, model.SCTP)}
	if kind == service.NodePort {
		f.Port += 30000
	}
	f.Masquerade = service.MasqueradeForeign
	if kind != service.ClusterIP {
		f.Masquerade = pick(w, service.MasqueradeAll, service.MasqueradeNone)
	}
	if f.Masquerade == service.MasqueradeNone {
		f.Inside = w.backends(ipv4)
		f.Backends = slices.DeleteFunc(slices.Clone(f.Inside), func(b service.Backend) bool { return !b.Local })
		f.Empty = service.Drop
		if len(f.Inside) == 0 {
			f.Inside, f.Empty = nil, service.Reject
		}
	}
	if kind == service.LoadBalancerIP && w.IntN(2) == 0 {
		f.Filtered = true
		for _, r := range []string{"10.9.0.0/16", "10.244.0.0/16", "192.0.2.0/24", "2001:db8::/64", "fd00:10:244::/48"} {
			if p := netip.MustParsePrefix(r); p.Addr().Is4() == ipv4 && w.IntN(2) == 0 {
				f.Sources = append(f.Sources, p)
			}
		}
	}
	f.Affinity = map[string]time.Duration{"green": time.Minute, "blue": 3 * time.Hour}[f.Origin.Name]
	return f
}

func (w world) net() service.Net {
	p := netip.MustParsePrefix
	n := service.Net{LocalPods: []netip.Prefix{wire.Pods, wire.Pods6}, Services: []netip.Prefix{p("10.96.0.0/16"), p("fd00:10:96::/112")},
		ClusterPods: []netip.Prefix{wire.Pods, p("10.244.2.0/24"), wire.Pods6, p("fd00:10:244:2::/64")},
		NodePorts:   []netip.Prefix{p("0.0.0.0/0"), p("::/0")}}
	n.Local = pick(w, service.Local{}, service.Local{}, service.Local{Sources: []netip.Prefix{p("10.244.0.0/16"), p("fd00:10:244::/48")}},
		service.Local{Link: "pods0"}, service.Local{Link: "pods", Prefix: true}, service.Local{Link: "u", Prefix: true}, service.Local{Link: "pods"})
	n.Loopback = w.IntN(2) == 0
	if w.IntN(3) == 0 {
		n.NodePorts = []netip.Prefix{p("10.244.0.0/16"), p("2001:db8::/64")}
	}
	if w.IntN(4) == 0 {
		n.Services = nil
	}
	return n
}

// packet makes one that is likely to meet a frontend.
func (w world) packet(all []service.Frontend, port uint16) wire.Packet {
	p := wire.Packet{Protocol: pick(w, wire.TCP, wire.UDP)}
	var dst netip.Addr
	var number uint16
	if len(all) > 0 && w.IntN(8) > 0 {
		f := pick(w, all...)
		p.Protocol, dst, number = uint8(f.Protocol), f.Addr, f.Port
		if f.Kind == service.NodePort {
			dst = pick(w, wire.Own(f.Addr.Is4())...)
		}
		if w.IntN(8) == 0 && p.Protocol != wire.SCTP { // the kernel's own answer to SCTP is that it has no such protocol
			number++
		}
	} else {
		dst, number = w.addr(pick(w, service.ClusterIP, service.LoadBalancerIP), w.IntN(2) == 0), 80
	}
	src := []string{"192.0.2.1", "192.0.2.50", "198.51.100.7", "10.9.9.9", "10.244.1.1", "10.244.1.11", "10.244.1.12", "10.244.2.11"}
	if !dst.Is4() {
		src = []string{"2001:db8::1", "2001:db8::50", "2001:db8:51::7", "fd09::9", "fd00:10:244:1::1", "fd00:10:244:1::11", "fd00:10:244:1::12", "fd00:10:244:2::11"}
	}
	from := pick(w, src...)
	if slices.Contains(wire.Own(true), dst) && w.IntN(3) == 0 {
		from = w.loopback(&p, &dst, from)
	}
	p.Src, p.Dst = netip.AddrPortFrom(netip.MustParseAddr(from), port), netip.AddrPortFrom(dst, number)
	return p
}

// loopback makes of a packet to the node one to a loopback address, its own or an intruder's, or an intruder's that
// pretends to be of the node.
func (w world) loopback(p *wire.Packet, dst *netip.Addr, from string) (src string) {
	if w.IntN(3) > 0 {
		*dst = netip.MustParseAddr(pick(w, "127.0.0.1", "127.1.2.3"))
		if w.IntN(2) == 0 && wire.Own(true)[0].String() != from && wire.Own(true)[1].String() != from {
			return from
		}
	} else {
		p.Via = pick(w, "up0", "pods0")
	}
	return "127.0.0.1"
}

// table makes one without two frontends at one place.
func (w world) table(n int) (all []service.Frontend) {
	taken := map[service.Key]bool{}
	for range n {
		f := w.frontend()
		if !taken[f.Key] {
			taken[f.Key] = true
			all = append(all, f)
		}
	}
	return all
}

// TestPackets sends the first packets of connections through tables made at random, from outside,
// from pods and from the node, and compares what becomes of each with what Kubernetes promises. All
// service modes pass the same packets, so they cannot disagree.
func TestPackets(t *testing.T) {
	first, end := int64(0), *packetSeeds
	if *packetSeed >= 0 {
		first, end = *packetSeed, *packetSeed+1
	}
	for mode, construct := range testedPlanes {
		for seed := first; seed < end; seed++ {
			t.Run(fmt.Sprintf("%s/seed-%d", mode, seed), func(t *testing.T) { runPackets(t, seed, construct) })
		}
	}
}

func runPackets(t *testing.T, seed int64, construct func(*slog.Logger) (service.Dataplane, error)) {
	w := world{rand.New(rand.NewPCG(uint64(seed), 11))}
	r := packetRun{Node: wire.New(t), world: w, t: t, memory: map[string][]netip.AddrPort{}, before: map[string][]netip.AddrPort{}}
	r.construct(construct)
	r.masquerade()
	all, net := w.table(25), w.net()
	r.do("Replace", func() error { return r.plane.Replace(all, net) })
	r.route(net.Loopback)
	r.check("a new table", all, net, 150)
	for round := range 4 {
		d := r.change(&all, &net)
		if !net.Loopback {
			r.route(false)
		}
		r.do("Apply", func() error { return r.plane.Apply(d) })
		r.route(net.Loopback)
		r.check(fmt.Sprintf("after change %d", round+1), all, net, 60)
	}
	r.construct(construct) // an agent that starts again
	r.do("Replace", func() error { return r.plane.Replace(all, net) })
	r.check("after a restart", all, net, 100)
}

type packetRun struct {
	*wire.Node
	world
	t      *testing.T
	plane  service.Dataplane
	memory map[string][]netip.AddrPort // session and client → where it went since the last change, the last behind
	before map[string][]netip.AddrPort // and before that
	ports  uint16
}

// masquerade lets the other part of the agent that replaces sources do so beside services: it must change nothing for these.
func (r *packetRun) masquerade() {
	e := &egressRun{Node: r.Node, t: r.t, make: egressPlanes["nftables"], cfg: egress.Config{Node: "n1", Masquerade: true}}
	if r.plane.Name() == "iptables" {
		e.make = egressPlanes["iptables-nft"]
	}
	e.start()
	e.step()
}

func (r *packetRun) construct(construct func(*slog.Logger) (service.Dataplane, error)) {
	r.do("construct", func() (err error) { r.plane, err = construct(slog.New(slog.DiscardHandler)); return err })
}

func (r *packetRun) do(what string, step func() error) {
	r.t.Helper()
	if err := r.Do(step); err != nil {
		r.t.Fatalf("%s: %v", what, err)
	}
}

// route lets the kernel route loopback addresses, or not.
func (r *packetRun) route(loopback bool) {
	value := map[bool]string{true: "1", false: "0"}[loopback]
	r.do("route_localnet", func() error {
		for _, dev := range []string{"up0", "pods0"} {
			if _, err := sysctl.Set("net/ipv4/conf/"+dev+"/route_localnet", value); err != nil {
				return err
			}
		}
		return nil
	})
}

// change alters the table and returns the delta.
func (r *packetRun) change(all *[]service.Frontend, net *service.Net) (d service.Delta) {
	for session, went := range r.memory { // whether a backend that leaves and comes back is remembered is not promised
		r.before[session] = append(r.before[session], went...)
	}
	clear(r.memory)
	next := slices.Clone(*all)
	for range 4 {
		switch i := r.IntN(len(next)); r.IntN(3) {
		case 0:
			next = slices.Delete(next, i, i+1)
		default:
			f := r.frontend()
			f.Key = next[i].Key
			if old := next[i]; f.Addr.Is4() == (len(f.Backends)+len(f.Inside) == 0 || slices.Concat(f.Backends, f.Inside)[0].Addr().Is4()) &&
				(f.Masquerade == service.MasqueradeForeign) == (old.Kind == service.ClusterIP) && !(f.Filtered && old.Kind != service.LoadBalancerIP) {
				next[i] = f
			}
		}
	}
	for _, f := range r.table(3) {
		if !slices.ContainsFunc(next, func(x service.Frontend) bool { return x.Key == f.Key }) {
			next = append(next, f)
		}
	}
	for _, f := range *all {
		if !slices.ContainsFunc(next, func(x service.Frontend) bool { return x.Key == f.Key }) {
			d.Delete = append(d.Delete, f.Key)
		}
	}
	d.Set = slices.Clone(next) // those that stay as they are may be told again
	if r.IntN(2) == 0 {
		n := r.net()
		*net, d.Net = n, &n
	}
	*all = next
	return d
}

func (r *packetRun) check(when string, all []service.Frontend, net service.Net, n int) {
	r.t.Helper()
	for range n {
		r.ports++
		p := r.packet(all, 2000+r.ports)
		if p.Via != "" && !net.Loopback {
			continue // who pretends to be of the node, and is no matter of ours then, may be told that there is no endpoint
		}
		for range 1 + r.IntN(3) { // again, from another port of the client
			r.ports++
			p.Src = netip.AddrPortFrom(p.Src.Addr(), 2000+r.ports)
			e := decide(all, net, p)
			session := r.remembered(all, net, p, &e)
			f := r.Send(p)
			if wrong := judge(p, e, f); wrong != "" {
				r.t.Fatalf("%s: %s %s → %s was %s\ntable:\n%s\nnet: %+v\nrules:\n%s", when, model.Protocol(p.Protocol), p.Src, p.Dst, wrong, printTable(all), net,
					(&dpLab{node: &dpHost{NS: r.NS}}).rules(r.t))
			}
			if session != "" && f.Sent != nil {
				earlier := slices.DeleteFunc(r.memory[session], func(b netip.AddrPort) bool { return b == f.Sent.Dst })
				r.memory[session] = append(earlier, f.Sent.Dst)
			}
		}
	}
}

// remembered leaves of the backends those that the client has been sent to before, if the service
// port keeps clients and the last of them is usable here. Where it is not, it is forgotten, and whether a mode
// knows earlier ones is not promised.
func (r *packetRun) remembered(all []service.Frontend, net service.Net, p wire.Packet, e *expected) (session string) {
	for i := range all {
		f := &all[i]
		if f.Affinity == 0 || e.what != "translated" || uint8(f.Protocol) != p.Protocol || f.Port != p.Dst.Port() {
			continue
		}
		if one := decide(all[i:i+1], net, p); one.what != "translated" {
			continue
		}
		session = f.SessionName() + " " + p.Src.Addr().String()
		var left []netip.AddrPort
		for _, b := range r.memory[session] {
			if slices.Contains(e.backends, b) {
				left = append(left, b)
			}
		}
		if n := len(r.memory[session]); n > 0 && slices.Contains(left, r.memory[session][n-1]) {
			for _, b := range r.before[session] {
				if slices.Contains(e.backends, b) {
					left = append(left, b)
				}
			}
			e.backends = left
		}
		return session
	}
	return ""
}

func printTable(all []service.Frontend) string {
	var b strings.Builder
	for _, f := range all {
		fmt.Fprintf(&b, "%s %s %s: %v inside %v masquerade %d empty %d affinity %s filtered %v %v\n", f.Kind, f.Key, f.SessionName(), f.Backends, f.Inside,
			f.Masquerade, f.Empty, f.Affinity, f.Filtered, f.Sources)
	}
	return b.String()
}
