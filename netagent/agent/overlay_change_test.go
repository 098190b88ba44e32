package agent

import (
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/braidnet/braid/internal/kernel/netns/nstest"
	"github.com/braidnet/braid/internal/kernel/sysctl"
	"github.com/braidnet/braid/internal/model"
)

// routesOf prints the routes of ours in both families.
func routesOf(t *testing.T, n *testNode) string {
	t.Helper()
	return n.ns.Exec(t, "ip", "-4", "route", "show", "proto", "66") + n.ns.Exec(t, "ip", "-6", "route", "show", "proto", "66")
}

// state prints everything that an overlay may leave.
func state(t *testing.T, n *testNode) string {
	t.Helper()
	s := routesOf(t, n)
	for _, name := range linkNames(t, n.ns) {
		if strings.HasPrefix(name, "braid.") {
			s += name + "\n" + n.ns.Exec(t, "bridge", "fdb", "show", "dev", name) + n.ns.Exec(t, "ip", "neigh", "show", "dev", name, "nud", "permanent")
		}
	}
	return s
}

func TestOverlaySweepsAfterRestart(t *testing.T) {
	for _, backend := range []string{"vxlan", "vxlan direct", "host-gw", "udp", "ipip", "wireguard"} {
		t.Run(backend, func(t *testing.T) {
			needKernel(t, backend)
			n := newTestNet(t, backend)
			n.syncAll(t)
			a := n.nodes[0]
			if !strings.Contains(state(t, a), "10.244.3.0") {
				t.Fatalf("nothing of n3 to sweep:\n%s", state(t, a))
			}
			gone := n.nodes[2].node
			// n3 is removed from the cluster while the agent is down; n2 gets its pod CIDRs.
			heir := *n.nodes[1].node
			heir.PodCIDRs = gone.PodCIDRs
			n.store.Apply([]model.Update{model.Delete(gone.Ref), model.Set(&heir)})
			a.start(t, n.store, backend)
			res := a.sync(t)
			if res.Peers != 1 || len(res.Notes) != 0 {
				t.Errorf("%+v, want one peer", res)
			}
			left := state(t, a)
			if strings.Contains(left, "10.244.2.0") || strings.Contains(left, "192.168.77.3") || strings.Contains(left, "fd00:77::3") {
				t.Errorf("left behind:\n%s", left)
			}
			if !strings.Contains(left, "10.244.3.0/24") {
				t.Errorf("no route to the CIDR's new owner:\n%s", left)
			}
			if again := a.sync(t); len(again.Changes) != 0 {
				t.Errorf("second Sync changed %q", again.Changes)
			}
			if backend == "wireguard" {
				a.knowsKeysOf(t, n.nodes[1])
			}
		})
	}
}

// knowsKeysOf fails unless the node's WireGuard device has the keys of the others as its peers, and no more.
func (n *testNode) knowsKeysOf(t *testing.T, others ...*testNode) {
	t.Helper()
	have, err := n.net.wg.main.dev.Heard()
	if err != nil {
		t.Fatal(err)
	}
	want := 0
	for _, o := range others {
		for _, k := range o.keys.public() {
			want++
			if _, ok := have[k]; !ok {
				t.Errorf("key %s of %s is not a peer", k, o.name)
			}
		}
	}
	if len(have) != want {
		t.Errorf("%d peers, want %d", len(have), want)
	}
}

func TestOverlaySwitchesBackend(t *testing.T) {
	n := newTestNet(t, "vxlan")
	n.syncAll(t)
	n.mesh(t, 1430)
	for _, next := range []struct {
		backend, leftover string
		mtu               int
	}{{"host-gw", "braid.vx", 1500}, {"vxlan direct", "dev braid.vx", 1430}, {"udp", "via fd00:77::", 1452}, {"vxlan", "via fd00:77::", 1430}} {
		for _, node := range n.nodes {
			node.start(t, n.store, next.backend)
		}
		n.syncAll(t)
		for _, node := range n.nodes {
			if s := state(t, node); strings.Contains(s, next.leftover) {
				t.Errorf("%s with %s: the other backend left something:\n%s", node.name, next.backend, s)
			}
			if again := node.sync(t); len(again.Changes) != 0 {
				t.Errorf("%s: second Sync changed %q", next.backend, again.Changes)
			}
		}
		n.mesh(t, next.mtu)
	}
}

func TestOverlayFollowsNodeChanges(t *testing.T) {
	n := newTestNet(t, "vxlan")
	n.syncAll(t)
	a := n.nodes[0]
	// Only the IPv6 side of n2 changes: both families are planned on their own.
	moved := *n.nodes[1].node
	moved.InternalIPs = []netip.Addr{moved.InternalIPs[0], netip.MustParseAddr("fd00:77::22")}
	n.store.Apply([]model.Update{model.Set(&moved)})
	res := a.sync(t)
	if len(res.Changes) != 1 || !strings.Contains(res.Changes[0], "fd00:77::22") || !strings.Contains(res.Changes[0], "Node n2") {
		t.Errorf("changes %q, want the one forwarding entry and its Node", res.Changes)
	}
	// n2 loses IPv6 altogether: its IPv6 pods go over IPv4, with the IPv6 gateway on the IPv4 device.
	moved.InternalIPs = moved.InternalIPs[:1]
	n.store.Apply([]model.Update{model.Set(&model.Node{Origin: moved.Origin, PodCIDRs: moved.PodCIDRs, InternalIPs: moved.InternalIPs})})
	n.nodes[1].ns.Exec(t, "ip", "addr", "flush", "dev", "eth0", "scope", "global", "to", "fd00:77::/64")
	n.syncAll(t)
	if s := routesOf(t, a); !strings.Contains(s, "fd00:10:244:2::/64 via fd00:10:244:2:: dev braid.vx4") {
		t.Errorf("routes:\n%s", s)
	}
	n.mesh(t, 1430)
}

func TestOverlayFollowsUnderlayMTU(t *testing.T) {
	n := newTestNet(t, "vxlan")
	a := n.nodes[0]
	a.sync(t)
	kicks := a.watch(t)
	drain(kicks)
	a.ns.Exec(t, "ip", "link", "set", "eth0", "mtu", "1460")
	nstest.Wait(t, "Watch to kick", func() error { return kicked(kicks) })
	if res := a.sync(t); res.MTU != 1390 {
		t.Errorf("MTU %d, want 1390: %q", res.MTU, res.Changes)
	}
}

func TestOverlayOneBadPeer(t *testing.T) {
	n := newTestNet(t, "host-gw")
	far := &model.Node{Origin: model.Origin{Ref: model.Ref{Kind: model.KindNode, Key: model.Key{Name: "far"}}},
		PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.9.0/24")}, InternalIPs: []netip.Addr{netip.MustParseAddr("172.16.0.9")}}
	n.store.Apply([]model.Update{model.Set(far)})
	for _, node := range n.nodes {
		if res := node.sync(t); res.Peers != 2 || len(res.Notes) != 1 || res.Notes[0].Node != "far" {
			t.Errorf("%s: %+v, want two peers and a note on node far", node.name, res)
		}
	}
	n.mesh(t, 1500)
}

// A device that cannot be made must not take the other family with it, and the error must help.
func TestOverlayForeignDevice(t *testing.T) {
	n := newTestNet(t, "vxlan")
	a := n.nodes[0]
	a.ns.Exec(t, "ip", "link", "add", "braid.vx4", "type", "bridge")
	_, err := a.trySync()
	if err == nil || !strings.Contains(err.Error(), "ip link delete braid.vx4") || strings.Count(err.Error(), "\n") > 0 {
		t.Errorf("error %v, want one that says what to do", err)
	}
	if s := routesOf(t, a); !strings.Contains(s, "fd00:10:244:2::/64") || strings.Contains(s, "10.244.2.0") {
		t.Errorf("routes:\n%s\nwant the IPv6 ones", s)
	}
	if kind := a.ns.Exec(t, "ip", "-d", "link", "show", "braid.vx4"); !strings.Contains(kind, "bridge") {
		t.Errorf("the foreign device was touched: %s", kind)
	}
	a.ns.Exec(t, "ip", "link", "del", "braid.vx4")
	a.ns.Exec(t, "ip", "link", "add", "flannel.1", "type", "vxlan", "id", "1", "dstport", "8472", "dev", "eth0", "local", "192.168.77.1")
	if _, err = a.trySync(); err == nil || !strings.Contains(err.Error(), "--vni") {
		t.Errorf("error %v, want a word on --vni", err)
	}
	a.ns.Exec(t, "ip", "link", "del", "flannel.1")
	n.syncAll(t)
	n.mesh(t, 1430)
}

func TestOverlayTouchesNothingWhenBlind(t *testing.T) {
	n := newTestNet(t, "vxlan")
	n.syncAll(t)
	a := n.nodes[0]
	before := state(t, a)

	n.store.Apply([]model.Update{model.Delete(a.node.Ref)})
	if _, err := a.trySync(); err == nil || !strings.Contains(err.Error(), "n1") {
		t.Errorf("own Node missing: error %v", err)
	}
	fresh := model.NewStore()
	a.start(t, fresh, "vxlan")
	if _, err := a.trySync(); err == nil {
		t.Error("the store is not synced: no error")
	}
	if after := state(t, a); after != before {
		t.Errorf("state changed:\n%s\nto\n%s", before, after)
	}
}

func TestOverlayCleanup(t *testing.T) {
	n := newTestNet(t, "vxlan")
	a := n.nodes[0]
	keep := func() string {
		return a.ns.Exec(t, "ip", "-4", "route") + a.ns.Exec(t, "ip", "-6", "route") + fmt.Sprint(linkNames(t, a.ns))
	}
	a.ns.Exec(t, "ip", "route", "add", "10.1.0.0/16", "via", "192.168.77.3")
	a.ns.Exec(t, "ip", "route", "add", "10.2.0.0/16", "dev", "braid0", "proto", "66") // no gateway: not the overlay's
	before := keep()
	a.sync(t)
	a.ns.Exec(t, "ip", "route", "add", "10.3.0.0/16", "via", "192.168.77.3", "proto", "66") // left by a host-gw run
	if keep() == before {
		t.Fatal("Sync made nothing to clean up")
	}
	// The next program does not know what the last one ran as.
	var removed []string
	a.ns.Run(t, func() error {
		o, err := newOverlay(overlayConfig{}, model.NewStore(), slog.New(slog.DiscardHandler))
		if err != nil {
			return err
		}
		defer o.Close()
		removed, err = o.Cleanup()
		return err
	})
	if after := keep(); after != before {
		t.Errorf("after Cleanup:\n%s\nwant\n%s", after, before)
	}
	if !slices.ContainsFunc(removed, func(s string) bool { return strings.Contains(s, "braid.vx6") }) {
		t.Errorf("removed %q, want a word on braid.vx6", removed)
	}
	a.sync(t)
}

// The device of overlay udp outlives the agent, and goes with everything else.
func TestOverlayCleanupUDP(t *testing.T) {
	n := newTestNet(t, "udp")
	a := n.nodes[0]
	before := state(t, a)
	a.sync(t)
	if err := a.net.Close(); err != nil {
		t.Fatal(err)
	}
	if s := state(t, a); !strings.Contains(s, "10.244.2.0/24") || !slices.Contains(linkNames(t, a.ns), "braid.udp") {
		t.Errorf("device or routes went with the agent:\n%s", s)
	}
	a.ns.Run(t, func() error {
		o, err := newOverlay(overlayConfig{}, model.NewStore(), slog.New(slog.DiscardHandler))
		if err != nil {
			return err
		}
		defer o.Close()
		_, err = o.Cleanup()
		return err
	})
	if after := state(t, a); after != before {
		t.Errorf("left:\n%s", after)
	}
	a.net = nil
}

// A data path that stops to work for whatever reason is opened again without waiting for the audit.
func TestOverlayReopensPath(t *testing.T) {
	n := newTestNet(t, "udp")
	n.syncAll(t)
	a := n.nodes[0]
	kicks := a.watch(t)
	drain(kicks)
	a.net.user.path.Close() // as when one of its workers fails
	nstest.Wait(t, "Watch to kick", func() error { return kicked(kicks) })
	if res := a.sync(t); len(res.Changes) == 0 {
		t.Error("nothing was done")
	}
	n.mesh(t, 1452)
}

// IP forwarding is switched off again before Watch has seen that it was on.
func TestOverlayForwardingSwitchedOffTwice(t *testing.T) {
	n := newTestNet(t, "host-gw")
	n.syncAll(t)
	a := n.nodes[0]
	kicks := a.watch(t)
	for range 5 {
		drain(kicks)
		a.ns.Sysctl(t, sysctl.Forwarding(true), "0")
		nstest.Wait(t, "Watch to kick", func() error { return kicked(kicks) })
		if res := a.sync(t); len(res.Changes) == 0 {
			t.Fatal("Sync changed nothing")
		}
	}
}
