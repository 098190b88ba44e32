package main

import (
	"bytes"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/braidnet/braid/cni/antispoof"
	"golang.org/x/sys/unix"
)

// liar is a pod that sends frames by hand, a victim on the same node, and their gateway.
type liar struct {
	h                    *host
	pod, victim          *pod
	own, others, gateway net.HardwareAddr
}

func newLiar(t *testing.T) *liar {
	t.Helper()
	l := &liar{h: newHost(t), pod: newPod(t, "liar"), victim: newPod(t, "victim")}
	l.h.add(l.pod.attach)
	l.h.add(l.victim.attach)
	l.own, l.others = deviceOf(t, l.pod.NS, "eth0").HardwareAddr, deviceOf(t, l.victim.NS, "eth0").HardwareAddr
	l.gateway = neighbour(t, l.pod.NS, "eth0", "10.244.1.1")
	l.pod.ping(t, "fd00:10:244:1::1")
	return l
}

// arrives tells whether a frame is taken in by a link; a frame that must be is sent after it and waited for.
func (l *liar) arrives(t *testing.T, at *os.File, frame, after []byte) bool {
	t.Helper()
	inject(t, l.pod.NS, "eth0", frame)
	inject(t, l.pod.NS, "eth0", after)
	_ = at.SetReadDeadline(time.Now().Add(5 * time.Second))
	buf, seen := make([]byte, 2048), false
	for {
		n, err := at.Read(buf)
		if err != nil {
			t.Fatalf("the frame that must arrive did not: %v", err)
		}
		seen = seen || bytes.Equal(buf[12:n], frame[12:]) || bytes.Equal(buf[14:n], frame[min(18, len(frame)):]) // the kernel takes VLAN tags off
		if bytes.Equal(buf[:n], after) {
			return seen
		}
	}
}

type forgery struct {
	name  string
	to    net.HardwareAddr // the victim's or the gateway's
	frame []byte
}

func (l *liar) forgeries() (list []forgery) {
	a := netip.MustParseAddr
	me4, you4, gw4, out4 := a("10.244.1.2"), a("10.244.1.3"), a("10.244.1.1"), a("192.0.2.2")
	me6, you6, gw6, out6 := a("fd00:10:244:1::2"), a("fd00:10:244:1::3"), a("fd00:10:244:1::1"), a("2001:db8::2")
	nodes := a("ff02::1")
	udp := []byte{0x9c, 0x40, 0x00, 0x35, 0, 8, 0, 0}
	add := func(name string, to, from net.HardwareAddr, kind uint16, packet []byte) {
		list = append(list, forgery{name, to, ether(to, from, kind, packet)})
	}
	arp := func(hw net.HardwareAddr, ip netip.Addr) []byte {
		b := append([]byte{0, 1, 8, 0, 6, 4, 0, 2}, hw...)
		b = append(append(append(b, ip.AsSlice()...), l.others...), you4.AsSlice()...)
		return append(b, make([]byte, 18)...) // to the least size of a frame
	}
	advert := func(target netip.Addr) []byte {
		return append(append([]byte{136, 0, 0, 0, 0x60, 0, 0, 0}, target.AsSlice()...), append([]byte{2, 1}, l.own...)...)
	}
	router := []byte{134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0}
	local := antispoof.LinkLocal(l.own)
	add("another pod's IPv4 address", l.gateway, l.own, unix.ETH_P_IP, ipv4(17, you4, gw4, udp))
	add("an IPv4 address from outside", l.gateway, l.own, unix.ETH_P_IP, ipv4(17, out4, gw4, udp))
	add("a loopback address", l.gateway, l.own, unix.ETH_P_IP, ipv4(17, a("127.0.0.1"), gw4, udp))
	add("another pod's hardware address", l.gateway, l.others, unix.ETH_P_IP, ipv4(17, me4, gw4, udp))
	add("another pod's both addresses", l.gateway, l.others, unix.ETH_P_IP, ipv4(17, you4, gw4, udp))
	add("another pod's IPv6 address", l.gateway, l.own, unix.ETH_P_IPV6, ipv6(17, you6, gw6, udp))
	add("an IPv6 address from outside", l.gateway, l.own, unix.ETH_P_IPV6, ipv6(17, out6, gw6, udp))
	add("a link-local address that is not its own", l.gateway, l.own, unix.ETH_P_IPV6, ipv6(17, a("fe80::1"), gw6, udp))
	add("IPv4 within a VLAN", l.others, l.own, 0x8100, append([]byte{0, 5, 8, 0}, ipv4(17, gw4, you4, udp)...))
	add("ARP for the gateway", l.others, l.own, unix.ETH_P_ARP, arp(l.own, gw4))
	add("ARP with the gateway's hardware address", l.others, l.own, unix.ETH_P_ARP, arp(l.gateway, me4))
	add("a neighbour advertisement for the gateway", l.others, l.own, unix.ETH_P_IPV6, icmpv6(me6, you6, advert(gw6)...))
	add("a router advertisement", l.others, l.own, unix.ETH_P_IPV6, icmpv6(local, nodes, router...))
	add("a router advertisement to the node", l.gateway, l.own, unix.ETH_P_IPV6, icmpv6(local, nodes, router...))
	hidden := icmpv6(local, nodes, router...)
	add("a router advertisement behind an option", l.others, l.own, unix.ETH_P_IPV6,
		ipv6(0, local, nodes, append([]byte{unix.IPPROTO_ICMPV6, 0, 1, 4, 0, 0, 0, 0}, hidden[40:]...)))
	add("an ICMPv6 redirect", l.others, l.own, unix.ETH_P_IPV6, icmpv6(me6, you6, append(append([]byte{137, 0, 0, 0, 0, 0, 0, 0}, me6.AsSlice()...), out6.AsSlice()...)...))
	add("an ICMP redirect", l.others, l.own, unix.ETH_P_IP, ipv4(1, me4, you4, append([]byte{5, 1, 0, 0, 10, 244, 1, 2}, ipv4(17, you4, out4, udp)...)))
	dhcp := func(from, to byte, high byte) []byte {
		return append([]byte{high, from, high, to, 0, 16, 0, 0}, make([]byte, 8)...)
	}
	add("a DHCP server's answer", l.others, l.own, unix.ETH_P_IP, ipv4(17, me4, you4, dhcp(67, 68, 0)))
	add("a DHCPv6 server's answer", l.others, l.own, unix.ETH_P_IPV6, ipv6(17, local, you6, dhcp(0x23, 0x22, 2)))
	add("IPv6 from a mapped IPv4 address", l.gateway, l.own, unix.ETH_P_IPV6, ipv6(17, a("::ffff:10.244.1.2"), gw6, udp))
	add("something that is not IP", l.others, l.own, 0x88cc, make([]byte, 46))
	return list
}

// TestForgedFramesAreDropped: CVE-2020-10749 and its relatives.
func TestForgedFramesAreDropped(t *testing.T) {
	l := newLiar(t)
	me, you, gw := netip.MustParseAddr("10.244.1.2"), netip.MustParseAddr("10.244.1.3"), netip.MustParseAddr("10.244.1.1")
	mark := []byte{0x9c, 0x40, 0x00, 0x36, 0, 12, 0, 0, 'm', 'a', 'r', 'k'}
	ends := map[string]struct {
		at    *os.File
		after []byte
	}{
		l.others.String():  {sniff(t, l.victim.NS, "eth0"), ether(l.others, l.own, unix.ETH_P_IP, ipv4(17, me, you, mark))},
		l.gateway.String(): {sniff(t, l.h.NS, "braid0"), ether(l.gateway, l.own, unix.ETH_P_IP, ipv4(17, me, gw, mark))},
	}
	for _, f := range l.forgeries() {
		if end := ends[f.to.String()]; l.arrives(t, end.at, f.frame, end.after) {
			t.Errorf("%s got through", f.name)
		}
	}
	l.h.Exec(t, "nft", "delete", "table", "bridge", "braid-antispoof")
	for _, f := range l.forgeries() {
		end := ends[f.to.String()]
		if bytes.Equal(f.frame[6:12], l.others) {
			continue // once learned, the bridge would keep the victim's frames from it
		}
		if !l.arrives(t, end.at, f.frame, end.after) {
			t.Errorf("%s does not get through without our rules either: this test shows nothing", f.name)
		}
	}
}

// TestHonestPodsNoticeNothing: what pods do send, they may.
func TestHonestPodsNoticeNothing(t *testing.T) {
	l := newLiar(t)
	local := antispoof.LinkLocal(l.own).String()
	if out := l.pod.Exec(t, "ip", "-6", "addr", "show", "dev", "eth0", "scope", "link"); !strings.Contains(out, local+"/64") {
		t.Errorf("the pod's link-local address is not %s:\n%s", local, out)
	}
	for _, ns := range []*pod{l.pod, l.victim} {
		ns.Exec(t, "ip", "neigh", "flush", "all")
		ns.ping(t, "10.244.1.1", "-s", "4000") // in fragments
		ns.ping(t, "fd00:10:244:1::1", "-s", "4000")
	}
	l.h.Exec(t, "ip", "neigh", "flush", "dev", "braid0")
	l.h.Exec(t, "ping", "-n", "-c", "1", "-W", "5", "-I", "braid0", local)
	l.h.Exec(t, "ping", "-n", "-c", "1", "-W", "5", "fd00:10:244:1::2")
	l.pod.ping(t, "10.244.1.3")
	l.pod.ping(t, "fd00:10:244:1::3")
	// Errors about what others sent: the other pod asks a port where nobody listens.
	for _, to := range []string{"10.244.1.2", "fd00:10:244:1::2"} {
		refused(t, l.victim.NS, "udp", net.JoinHostPort(to, "9"))
		refused(t, l.h.NS, "udp", net.JoinHostPort(to, "9"))
		refused(t, l.pod.NS, "tcp", net.JoinHostPort(strings.TrimSuffix(to, "2")+"1", "9"))
	}
	// An announcement by ARP, and group membership of both families.
	announce := append([]byte{0, 1, 8, 0, 6, 4, 0, 1}, l.own...)
	announce = append(append(announce, 10, 244, 1, 2, 0, 0, 0, 0, 0, 0, 10, 244, 1, 2), make([]byte, 18)...)
	me, you := netip.MustParseAddr("10.244.1.2"), netip.MustParseAddr("10.244.1.3")
	behind := ether(l.others, l.own, unix.ETH_P_IP, ipv4(17, me, you, []byte{0x9c, 0x40, 0x00, 0x36, 0, 8, 0, 0}))
	if all := (net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}); !l.arrives(t, sniff(t, l.victim.NS, "eth0"), ether(all, l.own, unix.ETH_P_ARP, announce), behind) {
		t.Error("a pod cannot announce its address")
	}
	for group, kind := range map[string][]byte{"239.1.2.3": {0x08, 0x00, 0x46}, "ff05::1:3": {0x86, 0xdd, 0x60}} { // IPv4 with options is IGMP
		at := sniff(t, l.h.NS, "braid0")
		var member *net.UDPConn
		l.pod.Run(t, func() error {
			dev, err := net.InterfaceByName("eth0")
			if err != nil {
				return err
			}
			member, err = net.ListenMulticastUDP("udp", dev, net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(group), 5353)))
			return err
		})
		defer member.Close()
		_ = at.SetReadDeadline(time.Now().Add(5 * time.Second))
		for buf := make([]byte, 2048); ; {
			n, err := at.Read(buf)
			if err != nil {
				t.Fatalf("no report about group %s: %v", group, err)
			}
			if n > 38 && bytes.Equal(buf[12:15], kind) && (buf[14] == 0x46 || buf[20] == 0 && n > 62 && buf[62] == 143) {
				break
			}
		}
	}
	// An address taken down and up again: duplicate address detection asks from no address.
	l.pod.Sysctl(t, "net/ipv6/conf/eth0/accept_dad", "1")
	at := sniff(t, l.h.NS, "braid0")
	l.pod.Exec(t, "ip", "addr", "del", "fd00:10:244:1::2/128", "dev", "eth0")
	l.pod.Exec(t, "ip", "addr", "add", "fd00:10:244:1::2/128", "dev", "eth0")
	_ = at.SetReadDeadline(time.Now().Add(5 * time.Second))
	for buf := make([]byte, 2048); ; {
		n, err := at.Read(buf)
		if err != nil {
			t.Fatalf("no neighbour solicitation from the unspecified address: %v", err)
		}
		if n > 54 && buf[54] == 135 && bytes.Equal(buf[22:38], make([]byte, 16)) {
			break
		}
	}
}

// TestGuardComesAndGoes: elements are of the pods that are there; other links are none of our business.
func TestGuardComesAndGoes(t *testing.T) {
	l := newLiar(t)
	elements := func(link string) int {
		return strings.Count(l.h.Exec(t, "nft", "list", "table", "bridge", "braid-antispoof"), "comment \""+link)
	}
	if n := elements(l.pod.hostVeth()); n != 5 {
		t.Errorf("%d elements of a pod with two addresses, want 5", n)
	}
	l.h.del(l.pod.attach)
	if gone, stay := elements(l.pod.hostVeth()), elements(l.victim.hostVeth()); gone != 0 || stay != 5 {
		t.Errorf("after DEL: %d elements of the pod, %d of the other", gone, stay)
	}
	// Somebody who says he needs it.
	l.h.conf["antiSpoofing"] = false
	free := newPod(t, "free")
	l.h.add(free.attach)
	if elements(free.hostVeth()) != 0 {
		t.Error("a pod is guarded though the configuration says not to")
	}
	free.Exec(t, "ip", "addr", "add", "198.51.100.1/32", "dev", "lo")
	at := sniff(t, l.h.NS, "braid0")
	_, _ = free.Output("ping", "-n", "-c", "1", "-W", "1", "-I", "198.51.100.1", "10.244.1.1")
	_ = at.SetReadDeadline(time.Now().Add(5 * time.Second))
	for buf := make([]byte, 2048); ; {
		n, err := at.Read(buf)
		if err != nil {
			t.Fatalf("a pod that is not guarded: %v", err)
		}
		if n > 34 && slices.Equal(buf[26:30], []byte{198, 51, 100, 1}) {
			break
		}
	}
	// A table that somebody damaged is noticed, and made anew with the next pod.
	delete(l.h.conf, "antiSpoofing")
	l.h.Exec(t, "nft", "flush", "chain", "bridge", "braid-antispoof", "from-pod")
	p := newPod(t, "pod")
	prev := l.h.add(p.attach)
	if failure := l.h.check(p.attach, prev); failure == nil || !strings.Contains(failure.Details, "the rules of its chain from-pod were changed") {
		t.Errorf("CHECK of a damaged table: %v", failure)
	}
	l.h.Exec(t, "nft", "delete", "table", "bridge", "braid-antispoof")
	next := newPod(t, "next")
	if failure := l.h.check(next.attach, l.h.add(next.attach)); failure != nil {
		t.Errorf("CHECK after the table was made anew: %v", failure)
	}
}
