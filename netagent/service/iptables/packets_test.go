package iptables

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/braidnet/braid/internal/desired/xt"
	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/netagent/service"
)

// packet is the first of a connection.
type packet struct {
	src, dst           netip.Addr
	proto              model.Protocol
	port               uint16
	srcLocal, dstLocal bool // addresses of the node
	link               string
}

// fate is one thing that may become of a packet, "DROP", "REJECT", "10.244.1.7:8080",
// "10.244.1.7:8080 masqueraded", or "" when no rule has anything to say.
type fate = string

// fates walks the rules as the kernel does and returns everything that may become of the packet: where
// chance or memory decides, both ways are gone. rules is the most that one way met.
func (k fakeKernel) fates(t *testing.T, p packet) (out map[fate]bool, rules int) {
	t.Helper()
	out = map[fate]bool{}
	w := walker{t: t, kernel: k, packet: p, table: "nat", end: func(to string, marked bool) {
		switch {
		case to == "":
			r := walker{t: t, kernel: k, packet: p, table: "filter", end: func(to string, _ bool) { out[to] = true }}
			r.chain(chainServices, 0, false, 0, func(bool, int) { out[""] = true })
			rules = max(rules, r.most)
		case marked:
			out[to+" masqueraded"] = true
		default:
			out[to] = true
		}
	}}
	w.chain(chainServices, 0, false, 0, func(marked bool, _ int) { w.end("", marked) })
	return out, max(rules, w.most)
}

type walker struct {
	t      *testing.T
	kernel fakeKernel
	packet packet
	table  string
	end    func(to string, marked bool)
	most   int
}

// chain walks from a rule of a chain on; back is called when the chain is over.
func (w *walker) chain(name string, at int, marked bool, met int, back func(marked bool, met int)) {
	list, ok := w.kernel[w.table][name]
	if !ok {
		w.t.Fatalf("no chain %s in table %s", name, w.table)
	}
	for i, r := range list[min(at, len(list)):] {
		met++
		w.most = max(w.most, met)
		next := at + i + 1
		r := xt.Words(r)
		yes, chance := w.matches(r, marked)
		if chance {
			w.chain(name, next, marked, met, back)
		}
		if !yes {
			continue
		}
		switch to := r[slices.Index(r, "-j")+1]; to {
		case "RETURN":
			back(marked, met)
			return
		case "MARK":
			marked = r[len(r)-1] == "0x4000/0x4000"
		case "DROP", "REJECT":
			w.end(to, marked)
			return
		case "DNAT":
			w.end(r[len(r)-1], marked)
			return
		default:
			w.chain(to, 0, marked, met, func(marked bool, met int) { w.chain(name, next, marked, met, back) })
			return
		}
	}
	back(marked, met)
}

// matches reports whether a rule matches, and whether it might as well not.
func (w *walker) matches(r []string, marked bool) (yes, chance bool) {
	p, not := &w.packet, false
	for i := 0; i+1 < len(r) && r[i] != "-j"; i++ {
		ok, arg := true, r[i+1]
		switch r[i] {
		case "!":
			not = true
			continue
		case "-s":
			ok = netip.MustParsePrefix(arg).Contains(p.src)
		case "-d":
			ok = netip.MustParsePrefix(arg).Contains(p.dst)
		case "-i":
			name, beginning := strings.CutSuffix(arg, "+")
			ok = p.link == name || beginning && strings.HasPrefix(p.link, name)
		case "-p":
			ok = arg == protocol(p.proto)
		case "--dport":
			lo, hi, ranged := strings.Cut(arg, ":")
			if !ranged {
				hi = lo
			}
			from, _ := strconv.Atoi(lo)
			till, _ := strconv.Atoi(hi)
			ok = int(p.port) >= from && int(p.port) <= till
		case "--src-type":
			ok = p.srcLocal
		case "--dst-type":
			ok = p.dstLocal
		case "--mark":
			ok = marked
		case "--probability", "--rcheck":
			chance = true
			continue
		default:
			continue
		}
		if ok == not {
			return false, false
		}
		not = false
	}
	return true, chance
}

// model says what may become of a packet by what the frontends mean, one after the other.
func (w *world) model(p packet) map[fate]bool {
	inRange := func(list []netip.Prefix, a netip.Addr) bool {
		return slices.ContainsFunc(list, func(x netip.Prefix) bool { return x.Contains(a) })
	}
	loopback := newFamily(w.ipv6).loopback
	key := service.Key{Protocol: p.proto, Addr: p.dst, Port: p.port}
	f, ok := w.table[slotOf(key)]
	if !ok && p.dstLocal && (w.net.Loopback && !w.ipv6 || !loopback.Contains(p.dst)) && inRange(w.net.NodePorts, p.dst) {
		key.Kind, key.Addr = service.NodePort, netip.IPv4Unspecified()
		if w.ipv6 {
			key.Addr = netip.IPv6Unspecified()
		}
		// Cluster IPs and their ranges come before node ports.
		f, ok = w.table[slotOf(key)]
	}
	if !ok || f.Kind == service.NodePort && len(w.served(&f, p)) == 0 {
		for _, x := range w.table {
			if x.Kind == service.ClusterIP && x.Addr == p.dst {
				return map[fate]bool{"REJECT": true}
			}
		}
		if inRange(w.net.Services, p.dst) && !p.dstLocal {
			return map[fate]bool{"DROP": true}
		}
	}
	if !ok {
		return map[fate]bool{"": true}
	}
	if f.Filtered && !inRange(f.Sources, p.src) {
		return map[fate]bool{"DROP": true}
	}
	list := w.served(&f, p)
	if len(list) == 0 {
		return map[fate]bool{map[service.Empty]string{service.Drop: "DROP", service.Reject: "REJECT"}[f.Empty]: true}
	}
	pod := w.pod(p)
	masquerade := f.Masquerade == service.MasqueradeAll || f.Masquerade == service.MasqueradeForeign && !pod ||
		f.Local() && len(f.Inside) > 0 && !pod && p.srcLocal
	out := map[fate]bool{}
	for _, b := range list {
		to := b.AddrPort.String()
		if masquerade || b.Local && b.Addr() == p.src {
			to += " masqueraded"
		}
		out[to] = true
	}
	return out
}

// served returns the backends that a frontend has for a packet.
func (w *world) served(f *service.Frontend, p packet) []service.Backend {
	if f.Local() && len(f.Inside) > 0 && (w.pod(p) || p.srcLocal) {
		return f.Inside
	}
	return f.Backends
}

// pod reports whether a packet counts as that of a pod of this node.
func (w *world) pod(p packet) bool {
	return slices.ContainsFunc(w.net.PodSources(), func(x netip.Prefix) bool { return x.Contains(p.src) }) && !p.srcLocal || w.net.Local.Matches(p.link)
}

// checkPackets compares what becomes of random packets with the model.
func (w *world) checkPackets(t *testing.T) {
	t.Helper()
	addr := func(v4, v6 string) netip.Addr {
		if w.ipv6 {
			return netip.MustParseAddr(v6)
		}
		return netip.MustParseAddr(v4)
	}
	node, loopback := addr("192.0.2.1", "2001:db8::1"), addr("127.0.0.1", "::1")
	sources := []netip.Addr{node, addr("192.0.2.9", "2001:db8::9"), addr("198.51.100.9", "2001:db8:9::9")}
	for i := range 3 {
		for _, last := range []int{1, 5, 9} {
			sources = append(sources, addr(fmt.Sprintf("10.244.%d.%d", i, last), fmt.Sprintf("fd00:10:244:%d::%x", i, last)))
		}
	}
	keys := slices.Collect(maps.Keys(w.table))
	for range 400 {
		k := w.randomFrontend().Key
		if len(keys) > 0 && w.rnd.IntN(3) > 0 {
			k = w.table[keys[w.rnd.IntN(len(keys))]].Key
		}
		p := packet{src: sources[w.rnd.IntN(len(sources))], dst: k.Addr, proto: k.Protocol, port: k.Port}
		if k.Kind == service.NodePort {
			p.dst = []netip.Addr{node, loopback, addr("65.0.0.1", "::5")}[w.rnd.IntN(3)]
			p.dstLocal = true
		}
		p.srcLocal = p.src == node || w.rnd.IntN(8) == 0
		if !p.srcLocal { // the node's own packets come in by no device
			p.link = []string{"br0", "br01", "eth0"}[w.rnd.IntN(3)]
		}
		p.dstLocal = p.dstLocal || p.dst == node || w.rnd.IntN(8) == 0
		got, rules := w.kernel.fates(t, p)
		if want := w.model(p); !maps.Equal(got, want) {
			t.Fatalf("%+v of frontend %+v:\ngot  %v\nwant %v", p, w.table[slotOf(k)], got, want)
		}
		if rules > 6*leafMax {
			t.Errorf("a packet %+v met %d rules", p, rules)
		}
	}
}
