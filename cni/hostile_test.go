package main

import (
	be "encoding/binary"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/braidnet/braid/cni/antispoof"
	"github.com/braidnet/braid/internal/kernel/netns/nstest"
	"golang.org/x/sys/unix"
)

// knows is what a namespace believes of its surroundings: routes, addresses that a router gave it, and the hardware addresses of
// neighbours. How fresh that is counts for nothing, nor does what the kernel makes for every link by itself.
func knows(t *testing.T, ns *nstest.NS) string {
	t.Helper()
	var lines []string
	for _, l := range strings.Split(ns.Exec(t, "ip", "neigh", "show"), "\n") {
		if w := strings.Fields(l); strings.Contains(l, "lladdr ") {
			lines = append(lines, strings.Join(w[:5], " "))
		}
	}
	for _, args := range []string{"-4 route", "-6 route", "-6 addr show dynamic", "-6 route show cache"} {
		for _, l := range strings.Split(ns.Exec(t, "ip", strings.Fields(args)...), "\n") {
			if !strings.HasPrefix(l, "fe80::/64 ") {
				lines = append(lines, l)
			}
		}
	}
	for _, to := range []string{"10.244.1.3", "192.0.2.2", "fd00:10:244:1::3", "2001:db8::2"} {
		out, _ := ns.Output("ip", "route", "get", to) // a node has no route to everywhere
		lines = append(lines, out)
	}
	slices.Sort(lines)
	return strings.Join(slices.Compact(lines), "\n")
}

// TestHostilePodChangesNothing: all that TestForgedFramesAreDropped sends, to each and to all, and in pieces: neither the node
// nor another pod knows anything else afterwards. Both are told to believe whom they can.
func TestHostilePodChangesNothing(t *testing.T) {
	l := newLiar(t)
	for _, key := range []string{"net/ipv4/conf/all/accept_redirects", "net/ipv4/conf/eth0/accept_redirects", "net/ipv4/conf/eth0/secure_redirects",
		"net/ipv6/conf/eth0/accept_redirects", "net/ipv6/conf/eth0/accept_ra", "net/ipv4/conf/all/arp_accept", "net/ipv6/conf/all/accept_ra"} {
		value := "1"
		if strings.HasSuffix(key, "secure_redirects") {
			value = "0"
		}
		l.victim.Sysctl(t, key, value)
		if !strings.Contains(key, "eth0") { // the node's own switches for all devices, which those of the bridge must outdo
			l.h.Sysctl(t, key, value)
		}
	}
	l.victim.ping(t, "10.244.1.1")
	l.victim.ping(t, "fd00:10:244:1::1")
	truth := "10.244.1.2 dev eth0 lladdr " + l.own.String() + "\n" // which the pod may tell everybody
	believes := func() string { return strings.Replace(knows(t, l.victim.NS), truth, "", 1) }
	node, victim := knows(t, l.h.NS), believes()
	all := net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	group := net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}
	send := func() {
		for _, f := range append(l.forgeries(), l.pieces()...) {
			for _, to := range []net.HardwareAddr{f.to, l.others, l.gateway, all, group} {
				inject(t, l.pod.NS, "eth0", append(append([]byte{}, to...), f.frame[6:]...))
			}
		}
	}
	send()
	l.pod.ping(t, "10.244.1.1") // what is sent behind them arrives behind them
	l.pod.ping(t, "10.244.1.3")
	if now := knows(t, l.h.NS); now != node {
		t.Errorf("the node knew\n%s\nand knows\n%s", node, now)
	}
	if now := believes(); now != victim {
		t.Errorf("the other pod knew\n%s\nand knows\n%s", victim, now)
	}
	l.h.Exec(t, "nft", "delete", "table", "bridge", "braid-antispoof")
	send()
	nstest.Wait(t, "without our rules the other pod believes something, else this test shows nothing", func() error {
		if believes() == victim {
			return errors.New(victim)
		}
		return nil
	})
}

// pieces are router advertisements cut so that rules which look at one piece do not see what they are (RFC 7112).
func (l *liar) pieces() (list []forgery) {
	local, nodes := antispoof.LinkLocal(l.own), netip.MustParseAddr("ff02::1")
	whole := icmpv6(local, nodes, 134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0)[40:]
	options := append([]byte{unix.IPPROTO_ICMPV6, 0, 1, 4, 0, 0, 0, 0}, whole...) // destination options before it
	piece := func(next byte, offset, more uint16, data []byte) []byte {
		h := be.BigEndian.AppendUint32(be.BigEndian.AppendUint16([]byte{next, 0}, offset|more), 77)
		return ipv6(unix.IPPROTO_FRAGMENT, local, nodes, append(h, data...))
	}
	for _, p := range [][]byte{
		piece(unix.IPPROTO_ICMPV6, 0, 1, whole[:8]), piece(unix.IPPROTO_ICMPV6, 8, 0, whole[8:]),
		piece(unix.IPPROTO_DSTOPTS, 0, 1, options[:8]), piece(unix.IPPROTO_DSTOPTS, 8, 0, options[8:]),
		piece(unix.IPPROTO_ICMPV6, 0, 0, whole), // in one piece that says it is one of many
	} {
		list = append(list, forgery{"a piece", l.others, ether(l.others, l.own, unix.ETH_P_IPV6, p)})
	}
	return list
}

// TestSourceRoutesAreNotFollowed: a pod does not choose the way of its packets, though the node's switch for all
// devices allows it (RFC 791 §3.1, loose and strict).
func TestSourceRoutesAreNotFollowed(t *testing.T) {
	l := newLiar(t)
	l.h.Sysctl(t, "net/ipv4/conf/all/accept_source_route", "1")
	me, gw, you := netip.MustParseAddr("10.244.1.2"), netip.MustParseAddr("10.244.1.1"), netip.MustParseAddr("10.244.1.3")
	at := sniff(t, l.victim.NS, "eth0")
	arrives := func(option byte, data string) bool {
		udp := append(be.BigEndian.AppendUint16([]byte{0x9c, 0x40, 0x1e, 0x61}, uint16(8+len(data))), 0, 0)
		p := ipv4(17, me, gw, append(udp, data...))
		route := append([]byte{1, option, 7, 4}, you.AsSlice()...) // padding, then an option with one hop
		p = append(append(append([]byte{}, p[:20]...), route...), p[20:]...)
		p[0], p[10], p[11] = 0x47, 0, 0
		be.BigEndian.PutUint16(p[2:], uint16(len(p)))
		be.BigEndian.PutUint16(p[10:], checksum(p[:28]))
		inject(t, l.pod.NS, "eth0", ether(l.gateway, l.own, unix.ETH_P_IP, p))
		send(t, l.pod.NS, "eth0", l.gateway, me, you, 7777, "behind "+data)
		_ = at.SetReadDeadline(time.Now().Add(5 * time.Second))
		for buf, seen := make([]byte, 2048), false; ; {
			n, err := at.Read(buf)
			if err != nil {
				t.Fatalf("the packet behind did not arrive: %v", err)
			}
			if strings.HasSuffix(string(buf[:n]), "behind "+data) {
				return seen
			}
			seen = seen || strings.HasSuffix(string(buf[:n]), data)
		}
	}
	const loose, strict = 131, 137
	if arrives(loose, "loose") || arrives(strict, "strict") {
		t.Error("the node sent on what a pod routed")
	}
	l.h.Sysctl(t, "net/ipv4/conf/braid0/accept_source_route", "1")
	if !arrives(loose, "allowed") {
		t.Error("the node does not send it on when allowed to either: this test shows nothing")
	}
}

// TestCVE202010749: a pod poses as an IPv6 router (CVE-2020-10749). A pod and a node that would take what it says do not hear it.
func TestCVE202010749(t *testing.T) {
	l := newLiar(t)
	l.victim.Sysctl(t, "net/ipv6/conf/eth0/accept_ra", "2")
	l.h.Sysctl(t, "net/ipv6/conf/all/accept_ra", "2")
	local := antispoof.LinkLocal(l.own)
	// A router for half an hour, and a prefix to take addresses from (RFC 4861 §4.2, §4.6.2).
	prefix := append([]byte{3, 4, 64, 0xc0, 0, 0, 7, 8, 0, 0, 7, 8, 0, 0, 0, 0}, netip.MustParseAddr("2001:db8:bad::").AsSlice()...)
	advert := icmpv6(local, netip.MustParseAddr("ff02::1"), append([]byte{134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0}, prefix...)...)
	advertise := func() {
		inject(t, l.pod.NS, "eth0", ether(net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}, l.own, unix.ETH_P_IPV6, advert))
		l.pod.ping(t, "fd00:10:244:1::3")
	}
	believes := func(ns *nstest.NS) bool {
		return strings.Contains(ns.Exec(t, "ip", "-6", "route")+ns.Exec(t, "ip", "-6", "addr"), "2001:db8:bad:") ||
			strings.Contains(ns.Exec(t, "ip", "-6", "route", "show", "default"), local.String())
	}
	advertise()
	if believes(l.h.NS) || believes(l.victim.NS) {
		t.Errorf("a pod is taken for a router\nnode:\n%s\npod:\n%s", l.h.Exec(t, "ip", "-6", "route"), l.victim.Exec(t, "ip", "-6", "route"))
	}
	l.h.Exec(t, "nft", "delete", "table", "bridge", "braid-antispoof")
	advertise()
	if !believes(l.victim.NS) {
		t.Error("nor is it without our rules: this test shows nothing")
	}
	if believes(l.h.NS) {
		t.Error("the node does, without our rules: its bridge is to take no advertisements by itself")
	}
}

// TestCVE20208558: what listens on the node's 127.0.0.1 is reached by a pod's packet to that address (CVE-2020-8558) where the kernel routes
// loopback addresses, as it does on the pods' bridge for host ports.
func TestCVE20208558(t *testing.T) {
	l := newLiar(t)
	l.h.run("ports", "54324:8080/tcp")
	var listen net.PacketConn
	l.h.Run(t, func() (err error) { listen, err = net.ListenPacket("udp", "127.0.0.1:7777"); return err })
	defer listen.Close()
	if v := strings.TrimSpace(l.h.Exec(t, "cat", "/proc/sys/net/ipv4/conf/braid0/route_localnet")); v != "1" {
		t.Fatalf("route_localnet of the bridge is %q: this test shows nothing", v)
	}
	me, lo := netip.MustParseAddr("10.244.1.2"), netip.MustParseAddr("127.0.0.1")
	arrives := func() bool {
		send(t, l.pod.NS, "eth0", l.gateway, me, lo, 7777, "hello")
		l.pod.ping(t, "10.244.1.1")
		_ = listen.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		_, _, err := listen.ReadFrom(make([]byte, 64))
		return err == nil
	}
	if arrives() {
		t.Error("a pod's packet reached 127.0.0.1 of the node")
	}
	l.h.Exec(t, "nft", "delete", "table", "ip", "braid-hostports")
	if !arrives() {
		t.Error("nor does it without our rules: this test shows nothing")
	}
}

// TestCVE202228224: whoever may ask for a pod's address could have another's traffic led to himself (CVE-2022-28224, by an annotation that
// asked for addresses). An address that another pod has, the node's own, or one outside of the node's ranges is refused, and
// nothing on the node leads there.
func TestCVE202228224(t *testing.T) {
	l := newLiar(t)
	thief := newPod(t, "thief")
	for _, wanted := range []string{"10.244.1.3", "10.244.1.1", "10.244.2.7", "192.0.2.9", "fd00:10:244:1::3"} {
		before := l.h.Exec(t, "ip", "route") + l.h.Exec(t, "ip", "-6", "route")
		for _, change := range []map[string]any{{"runtimeConfig": map[string]any{"ips": []string{wanted}}}, {"args": map[string]any{"cni": map[string]any{"ips": []string{wanted}}}}} {
			if out, failure := l.h.call("ADD", thief.attach, l.h.with(change)); failure == nil {
				t.Errorf("%v was granted: %s", change, out)
			}
		}
		if after := l.h.Exec(t, "ip", "route") + l.h.Exec(t, "ip", "-6", "route"); after != before {
			t.Errorf("after %s was refused, routes are\n%s\nand were\n%s", wanted, after, before)
		}
	}
	l.victim.ping(t, "10.244.1.1")
}
