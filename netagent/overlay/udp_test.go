package overlay

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/braidnet/braid/internal/desired"
	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/netagent/overlay/peer"
)

// udpNode makes a node; cidrs and ips are separated by spaces.
func udpNode(name, cidrs, ips string) *model.Node {
	n := &model.Node{Origin: model.Origin{Ref: model.Ref{Kind: model.KindNode, Key: model.Key{Name: name}}}}
	for c := range strings.FieldsSeq(cidrs) {
		n.PodCIDRs = append(n.PodCIDRs, netip.MustParsePrefix(c))
	}
	for a := range strings.FieldsSeq(ips) {
		n.InternalIPs = append(n.InternalIPs, netip.MustParseAddr(a))
	}
	return n
}

func TestPlanUDP(t *testing.T) {
	v4 := Underlay{Addr: netip.MustParseAddr("192.0.2.1"), Dev: "eth0", DevMTU: 1500}
	v6 := Underlay{Addr: netip.MustParseAddr("2001:db8::1"), Dev: "eth1", DevMTU: 1400}
	for name, tc := range map[string]struct {
		self, peer *model.Node
		under      []Underlay
		mtu        int
		local      string
		tunnels    string // "CIDR via address", in order
		note       string
	}{
		"IPv4": {udpNode("a", "10.1.0.0/24", "192.0.2.1"), udpNode("b", "10.2.0.0/24", "192.0.2.2"), []Underlay{v4}, 1472,
			"[192.0.2.1]", "10.2.0.0/24 via 192.0.2.2", ""},
		"dual-stack, the smaller underlay counts": {udpNode("a", "10.1.0.0/24 fd00:1::/64", "192.0.2.1 2001:db8::1"),
			udpNode("b", "10.2.0.0/24 fd00:2::/64", "192.0.2.2 2001:db8::2"), []Underlay{v4, v6}, 1352,
			"[192.0.2.1 2001:db8::1]", "10.2.0.0/24 via 192.0.2.2, fd00:2::/64 via 2001:db8::2", ""},
		"IPv6 pods over IPv4": {udpNode("a", "10.1.0.0/24 fd00:1::/64", "192.0.2.1"), udpNode("b", "fd00:2::/64", "192.0.2.2"), []Underlay{v4}, 1472,
			"[192.0.2.1]", "fd00:2::/64 via 192.0.2.2", ""},
		"IPv4 pods over IPv6": {udpNode("a", "10.1.0.0/24", "2001:db8::1"), udpNode("b", "10.2.0.0/24", "2001:db8::2"), []Underlay{v6}, 1352,
			"[2001:db8::1]", "10.2.0.0/24 via 2001:db8::2", ""},
		"no room for IPv6": {udpNode("a", "fd00:1::/64", "192.0.2.1"), udpNode("b", "fd00:2::/64", "192.0.2.2"),
			[]Underlay{{Addr: v4.Addr, Dev: "eth0", DevMTU: 1300}}, 1272, "[192.0.2.1]", "fd00:2::/64 via 192.0.2.2", "IPv6 needs 1280"},
		"the device of the peer's family is missing": {udpNode("a", "10.1.0.0/24", "192.0.2.1 2001:db8::1"), udpNode("b", "10.2.0.0/24", "192.0.2.2"),
			[]Underlay{v6}, 1352, "[2001:db8::1]", "", "no route to pod CIDR 10.2.0.0/24"},
	} {
		in := Input{Backend: "udp", Name: "a", Self: tc.self, Peers: []*model.Node{tc.peer}, Underlays: tc.under, UDP: peer.UDP{Port: 8285}}
		net, notes := Plan(in)
		if mtu, why := MTU(in); mtu != tc.mtu || why == "" {
			t.Errorf("%s: MTU %d (%s), want %d", name, mtu, why, tc.mtu)
		}
		if len(net.Links) != 1 || net.Links[0].Kind != desired.KindTUN || net.Links[0].MTU != tc.mtu || len(net.Neighs)+len(net.FDB) != 0 {
			t.Errorf("%s: %+v", name, net)
			continue
		}
		var tunnels []string
		for _, x := range net.Relay.Tunnels {
			tunnels = append(tunnels, x.Dst.String()+" via "+x.Via.String())
		}
		var local []string
		for _, a := range net.Relay.Local {
			local = append(local, a.String())
		}
		if got := strings.Join(tunnels, ", "); got != tc.tunnels || "["+strings.Join(local, " ")+"]" != tc.local || net.Relay.Port != 8285 {
			t.Errorf("%s: tunnels %q on %v, want %q on %s", name, got, local, tc.tunnels, tc.local)
		}
		if len(net.Routes) != len(tunnels) || !slices.Equal(net.Relay.Pods, tc.self.PodCIDRs) || len(net.Addrs) != len(tc.self.PodCIDRs) {
			t.Errorf("%s: routes %v, pods %v, addresses %v", name, net.Routes, net.Relay.Pods, net.Addrs)
		}
		noted := slices.ContainsFunc(notes, func(n Note) bool { return strings.Contains(n.Text, tc.note) })
		if tc.note == "" && len(notes) != 0 || !noted && tc.note != "" {
			t.Errorf("%s: notes %v, want %q", name, notes, tc.note)
		}
	}
}
