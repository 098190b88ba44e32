package agent

import (
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/braidnet/braid/internal/kernel/ipt"
	"github.com/braidnet/braid/internal/kernel/netns/nstest/wire"
	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/netagent/egress"
)

// egressPlanes are all that write egress rules.
var egressPlanes = map[string]func(*egress.Rules) (egressPlane, error){
	"nftables":        newEgressNFTables,
	"iptables-nft":    func(*egress.Rules) (egressPlane, error) { return newEgressIPTablesVariant(ipt.NFT, "a test") },
	"iptables-legacy": func(*egress.Rules) (egressPlane, error) { return newEgressIPTablesVariant(ipt.Legacy, "a test") },
}

// egressRun is a node with an egress loop. Its device up0 stands for the way out and, where a test says so, for a tunnel.
type egressRun struct {
	*wire.Node
	t    *testing.T
	make func(*egress.Rules) (egressPlane, error)
	cfg  egress.Config
	loop *egressLoop
	port uint16
}

func newEgressRun(t *testing.T, make func(*egress.Rules) (egressPlane, error), cfg egress.Config) *egressRun {
	cfg.Node = "n1"
	r := &egressRun{Node: wire.New(t), t: t, make: make, cfg: cfg}
	r.start()
	r.step()
	return r
}

// start is an agent that starts, with the settings of now.
func (r *egressRun) start() {
	r.t.Helper()
	e := &egressLoop{log: slog.New(slog.DiscardHandler), planner: egress.NewPlanner(r.cfg)}
	p := netip.MustParsePrefix
	e.planner.Apply(1, []model.Change{r.node("n1", wire.Own(true)[0], wire.Pods, wire.Pods6),
		r.node("n2", netip.MustParseAddr("198.51.100.2"), p("10.244.2.0/24"), p("fd00:10:244:2::/64"))})
	e.rules = e.planner.Rules()
	if err := r.Do(func() (err error) { e.plane, err = r.make(&e.rules); return err }); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(e.close)
	r.loop = e
}

func (r *egressRun) node(name string, addr netip.Addr, cidrs ...netip.Prefix) model.Change {
	n := &model.Node{PodCIDRs: cidrs, InternalIPs: []netip.Addr{addr}}
	n.Kind, n.Name = model.KindNode, name
	return model.Change{Ref: n.Ref, New: n}
}

// step does one and returns what it changed.
func (r *egressRun) step() (changes []string) {
	r.t.Helper()
	err := r.Do(func() error {
		out, err := r.loop.step(r.t.Context())
		changes = out.Changes
		return err
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return changes
}

// packet is the first of a connection, whose port nobody else has.
func (r *egressRun) packet(protocol uint8, src, dst string, port uint16) wire.Packet {
	r.port++
	return wire.Packet{Protocol: protocol, Src: netip.AddrPortFrom(netip.MustParseAddr(src), 20000+r.port), Dst: netip.AddrPortFrom(netip.MustParseAddr(dst), port)}
}

// saw is the address that the other end sees.
func saw(f wire.Fate) string {
	switch {
	case f.Sent != nil:
		return f.Sent.Src.Addr().String()
	case f.Local != nil:
		return f.Local.Src.Addr().String()
	case f.Refused:
		return f.Refusal
	}
	return "nothing"
}

func eachEgressPlane(t *testing.T, run func(*testing.T, func(*egress.Rules) (egressPlane, error))) {
	for name, construct := range egressPlanes {
		t.Run(name, func(t *testing.T) { run(t, construct) })
	}
}

// seen says what a destination is to see of a source, by the words of package egress, for connections that leave by up0, which
// is a tunnel or not.
func seen(c egress.Config, src, dst netip.Addr, marked, tunnel bool) netip.Addr {
	within := func(a netip.Addr, list ...string) bool {
		return slices.ContainsFunc(list, func(p string) bool { return netip.MustParsePrefix(p).Contains(a) })
	}
	local := within(src, "10.244.1.0/24", "fd00:10:244:1::/64")
	pods := []string{"10.244.1.0/24", "fd00:10:244:1::/64", "10.244.2.0/24", "fd00:10:244:2::/64"}
	for _, p := range c.Cluster {
		pods = append(pods, p.String())
	}
	kept := slices.ContainsFunc(c.Keep, func(p netip.Prefix) bool { return p.Contains(dst) })
	toPod := within(dst, pods...)
	out := wire.Own(src.Is4())[0]
	if within(dst, "10.244.1.0/24", "fd00:10:244:1::/64") {
		out, tunnel = wire.Own(src.Is4())[1], false
	}
	switch {
	case marked:
	case c.Masquerade && local && !toPod && !kept && !dst.IsMulticast():
		return out
	case tunnel && !within(src, pods...) && toPod:
		return out
	}
	return src
}

// TestWhoSeesWhom sends connections of everybody to everybody, in both families, and compares whom the other end sees with what
// is promised.
func TestWhoSeesWhom(t *testing.T) {
	p := netip.MustParsePrefix
	all := [][]string{
		{"10.244.1.11", "10.244.1.12", "10.244.1.1", "10.244.2.11", "192.0.2.1", "198.51.100.7", "172.16.5.5", "10.99.0.5", "203.0.113.9"},
		{"fd00:10:244:1::11", "fd00:10:244:1::12", "fd00:10:244:1::1", "fd00:10:244:2::11", "2001:db8::1", "2001:db8:51::7", "2001:db8:172::5", "fd99::5", "2001:db8:203::9"},
	}
	configs := map[string]egress.Config{
		"plain":              {Masquerade: true},
		"off":                {},
		"tunnel":             {Masquerade: true, Overlay: egress.Overlay{Links: "up"}},
		"off, with a tunnel": {Overlay: egress.Overlay{Links: "up"}},
		"kept":               {Masquerade: true, Keep: []netip.Prefix{p("172.16.0.0/12"), p("2001:db8:172::/48")}, Cluster: []netip.Prefix{p("10.99.0.0/16"), p("fd99::/16")}},
	}
	eachEgressPlane(t, func(t *testing.T, construct func(*egress.Rules) (egressPlane, error)) {
		var r *egressRun
		for name, cfg := range configs {
			cfg.Node = "n1"
			if r == nil {
				r = newEgressRun(t, construct, cfg)
				r.Exec(t, "nft", "add table inet marks; add chain inet marks c { type filter hook prerouting priority -150; }; add rule inet marks c tcp dport 81 meta mark set 0x4001; add rule inet marks c tcp dport 82 meta mark set 0x8000")
			} else { // the same node, whose agent starts with other settings
				r.cfg = cfg
				r.start()
				r.step()
			}
			for _, addrs := range all {
				for _, src := range addrs {
					for _, dst := range addrs {
						if dst == addrs[2] || dst == addrs[4] || src == dst {
							continue // the node itself
						}
						port := uint16(80 + rand.IntN(3))
						k := r.packet(wire.TCP, src, dst, port)
						marked := port == 81 && k.Link() != "" // the node's own packets do not pass prerouting
						want := seen(cfg, k.Src.Addr(), k.Dst.Addr(), marked, cfg.Overlay.Links != "").String()
						if got := saw(r.Send(k)); got != want {
							t.Fatalf("%s: %s asks %s: it sees %s, want %s\n%s", name, k.Src, k.Dst, got, want, r.rules())
						}
					}
				}
			}
		}
	})
}

func (r *egressRun) rules() string {
	out := (&dpLab{node: &dpHost{NS: r.NS}}).rules(r.t)
	if strings.HasSuffix(r.t.Name(), "/iptables-legacy") { // nft does not see those
		for _, l := range strings.Split(r.Exec(r.t, "iptables-legacy-save")+r.Exec(r.t, "ip6tables-legacy-save"), "\n") {
			if strings.HasPrefix(l, "-A ") {
				out += "\n" + l
			}
		}
	}
	return regexp.MustCompile(` # handle \d+`).ReplaceAllString(out, "")
}

// TestSourcePorts: they are drawn, or kept where somebody wants them so.
func TestSourcePorts(t *testing.T) {
	eachEgressPlane(t, func(t *testing.T, construct func(*egress.Rules) (egressPlane, error)) {
		for _, same := range []bool{true, false} {
			r := newEgressRun(t, construct, egress.Config{Masquerade: true, SamePorts: same})
			kept := 0
			for range 4 {
				for _, k := range []wire.Packet{r.packet(wire.UDP, "10.244.1.11", "203.0.113.9", 53), r.packet(wire.TCP, "fd00:10:244:1::11", "2001:db8:203::9", 80)} {
					if f := r.Send(k); f.Sent != nil && f.Sent.Src.Port() == k.Src.Port() {
						kept++
					}
				}
			}
			if same != (kept == 8) || kept > 2 && !same {
				t.Errorf("ports to be kept: %v; %d of 8 were", same, kept)
			}
		}
	})
}

// TestMulticastKeepsItsSource: what the node sends to a group from its address among the pods' is not masqueraded.
func TestMulticastKeepsItsSource(t *testing.T) {
	eachEgressPlane(t, func(t *testing.T, construct func(*egress.Rules) (egressPlane, error)) {
		r := newEgressRun(t, construct, egress.Config{Masquerade: true})
		r.Exec(t, "ip", "route", "add", "multicast", "239.1.2.3", "dev", "up0", "table", "local")
		r.Exec(t, "ip", "link", "set", "up0", "multicast", "on")
		for src, dst := range map[string]string{"10.244.1.1": "239.1.2.3", "fd00:10:244:1::1": "ff05::1:3"} {
			if f := r.Send(r.packet(wire.UDP, src, dst, 5353)); f.Sent == nil || f.Sent.Src.Addr().String() != src {
				t.Errorf("%s sends to %s: the group sees %+v", src, dst, f)
			}
		}
	})
}

// TestEgressIsRepaired: what somebody flushes or changes comes back with the next step, and says so.
func TestEgressIsRepaired(t *testing.T) {
	eachEgressPlane(t, func(t *testing.T, construct func(*egress.Rules) (egressPlane, error)) {
		r := newEgressRun(t, construct, egress.Config{Masquerade: true, Overlay: egress.Overlay{Links: "braid.", UDPPorts: []uint16{8472}, Tracked: true}})
		right := func(when string) {
			t.Helper()
			for _, c := range [][3]string{{"10.244.1.11", "203.0.113.9", "192.0.2.1"}, {"fd00:10:244:1::11", "2001:db8:203::9", "2001:db8::1"}, {"10.244.1.11", "10.244.2.11", "10.244.1.11"}} {
				if got := saw(r.Send(r.packet(wire.TCP, c[0], c[1], 80))); got != c[2] {
					t.Fatalf("%s: %s asks %s, which sees %s, want %s\n%s", when, c[0], c[1], got, c[2], r.rules())
				}
			}
			if got := saw(r.Send(r.packet(wire.UDP, "10.244.1.11", "198.51.100.2", 8472))); got != "nothing" {
				t.Fatalf("%s: a pod's packet of the overlay left, from %s", when, got)
			}
		}
		right("at first")
		before := r.rules()
		if changes := r.step(); len(changes) > 0 {
			t.Errorf("a step with nothing to do did %q", changes)
		}
		meddle := [][]string{{"nft", "flush", "ruleset"}}
		if r.loop.plane.Name() == "nftables" {
			meddle = append(meddle, []string{"nft", "flush chain ip braid-egress postrouting"}, []string{"nft", "delete table ip6 braid-egress"},
				[]string{"nft", "flush set ip braid-egress pods"}, []string{"nft", "add element ip braid-egress see-own-addresses { 203.0.113.0/24 }"})
		} else {
			tool := "iptables-" + strings.TrimPrefix(t.Name()[strings.LastIndex(t.Name(), "/")+1:], "iptables-")
			meddle = [][]string{{tool, "-t", "nat", "-F"}, {tool, "-t", "mangle", "-F"}, {"ip6" + tool[2:], "-t", "nat", "-F", "POSTROUTING"}, {tool, "-t", "nat", "-D", "BRAID_PODS", "1"}}
		}
		for _, m := range meddle {
			r.Exec(t, m[0], m[1:]...)
			r.loop.took = 0 // the next comparison is due
			if changes := r.step(); len(changes) == 0 {
				t.Errorf("%v: nothing was said of the repair", m)
			}
			right(fmt.Sprint("after ", m))
		}
		if after := r.rules(); after != before {
			t.Errorf("rules were\n%s\nand are\n%s", before, after)
		}
		r.start() // an agent that starts again writes nothing
		if changes := r.step(); len(changes) > 0 || r.loop.plane.commits() != 0 {
			t.Errorf("after a restart: %q, %d transactions", changes, r.loop.plane.commits())
		}
		if err := r.Do(func() error { _, err := removeEgress(""); return err }); err != nil {
			t.Fatal(err)
		}
		if left := r.rules(); strings.Contains(left, "braid") || strings.Contains(left, "BRAID") {
			t.Errorf("cleanup leaves\n%s", left)
		}
	})
}

// TestEgressFollowsNodes: a pod CIDR that comes is not masqueraded to any more, one that goes is.
// TestEgressHarmDuringAWrite: what somebody flushes while the agent writes is put back too.
func TestEgressHarmDuringAWrite(t *testing.T) {
	for _, v := range ipt.Variants {
		t.Run(string(v), func(t *testing.T) {
			r := newEgressRun(t, egressPlanes["iptables-"+string(v)], egress.Config{Masquerade: true})
			r.step() // where writes are not counted, a comparison that writes nothing
			whole := r.rules()
			plane := r.loop.plane.(*egressIPTables)
			harmed := false
			plane.restore = func(tool *ipt.Tool, input string) error {
				err := tool.Restore(input)
				if !harmed {
					harmed = true
					r.Exec(t, "iptables-"+string(v), "-t", "nat", "-F")
				}
				return err
			}
			r.Exec(t, "iptables-"+string(v), "-t", "nat", "-F")
			for range 3 {
				r.loop.took = 0 // repairs are not put off
				r.step()
			}
			if got := r.rules(); !harmed || got != whole {
				t.Errorf("the kernel holds\n%s\nand before\n%s", got, whole)
			}
			r.loop.took = 0
			if last := r.loop.whole; len(r.step()) != 0 || r.loop.whole != last {
				t.Error("what nobody changed is compared again")
			}
		})
	}
}

func TestEgressFollowsNodes(t *testing.T) {
	eachEgressPlane(t, func(t *testing.T, construct func(*egress.Rules) (egressPlane, error)) {
		r := newEgressRun(t, construct, egress.Config{Masquerade: true})
		asks := func(src, dst, want string) {
			t.Helper()
			if got := saw(r.Send(r.packet(wire.TCP, src, dst, 80))); got != want {
				t.Fatalf("%s asks %s: it sees %s, want %s\n%s", src, dst, got, want, r.rules())
			}
		}
		asks("10.244.1.11", "10.244.3.5", "192.0.2.1")
		n3 := r.node("n3", netip.MustParseAddr("198.51.100.3"), netip.MustParsePrefix("10.244.3.0/24"), netip.MustParsePrefix("fd00:10:244:3::/64"))
		r.loop.planner.Apply(2, []model.Change{n3})
		r.step()
		asks("10.244.1.11", "10.244.3.5", "10.244.1.11")
		asks("fd00:10:244:1::11", "fd00:10:244:3::5", "fd00:10:244:1::11")
		n3.Old, n3.New = n3.New, nil
		r.loop.planner.Apply(3, []model.Change{n3, r.node("n1", wire.Own(true)[0], netip.MustParsePrefix("10.244.9.0/24"))})
		r.step()
		asks("10.244.1.11", "10.244.3.5", "10.244.1.11") // not of this node any more
		asks("fd00:10:244:1::11", "2001:db8:203::9", "fd00:10:244:1::11")
	})
}
