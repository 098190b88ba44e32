package agent

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/netagent/service"
)

// echo is a TCP connection through a service to a server that answers what it is sent.
type echo struct {
	conn   net.Conn
	client netip.AddrPort // as the server sees it
}

func (e *echo) alive(t *testing.T, when string) {
	t.Helper()
	buf := make([]byte, 5)
	_, err := e.conn.Write([]byte("hello"))
	if err == nil {
		_, err = io.ReadFull(e.conn, buf)
	}
	if err != nil || string(buf) != "hello" {
		t.Errorf("%s: %q, %v", when, buf, err)
	}
}

// dialEcho connects to a service whose backend listens on a port of a host.
func dialEcho(t *testing.T, from *dpHost, to netip.AddrPort, accepted <-chan net.Conn) *echo {
	t.Helper()
	e := &echo{}
	from.Run(t, func() (err error) { e.conn, err = net.Dial("tcp", to.String()); return err })
	t.Cleanup(func() { e.conn.Close() })
	c := <-accepted
	t.Cleanup(func() { c.Close() })
	go func() { _, _ = io.Copy(c, c) }()
	seen := netip.MustParseAddrPort(c.RemoteAddr().String())
	e.client = netip.AddrPortFrom(seen.Addr().Unmap(), seen.Port())
	e.alive(t, "at first")
	return e
}

// stray sends a TCP segment with a sequence number of its own, as retransmissions that come late may have.
func (h *dpHost) stray(t *testing.T, from, to netip.AddrPort, seq uint32) {
	t.Helper()
	seg := binary.BigEndian.AppendUint16(nil, from.Port())
	seg = binary.BigEndian.AppendUint16(seg, to.Port())
	seg = binary.BigEndian.AppendUint32(seg, seq)
	seg = append(seg, 0x9a, 0xbc, 0xde, 0xf0, 5<<4, 0x10, 0xff, 0xff, 0, 0, 0, 0) // ack, flag ACK, window
	seg = append(seg, "stray"...)
	pseudo := append(from.Addr().AsSlice(), to.Addr().AsSlice()...)
	pseudo = binary.BigEndian.AppendUint32(append(pseudo, 0, 6), uint32(len(seg)))
	sum := uint32(0)
	for _, part := range [][]byte{pseudo, append(seg, 0)} {
		for i := 0; i+1 < len(part); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(part[i:]))
		}
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	binary.BigEndian.PutUint16(seg[16:], ^uint16(sum))
	family, addr := unix.AF_INET, unix.Sockaddr(&unix.SockaddrInet4{Addr: [4]byte(to.Addr().AsSlice()[:4])})
	if to.Addr().Is6() {
		family, addr = unix.AF_INET6, &unix.SockaddrInet6{Addr: to.Addr().As16()}
	}
	h.Run(t, func() error {
		fd, err := unix.Socket(family, unix.SOCK_RAW, unix.IPPROTO_TCP)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Sendto(fd, seg, 0, addr)
	})
}

// counting adds a counter of packets that match to a host.
func (h *dpHost) counting(t *testing.T, name, match string) func() string {
	t.Helper()
	h.Exec(t, "nft", "add", "table", "inet", name)
	h.Exec(t, "nft", "add", "counter", "inet", name, "hits")
	h.Exec(t, "nft", "add", "chain", "inet", name, "in", "{ type filter hook input priority 0; }")
	h.Exec(t, "nft", "add", "rule", "inet", name, "in", match+" counter name hits")
	return func() string {
		out := h.Exec(t, "nft", "list", "counter", "inet", name, "hits")
		return strings.Fields(out[strings.Index(out, "packets "):])[1]
	}
}

// TestNFTablesInvalid: a backend's segment that connection tracking cannot place reaches nobody: not the client
// with the backend's own address, and not the node for a connection that was given the node's address.
func TestNFTablesInvalid(t *testing.T) {
	f := newFeaturePlane(t, "nftables")
	const port = 7
	accepted := make(chan net.Conn)
	var listener net.Listener
	f.pod2.Run(t, func() (err error) { listener, err = net.Listen("tcp", fmt.Sprint(":", port)); return err })
	t.Cleanup(func() { listener.Close() })
	go func() {
		for c, err := listener.Accept(); err == nil; c, err = listener.Accept() {
			accepted <- c
		}
	}()
	for i := range dpFamilies {
		a := &dpFamilies[i]
		t.Run(a.family, func(t *testing.T) {
			server := netip.AddrPortFrom(a.pod2, port)
			f.set(t, dpFrontend("echo", service.ClusterIP, model.TCP, a.moved, port, service.Backend{AddrPort: server}))
			ip, table := "ip", "ip"
			if a.client.Is6() {
				ip, table = "ip6", "ip6"
			}
			bare := f.pod1.counting(t, "bare"+ip, fmt.Sprintf("%s saddr %s tcp sport %d", ip, a.pod2, port))
			resets := f.pod2.counting(t, "reset"+ip, fmt.Sprintf("%s saddr != %s tcp dport %d tcp flags rst", ip, a.pod1, port))
			pod := dialEcho(t, f.pod1, netip.AddrPortFrom(a.moved, port), accepted)
			outside := dialEcho(t, f.client, netip.AddrPortFrom(a.moved, port), accepted)
			strays := func() {
				t.Helper()
				for _, e := range []*echo{pod, outside} {
					for seq := range uint32(8) { // most of them far outside of any window
						f.pod2.stray(t, server, e.client, seq<<29)
					}
				}
				// What follows on the same links is answered: so the strays are where they went.
				f.ask(t, f.pod2, netip.AddrPortFrom(a.pod1, dpTarget))
				f.ask(t, f.pod1, netip.AddrPortFrom(a.pod2, dpTarget))
			}
			strays()
			pod.alive(t, "the pod's connection after a stray segment")
			outside.alive(t, "the outside client's connection after a stray segment")
			if b, r := bare(), resets(); b != "0" || r != "0" {
				t.Errorf("%s packets reached the pod with the backend's address, %s resets the backend", b, r)
			}
			f.node.Exec(t, "nft", "flush", "chain", table, "braid", "invalid-packets") // does the test see anything?
			strays()
			if b, r := bare(), resets(); b == "0" || r == "0" {
				t.Errorf("without the rules %s packets reached the pod with the backend's address, %s resets the backend: want some", b, r)
			}
		})
	}
}

// TestNFTablesLiberal: where the administrator has connection tracking take everything, nothing is dropped for it.
func TestNFTablesLiberal(t *testing.T) {
	f := newFeaturePlane(t, "nftables")
	const rule = "what connection tracking cannot place"
	if rules := f.rules(t); !strings.Contains(rules, rule) {
		t.Errorf("no rule %q", rule)
	}
	f.node.Sysctl(t, "net/netfilter/nf_conntrack_tcp_be_liberal", "1")
	all, net := dpState()
	next := f.construct(t, newNFTables)
	f.must(t, "Replace", func() error { return next.Replace(all, net) })
	if rules := f.rules(t); strings.Contains(rules, rule) {
		t.Errorf("there is a rule %q", rule)
	}
	f.wantNames(t, f.client, netip.AddrPortFrom(dpFamilies[0].web, dpPort), "pod1", "pod2")
}
