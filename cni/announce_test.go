package main

import (
	"bytes"
	wire "encoding/binary"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/braidnet/braid/internal/kernel/link"
)

// TestForwardingWithoutAnAgent: where no agent is said to be there, the plugin has the node forward, as the reference plugins
// do; where one is, it leaves that alone.
func TestForwardingWithoutAnAgent(t *testing.T) {
	h := newHost(t)
	keys := []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"}
	is := func(want, when string) {
		t.Helper()
		h.Run(t, func() error {
			for _, key := range keys {
				v, err := os.ReadFile("/proc/sys/" + key)
				if err != nil {
					return err
				}
				if got := strings.TrimSpace(string(v)); got != want {
					t.Errorf("%s: %s is %s, want %s", when, key, got, want)
				}
			}
			return nil
		})
	}
	for _, key := range keys {
		h.Sysctl(t, key, "0")
	}
	h.conf["readyFile"] = "/none/such"
	h.add(newPod(t, "first").attach)
	is("0", "with an agent")
	delete(h.conf, "readyFile")
	a, b := newPod(t, "a"), newPod(t, "b")
	h.add(a.attach)
	is("1", "without one")
	h.add(b.attach)
	a.ping(t, b.address(t))
}

// TestAddressesAreAnnounced: when its interface comes up again, a pod says at what hardware address it is, by ARP and by a
// neighbour advertisement.
func TestAddressesAreAnnounced(t *testing.T) {
	h := newHost(t)
	p := newPod(t, "pod")
	h.add(p.attach)
	host, mac := deviceOf(t, h.NS, p.hostVeth()), link.PodMAC(p.id, p.ifname)
	var fd int
	h.Run(t, func() (err error) {
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(htons(unix.ETH_P_ALL)))
		if err == nil {
			err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: host.Index})
		}
		return err
	})
	defer unix.Close(fd)
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 20}); err != nil {
		t.Fatal(err)
	}
	p.Exec(t, "ip", "link", "set", "eth0", "down")
	p.Exec(t, "ip", "link", "set", "eth0", "up")
	const arpLength, nextHeader, icmpv6, message, target = 14 + 28, 14 + 6, 58, 14 + 40, 14 + 40 + 8
	four, six := netip.MustParseAddr("10.244.1.2").As4(), netip.MustParseAddr("fd00:10:244:1::2").As16()
	var arp, advert bool
	frame := make([]byte, 2000)
	for start := time.Now(); !arp || !advert; {
		n, err := unix.Read(fd, frame)
		if err != nil || time.Since(start) > time.Minute {
			t.Fatalf("announced by ARP %v, by an advertisement %v: %v", arp, advert, err)
		}
		f := frame[:n]
		if n < arpLength || !bytes.Equal(f[6:12], mac) {
			continue
		}
		switch kind := wire.BigEndian.Uint16(f[12:]); {
		case kind == unix.ETH_P_ARP:
			arp = arp || bytes.Equal(f[22:28], mac) && bytes.Equal(f[28:32], four[:]) && bytes.Equal(f[38:42], four[:])
		case kind == unix.ETH_P_IPV6 && n >= target+16:
			const advertisement = 136
			advert = advert || f[nextHeader] == icmpv6 && f[message] == advertisement && bytes.Equal(f[target:target+16], six[:])
		}
	}
}

func htons(v uint16) uint16 { return wire.NativeEndian.Uint16(wire.BigEndian.AppendUint16(nil, v)) }
