package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/braidnet/braid/internal/kernel/netns/nstest"
	"github.com/braidnet/braid/netagent/lab/standin"
	"golang.org/x/sys/unix"
)

// portHost is a node with two addresses of each family on a network where a client is.
type portHost struct {
	*host
	client *nstest.NS
}

const nodeAddr4, nodeAddr6 = "192.0.2.1", "2001:db8::1"

func newPortHost(t *testing.T) *portHost {
	t.Helper()
	h := &portHost{newHost(t), nstest.New(t)}
	nstest.Veth(t, h.NS, "lan", h.client, "eth0")
	for _, a := range []string{nodeAddr4 + "/24", "192.0.2.9/24", nodeAddr6 + "/64", "2001:db8::9/64"} {
		h.Exec(t, "ip", "addr", "add", a, "dev", "lan", "nodad")
	}
	for _, a := range []string{"192.0.2.2/24", "2001:db8::2/64"} {
		h.client.Exec(t, "ip", "addr", "add", a, "dev", "eth0", "nodad")
	}
	for _, to := range []string{nodeAddr4, nodeAddr6} { // the links carry traffic
		nstest.Wait(t, "the node at "+to, func() error { _, err := h.client.Output("ping", "-n", "-c", "1", "-W", "1", to); return err })
	}
	return h
}

// ports is a configuration with these mappings: "hostPort:containerPort/protocol", with "hostIP " before.
func (h *host) ports(mappings ...string) []byte {
	h.t.Helper()
	var list []map[string]any
	for _, m := range mappings {
		ip, rest, ok := strings.Cut(m, " ")
		if !ok {
			ip, rest = "", m
		}
		var from, to int
		var protocol string
		if _, err := fmt.Sscanf(rest, "%d:%d/%s", &from, &to, &protocol); err != nil {
			h.t.Fatalf("%s: %v", m, err)
		}
		list = append(list, map[string]any{"hostPort": from, "containerPort": to, "protocol": protocol, "hostIP": ip})
	}
	return h.with(map[string]any{"runtimeConfig": map[string]any{"portMappings": list}})
}

// run makes a pod with host ports that serves 8080 and 9090 of TCP and UDP.
func (h *host) run(id string, mappings ...string) *pod {
	h.t.Helper()
	p := newPod(h.t, id)
	if _, failure := h.call("ADD", p.attach, h.ports(mappings...)); failure != nil {
		h.t.Fatalf("ADD %s with %v: %v", id, mappings, failure)
	}
	p.serve(h.t)
	return p
}

func (p *pod) serve(t testing.TB) {
	t.Helper()
	var ports []standin.Port
	for _, n := range []uint16{8080, 9090} {
		ports = append(ports, standin.Port{Number: n, Protocol: "TCP"}, standin.Port{Number: n, Protocol: "UDP"})
	}
	server, err := standin.Serve(p.Path(), standin.Info{Name: p.id}, ports)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Close() })
}

// ask sends a question from a namespace and says who answered and whom that pod took for the client.
func ask(from *nstest.NS, network, local, to string) (name, client string, err error) {
	d := net.Dialer{Timeout: 3 * time.Second}
	if a, err := netip.ParseAddr(local); err == nil && network == "tcp" {
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(a, 0))
	} else if err == nil {
		d.LocalAddr = net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, 0))
	}
	var c net.Conn
	if err := from.Do(func() (err error) { c, err = d.Dial(network, to); return err }); err != nil {
		return "", "", err
	}
	defer c.Close()
	return question(c, network)
}

func question(c net.Conn, network string) (name, client string, err error) {
	_ = c.SetDeadline(time.Now().Add(3 * time.Second))
	if network == "udp" {
		buf := make([]byte, 256)
		_, _ = c.Write([]byte("?"))
		n, err := c.Read(buf)
		if err != nil {
			return "", "", err
		}
		words := strings.Fields(string(buf[:n]))
		return words[0], netip.MustParseAddrPort(words[2]).Addr().String(), nil
	}
	if _, err := io.WriteString(c, "GET / HTTP/1.0\r\n\r\n"); err != nil {
		return "", "", err
	}
	body, err := io.ReadAll(c)
	for _, line := range strings.Split(string(body), "\n") {
		if v, ok := strings.CutPrefix(line, "pod: "); ok {
			name = v
		}
		if v, ok := strings.CutPrefix(line, "client: "); ok {
			client = netip.MustParseAddrPort(v).Addr().String()
		}
	}
	return name, client, err
}

// want asks and compares; an empty client is not compared.
func want(t *testing.T, from *nstest.NS, network, local, to, name, client string) {
	t.Helper()
	gotName, gotClient, err := ask(from, network, local, to)
	if err != nil || gotName != name || client != "" && gotClient != client {
		t.Errorf("%s %s from %q: %q answered, client %q, %v; want %q, client %q", network, to, local, gotName, gotClient, err, name, client)
	}
}

// refused asks where nobody is to answer.
func refused(t *testing.T, from *nstest.NS, network, to string) {
	t.Helper()
	if name, _, err := ask(from, network, "", to); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("%s %s: %q answered, error %v, want connection refused", network, to, name, err)
	}
}

func join(host string, port int) string { return net.JoinHostPort(host, fmt.Sprint(port)) }

// TestHostPortIsReached asks from everywhere, with and without bridged packets passing iptables and nftables.
func TestHostPortIsReached(t *testing.T) { inBothModes(t, testHostPortIsReached) }

func testHostPortIsReached(t *testing.T) {
	for _, call := range []string{"0", "1"} {
		t.Run("br_netfilter="+call, func(t *testing.T) {
			h := newPortHost(t)
			for _, key := range []string{"iptables", "ip6tables"} {
				h.Sysctl(t, "net/bridge/bridge-nf-call-"+key, call)
			}
			a := h.run("pod-a", "8000:8080/tcp", "8000:8080/udp")
			other := newPod(t, "pod-b")
			h.add(other.attach)
			for _, f := range []struct{ client, node, gateway, pod, other, loopback string }{
				{"192.0.2.2", nodeAddr4, "10.244.1.1", "10.244.1.2", "10.244.1.3", "127.0.0.1"},
				{"2001:db8::2", nodeAddr6, "fd00:10:244:1::1", "fd00:10:244:1::2", "fd00:10:244:1::3", "::1"},
			} {
				for _, network := range []string{"tcp", "udp"} {
					want(t, h.client, network, "", join(f.node, 8000), "pod-a", f.client)
					want(t, h.NS, network, "", join(f.node, 8000), "pod-a", "")
					want(t, h.NS, network, "", join(f.gateway, 8000), "pod-a", "")
					want(t, h.NS, network, f.node, join(f.loopback, 8000), "pod-a", f.node)
					if f.loopback == "::1" {
						refused(t, h.NS, network, join(f.loopback, 8000)) // the kernel takes no reply to ::1 from a pod
					} else {
						want(t, h.NS, network, "", join(f.loopback, 8000), "pod-a", f.gateway)
					}
					want(t, other.NS, network, "", join(f.node, 8000), "pod-a", f.other)
					want(t, other.NS, network, "", join(f.gateway, 8000), "pod-a", f.other)
					want(t, a.NS, network, "", join(f.node, 8000), "pod-a", f.gateway) // itself
				}
			}
			h.del(a.attach)
			for _, to := range []string{nodeAddr4, nodeAddr6} {
				refused(t, h.client, "tcp", join(to, 8000))
				refused(t, h.client, "udp", join(to, 8000))
			}
		})
	}
}

// TestExactAddressBeforeEveryAddress is the case of CVE-2025-67499, and what upstream's conformance test asks for.
func TestExactAddressBeforeEveryAddress(t *testing.T) {
	h := newPortHost(t)
	h.run("loopback", "127.0.0.1 54323:8080/tcp", "::1 54323:8080/tcp")
	h.run("exact", nodeAddr4+" 54323:8080/tcp", nodeAddr6+" 54323:8080/tcp")
	h.run("exact-udp", nodeAddr4+" 54323:8080/udp", nodeAddr6+" 54323:8080/udp")
	refused(t, h.client, "tcp", "192.0.2.9:54323")
	every := h.run("every", "54323:9090/tcp", "0.0.0.0 54323:9090/udp")
	for i, f := range []struct{ node, second, loopback string }{{nodeAddr4, "192.0.2.9", "127.0.0.1"}, {nodeAddr6, "2001:db8::9", "::1"}} {
		want(t, h.NS, "tcp", f.node, join(f.loopback, 54323), "loopback", f.node)
		want(t, h.client, "tcp", "", join(f.node, 54323), "exact", "")
		want(t, h.NS, "tcp", "", join(f.node, 54323), "exact", "")
		want(t, h.client, "udp", "", join(f.node, 54323), "exact-udp", "")
		want(t, h.client, "tcp", "", join(f.second, 54323), "every", "")
		if i == 0 {
			want(t, h.client, "udp", "", join(f.second, 54323), "every", "")
		} else {
			refused(t, h.client, "udp", join(f.second, 54323)) // 0.0.0.0 is every IPv4 address
		}
	}
	// Traffic to an address that is not the node's is not for its host ports, whatever a pod asked for.
	beyond := newPod(t, "beyond")
	if _, failure := h.call("ADD", beyond.attach, h.ports("198.51.100.7 53:8080/tcp")); failure != nil {
		t.Fatal(failure)
	}
	beyond.serve(t)
	h.Exec(t, "ip", "route", "add", "unreachable", "198.51.100.0/24")
	h.client.Exec(t, "ip", "route", "add", "198.51.100.0/24", "via", nodeAddr4)
	for _, from := range []*nstest.NS{h.client, h.NS, every.NS} {
		if name, _, err := ask(from, "tcp", "", "198.51.100.7:53"); err == nil {
			t.Errorf("%s took a connection to an address that is not the node's", name)
		}
	}
}

// TestUDPClientFollowsTheHostPort: a client that keeps its source port, as DNS resolvers and game clients do.
func TestUDPClientFollowsTheHostPort(t *testing.T) {
	h := newPortHost(t)
	for _, to := range []string{join(nodeAddr4, 5353), join(nodeAddr6, 5353)} {
		for _, from := range []*nstest.NS{h.client, h.NS} {
			var c net.Conn
			from.Run(t, func() (err error) { c, err = net.Dial("udp", to); return err })
			defer c.Close()
			if _, _, err := question(c, "udp"); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Fatalf("%s without a pod: %v", to, err)
			}
			for _, id := range []string{"first", "second"} {
				p := h.run(id, "5353:8080/udp")
				if name, _, err := question(c, "udp"); err != nil || name != id {
					t.Errorf("%s: %q answered, %v, want %s", to, name, err, id)
				}
				h.del(p.attach)
				if _, _, err := question(c, "udp"); !errors.Is(err, syscall.ECONNREFUSED) {
					t.Errorf("%s after %s went: %v, want connection refused", to, id, err)
				}
			}
		}
	}
	// Flows of others stay, also those to that port elsewhere.
	h.Forward(t)
	h.client.Exec(t, "ip", "route", "add", "10.244.0.0/16", "via", nodeAddr4)
	bystander := h.run("bystander", "7000:8080/udp")
	var c, d net.Conn
	h.client.Run(t, func() (err error) {
		if c, err = net.Dial("udp", join(nodeAddr4, 7000)); err == nil {
			d, err = net.Dial("udp", join(bystander.address(t), 8080))
		}
		return err
	})
	defer c.Close()
	defer d.Close()
	for _, conn := range []net.Conn{c, d} {
		if name, _, err := question(conn, "udp"); err != nil || name != "bystander" {
			t.Fatalf("%q %v", name, err)
		}
	}
	flows := func() (list []string) {
		for _, line := range strings.Split(h.Exec(t, "cat", "/proc/net/nf_conntrack"), "\n") {
			for _, conn := range []net.Conn{c, d} {
				if port := netip.MustParseAddrPort(conn.LocalAddr().String()).Port(); strings.Contains(line, fmt.Sprintf("sport=%d ", port)) {
					list = append(list, strings.Fields(line)[3])
				}
			}
		}
		return list
	}
	before := len(flows())
	other := h.run("other", "8080:9090/udp", "7001:8080/udp")
	h.del(other.attach)
	if after := len(flows()); before != 2 || after != before {
		t.Errorf("%d flows of other ports before, %d after", before, after)
	}
}

// TestLoopbackStaysClosed: so that pods are reached at 127.0.0.1, the kernel routes loopback addresses from the
// bridge; nobody may use that to reach what listens on them (CVE-2020-8558), nor pose as the node.
func TestLoopbackStaysClosed(t *testing.T) { inBothModes(t, testLoopbackStaysClosed) }

func testLoopbackStaysClosed(t *testing.T) {
	h := newPortHost(t)
	p := h.run("pod", "8000:8080/tcp")
	var loopback, open net.PacketConn
	h.Run(t, func() (err error) {
		if loopback, err = net.ListenPacket("udp", "127.0.0.1:7777"); err == nil {
			open, err = net.ListenPacket("udp", "0.0.0.0:7778")
		}
		return err
	})
	defer loopback.Close()
	defer open.Close()
	// received sends a forged datagram and, after it on the same way, one that must arrive.
	received := func(from *nstest.NS, dev, src, dst string, port uint16, own, gateway string) bool {
		t.Helper()
		mac := neighbour(t, from, dev, gateway)
		send(t, from, dev, mac, netip.MustParseAddr(src), netip.MustParseAddr(dst), port, "forged")
		send(t, from, dev, mac, netip.MustParseAddr(own), netip.MustParseAddr(gateway), 7778, "marker")
		buf := make([]byte, 64)
		for {
			_ = open.SetReadDeadline(time.Now().Add(5 * time.Second))
			n, _, err := open.ReadFrom(buf)
			if err != nil {
				t.Fatalf("the marker did not arrive: %v", err)
			}
			if string(buf[:n]) == "forged" {
				return true
			}
			if string(buf[:n]) == "marker" {
				break
			}
		}
		_ = loopback.SetReadDeadline(time.Now().Add(time.Millisecond))
		n, _, err := loopback.ReadFrom(buf)
		return err == nil && string(buf[:n]) == "forged"
	}
	cases := []struct {
		who            string
		from           *nstest.NS
		dev, own, gate string
	}{{"a pod", p.NS, "eth0", "10.244.1.2", "10.244.1.1"}, {"the outside", h.client, "eth0", "192.0.2.2", nodeAddr4}}
	h.Sysctl(t, "net/ipv4/conf/lan/route_localnet", "1") // as other programs leave it
	for _, c := range cases {
		if received(c.from, c.dev, c.own, "127.0.0.1", 7777, c.own, c.gate) {
			t.Errorf("%s reached 127.0.0.1 of the node", c.who)
		}
		if received(c.from, c.dev, "127.0.0.1", c.gate, 7778, c.own, c.gate) {
			t.Errorf("%s posed as 127.0.0.1", c.who)
		}
	}
	// The kernel alone would have let it in: the test sees what it claims to see.
	h.Exec(t, "nft", "delete", "table", "ip", "braid-hostports")
	for _, c := range cases {
		if !received(c.from, c.dev, c.own, "127.0.0.1", 7777, c.own, c.gate) {
			t.Errorf("%s does not reach 127.0.0.1 without our rules either: this test shows nothing", c.who)
		}
	}
}

// TestSCTPHostPort sends the first packet of an association by hand, since few kernels have SCTP sockets.
func TestSCTPHostPort(t *testing.T) {
	h := newPortHost(t)
	p := newPod(t, "pod")
	if _, failure := h.call("ADD", p.attach, h.ports("9999:8080/sctp")); failure != nil {
		t.Fatal(failure)
	}
	var pod *os.File
	p.Run(t, func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_SCTP)
		pod = os.NewFile(uintptr(fd), "sctp")
		return err
	})
	defer pod.Close()
	client, node := netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr(nodeAddr4)
	frame(t, h.client, "eth0", neighbour(t, h.client, "eth0", nodeAddr4), ipv4(unix.IPPROTO_SCTP, client, node, sctpInit(40000, 9999)))
	_ = pod.SetReadDeadline(time.Now().Add(5 * time.Second))
	buf := make([]byte, 256)
	n, err := pod.Read(buf)
	if err != nil {
		t.Fatalf("the pod got nothing: %v", err)
	}
	if want := ipv4(unix.IPPROTO_SCTP, client, netip.MustParseAddr("10.244.1.2"), sctpInit(40000, 8080)); !bytes.Equal(buf[12:n], want[12:]) {
		t.Errorf("the pod got %x, want %x", buf[12:n], want[12:])
	}
}
