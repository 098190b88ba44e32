package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/braidnet/braid/internal/kernel/link"
	"github.com/braidnet/braid/internal/kernel/netns/nstest"
	"github.com/braidnet/braid/internal/reconcile"
)

// linkNode is a node with pods as the CNI plugin makes them, and the loop that looks after their links.
type linkNode struct {
	*nstest.NS
	t     *testing.T
	mu    sync.Mutex // held over a step, and where spec changes beside the loop
	spec  podNetworkSpec
	links *podLinks
	loop  *reconcile.Loop
	pods  []*nstest.NS

	routed bool // how pods are made
}

func newLinkNode(t *testing.T) *linkNode {
	t.Helper()
	n := &linkNode{NS: nstest.New(t), t: t, spec: podNetworkSpec{MTU: 1450,
		CIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24"), netip.MustParsePrefix("fd00:10:244:1::/64")}}}
	n.Forward(t)
	n.Run(t, func() (err error) {
		n.links, err = newPodLinks(slog.New(slog.DiscardHandler), func() podNetworkSpec { return n.spec })
		return err
	})
	t.Cleanup(func() { _ = n.links.close() })
	return n
}

// step is a step within the node; parameters below /proc/sys go by the thread.
func (n *linkNode) step(ctx context.Context) (out reconcile.Outcome, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	err = n.Do(func() error { out, err = n.links.step(ctx); return err })
	return out, err
}

// watch runs the loop without an audit: what it repairs it was told of by events.
func (n *linkNode) watch() {
	n.t.Helper()
	ctx, cancel := context.WithCancel(n.t.Context())
	var wg sync.WaitGroup
	n.t.Cleanup(wg.Wait)
	n.t.Cleanup(cancel)
	n.loop = reconcile.New(reconcile.Config{Name: "pod-links", Step: n.step, Log: slog.New(slog.DiscardHandler)})
	wg.Go(func() { n.loop.Run(ctx) })
	wg.Go(func() { n.links.Watch(ctx, n.loop.Kick) })
}

func (n *linkNode) host(i int) string { return fmt.Sprintf("brd0000000000%d", i) }

func (n *linkNode) addrs(i int) []string {
	return []string{fmt.Sprintf("10.244.1.%d", i+2), fmt.Sprintf("fd00:10:244:1::%d", i+2)}
}

// pod does what ADD does, in the same order.
func (n *linkNode) pod() {
	n.t.Helper()
	i, ns := len(n.pods), nstest.New(n.t)
	n.pods = append(n.pods, ns)
	var bridge link.Ref
	n.Run(n.t, func() (err error) {
		h, err := link.OpenAt(-1)
		if err != nil {
			return err
		}
		defer h.Close()
		var gateways []netip.Prefix
		for _, c := range n.spec.CIDRs {
			gateways = append(gateways, gateway(c))
		}
		v := link.Veth{Host: n.host(i), Pod: "eth0", PodMAC: link.PodMAC(n.host(i), "eth0"), PodNS: ns.Fd(), MTU: n.spec.MTU,
			Mark: link.Mark{Pod: fmt.Sprintf("default/pod%d", i)}}
		if n.routed {
			for _, gw := range gateways {
				v.Routed.Gateways = append(v.Routed.Gateways, gw.Addr())
			}
			for _, a := range n.addrs(i) {
				v.Routed.Addrs = append(v.Routed.Addrs, netip.MustParseAddr(a))
			}
			v.Mark.Addrs = v.Routed.Addrs
			_, err = link.AddVeth(h, v)
			return err
		}
		if bridge, err = link.EnsureBridge(h, link.Bridge{Name: link.PodBridge, MTU: n.spec.MTU, Addrs: gateways}); err != nil {
			return err
		}
		v.Bridge, v.Hairpin, v.Mark.Bridge = bridge.Index, true, bridge.Name
		_, err = link.AddVeth(h, v)
		return err
	})
	ns.Run(n.t, func() error {
		h, err := link.OpenAt(-1)
		if err != nil {
			return err
		}
		defer h.Close()
		p := link.Pod{IfName: "eth0"}
		for f, c := range n.spec.CIDRs {
			gw := gateway(c).Addr()
			p.Addrs = append(p.Addrs, netip.MustParseAddr(n.addrs(i)[f]))
			all := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
			if gw.Is6() {
				all = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
			}
			p.Routes = append(p.Routes, link.Route{Dst: link.Host(gw)}, link.Route{Dst: all, Via: gw})
		}
		_, err = link.ConfigurePod(h, p)
		return err
	})
}

var otherEnd = regexp.MustCompile(`@\S+:`)

// works tells whether pods and node reach each other, and links are as they should be.
func (n *linkNode) works(state string) error {
	for i := range n.pods {
		for f, a := range n.addrs(i) {
			if _, err := n.Output("ping", "-n", "-c1", "-W1", a); err != nil {
				return err
			}
			if _, err := n.pods[(i+1)%len(n.pods)].Output("ping", "-n", "-c1", "-W1", a); err != nil {
				return err
			}
			if _, err := n.pods[i].Output("ping", "-n", "-c1", "-W1", gateway(n.spec.CIDRs[f]).Addr().String()); err != nil {
				return err
			}
		}
	}
	if got := n.state(); got != state {
		return fmt.Errorf("differs from before:\n%s", differing(state, got))
	}
	return nil
}

// differing is the lines that only one of two texts has.
func differing(was, is string) string {
	var out []string
	for line := range strings.Lines(was) {
		if !strings.Contains(is, line) {
			out = append(out, "- "+line)
		}
	}
	for line := range strings.Lines(is) {
		if !strings.Contains(was, line) {
			out = append(out, "+ "+line)
		}
	}
	return strings.Join(out, "")
}

// state is what there is to be repaired, with indexes left out.
func (n *linkNode) state() string {
	var out []string
	for _, cmd := range []string{"ip -o addr show scope global", "ip route show proto kernel", "ip route show proto 66", "ip -6 route show proto kernel", "ip -6 route show proto 66", "bridge -d link show",
		"ip -o link show type bridge", "ip -o link show type veth", "sysctl -ae -r ^net.ipv[46].conf.br.*(accept_ra|accept_redirects|accept_dad|send_redirects|route_localnet)$"} {
		words := strings.Fields(cmd)
		text, _ := n.Output(words[0], words[1:]...)
		for line := range strings.Lines(text) {
			if index, rest, ok := strings.Cut(line, ": "); ok && !strings.Contains(index, " ") {
				line = rest
			}
			out = append(out, otherEnd.ReplaceAllString(line, ":")) // iproute2 looks its index up in the wrong namespace
		}
	}
	slices.Sort(out)
	return strings.Join(out, "")
}

// TestPodLinksAreRepaired: whatever somebody does to bridge and links, pods are reached again by what events tell.
func TestPodLinksAreRepaired(t *testing.T) {
	n := newLinkNode(t)
	n.watch()
	n.pod()
	n.pod()
	n.Sysctl(t, "net/ipv4/conf/braid0/route_localnet", "1") // as the first host port makes it
	nstest.Wait(t, "pods", func() error {
		if _, err := n.step(t.Context()); err != nil { // the agent has seen the switch
			return err
		}
		return n.works(n.state())
	})
	if out, err := n.step(t.Context()); err != nil || len(out.Changes) > 0 {
		t.Fatalf("with nothing to repair: %v, %v", out.Changes, err)
	}
	state := n.state()
	if !strings.Contains(state, "alias default/pod0 bridge=braid0") || strings.Count(state, "hairpin on") != 2 {
		t.Fatalf("state:\n%s", state)
	}
	for _, damage := range []string{
		"ip link del braid0",
		"ip link set braid0 down",
		"ip addr del 10.244.1.1/24 dev braid0",
		"ip addr del fd00:10:244:1::1/64 dev braid0",
		"ip addr flush dev braid0 scope global",
		"ip route del 10.244.1.0/24 dev braid0",
		"ip -6 route del fd00:10:244:1::/64 dev braid0",
		"ip link set braid0 address 02:00:00:00:00:77",
		"ip link set braid0 mtu 1300",
		"ip link set " + n.host(0) + " nomaster",
		"ip link set " + n.host(1) + " down",
		"bridge link set dev " + n.host(1) + " hairpin off",
		"ip link set braid0 name other0",
	} {
		words := strings.Fields(damage)
		if strings.HasSuffix(damage, "name other0") {
			n.Exec(t, "ip", "link", "set", "braid0", "down")
		}
		n.Exec(t, words[0], words[1:]...)
		nstest.Wait(t, "repair after "+damage, func() error {
			_, _ = n.Output("ip", "link", "del", "other0")
			return n.works(state)
		})
	}
	n.leavesOthers(t)
}

// leavesOthers tells of links that are none of the node's business.
func (n *linkNode) leavesOthers(t *testing.T) {
	t.Helper()
	settled := n.loop.Status().Steps
	n.Exec(t, "ip", "link", "add", "eth9", "type", "bridge")
	n.Exec(t, "ip", "link", "set", "eth9", "up")
	if s := n.loop.Status(); s.Failing || s.Steps != settled {
		t.Errorf("others' links made it step: %+v", s)
	}
}

// TestRoutedPodLinksAreRepaired: the same for pods without a bridge.
func TestRoutedPodLinksAreRepaired(t *testing.T) {
	n := newLinkNode(t)
	n.routed = true
	n.Exec(t, "ip", "link", "add", "br0", "address", "02:00:00:00:00:99", "type", "bridge")
	n.watch()
	n.pod()
	n.pod()
	nstest.Wait(t, "pods", func() error {
		if _, err := n.step(t.Context()); err != nil {
			return err
		}
		return n.works(n.state())
	})
	state := n.state()
	if strings.Contains(state, "braid0") || strings.Count(state, "unreachable") != 2 || strings.Count(state, "10.244.1.1/32") != 2 {
		t.Fatalf("state:\n%s", state)
	}
	for _, damage := range []string{
		"ip route del 10.244.1.2 dev " + n.host(0),
		"ip -6 route del fd00:10:244:1::3 dev " + n.host(1),
		"ip route replace 10.244.1.2 dev " + n.host(1),
		"ip route replace blackhole 10.244.1.2",
		"ip route flush proto 66",
		"ip -6 route flush proto 66",
		"ip route del unreachable 10.244.1.0/24 metric 1048576",
		"ip addr del 10.244.1.1/32 dev " + n.host(0),
		"ip addr flush dev " + n.host(1) + " scope global",
		"ip link set " + n.host(1) + " down",
		"ip link set " + n.host(0) + " master br0",
	} {
		words := strings.Fields(damage)
		n.Exec(t, words[0], words[1:]...)
		nstest.Wait(t, "repair after "+damage, func() error { return n.works(state) })
	}
	n.leavesOthers(t)

	// Without any pod, what is for nobody is refused all the same; and no more, when the node's pod CIDRs are others.
	for i := range n.pods {
		n.Exec(t, "ip", "link", "del", n.host(i))
	}
	n.mu.Lock()
	n.spec.CIDRs = []netip.Prefix{netip.MustParsePrefix("10.244.9.0/24")}
	n.mu.Unlock()
	n.loop.Kick()
	nstest.Wait(t, "other pod CIDRs", func() error {
		if got := n.Exec(t, "ip", "route", "show", "proto", "66") + n.Exec(t, "ip", "-6", "route", "show", "proto", "66"); got != "unreachable 10.244.9.0/24 metric 1048576 \n" {
			return errors.New(got)
		}
		return nil
	})
}

// TestPodLinksOfOthers: what is not marked as ours to repair stays as it is.
func TestPodLinksOfOthers(t *testing.T) {
	n := newLinkNode(t)
	out, err := n.step(t.Context())
	if err != nil || len(out.Changes) != 2 || strings.Contains(n.state(), "braid0") {
		t.Errorf("on a node without pods: %v, %v\n%s", out, err, n.state())
	}
	n.Exec(t, "ip", "link", "add", "cni0", "type", "bridge")
	for i, alias := range []string{"", "default/other bridge=cni0", "words of somebody"} {
		n.Exec(t, "ip", "link", "add", n.host(i+5), "type", "veth", "peer", "name", fmt.Sprint("peer", i))
		if alias != "" {
			n.Exec(t, "ip", "link", "set", n.host(i+5), "alias", alias)
		}
	}
	before := n.state()
	if out, err = n.step(t.Context()); err != nil || len(out.Changes) > 0 || n.state() != before {
		t.Errorf("changed what is others': %v, %v\n%s\nbefore\n%s", out, err, n.state(), before)
	}
	// A bridge that went while no agent ran is made as the plugin makes it.
	n.pod()
	n.Exec(t, "ip", "link", "del", "braid0")
	if out, err = n.step(t.Context()); err != nil || !strings.Contains(strings.Join(out.Changes, "\n"), "made bridge braid0 anew") {
		t.Errorf("%v, %v", out, err)
	}
	n.spec.CIDRs = nil
	if out, err = n.step(t.Context()); err != nil || !strings.Contains(out.Summary, "waits for") {
		t.Errorf("without pod CIDRs: %v, %v", out, err)
	}
}
