package agent

import (
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/braidnet/braid/internal/kernel/netns/nstest"
	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/netagent/overlay"
)

// secondNetwork gives every node eth1 on a switch of its own, with 10.77.0.N and fd00:88::N.
func (n *testNet) secondNetwork(t *testing.T) {
	t.Helper()
	n.underlay.Exec(t, "ip", "link", "add", "sw2", "type", "bridge", "mcast_snooping", "0")
	n.underlay.Exec(t, "ip", "link", "set", "sw2", "up")
	for i, node := range n.nodes {
		port := "q" + node.name
		nstest.Veth(t, n.underlay, port, node.ns, "eth1")
		n.underlay.Exec(t, "ip", "link", "set", port, "master", "sw2")
		node.ns.Exec(t, "ip", "addr", "add", fmt.Sprintf("10.77.0.%d/24", i+1), "dev", "eth1")
		node.ns.Exec(t, "ip", "addr", "add", fmt.Sprintf("fd00:88::%d/64", i+1), "dev", "eth1", "nodad")
	}
}

// tell writes what a node chose into its Node, as its agent would.
func (n *testNet) tell(t *testing.T, node *testNode, res overlayResult) {
	t.Helper()
	words := make([]string, len(res.Own))
	for i, a := range res.Own {
		words[i] = a.String()
	}
	changed := *node.node
	changed.Annotations = maps.Clone(changed.Annotations)
	if changed.Annotations == nil {
		changed.Annotations = map[string]string{}
	}
	changed.Annotations[overlay.UnderlayAnnotation] = strings.Join(words, ",")
	node.node = &changed
	n.store.Apply([]model.Update{model.Set(node.node)})
}

// Pods' packets take the second network, all of them: the first is cut.
func TestSelectedInterfaceCarriesPods(t *testing.T) {
	for _, backend := range []string{"vxlan", "host-gw", "udp", "wireguard"} {
		t.Run(backend, func(t *testing.T) {
			n := newTestNet(t, backend)
			n.secondNetwork(t)
			mtu := map[string]int{"vxlan": 1430, "host-gw": 1500, "udp": 1452, "wireguard": 1440}[backend]
			selects := []overlay.Select{{Iface: []string{"eth7", "eth1"}}, {IfaceRegex: []string{"^eth1$"}}, {CanReach: netip.MustParseAddr("10.77.0.99")}}
			for i, node := range n.nodes {
				node.net.cfg.Select = selects[i]
				res := node.sync(t)
				want := []netip.Addr{netip.MustParseAddr(fmt.Sprintf("10.77.0.%d", i+1)), netip.MustParseAddr(fmt.Sprintf("fd00:88::%d", i+1))}
				if !slices.Equal(res.Own, want) || !strings.HasPrefix(res.AddrWhy, "setting iface") {
					t.Fatalf("%s chose %v because of %q, want %v", node.name, res.Own, res.AddrWhy, want)
				}
				n.tell(t, node, res)
			}
			for _, node := range n.nodes {
				node.ns.Exec(t, "nft", "table inet cut {\nchain out {\ntype filter hook postrouting priority 300;\noifname eth0 drop\n}\n}")
			}
			n.syncAll(t)
			n.mesh(t, mtu)
			for _, node := range n.nodes {
				if again := node.sync(t); len(again.Changes) != 0 || len(again.Notes) != 0 {
					t.Errorf("%s: second Sync changed %q, notes %v", node.name, again.Changes, again.Notes)
				}
			}
		})
	}
}

// What selects nothing touches nothing, says what there is, and is tried again when a device comes.
func TestSelectedInterfaceComesLate(t *testing.T) {
	n := newTestNet(t, "vxlan")
	a := n.nodes[0]
	a.net.cfg.Select = overlay.Select{Iface: []string{"eth1"}}
	before := state(t, a)
	_, err := a.trySync()
	if err == nil || !strings.Contains(err.Error(), "iface: eth1: nothing matches; of this machine, eth0 has 192.168.77.1 fd00:77::1") ||
		strings.Contains(err.Error(), "braid0") {
		t.Errorf("error %v, want one that says what there is, without what is of pods", err)
	}
	if after := state(t, a); after != before {
		t.Errorf("changed:\n%s", after)
	}
	kicks := a.watch(t)
	drain(kicks)
	n.secondNetwork(t)
	nstest.Wait(t, "Watch to kick", func() error { return kicked(kicks) })
	nstest.Wait(t, "Sync to choose it", func() error { _, err := a.trySync(); return err })
	// The address changes: others are to hear of the new one.
	drain(kicks)
	a.ns.Exec(t, "ip", "addr", "add", "10.78.0.9/24", "dev", "eth1")
	a.ns.Exec(t, "ip", "addr", "del", "10.77.0.1/24", "dev", "eth1")
	nstest.Wait(t, "Watch to kick", func() error { return kicked(kicks) })
	if res := a.sync(t); len(res.Own) != 2 || res.Own[0] != netip.MustParseAddr("10.78.0.9") {
		t.Errorf("chose %v, want the new address", res.Own)
	}
	if res := a.sync(t); len(res.Changes) != 0 {
		t.Errorf("second Sync changed %q", res.Changes)
	}
}

// The MTU follows routes: all of them for the device, one of them for the route to that node's pods.
func TestOverlayFollowsRouteMTU(t *testing.T) {
	for backend, mtus := range map[string]struct{ full, lowered, inner4, inner6 int }{
		"vxlan": {1430, 1380, 1330, 1320}, "host-gw": {1500, 1450, 1380, 1390}, "udp": {1452, 1402, 1352, 1342}, "wireguard": {1440, 1390, 1320, 1320},
	} {
		t.Run(backend, func(t *testing.T) {
			n := newTestNet(t, backend)
			n.syncAll(t)
			a := n.nodes[0]
			kicks := a.watch(t)
			follow := func(what string, args ...string) overlayResult {
				t.Helper()
				drain(kicks)
				a.ns.Exec(t, "ip", args...)
				nstest.Wait(t, "Watch to kick for "+what, func() error { return kicked(kicks) })
				return a.sync(t)
			}
			follow("the route of n2", "route", "add", "192.168.77.2", "dev", "eth0", "src", "192.168.77.1", "mtu", "1380")
			res := follow("the same in IPv6", "-6", "route", "add", "fd00:77::2", "dev", "eth0", "src", "fd00:77::1", "mtu", "1390")
			if res.MTU != mtus.full {
				t.Errorf("MTU %d, want %d as before: n3 is reached by wider routes", res.MTU, mtus.full)
			}
			routes := routesOf(t, a)
			for cidr, mtu := range map[string]int{"10.244.2.0/24": mtus.inner4, "fd00:10:244:2::/64": mtus.inner6} {
				if !hasLine(routes, cidr, fmt.Sprintf("mtu %d", mtu)) {
					t.Errorf("no mtu %d on the route to %s:\n%s", mtu, cidr, routes)
				}
			}
			if hasLine(routes, "10.244.3.0/24", "mtu 1") {
				t.Errorf("an MTU on the route to n3:\n%s", routes)
			}
			// A pod that does not know is told by its own node, whatever the network does with ICMP.
			n.mesh(t, min(mtus.inner4, mtus.inner6))
			a.pod.Exec(t, "ip", "link", "set", "eth0", "mtu", "1500")
			a.ns.Exec(t, "ip", "link", "set", "brdpod", "mtu", "1500")
			nstest.Wait(t, "the pod to be told of the MTU", func() error {
				out, err := a.pod.Output("ping", "-n", "-c", "1", "-W", "1", "-M", "do", "-s", "1470", n.nodes[1].podIPs[0])
				if want := fmt.Sprintf("mtu = %d", mtus.inner4); !strings.Contains(out, want) && !strings.Contains(out, strings.ReplaceAll(want, " ", "")) {
					return fmt.Errorf("want %s: %v %s", want, err, out)
				}
				return nil
			})
			// All ways are narrower: so is the device.
			follow("the link's route", "route", "change", "192.168.77.0/24", "dev", "eth0", "src", "192.168.77.1", "mtu", "1450")
			follow("the same in IPv6", "-6", "route", "add", "fd00:77::3", "dev", "eth0", "src", "fd00:77::1", "mtu", "1450")
			if res := a.sync(t); res.MTU != mtus.lowered || !strings.Contains(res.MTUWhy, "1450") {
				t.Errorf("MTU %d because %s, want %d", res.MTU, res.MTUWhy, mtus.lowered)
			}
			if res := a.sync(t); len(res.Changes) != 0 {
				t.Errorf("second Sync changed %q", res.Changes)
			}
			follow("the route that is gone", "route", "del", "192.168.77.2", "dev", "eth0")
			if routes := routesOf(t, a); hasLine(routes, "10.244.2.0/24", "mtu 1"+fmt.Sprint(mtus.inner4)[1:]) {
				t.Errorf("the route kept its MTU:\n%s", routes)
			}
		})
	}
}

func hasLine(text string, parts ...string) bool {
	for line := range strings.Lines(text) {
		if !slices.ContainsFunc(parts, func(p string) bool { return !strings.Contains(line, p) }) {
			return true
		}
	}
	return false
}

func TestInterfaceSettings(t *testing.T) {
	for _, tc := range []struct {
		set  InterfaceConfig
		want string // part of the error
	}{
		{InterfaceConfig{Iface: []string{"eth0", "192.0.2.1", "2001:db8::1", "default"}, IfaceRegex: []string{"^eth[01]$"}, CanReach: "1.1.1.1", Public4: "192.0.2.1", Public6: "2001:db8::1"}, ""},
		{InterfaceConfig{Iface: []string{"192.0.2.300/24"}}, `iface: "192.0.2.300/24" is neither an address nor the name`},
		{InterfaceConfig{Iface: []string{"a-very-long-name-of-a-device"}}, "iface: "},
		{InterfaceConfig{Iface: []string{""}}, "iface: an empty word"},
		{InterfaceConfig{IfaceRegex: []string{"ok", "eth("}}, `iface-regex: "eth(" is no regular expression`},
		{InterfaceConfig{IfaceRegex: []string{""}}, "it is empty, and would match everything"},
		{InterfaceConfig{CanReach: "example.com"}, `iface-can-reach: "example.com" is no IP address`},
		{InterfaceConfig{CanReach: "127.0.0.1"}, "iface-can-reach: 127.0.0.1 cannot be used"},
		{InterfaceConfig{Public4: "2001:db8::1"}, `public-ip: "2001:db8::1" is no IPv4 address`},
		{InterfaceConfig{Public6: "192.0.2.1"}, `public-ipv6: "192.0.2.1" is no IPv6 address`},
		{InterfaceConfig{Public6: "fe80::1"}, "public-ipv6: fe80::1 cannot be used"},
	} {
		c := DefaultConfig()
		c.Node, c.Interface = "n1", tc.set
		if err := c.Validate(); (err == nil) != (tc.want == "") || err != nil && !strings.HasPrefix(err.Error(), tc.want) && !strings.Contains(err.Error(), "it is empty") {
			t.Errorf("%+v: %v, want %q", tc.set, err, tc.want)
		}
	}
	c := DefaultConfig()
	c.Node, c.Overlay, c.Interface = "n1", "none", InterfaceConfig{Public4: "192.0.2.1"}
	if err := c.Validate(); err == nil || !strings.Contains(err.Error(), "overlay is none") {
		t.Errorf("%v: want a word on overlay none", err)
	}
}

// A node says where it is reached, where its InternalIPs do not, and takes that back.
func TestOwnNodeSaysWhereItIsReached(t *testing.T) {
	cfg := DefaultConfig()
	cfg.Node, cfg.Manifests, cfg.RunDir = "n1", t.TempDir(), t.TempDir()
	a := newAgent(cfg)
	a.overlay = &overlayLoop{}
	o := &ownNode{agent: a, under: true}
	file := filepath.Join(cfg.RunDir, AnnotationsFile)
	for _, tc := range []struct{ internal, own, want string }{
		{"192.0.2.1", "", ""},
		{"192.0.2.1", "192.0.2.1", ""},
		{"192.0.2.1", "10.9.0.1 2001:db8::9", `{"braid.network/underlay":"10.9.0.1,2001:db8::9"}`},
		{"192.0.2.1 2001:db8::1", "192.0.2.1", `{"braid.network/underlay":"192.0.2.1"}`},
		{"192.0.2.1 192.0.2.2 2001:db8::1", "192.0.2.1 2001:db8::1", "{}"},
	} {
		n := &model.Node{Origin: model.Origin{Ref: model.Ref{Kind: model.KindNode, Key: model.Key{Name: "n1"}}}}
		for _, w := range strings.Fields(tc.internal) {
			n.InternalIPs = append(n.InternalIPs, netip.MustParseAddr(w))
		}
		a.store.Apply([]model.Update{model.Set(n)})
		if tc.own != "" {
			var own []netip.Addr
			for _, w := range strings.Fields(tc.own) {
				own = append(own, netip.MustParseAddr(w))
			}
			a.overlay.own.Store(&own)
		}
		if _, err := o.step(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got, _ := os.ReadFile(file); string(got) != tc.want {
			t.Errorf("InternalIPs %s, chosen %s: %q, want %q", tc.internal, tc.own, got, tc.want)
		}
	}
}
