package overlay

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/braidnet/braid/internal/desired"
	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/netagent/overlay/peer"
)

// node makes a Node from "cidr,cidr" and "ip,ip"; either may be empty.
func node(name, cidrs, ips string) *model.Node {
	n := &model.Node{Origin: model.Origin{Ref: model.Ref{Kind: model.KindNode, Key: model.Key{Name: name}}, File: "nodes.yaml", Line: 1}}
	for _, s := range fields(cidrs) {
		n.PodCIDRs = append(n.PodCIDRs, netip.MustParsePrefix(s))
	}
	for _, s := range fields(ips) {
		n.InternalIPs = append(n.InternalIPs, netip.MustParseAddr(s))
	}
	return n
}

func fields(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return r == ',' })
}

func annotated(n *model.Node, mac string) *model.Node {
	n.Annotations = map[string]string{MACAnnotation: mac}
	return n
}

// input makes the Input of node a, whose underlays are eth0 (IPv4) and eth1 (IPv6) as far as it has
// an InternalIP of that family. Backend "vxlan direct" is vxlan with direct routing.
func input(backend string, self *model.Node, peers ...*model.Node) Input {
	backend, direct := strings.CutSuffix(backend, " direct")
	in := Input{Backend: backend, Name: "a", Self: self, Peers: peers, Direct: direct, VXLAN: peer.VXLAN{VNI: 1, Port: 8472}}
	if self == nil {
		return in
	}
	for _, u := range []Underlay{
		{Dev: "eth0", DevMTU: 1500, OnLink: []netip.Prefix{netip.MustParsePrefix("192.168.0.0/24")}},
		{Dev: "eth1", DevMTU: 1480, OnLink: []netip.Prefix{netip.MustParsePrefix("fd00::/64")}},
	} {
		if addr, ok := self.Address(u.Dev == "eth0"); ok {
			u.Addr = addr
			in.Underlays = append(in.Underlays, u)
		}
	}
	return in
}

const (
	dualCIDR = "10.244.1.0/24,fd00:10:244:1::/64"
	dualIP   = "192.168.0.1,fd00::1"
)

func TestPlan(t *testing.T) {
	derived := func(name string) string { m, _ := MAC(node(name, "", "")); return m.String() }
	for _, tc := range []struct {
		name    string
		backend string
		self    *model.Node
		peers   []*model.Node
		routes  []string // "dst via dev"
		fdb     []string // "dev mac dst"
		notes   []string // each a part of one note, in order
		mtu     int
	}{
		{"vxlan dual-stack", "vxlan", node("a", dualCIDR, dualIP), []*model.Node{node("b", "10.244.2.0/24,fd00:10:244:2::/64", "192.168.7.2,fd00:7::2")},
			[]string{"10.244.2.0/24 10.244.2.0 braid.vx4", "fd00:10:244:2::/64 fd00:10:244:2:: braid.vx6"},
			[]string{"braid.vx4 " + derived("b") + " 192.168.7.2", "braid.vx6 " + derived("b") + " fd00:7::2"}, nil, 1410},
		{"vxlan carries IPv6 pods over IPv4", "vxlan", node("a", dualCIDR, "192.168.0.1"), []*model.Node{node("b", "10.244.2.0/24,fd00:10:244:2::/64", "192.168.7.2")},
			[]string{"10.244.2.0/24 10.244.2.0 braid.vx4", "fd00:10:244:2::/64 fd00:10:244:2:: braid.vx4"},
			[]string{"braid.vx4 " + derived("b") + " 192.168.7.2"}, nil, 1450},
		{"vxlan peer with IPv6 address only", "vxlan", node("a", "10.244.1.0/24", dualIP), []*model.Node{node("b", "10.244.2.0/24", "fd00:7::2")},
			[]string{"10.244.2.0/24 10.244.2.0 braid.vx6"}, []string{"braid.vx6 " + derived("b") + " fd00:7::2"}, nil, 1410},
		{"vxlan no common family", "vxlan", node("a", "10.244.1.0/24", "192.168.0.1"), []*model.Node{node("b", "10.244.2.0/24", "fd00:7::2")},
			nil, nil, []string{"node b: no route to pod CIDR 10.244.2.0/24: it shares no family"}, 1450},
		{"vxlan alone keeps its MTU", "vxlan", node("a", dualCIDR, dualIP), nil, nil, nil, nil, 1410},
		{"vxlan annotation wins", "vxlan", node("a", "10.244.1.0/24", "192.168.0.1"), []*model.Node{annotated(node("b", "10.244.2.0/24", "192.168.0.2"), "0a:00:00:00:00:02")},
			[]string{"10.244.2.0/24 10.244.2.0 braid.vx4"}, []string{"braid.vx4 0a:00:00:00:00:02 192.168.0.2"}, nil, 1450},
		{"vxlan bad annotation", "vxlan", node("a", "10.244.1.0/24", "192.168.0.1"), []*model.Node{annotated(node("b", "10.244.2.0/24", "192.168.0.2"), "ff:ff:ff:ff:ff:ff")},
			[]string{"10.244.2.0/24 10.244.2.0 braid.vx4"}, []string{"braid.vx4 " + derived("b") + " 192.168.0.2"}, []string{"node b: annotation braid.network/vtep-mac: ff:ff:ff:ff:ff:ff is a group"}, 1450},
		{"vxlan stolen address", "vxlan", node("a", "10.244.1.0/24", "192.168.0.1"),
			[]*model.Node{annotated(node("b", "10.244.2.0/24", "192.168.0.2"), derived("c")), node("c", "10.244.3.0/24", "192.168.0.3")},
			[]string{"10.244.3.0/24 10.244.3.0 braid.vx4"}, []string{"braid.vx4 " + derived("c") + " 192.168.0.3"},
			[]string{"node b: no route to pod CIDR 10.244.2.0/24: its VXLAN address " + derived("c") + " is that of node c"}, 1450},
		{"direct, all on the link", "vxlan direct", node("a", dualCIDR, dualIP), []*model.Node{node("b", "10.244.2.0/24,fd00:10:244:2::/64", "192.168.0.2,fd00::2")},
			[]string{"10.244.2.0/24 192.168.0.2 eth0", "fd00:10:244:2::/64 fd00::2 eth1"}, nil, nil, 1410},
		{"direct, one behind a router", "vxlan direct", node("a", "10.244.1.0/24", "192.168.0.1"),
			[]*model.Node{node("b", "10.244.2.0/24", "192.168.0.2"), node("c", "10.244.3.0/24", "192.168.7.3")},
			[]string{"10.244.2.0/24 192.168.0.2 eth0", "10.244.3.0/24 10.244.3.0 braid.vx4"}, []string{"braid.vx4 " + derived("c") + " 192.168.7.3"}, nil, 1450},
		{"direct, one family on the link", "vxlan direct", node("a", dualCIDR, dualIP), []*model.Node{node("b", "10.244.2.0/24,fd00:10:244:2::/64", "192.168.7.2,fd00::2")},
			[]string{"10.244.2.0/24 10.244.2.0 braid.vx4", "fd00:10:244:2::/64 fd00::2 eth1"}, []string{"braid.vx4 " + derived("b") + " 192.168.7.2"}, nil, 1410},
		{"direct, other family by tunnel", "vxlan direct", node("a", dualCIDR, "192.168.0.1"), []*model.Node{node("b", "10.244.2.0/24,fd00:10:244:2::/64", "192.168.0.2")},
			[]string{"10.244.2.0/24 192.168.0.2 eth0", "fd00:10:244:2::/64 fd00:10:244:2:: braid.vx4"}, []string{"braid.vx4 " + derived("b") + " 192.168.0.2"}, nil, 1450},
		{"host-gw", "host-gw", node("a", dualCIDR, dualIP), []*model.Node{node("b", "10.244.2.0/24,fd00:10:244:2::/64", "192.168.0.2,fd00::2")},
			[]string{"10.244.2.0/24 192.168.0.2 eth0", "fd00:10:244:2::/64 fd00::2 eth1"}, nil, nil, 1480},
		{"host-gw peer behind a router", "host-gw", node("a", "10.244.1.0/24", "192.168.0.1"), []*model.Node{node("b", "10.244.2.0/24", "192.168.7.2")},
			nil, nil, []string{"node b: no route to pod CIDR 10.244.2.0/24: its address 192.168.7.2 is not on the link of eth0"}, 1500},
		{"host-gw other family", "host-gw", node("a", dualCIDR, "192.168.0.1"), []*model.Node{node("b", "fd00:10:244:2::/64", "192.168.0.2")},
			nil, nil, []string{"node b: no route to pod CIDR fd00:10:244:2::/64: host-gw cannot carry IPv6 over IPv4"}, 1500},
		{"ipip dual-stack", "ipip", node("a", dualCIDR, dualIP), []*model.Node{node("b", "10.244.2.0/24,fd00:10:244:2::/64", "192.168.7.2,fd00:7::2")},
			[]string{"10.244.2.0/24 192.168.7.2 braid.ipip", "fd00:10:244:2::/64 ::c0a8:702 braid.sit"}, nil, nil, 1480},
		{"ipip carries IPv6 pods over IPv4", "ipip", node("a", dualCIDR, "192.168.0.1"), []*model.Node{node("b", "10.244.2.0/24,fd00:10:244:2::/64", "192.168.7.2")},
			[]string{"10.244.2.0/24 192.168.7.2 braid.ipip", "fd00:10:244:2::/64 ::c0a8:702 braid.sit"}, nil, nil, 1480},
		{"ipip goes over IPv4 only", "ipip", node("a", dualCIDR, dualIP), []*model.Node{node("b", "fd00:10:244:2::/64", "fd00:7::2")},
			nil, nil, []string{"node b: no route to pod CIDR fd00:10:244:2::/64: ipip goes over IPv4, and it has no address"}, 1480},
		{"ipip on a node without IPv4", "ipip", node("a", dualCIDR, "fd00::1"), []*model.Node{node("b", "10.244.2.0/24", "192.168.0.2")},
			nil, nil, []string{"node a: ipip goes over IPv4"}, 0},
		{"ipip direct", "ipip direct", node("a", "10.244.1.0/24", "192.168.0.1"), []*model.Node{node("b", "10.244.2.0/24", "192.168.0.2"), node("c", "10.244.3.0/24", "192.168.7.3")},
			[]string{"10.244.2.0/24 192.168.0.2 eth0", "10.244.3.0/24 192.168.7.3 braid.ipip"}, nil, nil, 1480},
		{"ipip alone keeps its MTU", "ipip", node("a", "10.244.1.0/24", "192.168.0.1"), nil, nil, nil, nil, 1480},
		{"peer without CIDR", "vxlan", node("a", "10.244.1.0/24", "192.168.0.1"), []*model.Node{node("b", "", "192.168.0.2")},
			nil, nil, []string{"node b: it has no spec.podCIDRs"}, 1450},
		{"two nodes with one CIDR", "host-gw", node("a", "10.244.1.0/24", "192.168.0.1"),
			[]*model.Node{node("c", "10.244.2.0/24", "192.168.0.3"), node("b", "10.244.2.0/24", "192.168.0.2"), node("d", "10.244.4.0/24", "192.168.0.4")},
			[]string{"10.244.4.0/24 192.168.0.4 eth0"}, nil,
			[]string{"node b: no route to pod CIDR 10.244.2.0/24: it overlaps 10.244.2.0/24 of node c", "node c: no route to pod CIDR 10.244.2.0/24: it overlaps 10.244.2.0/24 of node b"}, 1500},
		{"nested CIDRs", "host-gw", node("a", "10.244.1.0/24", "192.168.0.1"),
			[]*model.Node{node("b", "10.245.0.0/16", "192.168.0.2"), node("c", "10.245.3.0/24", "192.168.0.3"), node("d", "10.244.4.0/24", "192.168.0.4")},
			[]string{"10.244.4.0/24 192.168.0.4 eth0"}, nil, []string{"node b: no route", "node c: no route"}, 1500},
		{"peer claims our CIDR", "host-gw", node("a", "10.244.1.0/24", "192.168.0.1"), []*model.Node{node("b", "10.244.1.0/24", "192.168.0.2")},
			nil, nil, []string{"node a: its pod CIDR 10.244.1.0/24 overlaps 10.244.1.0/24 of node b", "node b: no route to pod CIDR 10.244.1.0/24"}, 1500},
		{"peer claims the world", "host-gw", node("a", "10.244.1.0/24", "192.168.0.1"),
			[]*model.Node{node("b", "0.0.0.0/0", "192.168.0.2"), node("c", "192.168.0.0/16", "192.168.0.3"), node("d", "10.244.4.0/24", "192.168.0.4"), node("e", "169.254.0.0/16", "192.168.0.5")},
			[]string{"10.244.4.0/24 192.168.0.4 eth0"}, nil,
			[]string{"node b: its pod CIDR 0.0.0.0/0 is not used", "node c: its pod CIDR 192.168.0.0/16 is not used: it holds 192.168.0.1", "node e: its pod CIDR 169.254.0.0/16"}, 1500},
		{"peer with our address", "vxlan", node("a", "10.244.1.0/24", "192.168.0.1"), []*model.Node{node("b", "10.244.2.0/24", "192.168.0.1"), node("c", "10.244.3.0/24", "127.0.0.1")},
			nil, nil, []string{"node b: no route to pod CIDR 10.244.2.0/24: its address 192.168.0.1 is this node's own", "node c: no route to pod CIDR 10.244.3.0/24: its address 127.0.0.1 is a loopback"}, 1450},
		{"own node missing", "vxlan", nil, []*model.Node{node("b", "10.244.2.0/24", "192.168.0.2")}, nil, nil, []string{"node a: the cluster has no Node of this name"}, 0},
		{"own CIDR missing", "vxlan", node("a", "", "192.168.0.1"), []*model.Node{node("b", "10.244.2.0/24", "192.168.0.2")},
			[]string{"10.244.2.0/24 10.244.2.0 braid.vx4"}, []string{"braid.vx4 " + derived("b") + " 192.168.0.2"}, []string{"node a: it has no spec.podCIDRs"}, 1450},
		{"own address missing", "vxlan", node("a", "10.244.1.0/24", ""), nil, nil, nil, []string{"node a: it has no InternalIP"}, 0},
		{"unknown backend", "carrier-pigeon", node("a", "10.244.1.0/24", "192.168.0.1"), nil, nil, nil, []string{`unknown overlay backend "carrier-pigeon"`}, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			in := input(tc.backend, tc.self, tc.peers...)
			net, notes := Plan(in)
			var routes, fdb []string
			for _, r := range net.Routes {
				routes = append(routes, fmt.Sprintf("%s %s %s", r.Dst, r.Via, r.Dev))
			}
			for _, f := range net.FDB {
				fdb = append(fdb, fmt.Sprint(f.Dev, " ", f.MAC, " ", f.Dst))
			}
			if !slices.Equal(routes, tc.routes) {
				t.Errorf("routes %q, want %q", routes, tc.routes)
			}
			if !slices.Equal(fdb, tc.fdb) {
				t.Errorf("forwarding entries %q, want %q", fdb, tc.fdb)
			}
			if len(notes) != len(tc.notes) {
				t.Fatalf("notes %q, want %q", notes, tc.notes)
			}
			for i := range notes {
				if !strings.Contains(notes[i].String(), tc.notes[i]) {
					t.Errorf("note %d = %q, want %q in it", i, notes[i], tc.notes[i])
				}
			}
			got, why := MTU(in)
			if got != tc.mtu || (why == "") != (got == 0) {
				t.Errorf("MTU = %d (%s), want %d", got, why, tc.mtu)
			}
			if got == 1430 && !strings.Contains(why, "less 70 for VXLAN over IPv6") || got == 1450 && !strings.Contains(why, "less 50 for VXLAN over IPv4") {
				t.Errorf("MTU = %d because %s", got, why)
			}
		})
	}
}

func TestPlanBlocksInsteadOfSweeping(t *testing.T) {
	missing := input("vxlan", node("a", "10.244.1.0/24", "192.168.0.1"))
	missing.Underlays = nil
	for _, in := range []Input{input("vxlan", nil), input("x", node("a", "", "192.168.0.1")), missing} {
		net, notes := Plan(in)
		if len(notes) != 1 || !notes[0].Blocks || !reflect.DeepEqual(net, desired.Network{}) {
			t.Errorf("plan %v, notes %v: want one blocking note and nothing planned", net, notes)
		}
	}
}

func TestVXLANDevices(t *testing.T) {
	self := node("a", dualCIDR, dualIP)
	net, notes := Plan(input("vxlan", self))
	mac, _ := MAC(self)
	want := []desired.Link{
		{Name: "braid.vx4", MTU: 1450, MAC: mac, VXLAN: desired.VXLAN{VNI: 1, Port: 8472, Underlay: "eth0", Local: netip.MustParseAddr("192.168.0.1")}},
		{Name: "braid.vx6", MTU: 1410, MAC: mac, VXLAN: desired.VXLAN{VNI: 1, Port: 8472, Underlay: "eth1", Local: netip.MustParseAddr("fd00::1")}},
	}
	if len(notes) != 0 || len(net.Links) != 2 || !desired.Same(net.Links[0], want[0]) || !desired.Same(net.Links[1], want[1]) {
		t.Errorf("links %v, notes %v, want %v", net.Links, notes, want)
	}
	if len(net.Addrs) != 2 || net.Addrs[0].Prefix.String() != "10.244.1.0/32" || net.Addrs[1].Prefix.String() != "fd00:10:244:1::/128" {
		t.Errorf("addresses %v, want the network addresses of the pod CIDRs", net.Addrs)
	}
	marked := input("vxlan", self)
	marked.VXLAN.GBP = true
	if net, _ := Plan(marked); len(net.Links) != 2 || !net.Links[0].VXLAN.GBP || !net.Links[1].VXLAN.GBP {
		t.Errorf("links %v, want both to carry marks", net.Links)
	}
	small := input("vxlan", self)
	small.Underlays[1].DevMTU = 1300
	if _, notes := Plan(small); len(notes) != 1 || !strings.Contains(notes[0].Text, "1230") {
		t.Errorf("notes %v: want one on too small an MTU for IPv6", notes)
	}
}

func TestMAC(t *testing.T) {
	seen := map[desired.MAC]string{}
	for i := range 5000 {
		n := node(fmt.Sprintf("node-%d", i), "", "")
		m, err := MAC(n)
		if err != nil || m[0]&3 != 2 {
			t.Fatalf("%s: %s, %v: not a locally administered unicast address", n.Name, m, err)
		}
		if other := seen[m]; other != "" {
			t.Fatalf("%s and %s share %s", n.Name, other, m)
		}
		seen[m] = n.Name
	}
	// Peers compute it too, perhaps in another release: it may never change.
	if m, _ := MAC(node("node-1", "", "")); m.String() != "72:55:7f:1e:99:7c" {
		t.Errorf("address of node-1 is %s: it must never change between releases", m)
	}
}

// TestPlanProperties draws clusters with overlaps, foreign links, bad annotations and missing parts.
func TestPlanProperties(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for i := range 600 {
		self := randomNode(rng, "a")
		self.InternalIPs = append(self.InternalIPs, netip.MustParseAddr("192.168.0.250"))
		var peers []*model.Node
		for p := range rng.IntN(12) {
			peers = append(peers, randomNode(rng, fmt.Sprintf("p%d", p)))
		}
		in := input([]string{"vxlan", "host-gw", "vxlan direct", "ipip"}[i%4], self, peers...)
		net, notes := Plan(in)
		shuffled := in
		shuffled.Peers = slices.Clone(peers)
		rng.Shuffle(len(peers), func(a, b int) {
			shuffled.Peers[a], shuffled.Peers[b] = shuffled.Peers[b], shuffled.Peers[a]
		})
		net2, notes2 := Plan(shuffled)
		mtu, _ := MTU(in)
		if mtu2, _ := MTU(shuffled); !reflect.DeepEqual(net, net2) || !reflect.DeepEqual(notes, notes2) || mtu != mtu2 {
			t.Fatalf("the plan depends on the order of peers:\n%v %v\n%v %v", net, notes, net2, notes2)
		}
		checkPlan(t, in, net, notes)
	}
}

func randomNode(rng *rand.Rand, name string) *model.Node {
	n := node(name, "", "")
	if rng.IntN(5) > 0 {
		n.PodCIDRs = append(n.PodCIDRs, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, byte(rng.IntN(16)), 0}), 22+rng.IntN(3)).Masked())
	}
	if rng.IntN(2) > 0 {
		n.PodCIDRs = append(n.PodCIDRs, netip.MustParsePrefix(fmt.Sprintf("fd00:10:244:%x::/64", rng.IntN(64))))
	}
	if rng.IntN(4) > 0 {
		n.InternalIPs = append(n.InternalIPs, netip.AddrFrom4([4]byte{192, 168, byte(rng.IntN(2)), byte(1 + rng.IntN(200))}))
	}
	if rng.IntN(2) > 0 {
		n.InternalIPs = append(n.InternalIPs, netip.MustParseAddr(fmt.Sprintf("fd00::%x", 1+rng.IntN(200))))
	}
	if rng.IntN(6) == 0 {
		annotated(n, []string{"02:00:00:00:00:01", "nonsense", "01:00:00:00:00:00"}[rng.IntN(3)])
	}
	return n
}

// checkPlan holds the plan against the naive statement: one route or one note per pod CIDR, nothing
// over a CIDR that two nodes claim, and every gateway resolvable.
func checkPlan(t *testing.T, in Input, net desired.Network, notes []Note) {
	t.Helper()
	for _, p := range in.Peers {
		for _, cidr := range p.PodCIDRs {
			routes := 0
			for _, r := range net.Routes {
				if r.Dst == cidr {
					routes++
				}
			}
			claims := 0
			for _, o := range append([]*model.Node{in.Self}, in.Peers...) {
				for _, c := range o.PodCIDRs {
					if c.Overlaps(cidr) {
						claims++
					}
				}
			}
			noted := slices.ContainsFunc(notes, func(n Note) bool {
				return n.Node == p.Name && strings.Contains(n.Text, cidr.String())
			})
			if routes > 1 || (routes == 1) == noted || (claims > 1 && routes > 0) {
				t.Fatalf("pod CIDR %s of %s, claimed %d times: %d routes, noted %v\n%v", cidr, p.Name, claims, routes, noted, notes)
			}
		}
	}
	for _, r := range net.Routes {
		if !slices.ContainsFunc(net.Links, func(l desired.Link) bool { return l.Name == r.Dev }) && r.Dev != "eth0" && r.Dev != "eth1" {
			t.Fatalf("%s lacks its device: %+v", r, net)
		}
		if !r.OnLink || !strings.HasPrefix(r.Dev, "braid.vx") {
			continue
		}
		i := slices.IndexFunc(net.Neighs, func(n desired.Neigh) bool { return n.Dev == r.Dev && n.IP == r.Via })
		if i < 0 || !slices.ContainsFunc(net.FDB, func(f desired.FDB) bool { return f.Dev == r.Dev && f.MAC == net.Neighs[i].MAC }) ||
			!slices.ContainsFunc(net.Links, func(l desired.Link) bool { return l.Name == r.Dev }) {
			t.Fatalf("%s lacks its device, neighbour or forwarding entry: %+v", r, net)
		}
	}
	keys := map[desired.FDBKey]bool{}
	for _, f := range net.FDB {
		if keys[f.Key()] {
			t.Fatalf("two forwarding entries for one address: %v", net.FDB)
		}
		keys[f.Key()] = true
	}
}
