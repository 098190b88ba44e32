package main

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/braidnet/braid/internal/kernel/netns/nstest"
	"golang.org/x/sys/unix"
)

func newRoutedHost(t *testing.T) *host {
	t.Helper()
	podMode = modeRouted
	defer func() { podMode = modeBridge }()
	return newHost(t)
}

// TestRoutedNode: each pod has a link, a route, and the gateway at the other end; nothing else answers.
func TestRoutedNode(t *testing.T) {
	h := newRoutedHost(t)
	p := newPod(t, "pod")
	h.add(p.attach)
	if out := h.Exec(t, "ip", "-o", "link", "show", "type", "bridge"); out != "" {
		t.Errorf("a bridge: %s", out)
	}
	for _, c := range []struct{ cmd, want string }{
		{"ip route show proto 66", "unreachable 10.244.1.0/24 metric 1048576 \n10.244.1.2 dev HOST scope link \n"},
		{"ip -6 route show proto 66", "fd00:10:244:1::2 dev HOST metric 1024 pref medium\nunreachable fd00:10:244:1::/64 dev lo metric 1048576 pref medium\n"},
		{"ip -o addr show dev HOST scope global", "inet 10.244.1.1/32 scope global HOST"},
		{"ip -o addr show dev HOST scope global", "inet6 fd00:10:244:1::1/128 scope global nodad"},
		{"ip -o link show dev HOST", "alias default/pod routed=10.244.1.2,fd00:10:244:1::2"},
		{"ip route get 10.244.1.2", "10.244.1.2 dev HOST src 10.244.1.1"}, // whom a pod takes the node for
		{"ip -6 route get fd00:10:244:1::2", "src fd00:10:244:1::1"},
		{"ip -6 addr show tentative", ""},
	} {
		words := strings.Fields(strings.ReplaceAll(c.cmd, "HOST", p.hostVeth()))
		out := h.Exec(t, words[0], words[1:]...)
		if want := strings.ReplaceAll(c.want, "HOST", p.hostVeth()); !strings.Contains(out, want) || want == "" && out != "" {
			t.Errorf("%s:\n%s\nwant\n%s", c.cmd, out, want)
		}
	}
	for _, nobody := range []string{"10.244.1.99", "fd00:10:244:1::99"} {
		if out, err := p.Output("ping", "-n", "-c", "1", "-W", "5", nobody); err == nil || !strings.Contains(strings.ToLower(out), "unreachable") {
			t.Errorf("an address that no pod has: %v\n%s", err, out)
		}
	}
	for key, want := range map[string]string{"ipv4.conf.HOST.accept_redirects": "0", "ipv4.conf.HOST.send_redirects": "0", "ipv4.conf.HOST.accept_source_route": "0", "ipv6.conf.HOST.accept_source_route": "0", "ipv6.conf.HOST.accept_ra": "0", "ipv6.conf.HOST.accept_redirects": "0"} {
		if out := strings.TrimSpace(h.Exec(t, "sysctl", "-n", "net."+strings.ReplaceAll(key, "HOST", p.hostVeth()))); out != want {
			t.Errorf("%s is %s", key, out)
		}
	}
	h.del(p.attach)
	h.clean("after DEL")
	if out := h.Exec(t, "ip", "route", "show", "proto", "66"); out != "unreachable 10.244.1.0/24 metric 1048576 \n" {
		t.Errorf("routes after DEL:\n%s", out)
	}
}

// TestModesSideBySide: pods from before the mode was changed, and those after, on one node.
func TestModesSideBySide(t *testing.T) {
	h := newHost(t)
	old := newPod(t, "old")
	result := h.add(old.attach)
	h.conf["mode"] = modeRouted
	delete(h.conf, "bridge")
	young := newPod(t, "young")
	h.add(young.attach)
	for _, to := range []string{"10.244.1.2", "fd00:10:244:1::2"} {
		young.ping(t, to)
	}
	old.ping(t, "10.244.1.3")
	if failure := h.check(old.attach, result); failure != nil {
		t.Errorf("CHECK of the pod from before: %v", failure)
	}
	h.del(old.attach)
	h.del(young.attach)
	h.clean("after DEL")
}

func TestCheckNamesEachDamageOfARoute(t *testing.T) {
	h := newRoutedHost(t)
	p := newPod(t, "pod")
	result := h.add(p.attach)
	if failure := h.check(p.attach, result); failure != nil {
		t.Fatalf("CHECK of a whole attachment: %v", failure)
	}
	h.Exec(t, "ip", "link", "add", "br0", "type", "bridge")
	for _, c := range []struct{ damage, mend, want string }{
		{"ip route del 10.244.1.2 dev HOST", "ip route add 10.244.1.2 dev HOST proto 66", "HOST: the route to 10.244.1.2 was missing"},
		{"ip -6 route del fd00:10:244:1::2 dev HOST", "ip -6 route add fd00:10:244:1::2 dev HOST proto 66", "the route to fd00:10:244:1::2 was missing"},
		{"ip addr del 10.244.1.1/32 dev HOST", "ip addr add 10.244.1.1/32 dev HOST", "address 10.244.1.1 was missing"},
		{"ip link set HOST master br0", "ip link set HOST nomaster", "it was the port of a bridge"},
		{"nft flush set ip braid-antispoof guarded", "", "lacks what HOST may send from"},
		{"ip link set HOST down", "", "HOST is down"},
	} {
		words := strings.Fields(strings.ReplaceAll(c.damage, "HOST", p.hostVeth()))
		h.Exec(t, words[0], words[1:]...)
		want := strings.ReplaceAll(c.want, "HOST", p.hostVeth())
		if failure := h.check(p.attach, result); failure == nil || failure.Code != errDiffers || !strings.Contains(failure.Details, want) {
			t.Errorf("after %q: %v, want %q", c.damage, failure, want)
		}
		if words = strings.Fields(strings.ReplaceAll(c.mend, "HOST", p.hostVeth())); len(words) > 0 {
			h.Exec(t, words[0], words[1:]...)
		}
	}
}

// TestForgedPacketsOfRoutedPods: what is not from the pod's own addresses does not reach another pod.
func TestForgedPacketsOfRoutedPods(t *testing.T) {
	podMode = modeRouted
	defer func() { podMode = modeBridge }()
	l := newLiar(t)
	a := netip.MustParseAddr
	me4, you4, gw4, me6, you6, gw6 := a("10.244.1.2"), a("10.244.1.3"), a("10.244.1.1"), a("fd00:10:244:1::2"), a("fd00:10:244:1::3"), a("fd00:10:244:1::1")
	udp := func(mark byte) []byte { return []byte{0x9c, 0x40, 0x00, 0x35, 0, 9, 0, 0, mark} }
	redirect := append([]byte{5, 1, 0, 0, 10, 244, 1, 2}, ipv4(17, you4, a("192.0.2.2"), udp(9))...)
	redirect6 := append(append([]byte{137, 0, 0, 0, 0, 0, 0, 0}, me6.AsSlice()...), a("2001:db8::2").AsSlice()...)
	at := sniff(t, l.victim.NS, "eth0")
	// The node takes one off the hop limit, so what arrives is known by what follows the header.
	arrives := func(kind uint16, packet []byte) bool {
		header := map[uint16]int{unix.ETH_P_IP: 20, unix.ETH_P_IPV6: 40}[kind]
		payload := append([]byte{}, packet[header:]...)
		inject(t, l.pod.NS, "eth0", ether(l.gateway, l.own, kind, packet))
		inject(t, l.pod.NS, "eth0", ether(l.gateway, l.own, unix.ETH_P_IP, ipv4(17, me4, you4, udp('!'))))
		_ = at.SetReadDeadline(time.Now().Add(5 * time.Second))
		buf := make([]byte, 2048)
		for seen := false; ; {
			n, err := at.Read(buf)
			if err != nil {
				t.Fatalf("the packet that must arrive did not: %v", err)
			}
			seen = seen || strings.HasPrefix(string(buf[min(14+header, n):n]), string(payload))
			if strings.HasPrefix(string(buf[min(34, n):n]), string(udp('!'))) {
				return seen
			}
		}
	}
	forgeries := []struct {
		name   string
		kind   uint16
		packet []byte
		kernel bool // forbids it, too
	}{
		{"another pod's IPv4 address", unix.ETH_P_IP, ipv4(17, you4, you4, udp(1)), false},
		{"an IPv4 address from outside", unix.ETH_P_IP, ipv4(17, a("192.0.2.2"), you4, udp(2)), false},
		{"the gateway's IPv4 address", unix.ETH_P_IP, ipv4(17, gw4, you4, udp(3)), true},
		{"an IPv4 address that no pod has", unix.ETH_P_IP, ipv4(17, a("10.244.1.99"), you4, udp(4)), true},
		{"an ICMP redirect", unix.ETH_P_IP, ipv4(1, me4, you4, redirect), false},
		{"another pod's IPv6 address", unix.ETH_P_IPV6, ipv6(17, you6, you6, udp(5)), false},
		{"an IPv6 address from outside", unix.ETH_P_IPV6, ipv6(17, a("2001:db8::2"), you6, udp(6)), false},
		{"the gateway's IPv6 address", unix.ETH_P_IPV6, ipv6(17, gw6, you6, udp(7)), false},
		{"an ICMPv6 redirect", unix.ETH_P_IPV6, icmpv6(me6, you6, redirect6...), false},
	}
	if !arrives(unix.ETH_P_IPV6, ipv6(17, me6, you6, udp(8))) {
		t.Error("the pod's own packet does not arrive")
	}
	for _, f := range forgeries {
		if arrives(f.kind, f.packet) {
			t.Errorf("%s got through", f.name)
		}
	}
	l.h.Exec(t, "nft", "delete", "table", "ip", "braid-antispoof")
	l.h.Exec(t, "nft", "delete", "table", "ip6", "braid-antispoof")
	for _, f := range forgeries {
		if !f.kernel && !arrives(f.kind, f.packet) {
			t.Errorf("%s does not get through without our rules either: this test shows nothing", f.name)
		}
	}
}

// TestHonestRoutedPodsNoticeNothing: fragments, and duplicate address detection, which asks from no address.
func TestHonestRoutedPodsNoticeNothing(t *testing.T) {
	podMode = modeRouted
	defer func() { podMode = modeBridge }()
	l := newLiar(t)
	l.pod.Sysctl(t, "net/ipv6/conf/eth0/accept_dad", "1")
	l.pod.Exec(t, "ip", "addr", "del", "fd00:10:244:1::2/128", "dev", "eth0")
	l.pod.Exec(t, "ip", "addr", "add", "fd00:10:244:1::2/128", "dev", "eth0")
	nstest.Wait(t, "the pod's address", func() error {
		if out := l.pod.Exec(t, "ip", "-6", "addr", "show", "tentative"); out != "" {
			return errors.New(out)
		}
		return nil
	})
	for _, to := range []string{"10.244.1.1", "10.244.1.3", "fd00:10:244:1::1", "fd00:10:244:1::3"} {
		l.pod.ping(t, to, "-s", "4000", "-w", "5")
	}
}
