package agent

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/braidnet/braid/internal/kernel/link"
	"github.com/braidnet/braid/internal/model"
)

// recorder receives every event of a node's namespace, as Watch does, and judges each.
type recorder struct {
	node   *testNode
	links  chan netlink.LinkUpdate
	addrs  chan netlink.AddrUpdate
	routes chan netlink.RouteUpdate
	neighs chan netlink.NeighUpdate
	round  int
}

func newRecorder(t *testing.T, node *testNode) *recorder {
	t.Helper()
	r := &recorder{node: node, links: make(chan netlink.LinkUpdate, 1000), addrs: make(chan netlink.AddrUpdate, 1000),
		routes: make(chan netlink.RouteUpdate, 1000), neighs: make(chan netlink.NeighUpdate, 1000)}
	done := make(chan struct{})
	t.Cleanup(func() { close(done) })
	node.ns.Run(t, func() error {
		for _, err := range []error{netlink.LinkSubscribe(r.links, done), netlink.AddrSubscribe(r.addrs, done),
			netlink.RouteSubscribe(r.routes, done), netlink.NeighSubscribe(r.neighs, done)} {
			if err != nil {
				return err
			}
		}
		return nil
	})
	return r
}

// hits runs act and returns the kinds of events that it caused and that the view takes for damage.
// Its own last events, one of each kind, tell when all of act's have been judged.
func (r *recorder) hits(t *testing.T, act func()) (kinds []string) {
	t.Helper()
	act()
	r.round++
	dev, ip := fmt.Sprintf("end%d", r.round), netip.AddrFrom4([4]byte{172, 31, byte(r.round), 1})
	dst := netip.PrefixFrom(ip.Next(), 32)
	for _, c := range []string{"ip link add %s type bridge", "ip addr add " + ip.String() + "/32 dev %s", "ip link set %s up",
		"ip route add " + dst.String() + " dev %s", "ip neigh add " + ip.Next().String() + " lladdr 02:00:00:00:00:01 nud permanent dev %s"} {
		r.node.ns.Exec(t, "sh", "-c", fmt.Sprintf(c, dev))
	}
	v := r.node.net.current()
	note := func(kind string, hit bool) {
		if hit && !slices.Contains(kinds, kind) {
			kinds = append(kinds, kind)
		}
	}
	for e := range r.links {
		if note("link", v.hitLink(e)); e.Attrs().Name == dev {
			break
		}
	}
	for e := range r.addrs {
		if note("address", v.hitAddr(e)); link.Netip(&e.LinkAddress).Addr() == ip {
			break
		}
	}
	for e := range r.routes {
		if note("route", v.hitRoute(e)); link.Netip(e.Dst) == dst {
			break
		}
	}
	for e := range r.neighs {
		if note("neighbour", v.hitNeigh(e)); e.IP.Equal(ip.Next().AsSlice()) {
			break
		}
	}
	return kinds
}

// Watch must stay quiet through what the agent itself writes and through other people's business,
// and see each kind of damage.
func TestOverlayViewJudgesEvents(t *testing.T) {
	n := newTestNet(t, "vxlan")
	a, third := n.nodes[0], n.nodes[2].node
	r := newRecorder(t, a)
	run := func(cmds ...string) func() {
		return func() {
			for _, c := range cmds {
				a.ns.Exec(t, "sh", "-c", c)
			}
		}
	}
	for _, tc := range []struct {
		name string
		act  func()
		want []string
	}{
		// The kernel tells of a new device before it is up: one more Sync, which finds all well.
		{"first Sync", func() { a.sync(t) }, []string{"link"}},
		{"a node goes", func() { n.store.Apply([]model.Update{model.Delete(third.Ref)}); a.sync(t) }, nil},
		{"a node comes", func() { n.store.Apply([]model.Update{model.Set(third)}); a.sync(t) }, nil},
		{"Sync without changes", func() { a.sync(t) }, nil},
		{"other devices", run("ip link add other type bridge", "ip link set other up", "ip addr add 172.30.0.1/24 dev other", "ip link del other"), nil},
		{"other routes", run("ip route add 10.1.0.0/16 via 192.168.77.3", "ip route del 10.1.0.0/16"), nil},
		{"neighbours of the underlay", run("ip neigh add 192.168.77.9 lladdr 02:00:00:00:00:09 dev eth0"), nil},
		{"a pod's link", run("ip link set brdpod down", "ip link set brdpod up"), nil},
		{"lease of the node's address renewed", run("ip addr change 192.168.77.1/24 dev eth0 valid_lft 500 preferred_lft 400"), nil},
		{"traffic to a pod that is not there", run("ping -c 1 -W 1 10.244.2.77 || true"), nil},
		{"device changed", run("ip link set braid.vx4 mtu 1300"), []string{"link"}},
		{"underlay changed", run("ip link set eth0 mtu 1400"), []string{"link"}},
		// With its last address the device loses its neighbours.
		{"own address gone", run("ip addr del 10.244.1.0/32 dev braid.vx4"), []string{"address", "neighbour"}},
		{"node address gone", run("ip addr del 192.168.77.1/24 dev eth0"), []string{"address", "route"}},
		{"a route to a node", run("ip route add 192.168.77.2 dev eth0 mtu 1400", "ip route del 192.168.77.2"), []string{"route"}},
		{"a default route, which may lead to nodes", run("ip route add default via 192.168.77.3", "ip route del default"), []string{"route"}},
		{"route gone", run("ip route del 10.244.3.0/24"), []string{"route"}},
		{"route taken over", run("ip -6 route replace fd00:10:244:3::/64 dev braid0"), []string{"route"}},
		{"neighbour gone", run("ip neigh del 10.244.2.0 dev braid.vx4"), []string{"neighbour"}},
		{"forwarding entry changed", run("bridge fdb flush dev braid.vx6 permanent"), []string{"neighbour"}},
	} {
		if got := r.hits(t, tc.act); !slices.Equal(got, tc.want) {
			t.Errorf("%s: judged as damage: %q, want %q", tc.name, got, tc.want)
		}
		if tc.want != nil {
			r.hits(t, func() {
				a.ns.Exec(t, "ip", "addr", "replace", "192.168.77.1/24", "dev", "eth0")
				a.ns.Exec(t, "ip", "link", "set", "eth0", "mtu", "1500")
				a.sync(t)
			})
		}
	}
}
