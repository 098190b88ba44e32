package tun

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/braidnet/braid/internal/kernel/netns/nstest"
)

// Each feature that a kernel may lack is taken away, on one node and on both, and all of them at once.
func TestPathWithoutFeatures(t *testing.T) {
	for i := range len(featureNames) + 1 {
		off, name := Features(1<<i), "all"
		if i < len(featureNames) {
			name = featureNames[i]
		} else {
			off = allFeatures
		}
		for _, both := range []bool{false, true} {
			if both && name != "all" && name != "split-tcp" {
				continue
			}
			t.Run(fmt.Sprintf("%s, both %v", name, both), func(t *testing.T) {
				o := []Options{{Off: off}, {}}
				if both {
					o = o[:1]
				}
				h := newHosts(t, true, 1472, o...)
				if f := h[0].path.Features(); f&off != 0 || name != "all" && f|off != allFeatures {
					t.Errorf("features %s without %s", f, off)
				}
				for _, is4 := range []bool{true, false} {
					ping(t, h[0], h[1], is4, 1472)
					transfer(t, h[0], h[1], is4, 1<<20)
					transfer(t, h[1], h[0], is4, 1<<20)
				}
				for _, x := range h {
					for reason, n := range x.path.Stats().Dropped {
						if n != 0 {
							t.Errorf("node %d: %d packets dropped: %s", x.n, n, reason)
						}
					}
				}
			})
		}
	}
}

// A peer that is not one of ours sees single IP packets with right checksums, one in each datagram, however
// the kernel handed them over.
func TestWireIsBarePackets(t *testing.T) {
	h := newHosts(t, true, 1472)
	h[1].path.Close()
	h[1].ns.Exec(t, "ip", "link", "del", testDev)
	var peer net.PacketConn
	h[1].ns.Run(t, func() (err error) {
		peer, err = net.ListenPacket("udp4", "192.168.77.2:8285")
		return err
	})
	defer peer.Close()
	const datagrams, size = 60, 1000 // what a socket can hold
	for _, is4 := range []bool{true, false} {
		var c net.Conn
		h[0].ns.Run(t, func() (err error) {
			c, err = net.Dial("udp", net.JoinHostPort(pod(2, is4), "9"))
			return err
		})
		defer c.Close()
		rc, err := c.(*net.UDPConn).SyscallConn()
		if err == nil { // the kernel gets superpackets of ten datagrams
			cerr := rc.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_SEGMENT, size) })
			err = errors.Join(err, cerr)
		}
		if err != nil {
			t.Fatal(err)
		}
		for range datagrams / 10 {
			if _, err := c.Write(make([]byte, 10*size)); err != nil {
				t.Fatal(err)
			}
		}
		h[0].ns.Exec(t, "sh", "-c", fmt.Sprintf("timeout 0.2 nc.openbsd %s 9 || true", pod(2, is4))) // TCP, which nobody answers
		b := make([]byte, 1<<16)
		udp, tcp := 0, 0
		for tcp == 0 || udp < datagrams {
			_ = peer.SetReadDeadline(time.Now().Add(10 * time.Second))
			n, from, err := peer.ReadFrom(b)
			if err != nil {
				t.Fatalf("after %d and %d packets: %v", udp, tcp, err)
			}
			p, err := checkIP(b[:n])
			if isGreeting(b[:n]) || err == nil && (p[6] == 0 || p[6] == protoICMPv6) && !isIPv4(p) {
				continue // the kernel's own neighbour and group messages
			}
			if err != nil || len(p) != n || from.String() != "192.168.77.1:8285" {
				t.Fatalf("%d bytes from %s: %v", n, from, err)
			}
			if err := rightSums(p); err != nil {
				t.Fatal(err)
			}
			if tr, _ := findTransport(p); tr.proto == protoTCP {
				tcp++
			} else if udp++; n != tr.at+udpLen+size {
				t.Fatalf("a datagram of %d bytes", n)
			}
		}
	}
}

// A way that carries less than its devices say is found out: TCP adapts, other senders are told.
func TestPathMTUIsSmaller(t *testing.T) {
	for _, under4 := range []bool{true, false} {
		mtu := 1452
		if under4 {
			mtu = 1472
		}
		h := newHosts(t, under4, mtu)
		for i, x := range h {
			x.ns.Exec(t, "ip", "route", "add", fmt.Sprintf("192.168.77.%d/32", 2-i), "dev", "eth0", "mtu", "1400")
			x.ns.Exec(t, "ip", "-6", "route", "add", fmt.Sprintf("fd77::%d/128", 2-i), "dev", "eth0", "mtu", "1400")
		}
		for _, is4 := range []bool{true, false} {
			ping(t, h[0], h[1], is4, mtu) // fragments outside: it is a single packet
			transfer(t, h[0], h[1], is4, 4<<20)
			fits := mtu - 100
			ping(t, h[0], h[1], is4, fits)
			out, err := h[0].ns.Output("ping", "-n", "-c", "1", "-W", "5", "-M", "do", "-s", fmt.Sprint(mtu), pod(2, is4))
			if err == nil || !strings.Contains(out, fmt.Sprint(fits)) {
				t.Errorf("the sender was not told that %d bytes fit: %v\n%s", fits, err, out)
			}
		}
		if n := h[0].path.Stats().Dropped["too-big"]; n == 0 {
			t.Error("nothing was too big: the test tests nothing")
		}
	}
}

// What no node has is told to be unreachable, as a router does.
func TestNoRouteIsTold(t *testing.T) {
	h := newHosts(t, true, 1472)
	h[0].ns.Exec(t, "ip", "route", "add", "10.244.9.0/24", "dev", testDev)
	h[0].ns.Exec(t, "ip", "-6", "route", "add", "fd00:10:244:9::/64", "dev", testDev)
	for addr, word := range map[string]string{"10.244.9.1": "Net Unreachable", "fd00:10:244:9::1": "No route"} {
		out, err := h[0].ns.Output("ping", "-n", "-c", "1", "-W", "5", addr)
		if err == nil || !strings.Contains(out, word) {
			t.Errorf("ping %s: want %q: %v\n%s", addr, word, err, out)
		}
	}
	h[0].ns.Exec(t, "ip", "route", "add", "unreachable", "192.168.77.2/32")
	for _, is4 := range []bool{true, false} {
		out, err := h[0].ns.Output("ping", "-n", "-c", "1", "-W", "5", pod(2, is4))
		if err == nil || !strings.Contains(strings.ToLower(out), "unreachable") {
			t.Errorf("ping %s: %v\n%s", pod(2, is4), err, out)
		}
	}
}

// The table is replaced again and again under traffic: no packet may be lost by it.
func TestSetLosesNothing(t *testing.T) {
	h := newHosts(t, true, 1472)
	var stop atomic.Bool
	done := make(chan int)
	go func() {
		n := 0
		for ; !stop.Load(); n++ {
			if err := h[0].path.Set(relay(1, 2, true)); err != nil {
				t.Error(err)
				break
			}
		}
		done <- n
	}()
	out := h[0].ns.Exec(t, "ping", "-n", "-c", "300", "-i", "0.002", "-W", "5", pod(2, true))
	stop.Store(true)
	if n := <-done; n < 100 || !strings.Contains(out, " 0% packet loss") {
		t.Errorf("%d tables:\n%s", n, out)
	}
	if err := h[0].path.Set(relay(2, 1, true)); err == nil {
		t.Error("a relay of other ends was taken")
	}
	// A node that is gone is reached no more, and nothing of it is taken.
	r := relay(1, 2, true)
	r.Tunnels = nil
	if err := h[0].path.Set(r); err != nil {
		t.Fatal(err)
	}
	if out, err := h[0].ns.Output("ping", "-n", "-c", "1", "-W", "1", pod(2, true)); err == nil {
		t.Errorf("a node that is gone answers:\n%s", out)
	}
	before := h[0].path.Stats().Dropped["stranger"]
	_, _ = h[1].ns.Output("ping", "-n", "-c", "1", "-W", "1", pod(1, true))
	if h[0].path.Stats().Dropped["stranger"] == before {
		t.Error("a packet of a node that is gone was taken")
	}
}

// The device outlives a path, with addresses and routes; a device that is deleted breaks the path.
func TestDeviceOutlivesPath(t *testing.T) {
	h := newHosts(t, true, 1472)
	ping(t, h[0], h[1], true, 1000)
	h[0].path.Close()
	if out, err := h[1].ns.Output("ping", "-n", "-c", "1", "-W", "1", pod(1, true)); err == nil {
		t.Errorf("a closed path answers:\n%s", out)
	}
	h[0].open(t, true, Options{})
	nstest.Wait(t, "the kernel to notice that the device has its carrier again", func() error {
		_, err := h[0].ns.Output("ping", "-n", "-c", "1", "-W", "1", pod(2, true))
		return err
	})
	ping(t, h[0], h[1], true, 1000)
	ping(t, h[1], h[0], false, 1000)
	if err := h[0].path.Err(); err != nil {
		t.Error(err)
	}
	h[0].ns.Exec(t, "ip", "link", "del", testDev)
	select {
	case <-h[0].path.Broken():
	case <-time.After(10 * time.Second):
		t.Fatal("the device is gone and nobody noticed")
	}
	if h[0].path.Err() == nil {
		t.Error("a broken path has no error")
	}
}

func TestOpenErrors(t *testing.T) {
	ns := nstest.New(t)
	try := func(o Options) error {
		var p *Path
		err := ns.Do(func() (err error) {
			p, err = Open(relay(1, 2, true), o)
			return err
		})
		if err == nil {
			p.Close()
		}
		return err
	}
	ns.Exec(t, "ip", "tuntap", "add", testDev, "mode", "tun")
	if err := try(Options{}); !errors.Is(err, ErrOther) || !strings.Contains(err.Error(), "ip link delete "+testDev) {
		t.Errorf("a device with one queue: %v", err)
	}
	ns.Exec(t, "ip", "link", "del", testDev)
	var other net.PacketConn
	ns.Run(t, func() (err error) {
		l := net.ListenConfig{}
		other, err = l.ListenPacket(context.Background(), "udp4", "0.0.0.0:8285")
		return err
	})
	if err := try(Options{}); !errors.Is(err, unix.EADDRINUSE) || !strings.Contains(err.Error(), "flannel") {
		t.Errorf("a port in use: %v", err)
	}
	other.Close()
	if err := try(Options{}); err != nil {
		t.Error(err)
	}
	r := relay(1, 2, true)
	r.Tunnels[0].Via = netip.Addr{}
	if _, err := Open(r, Options{}); err == nil {
		t.Error("a tunnel to nowhere was taken")
	}
}

// Where the device cannot compute checksums, older kernels refuse groups of datagrams.
func TestWireWithoutChecksumOffload(t *testing.T) {
	h := newHosts(t, true, 1472)
	for _, x := range h {
		x.ns.Run(t, func() error {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			var req struct {
				name [unix.IFNAMSIZ]byte
				data unsafe.Pointer
				_    [16]byte
			}
			copy(req.name[:], "eth0")
			req.data = unsafe.Pointer(&struct{ cmd, value uint32 }{unix.ETHTOOL_STXCSUM, 0})
			if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&req))); errno != 0 {
				return errno
			}
			return nil
		})
	}
	for _, is4 := range []bool{true, false} {
		transfer(t, h[0], h[1], is4, 1<<20)
		transfer(t, h[1], h[0], is4, 1<<20)
	}
	t.Logf("features in use: %s", h[0].path.Features())
}
