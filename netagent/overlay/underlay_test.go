package overlay

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/braidnet/braid/internal/desired"
	"github.com/braidnet/braid/internal/model"
)

func addrs(words string) (list []netip.Addr) {
	for _, w := range strings.Fields(words) {
		list = append(list, netip.MustParseAddr(w))
	}
	return list
}

// The machine of these cases: eth0 has the Node's InternalIPs and is the way out, eth1 is a second network with a
// deprecated IPv6 address only, wg0 is IPv6 only, and down0 has nothing.
var testMachine = Machine{
	Devices: []Device{
		{Name: "eth0", Addrs: addrs("192.0.2.9 192.0.2.1 2001:db8::1")},
		{Name: "eth1", Addrs: addrs("10.9.0.1 10.9.0.2 2001:db8:9::1"), Spare: 1},
		{Name: "wg0", Addrs: addrs("2001:db8:7::1")},
		{Name: "down0"},
	},
	Default:  map[bool][]string{true: {"eth0"}, false: {"wg0", "eth0"}},
	ReachDev: "eth1", ReachFrom: netip.MustParseAddr("10.9.0.2"),
}

func TestChoose(t *testing.T) {
	internal := addrs("192.0.2.1 2001:db8::1")
	addr := netip.MustParseAddr
	for name, tc := range map[string]struct {
		s    Select
		want string // "addr dev>public", or a part of the error
	}{
		"nothing: the InternalIPs, not the first of the device": {Select{}, "192.0.2.1 eth0, 2001:db8::1 eth0"},
		"a device: its InternalIPs go first":                    {Select{Iface: []string{"eth0"}}, "192.0.2.1 eth0, 2001:db8::1 eth0"},
		"a device: else the first that is no spare":             {Select{Iface: []string{"eth1"}}, "10.9.0.1 eth1"},
		"one after the other, each family on its own":           {Select{Iface: []string{"none", "eth1", "wg0"}}, "10.9.0.1 eth1, 2001:db8:7::1 wg0"},
		"an address, and its device for the other family":       {Select{Iface: []string{"192.0.2.9"}}, "192.0.2.9 eth0, 2001:db8::1 eth0"},
		"an address of each family, on two devices":             {Select{Iface: []string{"192.0.2.9", "2001:db8:7::1"}}, "192.0.2.9 eth0, 2001:db8:7::1 wg0"},
		"a spare that is named":                                 {Select{Iface: []string{"2001:db8:9::1"}}, "10.9.0.1 eth1, 2001:db8:9::1 eth1"},
		"the device of the default route, by family":            {Select{Iface: []string{"default"}}, "192.0.2.1 eth0, 2001:db8:7::1 wg0"},
		"a regular expression of names":                         {Select{IfaceRegex: []string{"^(wg|eth1)"}}, "10.9.0.1 eth1, 2001:db8:7::1 wg0"},
		"a regular expression of addresses":                     {Select{IfaceRegex: []string{`^10\.9\.0\.2$`}}, "10.9.0.2 eth1"},
		"names before regular expressions":                      {Select{Iface: []string{"wg0"}, IfaceRegex: []string{"eth"}}, "192.0.2.1 eth0, 2001:db8:7::1 wg0"},
		"can reach":                                             {Select{CanReach: addr("10.9.0.77")}, "10.9.0.2 eth1"},
		"names before can reach":                                {Select{Iface: []string{"eth0"}, CanReach: addr("10.9.0.77")}, "192.0.2.1 eth0, 2001:db8::1 eth0"},
		"public-ip on a device; IPv6 as ever":                   {Select{Public4: addr("10.9.0.2")}, "10.9.0.2 eth1, 2001:db8::1 eth0"},
		"both public":                                           {Select{Public4: addr("10.9.0.2"), Public6: addr("2001:db8:7::1")}, "10.9.0.2 eth1, 2001:db8:7::1 wg0"},
		"public-ip that a router translates":                    {Select{Public4: addr("203.0.113.5"), Iface: []string{"eth1"}}, "10.9.0.1 eth1>203.0.113.5"},
		"public-ip that nobody has":                             {Select{Public4: addr("203.0.113.5")}, "public-ip: no device has 203.0.113.5: where a router"},
		"public-ipv6 on a device without IPv6":                  {Select{Public6: addr("2001:db8:5::5"), Iface: []string{"eth1"}}, "public-ipv6: 2001:db8:5::5: the device that iface: eth1 selects has no IPv6"},
		"no such device":                                        {Select{Iface: []string{"eth7", "10.0.0.1"}}, "iface: eth7, 10.0.0.1: nothing matches; of this machine, eth0 has 192.0.2.9 192.0.2.1 2001:db8::1; eth1 has 10.9.0.1"},
		"a device without addresses":                            {Select{Iface: []string{"down0"}}, "down0 has no address"},
		"nothing of that expression":                            {Select{IfaceRegex: []string{"^bond"}}, `iface-regex: "^bond": nothing matches; of this machine, eth0`},
		"a bad expression":                                      {Select{IfaceRegex: []string{"eth("}}, `iface-regex: "eth(": error parsing regexp`},
	} {
		t.Run(name, func(t *testing.T) {
			list, err := tc.s.Choose(testMachine, internal)
			var words []string
			for _, c := range list {
				w := fmt.Sprintf("%s %s", c.Addr, c.Dev)
				if c.Public != c.Addr {
					w += ">" + c.Public.String()
				}
				if c.Why == "" {
					t.Errorf("%s: does not say why", c.Addr)
				}
				words = append(words, w)
			}
			got := strings.Join(words, ", ")
			if err != nil {
				if got = err.Error(); !strings.Contains(got, tc.want) {
					t.Errorf("error %q, want %q in it", got, tc.want)
				}
			} else if got != tc.want {
				t.Errorf("%s, want %s", got, tc.want)
			}
		})
	}
	if list, err := (Select{CanReach: addr("198.51.100.1")}).Choose(Machine{}, internal); err == nil {
		t.Errorf("%v: what leads nowhere selects nothing", list)
	}
	if list, err := (Select{}).Choose(Machine{}, internal); err != nil || len(list) != 0 {
		t.Errorf("%v, %v: without settings, the plan says what is missing", list, err)
	}
}

// A Node's annotation moves the ways to it, in all backends alike, and what is wrong with it moves nothing.
func TestUnderlayAnnotation(t *testing.T) {
	for name, tc := range map[string]struct {
		text string
		vias string // of b's two pod CIDRs
		note string
	}{
		"both families":                {"192.168.0.77, fd00::77", "192.168.0.77 fd00::77", ""},
		"one family carries both":      {"192.168.0.77", "192.168.0.77 192.168.0.77", ""},
		"not an address":               {"eth0", "192.168.0.2 fd00::2", `"eth0" is no IP address; its InternalIPs are used`},
		"empty":                        {"", "192.168.0.2 fd00::2", "no IP address"},
		"two of a family":              {"192.168.0.7,192.168.0.8", "192.168.0.2 fd00::2", "two addresses of IPv4"},
		"loopback":                     {"127.0.0.1", "192.168.0.2 fd00::2", "is a loopback address"},
		"another node's":               {"192.168.0.3", "192.168.0.2 fd00::2", "192.168.0.3 is an address of node c"},
		"this node's":                  {"192.168.0.1", "192.168.0.2 fd00::2", "192.168.0.1 is an address of node a"},
		"within another's pod CIDR":    {"10.244.3.9", "192.168.0.2 fd00::2", "10.244.3.9 is in pod CIDR 10.244.3.0/24 of node c"},
		"what another says of itself":  {"192.168.0.99", "192.168.0.99 192.168.0.99", ""},
		"of IPv6, within a pod's CIDR": {"fd00:10:244:3::9", "192.168.0.2 fd00::2", "is in pod CIDR"},
	} {
		t.Run(name, func(t *testing.T) {
			self := node("a", dualCIDR, dualIP)
			b := node("b", "10.244.2.0/24,fd00:10:244:2::/64", "192.168.0.2,fd00::2")
			c := node("c", "10.244.3.0/24,fd00:10:244:3::/64", "192.168.0.3,fd00::3")
			b.Annotations = map[string]string{UnderlayAnnotation: tc.text}
			c.Annotations = map[string]string{}
			if tc.text == "192.168.0.99" { // the first by name has it
				c.Annotations[UnderlayAnnotation] = tc.text
				tc.note = "node c: annotation " + UnderlayAnnotation + ": 192.168.0.99 is an address of node b"
			}
			_, _, peers, notes := prepare(input("vxlan", self, c, b))
			var vias []string
			for _, path := range peers[0].Paths {
				vias = append(vias, path.Via.String())
			}
			if got := strings.Join(vias, " "); peers[0].Name != "b" || got != tc.vias {
				t.Errorf("%s is reached at %s, want b at %s", peers[0].Name, got, tc.vias)
			}
			if tc.note == "" && len(notes) > 0 || tc.note != "" && (len(notes) != 1 || !strings.Contains(notes[0].String(), tc.note)) {
				t.Errorf("notes %v, want %q", notes, tc.note)
			}
		})
	}
}

// What this node chose counts for it before its Node says so, and a Node that says otherwise is told of.
func TestOwnAddresses(t *testing.T) {
	self := node("a", dualCIDR, dualIP)
	self.Annotations = map[string]string{UnderlayAnnotation: "192.168.0.88"}
	in := input("vxlan", self, node("b", "10.244.2.0/24,fd00:10:244:2::/64", "192.168.7.2,fd00:7::2"))
	in.Own = addrs("192.168.0.1 fd00::1")
	_, _, peers, notes := prepare(in)
	if len(notes) != 1 || !strings.Contains(notes[0].Text, "says [192.168.0.88]") {
		t.Errorf("notes %v, want one on the annotation", notes)
	}
	if len(peers) != 1 || len(peers[0].Paths) != 2 || peers[0].Paths[1].Via != netip.MustParseAddr("fd00:7::2") {
		t.Errorf("peers %v, want both families", peers)
	}
}

// The widest way decides for the device, and routes say which are narrower.
func TestPathMTU(t *testing.T) {
	self := node("a", "10.244.1.0/24", "192.168.0.1")
	b, c := node("b", "10.244.2.0/24", "192.168.0.2"), node("c", "10.244.3.0/24", "192.168.0.3")
	for name, tc := range map[string]struct {
		backend string
		mtus    string // of the ways to b and c
		mtu     int
		why     string
		routes  string // the MTUs of the routes to b and c
	}{
		"all as the device":            {"vxlan", "1500 1500", 1450, "eth0 has 1500, less 50 for VXLAN over IPv4", "0 0"},
		"not known":                    {"vxlan", "0 0", 1450, "eth0 has 1500", "0 0"},
		"all narrower":                 {"vxlan", "1400 1400", 1350, "the routes to other nodes have 1400, less 50", "0 0"},
		"one narrower":                 {"vxlan", "1500 1400", 1450, "eth0 has 1500", "0 1350"},
		"one narrower, one not known":  {"vxlan", "0 1400", 1450, "eth0 has 1500", "0 1350"},
		"udp":                          {"udp", "1400 1300", 1372, "the routes to other nodes have 1400, less 28", "0 1272"},
		"wireguard":                    {"wireguard", "1400 1300", 1340, "less 60", "0 1240"},
		"ipip":                         {"ipip", "1400 1300", 1380, "less 20", "0 1280"},
		"wider by another device":      {"udp", "9000 9000", 8972, "the routes to other nodes have 9000", "0 0"},
		"plain routes":                 {"host-gw", "1400 1300", 1400, "the routes to other nodes have 1400, and plain routes add nothing", "1400 1300"},
		"plain routes, the device's":   {"host-gw", "1500 1300", 1500, "eth0 has 1500, and", "0 1300"},
		"plain routes beside a tunnel": {"vxlan direct", "1400 1300", 1350, "less 50", "1400 1300"},
	} {
		t.Run(name, func(t *testing.T) {
			in := input(tc.backend, self, b, c)
			var x, y int
			fmt.Sscan(tc.mtus, &x, &y)
			in.PathMTU = map[netip.Addr]int{b.InternalIPs[0]: x, c.InternalIPs[0]: y}
			net, _ := Plan(in)
			mtu, why := MTU(in)
			if mtu != tc.mtu || !strings.Contains(why, tc.why) {
				t.Errorf("MTU %d because %q, want %d because %q", mtu, why, tc.mtu, tc.why)
			}
			var got []string
			for _, r := range net.Routes {
				got = append(got, fmt.Sprint(r.MTU))
			}
			if strings.Join(got, " ") != tc.routes {
				t.Errorf("MTUs of routes %v, want %s", got, tc.routes)
			}
			if i := slices.IndexFunc(net.Links, func(l desired.Link) bool { return l.MTU != tc.mtu }); i >= 0 {
				t.Errorf("%s, want MTU %d", net.Links[i], tc.mtu)
			}
		})
	}
	six := input("vxlan", node("a", "fd00:10:244:1::/64", "fd00::1"), node("b", "fd00:10:244:2::/64", "fd00::2"), node("c", "fd00:10:244:3::/64", "fd00::3"))
	six.PathMTU = map[netip.Addr]int{netip.MustParseAddr("fd00::2"): 1480, netip.MustParseAddr("fd00::3"): 1300}
	if net, notes := Plan(six); len(notes) != 1 || notes[0].Node != "c" || !strings.Contains(notes[0].Text, "1230") || net.Routes[1].MTU != 1230 {
		t.Errorf("routes %v, notes %v, want one on c", net.Routes, notes)
	}
}

func FuzzUnderlayAnnotation(f *testing.F) {
	for _, s := range []string{"", "192.0.2.1", "192.0.2.1,2001:db8::1", "fe80::1%eth0", "::ffff:1.2.3.4", ",", "0.0.0.0"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		n := &model.Node{Annotations: map[string]string{UnderlayAnnotation: text}}
		list, err := Addresses(n)
		if err == nil && (len(list) == 0 || len(list) > 2) || err != nil && len(list) != 0 {
			t.Errorf("%q: %v, %v", text, list, err)
		}
		for _, a := range list {
			if special(a) != "" {
				t.Errorf("%q gives %s", text, a)
			}
		}
	})
}

// A probe goes each way that pods' packets take, as large as these may be there.
func TestProbes(t *testing.T) {
	b := node("b", "10.244.2.0/24,fd00:10:244:2::/64", "192.168.0.2,fd00::2")
	c := node("c", "10.244.3.0/24,fd00:10:244:3::/64", "192.168.7.3")
	for backend, want := range map[string][]string{
		"vxlan":        {"b 10.244.2.0 braid.vx4 1450+50 192.168.0.2", "b fd00:10:244:2:: braid.vx6 1330+70 fd00::2", "c 10.244.3.0 braid.vx4 1350+50 192.168.7.3"},
		"vxlan direct": {"b 192.168.0.2 eth0 1500+0 192.168.0.2", "b fd00::2 eth1 1400+0 fd00::2", "c 10.244.3.0 braid.vx4 1350+50 192.168.7.3"},
		"host-gw":      {"b 192.168.0.2 eth0 1500+0 192.168.0.2", "b fd00::2 eth1 1400+0 fd00::2"},
		"udp":          {"b 10.244.2.0 braid.udp 1352+28 192.168.0.2", "b fd00:10:244:2:: braid.udp 1352+48 fd00::2", "c 10.244.3.0 braid.udp 1352+28 192.168.7.3"},
		"wireguard":    {"b 10.244.2.0 braid.wg 1440+60 192.168.0.2", "c 10.244.3.0 braid.wg 1340+60 192.168.7.3"},
		"ipip":         {"b 10.244.2.0 braid.ipip 1480+20 192.168.0.2", "b fd00:10:244:2:: braid.sit 1480+20 192.168.0.2", "c 10.244.3.0 braid.ipip 1380+20 192.168.7.3", "c fd00:10:244:3:: braid.sit 1380+20 192.168.7.3"},
	} {
		in := input(backend, node("a", dualCIDR, dualIP), b, c)
		in.PathMTU = map[netip.Addr]int{netip.MustParseAddr("192.168.0.2"): 1500, netip.MustParseAddr("fd00::2"): 1400, netip.MustParseAddr("192.168.7.3"): 1400}
		net, _ := Plan(in)
		var got []string
		for _, p := range Probes(in, net) {
			got = append(got, fmt.Sprintf("%s %s %s %d+%d %s", p.Node, p.To, p.Dev, p.Size, p.Over, p.Via))
			if Means(in, p) == "" || !p.Local.IsValid() {
				t.Errorf("%+v", p)
			}
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("%s:\n%s\nwant\n%s", backend, strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	}
}
