package agent

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/netagent/service"
)

// TestIPTablesInvalidSegments: a backend sends segments from outside of its window, which connection tracking
// does not translate back. Nobody may answer them with a reset (kubernetes/kubernetes#74839).
func TestIPTablesInvalidSegments(t *testing.T) {
	eachIPTables(t, func(t *testing.T, l *dpLab, dp service.Dataplane) {
		l.state(t, dp, func(a *dpAddrs) []service.Frontend {
			far := service.Backend{AddrPort: netip.AddrPortFrom(a.pod2, longPort)}
			near := service.Backend{AddrPort: netip.AddrPortFrom(a.pod1, longPort), Local: true}
			return []service.Frontend{
				dpFrontend("far", service.ClusterIP, model.TCP, a.vip(1), dpPort, far),
				dpFrontend("far", service.NodePort, model.TCP, a.any, 30094, far),
				dpFrontend("near", service.NodePort, model.TCP, a.any, 30095, near),
			}
		})
		listeners := map[netip.Addr]net.Listener{}
		for i := range dpFamilies {
			a := &dpFamilies[i]
			listeners[a.pod1], listeners[a.pod2] = l.pod1.listen(t, a.pod1), l.pod2.listen(t, a.pod2)
			for _, tc := range []struct {
				what           string
				client, server *dpHost
				addr           netip.Addr // the server's
				to             netip.AddrPort
			}{
				{"to a pod of this node", l.pod1, l.pod2, a.pod2, netip.AddrPortFrom(a.vip(1), dpPort)},
				{"to the node, which lent its address", l.client, l.pod2, a.pod2, netip.AddrPortFrom(a.node, 30094)},
				{"from a pod of this node", l.client, l.pod1, a.pod1, netip.AddrPortFrom(a.node, 30095)},
			} {
				c := l.connect(t, tc.client, tc.server, tc.addr, listeners[tc.addr], tc.to)
				for range 5 {
					c.disturb(t)
					if err := c.exchange(); err != nil {
						t.Errorf("%s %s: after a segment out of the window the connection is broken: %v", a.family, tc.what, err)
						break
					}
				}
			}
		}
		// The same with the packets let through, or the above would prove nothing.
		for i := range dpFamilies {
			a := &dpFamilies[i]
			l.node.Exec(t, []string{"iptables-", "ip6tables-"}[i]+string(dp.(*iptablesPlane).variant), "-I", "FORWARD", "1", "-j", "ACCEPT")
			c := l.connect(t, l.pod1, l.pod2, a.pod2, listeners[a.pod2], netip.AddrPortFrom(a.vip(1), dpPort))
			deadline := time.Now().Add(patience)
			for c.exchange() == nil {
				if time.Now().After(deadline) {
					t.Fatalf("%s: segments out of the window that pass harm nobody: the test cannot fail", a.family)
				}
				c.disturb(t)
			}
		}
	})
}

const longPort = 9000

// listen opens longPort of a backend, once for all connections: their sockets do not share the port after
// they were asked for their numbers.
func (h *dpHost) listen(t *testing.T, addr netip.Addr) (listener net.Listener) {
	t.Helper()
	h.Run(t, func() (err error) {
		listener, err = net.Listen("tcp", netip.AddrPortFrom(addr, longPort).String())
		return err
	})
	t.Cleanup(func() { listener.Close() })
	return listener
}

// longConn is a connection through a frontend, held open at both ends.
type longConn struct {
	server         *dpHost
	addr           netip.Addr // of the backend
	client, accept net.Conn
}

func (l *dpLab) connect(t *testing.T, client, server *dpHost, addr netip.Addr, listener net.Listener, to netip.AddrPort) *longConn {
	t.Helper()
	c := &longConn{server: server, addr: addr}
	client.Run(t, func() (err error) {
		c.client, err = net.DialTimeout("tcp", to.String(), patience)
		return err
	})
	accept, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	c.accept = accept
	t.Cleanup(func() { c.client.Close(); c.accept.Close() })
	if err := c.exchange(); err != nil {
		t.Fatalf("through %s: %v", to, err)
	}
	return c
}

// exchange sends a byte each way.
func (c *longConn) exchange() error {
	for _, way := range [][2]net.Conn{{c.accept, c.client}, {c.client, c.accept}} {
		b := []byte{1}
		_ = way[1].SetReadDeadline(time.Now().Add(patience))
		if _, err := way[0].Write(b); err != nil {
			return err
		}
		if _, err := way[1].Read(b); err != nil {
			return err
		}
	}
	return nil
}

// disturb sends a segment from the backend's port that is far above the window. What it acknowledges is
// right, so that whoever resets the connection because of it is believed.
func (c *longConn) disturb(t *testing.T) {
	t.Helper()
	peer := netip.MustParseAddrPort(c.accept.RemoteAddr().String())
	send, received := c.numbers(t)
	c.server.Run(t, func() error {
		return sendRaw(peer.Addr().Unmap(), segmentBytes(c.addr, peer.Addr().Unmap(), longPort, peer.Port(), send+1<<28, received))
	})
}

// numbers asks the backend's socket for the next sequence numbers of either direction (TCP_REPAIR).
func (c *longConn) numbers(t *testing.T) (send, received uint32) {
	t.Helper()
	raw, err := c.accept.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	const receiveQueue, sendQueue, off = 1, 2, -1 // linux/tcp.h: TCP_RECV_QUEUE, TCP_SEND_QUEUE, TCP_REPAIR_OFF_NO_WP
	var errs []error
	err = raw.Control(func(fd uintptr) {
		set := func(option, value int) {
			errs = append(errs, unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, option, value))
		}
		get := func(queue int) uint32 {
			set(unix.TCP_REPAIR_QUEUE, queue)
			n, err := unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_QUEUE_SEQ)
			errs = append(errs, err)
			return uint32(n)
		}
		set(unix.TCP_REPAIR, 1)
		send, received = get(sendQueue), get(receiveQueue)
		set(unix.TCP_REPAIR, off)
	})
	if err := errors.Join(append(errs, err)...); err != nil {
		t.Fatalf("ask a socket for its sequence numbers: %v", err)
	}
	return send, received
}

func sendRaw(to netip.Addr, segment []byte) error {
	domain, sa := unix.AF_INET, unix.Sockaddr(nil)
	if to.Is4() {
		sa = &unix.SockaddrInet4{Addr: to.As4()}
	} else {
		domain, sa = unix.AF_INET6, &unix.SockaddrInet6{Addr: to.As16()}
	}
	fd, err := unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if err != nil {
		return fmt.Errorf("raw socket: %w", err)
	}
	defer unix.Close(fd)
	if err := unix.Sendto(fd, segment, 0, sa); err != nil && !errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("send a segment to %s: %w", to, err)
	}
	return nil
}

// segmentBytes is a TCP header with ACK and PSH and one byte of data (RFC 9293 section 3.1), with its checksum.
func segmentBytes(from, to netip.Addr, sport, dport uint16, seq, ack uint32) []byte {
	s := make([]byte, 21)
	binary.BigEndian.PutUint16(s[0:], sport)
	binary.BigEndian.PutUint16(s[2:], dport)
	binary.BigEndian.PutUint32(s[4:], seq)
	binary.BigEndian.PutUint32(s[8:], ack)
	s[12], s[13] = 5<<4, 0x18
	binary.BigEndian.PutUint16(s[14:], 512)
	s[20] = 'x'
	var sum uint32
	add := func(b []byte) {
		for i := 0; i < len(b); i += 2 {
			sum += uint32(b[i]) << 8
			if i+1 < len(b) {
				sum += uint32(b[i+1])
			}
		}
	}
	add(from.AsSlice())
	add(to.AsSlice())
	add([]byte{0, unix.IPPROTO_TCP, 0, byte(len(s))})
	add(s)
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	binary.BigEndian.PutUint16(s[16:], ^uint16(sum))
	return s
}
