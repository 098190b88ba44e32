package standin

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/braidnet/braid/internal/kernel/netns/nstest"
)

var podIPs = []netip.Addr{
	netip.MustParseAddr("10.244.1.5"), netip.MustParseAddr("10.244.1.6"),
	netip.MustParseAddr("fd00:10:244:1::5"), netip.MustParseAddr("fd00:10:244:1::6"),
}

// pod is a namespace with two addresses per family on its loopback.
func pod(t *testing.T) *nstest.NS {
	t.Helper()
	ns := nstest.New(t)
	ns.Run(t, func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		for _, ip := range podIPs {
			addr, err := netlink.ParseAddr(netip.PrefixFrom(ip, ip.BitLen()).String())
			if err != nil {
				return err
			}
			addr.Flags = unix.IFA_F_NODAD
			if err := netlink.AddrAdd(lo, addr); err != nil {
				return err
			}
		}
		return nil
	})
	// The kernel makes the local route of an IPv6 address a moment later, also without duplicate
	// address detection. Until then packets to it find no way.
	nstest.Wait(t, "the addresses to be local", func() error { return ns.Do(allLocal) })
	return ns
}

func allLocal() error {
	for _, ip := range podIPs {
		routes, err := netlink.RouteGet(ip.AsSlice())
		if err != nil || len(routes) != 1 || routes[0].Type != unix.RTN_LOCAL {
			return fmt.Errorf("%s is reached by %v (%v)", ip, routes, err)
		}
	}
	return nil
}

func serve(t *testing.T, ns *nstest.NS, ports ...Port) *Server {
	t.Helper()
	s, err := Serve(ns.Path(), Info{Namespace: "shop", Name: "web-1", Node: "n1"}, ports)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// dial connects from inside the namespace, from the source address given.
func dial(t *testing.T, ns *nstest.NS, network string, source, dest netip.Addr, port uint16) (net.Conn, error) {
	t.Helper()
	var c net.Conn
	err := ns.Do(func() (err error) {
		from := netip.AddrPortFrom(source, 0)
		to := netip.AddrPortFrom(dest, port)
		if network == "udp" {
			c, err = net.DialUDP(network, net.UDPAddrFromAddrPort(from), net.UDPAddrFromAddrPort(to))
		} else {
			c, err = net.DialTCP(network, net.TCPAddrFromAddrPort(from), net.TCPAddrFromAddrPort(to))
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(10 * time.Second)) // a bound on a hang
	return c, nil
}

func mustDial(t *testing.T, ns *nstest.NS, network string, source, dest netip.Addr, port uint16) net.Conn {
	t.Helper()
	c, err := dial(t, ns, network, source, dest, port)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// pairs are (source, destination) of one family, so that a right answer is never right by chance.
func pairs() [][2]netip.Addr {
	return [][2]netip.Addr{{podIPs[0], podIPs[1]}, {podIPs[1], podIPs[0]}, {podIPs[2], podIPs[3]}, {podIPs[3], podIPs[2]}}
}

func TestHTTP(t *testing.T) {
	ns := pod(t)
	serve(t, ns, Port{Number: 80, Protocol: "TCP"})
	for _, p := range pairs() {
		c := mustDial(t, ns, "tcp", p[0], p[1], 80)
		in := bufio.NewReader(c)
		want := fmt.Sprintf("pod: web-1\nnamespace: shop\nnode: n1\npod-ip: %s\nclient: %s\nport: 80\n", p[1], c.LocalAddr())
		for i, req := range []string{
			"GET / HTTP/1.1\r\nHost: web\r\n\r\n",
			"POST /any/path HTTP/1.1\r\nHost: web\r\nContent-Length: 3\r\n\r\nabc",
			"GET /last HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n",
		} {
			fmt.Fprint(c, req)
			r, err := http.ReadResponse(in, nil)
			if err != nil {
				t.Fatalf("request %d to %s: %v", i, p[1], err)
			}
			body, err := io.ReadAll(r.Body)
			if err != nil || r.StatusCode != 200 || string(body) != want {
				t.Errorf("request %d to %s: status %d, %v, body:\n%swant:\n%s", i, p[1], r.StatusCode, err, body, want)
			}
		}
		if _, err := in.ReadByte(); !errors.Is(err, io.EOF) {
			t.Errorf("after Connection: close: %v, want the end of the connection", err)
		}
	}
}

func TestTCPEcho(t *testing.T) {
	ns := pod(t)
	serve(t, ns, Port{Number: 6379, Protocol: "TCP"})
	big := strings.Repeat("0123456789abcdef", 1<<14)
	for _, text := range []string{"PING\r\n", "G", "GET", "GETX something", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "x\x00\xff", big} {
		for _, p := range pairs()[1:3] {
			c := mustDial(t, ns, "tcp", p[0], p[1], 6379).(*net.TCPConn)
			go func() {
				_, _ = io.WriteString(c, text)
				_ = c.CloseWrite()
			}()
			got, err := io.ReadAll(c)
			if err != nil || string(got) != text {
				t.Errorf("%s: sent %.20q (%d bytes), got %.20q (%d bytes), %v", p[1], text, len(text), got, len(got), err)
			}
		}
	}
}

func TestUDPAnswersFromTheAddressThatWasAsked(t *testing.T) {
	ns := pod(t)
	serve(t, ns, Port{Number: 53, Protocol: "UDP"})
	loopback := [][2]netip.Addr{
		{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("127.0.0.9")},
		{netip.IPv6Loopback(), netip.IPv6Loopback()},
	}
	for _, p := range append(pairs(), loopback...) {
		// The socket is connected: an answer from any other address would not be delivered to it.
		c := mustDial(t, ns, "udp", p[0], p[1], 53)
		for _, data := range []string{"hello", "", "two words"} {
			fmt.Fprint(c, data)
			buf := make([]byte, 2048)
			n, err := c.Read(buf)
			want := fmt.Sprintf("web-1 %s %s %s", p[1], c.LocalAddr(), data)
			if err != nil || string(buf[:n]) != want {
				t.Errorf("%s asked %s with %q: got %q, %v; want %q", p[0], p[1], data, buf[:n], err, want)
			}
		}
	}
}

func TestSetPorts(t *testing.T) {
	ns := pod(t)
	sctp := Port{Name: "signal", Number: 90, Protocol: "SCTP"}
	s := serve(t, ns, Port{Number: 80}, Port{Name: "again", Number: 80, Protocol: "TCP"}, Port{Number: 80, Protocol: "UDP"}, sctp)
	if got := s.Skipped(); !slices.Equal(got, []Port{sctp}) {
		t.Errorf("skipped %v, want the SCTP port", got)
	}
	kept := mustDial(t, ns, "tcp", podIPs[0], podIPs[1], 80)
	fmt.Fprint(kept, "a")

	if err := s.SetPorts([]Port{{Number: 80}, {Number: 81}}); err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(kept, "b")
	if err := kept.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(kept); err != nil || string(got) != "ab" {
		t.Errorf("a connection to a port that stays was disturbed: %q, %v", got, err)
	}
	mustDial(t, ns, "tcp", podIPs[0], podIPs[1], 81)
	if err := s.SetPorts([]Port{{Number: 81}}); err != nil {
		t.Fatal(err)
	}
	if _, err := dial(t, ns, "tcp", podIPs[0], podIPs[1], 80); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("dial a port that is gone: %v, want refused", err)
	}
}

func TestCloseEndsEverything(t *testing.T) {
	ns := pod(t)
	s := serve(t, ns, Port{Number: 80}, Port{Number: 80, Protocol: "UDP"})
	conns := map[string]net.Conn{}
	for _, start := range []string{"", "G", "GET / HTTP/1.1\r\nHost: w\r\n\r\n", "GET / HT", "echo me"} {
		c := mustDial(t, ns, "tcp", podIPs[0], podIPs[1], 80)
		fmt.Fprint(c, start)
		if start == "echo me" || strings.HasSuffix(start, "\n\r\n") {
			if _, err := c.Read(make([]byte, 3)); err != nil {
				t.Fatal(err)
			}
		}
		conns[start] = c
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for start, c := range conns {
		if _, err := io.Copy(io.Discard, c); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("the connection that sent %q is still open", start)
		}
	}
	for _, p := range pairs() {
		if _, err := dial(t, ns, "tcp", p[0], p[1], 80); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("dial %s after Close: %v, want refused", p[1], err)
		}
	}
	if err := s.Close(); err != nil {
		t.Errorf("a second Close: %v", err)
	}
	if err := s.SetPorts([]Port{{Number: 80}}); err == nil {
		t.Error("SetPorts after Close was accepted")
	}
}

func TestServeFailsAsAWhole(t *testing.T) {
	ns := pod(t)
	serve(t, ns, Port{Number: 8080})
	_, err := Serve(ns.Path(), Info{Namespace: "shop", Name: "second", IPs: podIPs[1:3]}, []Port{{Number: 8079}, {Number: 8080}})
	if !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), "shop/second at 10.244.1.6, fd00:10:244:1::5: port 8080/TCP") {
		t.Errorf("a port in use: %v, want an error that names pod and port", err)
	}
	if _, err := dial(t, ns, "tcp", podIPs[0], podIPs[1], 8079); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("dial the other port of the failed stand-in: %v, want refused", err)
	}
	if _, err := Serve("/nonexistent/ns", Info{}, []Port{{Number: 1}}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no namespace: %v", err)
	}
}

func TestSocketsAreNotInTheCallersNamespace(t *testing.T) {
	ns := pod(t)
	serve(t, ns, Port{Number: 45871})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if c, err := new(net.Dialer).DialContext(ctx, "tcp", "127.0.0.1:45871"); err == nil {
		c.Close()
		t.Error("the port is open outside the pod")
	}
}

func FuzzLocalAddr(f *testing.F) {
	f.Add([]byte{})
	f.Add(unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: [4]byte{10, 0, 0, 1}}))
	f.Add(unix.PktInfo6(&unix.Inet6Pktinfo{Addr: netip.IPv6Loopback().As16()}))
	f.Fuzz(func(t *testing.T, oob []byte) {
		addr, source := localAddr(oob)
		if addr.IsValid() != (len(source) > 0) {
			t.Fatalf("address %s with control message %x", addr, source)
		}
		if again, _ := localAddr(source); addr.IsValid() && again != addr {
			t.Fatalf("the answer would leave from %s, the question was sent to %s", again, addr)
		}
	})
}
