package agent

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/braidnet/braid/internal/kernel/netns/nstest"
	"github.com/braidnet/braid/internal/kernel/sysctl"
	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/netagent/overlay/peer"
	"github.com/braidnet/braid/netagent/overlay/udp"
	"github.com/braidnet/braid/netagent/overlay/wireguard"
)

// testNode is one machine of a testNet with one pod on it.
type testNode struct {
	name    string
	ns, pod *nstest.NS
	node    *model.Node
	podIPs  []string // IPv4, IPv6
	net     *podNetwork
	keys    *keyring
	memory  string // file of the nodes that its agents knew
}

// testNet is a cluster of three machines on one switch, each side of it in a namespace of its own.
type testNet struct {
	underlay *nstest.NS
	store    *model.Store
	nodes    []*testNode
}

// newTestNet makes three dual-stack nodes n1…n3 with InternalIPs 192.168.77.N and fd00:77::N, pod
// CIDRs 10.244.N.0/24 and fd00:10:244:N::/64, and a pod at .5 and ::5.
func newTestNet(t *testing.T, backend string) *testNet {
	t.Helper()
	n := &testNet{underlay: nstest.New(t), store: model.NewStore()}
	n.underlay.Exec(t, "ip", "link", "add", "sw", "type", "bridge", "mcast_snooping", "0")
	n.underlay.Exec(t, "ip", "link", "set", "sw", "up")
	for i := 1; i <= 3; i++ {
		node := n.addNode(t, i)
		node.keys = &keyring{path: filepath.Join(t.TempDir(), "wireguard.key")}
		node.memory = filepath.Join(t.TempDir(), "run", overlayNodesFile)
		if backend == "wireguard" {
			node.publish(t)
		}
		n.nodes = append(n.nodes, node)
	}
	for _, node := range n.nodes {
		n.store.Apply([]model.Update{model.Set(node.node)})
	}
	n.store.MarkSynced()
	for _, node := range n.nodes {
		node.start(t, n.store, backend)
	}
	return n
}

func (n *testNet) addNode(t *testing.T, i int) *testNode {
	t.Helper()
	node := &testNode{name: fmt.Sprintf("n%d", i), ns: nstest.New(t), pod: nstest.New(t),
		podIPs: []string{fmt.Sprintf("10.244.%d.5", i), fmt.Sprintf("fd00:10:244:%d::5", i)}}
	ips := []string{fmt.Sprintf("192.168.77.%d", i), fmt.Sprintf("fd00:77::%d", i)}
	cidrs := []string{fmt.Sprintf("10.244.%d.0/24", i), fmt.Sprintf("fd00:10:244:%d::/64", i)}
	gateways := []string{fmt.Sprintf("10.244.%d.1", i), fmt.Sprintf("fd00:10:244:%d::1", i)}
	node.node = &model.Node{Origin: model.Origin{Ref: model.Ref{Kind: model.KindNode, Key: model.Key{Name: node.name}}}}

	port := "p" + node.name
	nstest.Veth(t, n.underlay, port, node.ns, "eth0")
	n.underlay.Exec(t, "ip", "link", "set", port, "master", "sw")
	node.ns.Exec(t, "ip", "link", "add", "braid0", "type", "bridge", "mcast_snooping", "0")
	node.ns.Exec(t, "ip", "link", "set", "braid0", "up")
	nstest.Veth(t, node.ns, "brdpod", node.pod, "eth0")
	node.ns.Exec(t, "ip", "link", "set", "brdpod", "master", "braid0")
	for f, bits := range []string{"24", "64"} {
		host := []string{"32", "128"}[f]
		node.ns.Exec(t, "ip", "addr", "add", ips[f]+"/"+bits, "dev", "eth0", "nodad")
		node.ns.Exec(t, "ip", "addr", "add", gateways[f]+"/"+bits, "dev", "braid0", "nodad")
		node.pod.Exec(t, "ip", "addr", "add", node.podIPs[f]+"/"+host, "dev", "eth0", "nodad")
		node.pod.Exec(t, "ip", "route", "add", gateways[f]+"/"+host, "dev", "eth0")
		node.pod.Exec(t, "ip", "route", "add", "default", "via", gateways[f], "dev", "eth0")
		node.node.InternalIPs = append(node.node.InternalIPs, netip.MustParseAddr(ips[f]))
		node.node.PodCIDRs = append(node.node.PodCIDRs, netip.MustParsePrefix(cidrs[f]))
	}
	return node
}

// start opens the node's overlay, as an agent does that was just started; the agent before it is dead.
// Backend "vxlan direct" is vxlan with direct routing.
func (n *testNode) start(t *testing.T, store *model.Store, backend string) {
	t.Helper()
	if n.net != nil {
		_ = n.net.Close()
	}
	backend, direct := strings.CutSuffix(backend, " direct")
	n.ns.Run(t, func() (err error) {
		n.net, err = newOverlay(overlayConfig{Backend: backend, Node: n.name, Direct: direct, VXLAN: peer.VXLAN{VNI: 1, Port: 8472}, UDP: peer.UDP{Port: udp.Port},
			WireGuard: peer.WireGuard{Port: wireguard.Port}, Keys: n.keys, Memory: n.memory}, store, slog.New(slog.DiscardHandler))
		return err
	})
	net := n.net
	t.Cleanup(func() {
		if n.net == net {
			_ = net.Close()
		}
	})
}

// publish writes the node's public keys where other nodes see them, as its agent would.
func (n *testNode) publish(t *testing.T) {
	t.Helper()
	if len(n.keys.public()) == 0 {
		if _, err := n.keys.step(crossing{}); err != nil {
			t.Fatal(err)
		}
	}
	changed := *n.node
	changed.Annotations = n.keys.annotations()
	n.node = &changed
}

// needKernel skips a test of a backend whose devices this machine's kernel does not have; make test-guest
// runs it on one that has.
func needKernel(t *testing.T, backend string) {
	t.Helper()
	if backend != "ipip" {
		return
	}
	if out, err := nstest.New(t).Output("ip", "link", "add", "probe", "type", "ipip", "local", "192.0.2.1"); err != nil {
		t.Skipf("skipped: this kernel has no IP in IP, `make test-guest` runs it on one that has: %v %s", err, out)
	}
}

// sync runs Sync on a thread in the node's namespace.
func (n *testNode) sync(t *testing.T) overlayResult {
	t.Helper()
	res, err := n.trySync()
	if err != nil {
		t.Fatalf("%s: %v", n.name, err)
	}
	return res
}

func (n *testNode) trySync() (res overlayResult, err error) {
	derr := n.ns.Do(func() error {
		res, err = n.net.Sync(context.Background())
		return nil
	})
	if derr != nil {
		err = derr
	}
	return res, err
}

func (n *testNet) syncAll(t *testing.T) {
	t.Helper()
	for _, node := range n.nodes {
		node.sync(t)
	}
}

// mesh pings from every pod to every other pod in both families, with the largest packet that may
// not be fragmented, and says what fails. The first ping after a change may need address resolution
// on the switch, so ping is asked until it works.
func (n *testNet) mesh(t *testing.T, mtu int) {
	t.Helper()
	for _, a := range n.nodes {
		a.pod.Exec(t, "ip", "link", "set", "eth0", "mtu", fmt.Sprint(mtu))
		a.ns.Exec(t, "ip", "link", "set", "brdpod", "mtu", fmt.Sprint(mtu))
	}
	for _, a := range n.nodes {
		for _, b := range n.nodes {
			if a == b {
				continue
			}
			for f, headers := range []int{28, 48} {
				nstest.Wait(t, fmt.Sprintf("pod of %s to reach %s with %d bytes", a.name, b.podIPs[f], mtu), func() error {
					_, err := a.pod.Output("ping", "-n", "-c", "1", "-W", "1", "-M", "do", "-s", fmt.Sprint(mtu-headers), b.podIPs[f])
					return err
				})
			}
		}
	}
}

func TestOverlayConnectsPods(t *testing.T) {
	for backend, mtu := range map[string]int{"vxlan": 1430, "vxlan direct": 1430, "host-gw": 1500, "udp": 1452, "ipip": 1480, "wireguard": 1440} {
		t.Run(backend, func(t *testing.T) {
			needKernel(t, backend)
			n := newTestNet(t, backend)
			for _, node := range n.nodes {
				node.ns.Sysctl(t, sysctl.Forwarding(true), "0")
				res := node.sync(t)
				if res.MTU != mtu || res.Peers != 2 || len(res.Notes) != 0 || len(res.Changes) == 0 {
					t.Errorf("%s: %+v, want MTU %d, two peers, no notes, some changes", node.name, res, mtu)
				}
				for _, c := range res.Changes {
					if !strings.Contains(c, ": ") {
						t.Errorf("change %q does not say why", c)
					}
				}
				if again := node.sync(t); len(again.Changes) != 0 {
					t.Errorf("%s: second Sync changed %q", node.name, again.Changes)
				}
			}
			n.mesh(t, mtu)
			n.sourceKept(t)
			n.hostReachesPods(t)
			for _, node := range n.nodes {
				if again := node.sync(t); len(again.Changes) != 0 {
					t.Errorf("%s: Sync after traffic changed %q", node.name, again.Changes)
				}
			}
		})
	}
}

// sourceKept sends from the pod of n1 to that of n2 and looks at the source address it sees: only
// an entry in a rule that counts by that source says yes.
func (n *testNet) sourceKept(t *testing.T) {
	t.Helper()
	from, to := n.nodes[0], n.nodes[1]
	rules := "table inet seen { chain in { type filter hook input priority 0;\n"
	for f, family := range []string{"ip", "ip6"} {
		rules += fmt.Sprintf("%s saddr %s counter comment \"%s\"\n", family, from.podIPs[f], family)
	}
	to.pod.Exec(t, "nft", rules+"}\n}")
	for f := range from.podIPs {
		from.pod.Exec(t, "ping", "-n", "-c", "1", "-W", "5", to.podIPs[f])
	}
	out := to.pod.Exec(t, "nft", "list", "table", "inet", "seen")
	for line := range strings.Lines(out) {
		if strings.Contains(line, "packets 0") {
			t.Errorf("the pod did not see the other's address: %s", line)
		}
	}
	if strings.Count(out, "packets") != 2 {
		t.Errorf("expected two counters:\n%s", out)
	}
}

// hostReachesPods pings a pod of another node from a node itself (kubelet probes, host network pods).
func (n *testNet) hostReachesPods(t *testing.T) {
	t.Helper()
	for _, ip := range n.nodes[2].podIPs {
		n.nodes[0].ns.Exec(t, "ping", "-n", "-c", "1", "-W", "5", ip)
	}
}

// TestOverlayRepairs breaks one thing after the other, as people and other programs do.
func TestOverlayRepairs(t *testing.T) {
	type damage struct {
		name string
		cmds []string
	}
	common := []damage{
		{"route deleted", []string{"ip route del 10.244.2.0/24"}},
		{"IPv6 route deleted", []string{"ip -6 route del fd00:10:244:2::/64"}},
		{"route replaced", []string{"ip route replace 10.244.2.0/24 via 192.168.77.3 dev eth0 proto static"}},
		{"IPv6 route replaced", []string{"ip -6 route replace fd00:10:244:2::/64 via fd00:77::3 dev eth0 proto static"}},
		{"IPv6 route made unreachable", []string{"ip -6 route del fd00:10:244:2::/64", "ip -6 route add unreachable fd00:10:244:2::/64 metric 1024"}},
		{"route of ours with an MTU", []string{"ip route change 10.244.2.0/24 via 192.168.77.2 dev eth0 mtu 600 proto 66"}},
		{"IP forwarding switched off", []string{"echo 0 >/proc/sys/net/ipv4/ip_forward", "echo 0 >/proc/sys/net/ipv6/conf/all/forwarding"}},
		{"all routes of ours flushed, as by a manager of networks that wants no foreign ones", []string{"ip route flush proto 66", "ip -6 route flush proto 66"}},
		{"stray route of ours", []string{"ip route add 10.99.0.0/16 via 192.168.77.3 proto 66"}},
	}
	hostgw := []damage{
		{"underlay restarted", []string{"ip link set eth0 down", "ip link set eth0 up", "ip addr replace fd00:77::1/64 dev eth0 nodad"}},
	}
	vxlan := []damage{
		{"device deleted", []string{"ip link del braid.vx4"}},
		{"IPv6 device deleted", []string{"ip link del braid.vx6"}},
		{"both devices down", []string{"ip link set braid.vx4 down", "ip link set braid.vx6 down"}},
		{"device bounced", []string{"ip link set braid.vx6 down", "ip link set braid.vx6 up"}},
		{"IPv6 switched off", []string{"echo 1 >/proc/sys/net/ipv6/conf/braid.vx6/disable_ipv6"}},
		{"address changed", []string{"ip link set braid.vx4 address 02:00:00:00:00:99"}},
		{"MTU changed", []string{"ip link set braid.vx6 mtu 1300"}},
		{"device made with another id", []string{"ip link del braid.vx4", "ip link add braid.vx4 type vxlan id 7 dstport 8472 dev eth0 local 192.168.77.1 nolearning"}},
		{"device made with learning and flooding", []string{"ip link del braid.vx6", "ip link add braid.vx6 type vxlan id 1 dstport 8472 dev eth0 local fd00:77::1 remote fd00:77::3"}},
		{"own address deleted", []string{"ip addr flush dev braid.vx4 scope global"}},
		{"foreign address added", []string{"ip addr add 10.244.2.9/32 dev braid.vx4"}},
		{"neighbour deleted", []string{"ip neigh del 10.244.2.0 dev braid.vx4"}},
		{"IPv6 neighbour changed", []string{"ip neigh replace fd00:10:244:2:: lladdr 02:00:00:00:00:99 nud permanent dev braid.vx6"}},
		{"stray neighbour", []string{"ip neigh add 10.244.9.0 lladdr 02:00:00:00:00:99 nud permanent dev braid.vx4"}},
		{"forwarding entries deleted", []string{"bridge fdb flush dev braid.vx4 permanent", "bridge fdb flush dev braid.vx6 permanent"}},
		{"stray forwarding entry", []string{"bridge fdb append 00:00:00:00:00:00 dev braid.vx4 dst 192.168.77.3"}},
		{"stray device", []string{"ip link add braid.old type vxlan id 99 dstport 4789 dev eth0"}},
	}
	user := []damage{
		{"device deleted", []string{"ip link del braid.udp"}},
		{"device made anew", []string{"ip link del braid.udp", "ip tuntap add braid.udp mode tun multi_queue"}},
		{"device made anew with one queue", []string{"ip link del braid.udp", "ip tuntap add braid.udp mode tun"}},
		{"device down", []string{"ip link set braid.udp down"}},
		{"MTU changed", []string{"ip link set braid.udp mtu 1300"}},
		{"own addresses deleted", []string{"ip addr flush dev braid.udp scope global"}},
		{"foreign address added", []string{"ip addr add 10.244.2.9/32 dev braid.udp"}},
		{"stray device", []string{"ip tuntap add braid.old mode tun"}},
	}
	inIP := []damage{
		{"device deleted", []string{"ip link del braid.ipip"}},
		{"IPv6 device deleted", []string{"ip link del braid.sit"}},
		{"both devices down", []string{"ip link set braid.ipip down", "ip link set braid.sit down"}},
		{"MTU changed", []string{"ip link set braid.ipip mtu 1300"}},
		{"device made with another end", []string{"ip link del braid.ipip", "ip link add braid.ipip type ipip local 192.168.77.1 remote 192.168.77.9"}},
		{"own address deleted", []string{"ip addr flush dev braid.ipip scope global"}},
		{"stray device", []string{"ip link add braid.old type ipip local 192.168.77.1 remote 192.168.77.8"}},
	}
	crypt := []damage{
		{"device deleted", []string{"ip link del braid.wg"}},
		{"IPv6 switched off", []string{"echo 1 >/proc/sys/net/ipv6/conf/braid.wg/disable_ipv6"}},
		{"device down", []string{"ip link set braid.wg down"}},
		{"MTU changed", []string{"ip link set braid.wg mtu 1300"}},
		{"own addresses deleted", []string{"ip addr flush dev braid.wg scope global"}},
		{"foreign address added", []string{"ip addr add 10.244.2.9/32 dev braid.wg"}},
	}
	for backend, own := range map[string][]damage{"wireguard": crypt, "ipip": inIP, "udp": user, "vxlan": vxlan, "host-gw": hostgw, "vxlan direct": hostgw} {
		t.Run(backend, func(t *testing.T) {
			needKernel(t, backend)
			n := newTestNet(t, backend)
			n.syncAll(t)
			n.mesh(t, 1400)
			hurt := n.nodes[0]
			kicks := hurt.watch(t)
			for _, d := range append(slices.Clone(common), own...) {
				t.Run(d.name, func(t *testing.T) {
					drain(kicks)
					for _, c := range d.cmds {
						hurt.ns.Exec(t, "sh", "-c", c)
					}
					nstest.Wait(t, "Watch to kick", func() error { return kicked(kicks) })
					res := hurt.sync(t)
					if len(res.Changes) == 0 {
						t.Error("Sync changed nothing")
					}
					if again := hurt.sync(t); len(again.Changes) != 0 {
						t.Errorf("second Sync changed %q after %q", again.Changes, res.Changes)
					}
					n.mesh(t, 1400)
				})
			}
		})
	}
}

// watch runs the node's Watch until the test ends and returns its kicks, after the first one, which
// comes when it is listening.
func (n *testNode) watch(t *testing.T) chan struct{} {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	kicks, done := make(chan struct{}, 1000), make(chan struct{})
	go func() {
		defer close(done)
		n.net.Watch(ctx, func() { kicks <- struct{}{} })
	}()
	t.Cleanup(func() { cancel(); <-done })
	nstest.Wait(t, "Watch to listen", func() error { return kicked(kicks) })
	return kicks
}

func kicked(kicks <-chan struct{}) error {
	select {
	case <-kicks:
		return nil
	default:
		return fmt.Errorf("no kick")
	}
}

// drain waits out the kicks of what the test itself did before.
func drain(kicks <-chan struct{}) {
	for kicked(kicks) == nil {
	}
}

func linkNames(t *testing.T, ns *nstest.NS) (names []string) {
	t.Helper()
	ns.Run(t, func() error {
		list, err := netlink.LinkList()
		for _, l := range list {
			names = append(names, l.Attrs().Name)
		}
		slices.Sort(names)
		return err
	})
	return names
}
