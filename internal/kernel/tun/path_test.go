package tun

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/braidnet/braid/internal/desired"
	"github.com/braidnet/braid/internal/kernel/netns/nstest"
)

const (
	testPort = 8285
	testDev  = "braid.udp"
)

// host is one of two nodes joined by a wire. Node n has 192.168.77.n and fd77::n on eth0, and the pod
// CIDRs 10.244.n.0/24 and fd00:10:244:n::/64, in which it is itself the pod with number 5.
type host struct {
	n    int
	ns   *nstest.NS
	path *Path
}

func node(format string, n int) netip.Addr { return netip.MustParseAddr(fmt.Sprintf(format, n)) }

func relay(n, peer int, under4 bool) desired.Relay {
	format := "fd77::%d"
	if under4 {
		format = "192.168.77.%d"
	}
	cidrs := func(n int) []netip.Prefix {
		return []netip.Prefix{netip.PrefixFrom(node("10.244.%d.0", n), 24), netip.PrefixFrom(node("fd00:10:244:%d::", n), 64)}
	}
	r := desired.Relay{Dev: testDev, Port: testPort, Local: []netip.Addr{node(format, n)}, Pods: cidrs(n)}
	for _, c := range cidrs(peer) {
		r.Tunnels = append(r.Tunnels, desired.Tunnel{Dst: c, Via: node(format, peer)})
	}
	return r
}

// newHosts makes the two nodes; their overlay is up, over IPv4 or IPv6, each with its options.
func newHosts(t testing.TB, under4 bool, mtu int, options ...Options) (hosts [2]*host) {
	t.Helper()
	for i := range hosts {
		hosts[i] = &host{n: i + 1, ns: nstest.New(t)}
	}
	nstest.Veth(t, hosts[0].ns, "eth0", hosts[1].ns, "eth0")
	for i, h := range hosts {
		h.ns.Exec(t, "ip", "addr", "add", fmt.Sprintf("192.168.77.%d/24", h.n), "dev", "eth0")
		h.ns.Exec(t, "ip", "addr", "add", fmt.Sprintf("fd77::%d/64", h.n), "dev", "eth0", "nodad")
		var o Options
		if len(options) > 0 {
			o = options[i%len(options)]
		}
		h.open(t, under4, o)
		h.configure(t, mtu, 3-h.n)
	}
	return hosts
}

func (h *host) open(t testing.TB, under4 bool, o Options) {
	t.Helper()
	h.ns.Run(t, func() (err error) {
		h.path, err = Open(relay(h.n, 3-h.n, under4), o)
		return err
	})
	p := h.path
	t.Cleanup(p.Close)
}

func (h *host) configure(t testing.TB, mtu, peer int) {
	t.Helper()
	for _, c := range [][]string{
		{"link", "set", testDev, "mtu", fmt.Sprint(mtu), "up"},
		{"addr", "add", fmt.Sprintf("10.244.%d.5/32", h.n), "dev", testDev},
		{"addr", "add", fmt.Sprintf("fd00:10:244:%d::5/128", h.n), "dev", testDev, "nodad"},
		{"route", "add", fmt.Sprintf("10.244.%d.0/24", peer), "via", fmt.Sprintf("10.244.%d.0", peer), "dev", testDev, "onlink"},
		{"-6", "route", "add", fmt.Sprintf("fd00:10:244:%d::/64", peer), "via", fmt.Sprintf("fd00:10:244:%d::", peer), "dev", testDev, "onlink"},
	} {
		h.ns.Exec(t, "ip", c...)
	}
	nstest.Wait(t, "the IPv6 address to be taken up", func() error { // by a work queue of the kernel
		if out := h.ns.Exec(t, "ip", "-6", "route", "show", "table", "local"); !strings.Contains(out, pod(h.n, false)+" ") {
			return errors.New(out)
		}
		return nil
	})
}

func pod(n int, is4 bool) string {
	if is4 {
		return fmt.Sprintf("10.244.%d.5", n)
	}
	return fmt.Sprintf("fd00:10:244:%d::5", n)
}

// transfer sends size bytes by TCP from one node to the other and back, and compares what came.
func transfer(t testing.TB, from, to *host, is4 bool, size int) {
	t.Helper()
	var l net.Listener
	to.ns.Run(t, func() (err error) {
		l, err = net.Listen("tcp", net.JoinHostPort(pod(to.n, is4), "0"))
		return err
	})
	defer l.Close()
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		_, _ = io.Copy(c, c)
		_ = c.(*net.TCPConn).CloseWrite()
	}()
	var c net.Conn
	from.ns.Run(t, func() (err error) {
		c, err = (&net.Dialer{Timeout: 10 * time.Second}).DialContext(context.Background(), "tcp", l.Addr().String())
		return err
	})
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	data := make([]byte, size)
	for i := range data {
		data[i] = byte(rand.Uint32())
	}
	go func() {
		_, _ = c.Write(data)
		_ = c.(*net.TCPConn).CloseWrite()
	}()
	sum := sha256.New()
	if n, err := io.Copy(sum, c); err != nil || int(n) != size {
		t.Fatalf("%d bytes of %d came back: %v", n, size, err)
	}
	if want := sha256.Sum256(data); !bytes.Equal(sum.Sum(nil), want[:]) {
		t.Error("other bytes came back than were sent")
	}
}

// ping asks with the largest packet that may not be fragmented.
func ping(t testing.TB, from, to *host, is4 bool, mtu int) {
	t.Helper()
	headers := 48
	if is4 {
		headers = 28
	}
	before := [2]Stats{from.path.Stats(), to.path.Stats()}
	if out, err := from.ns.Output("ping", "-n", "-c", "1", "-W", "5", "-M", "do", "-s", fmt.Sprint(mtu-headers), pod(to.n, is4)); err != nil {
		t.Fatalf("%v\n%s\nbefore %+v\nafter  %+v %+v\n%s", err, out, before, from.path.Stats(), to.path.Stats(), from.ns.Exec(t, "ip", "-s", "link", "show", testDev)+to.ns.Exec(t, "ip", "-s", "link", "show", testDev))
	}
}

func TestPathCarriesBothFamiliesOverBoth(t *testing.T) {
	for _, under4 := range []bool{true, false} {
		mtu := 1452
		if under4 {
			mtu = 1472
		}
		h := newHosts(t, under4, mtu)
		for _, is4 := range []bool{true, false} {
			t.Run(fmt.Sprintf("IPv4 %v over IPv4 %v", is4, under4), func(t *testing.T) {
				ping(t, h[0], h[1], is4, mtu)
				ping(t, h[1], h[0], is4, mtu)
				transfer(t, h[0], h[1], is4, 8<<20)
			})
		}
		for _, x := range h {
			s := x.path.Stats()
			t.Logf("node %d: %s: %+v", x.n, x.path.Features(), s)
			for reason, n := range s.Dropped {
				if n != 0 {
					t.Errorf("node %d: %d packets dropped: %s", x.n, n, reason)
				}
			}
		}
	}
}
