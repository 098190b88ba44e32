// Package wire gives kernel tests a node whose links are theirs byte by byte: what a test writes to one
// comes in there, from whatever source it pleases, and what the node sends out it reads. Nobody answers,
// so each packet is the first of a connection, and of protocols the kernel has no sockets for too.
//
//	outside (default route) -- up0  node  pods0 -- pods of this node
//
//	node := wire.New(t)
//	fate := node.Send(wire.Packet{Src: client, Dst: vip, Protocol: wire.TCP})
package wire

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/braidnet/braid/internal/kernel/netns/nstest"
)

// Addresses of the node's pods, behind pods0.
var (
	Pods  = netip.MustParsePrefix("10.244.1.0/24")
	Pods6 = netip.MustParsePrefix("fd00:10:244:1::/64")
)

var own = map[bool][]netip.Addr{
	true:  {netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("10.244.1.1")},
	false: {netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("fd00:10:244:1::1")},
}

// Own returns the node's addresses in IPv4 or IPv6: that of up0, which its own packets come from, and that of pods0.
func Own(ipv4 bool) []netip.Addr { return own[ipv4] }

// Node is a network namespace with the two links.
type Node struct {
	*nstest.NS
	Shut  bool // it may pass nothing on: what SendAll waits for is for the node itself
	t     testing.TB
	up    int // TUN devices
	pods  int
	loop  int // sees what the node answers itself
	raw   map[bool]int
	local []localSocket // see what is delivered to the node itself
	id    uint32        // of the packet sent last
	ports uint16        // of the packets behind
}

// Fate is what became of a packet.
type Fate struct {
	Sent    *Packet // how it left the node
	Local   *Packet // how it was delivered to the node itself: TCP and UDP only
	Refused bool    // its sender was told
	Refusal string  // how: "reset", "icmp 3/3" (type and code)
}

// New makes a node that ends with the test.
func New(t testing.TB) *Node {
	n := &Node{t: t, NS: nstest.New(t), raw: map[bool]int{}}
	n.Forward(t)
	for key, value := range map[string]string{"net.ipv4.conf.all.send_redirects": "0", "net.ipv4.conf.default.send_redirects": "0",
		"net.ipv4.icmp_ratelimit": "0", "net.ipv4.icmp_msgs_per_sec": "1000000", "net.ipv4.icmp_msgs_burst": "1000000", "net.ipv6.icmp.ratelimit": "0"} {
		n.Exec(t, "sysctl", "-qw", key+"="+value)
	}
	n.Run(t, n.open)
	t.Cleanup(func() {
		for _, fd := range []int{n.up, n.pods, n.loop, n.raw[true], n.raw[false]} {
			unix.Close(fd)
		}
		for _, s := range n.local {
			unix.Close(s.fd)
		}
	})
	for dev, i := range map[string]int{"up0": 0, "pods0": 1} {
		n.Exec(t, "ip", "addr", "add", own[true][i].String()+"/32", "dev", dev)
		n.Exec(t, "ip", "addr", "add", own[false][i].String()+"/128", "dev", dev, "nodad")
		n.Exec(t, "ip", "link", "set", dev, "up", "addrgenmode", "none")
	}
	n.Exec(t, "ip", "-4", "route", "add", "default", "dev", "up0", "src", own[true][0].String())
	n.Exec(t, "ip", "-6", "route", "add", "default", "dev", "up0", "src", own[false][0].String())
	n.Exec(t, "ip", "-4", "route", "add", Pods.String(), "dev", "pods0")
	n.Exec(t, "ip", "-6", "route", "add", Pods6.String(), "dev", "pods0")
	for _, a := range slices.Concat(own[true], own[false]) { // of IPv6, a device that comes up gets them a moment later
		nstest.Wait(t, a.String(), func() error {
			if out := n.Exec(t, "ip", "route", "get", a.String()); !strings.HasPrefix(out, "local") {
				return errors.New(out)
			}
			return nil
		})
	}
	return n
}

// everyProtocol is ETH_P_ALL in network byte order, on a little-endian machine.
const everyProtocol = unix.ETH_P_ALL << 8

func (n *Node) open() (err error) {
	if n.up, err = openTUN("up0"); err != nil {
		return err
	}
	if n.pods, err = openTUN("pods0"); err != nil {
		return err
	}
	for ipv4, domain := range map[bool]int{true: unix.AF_INET, false: unix.AF_INET6} {
		if n.raw[ipv4], err = unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW); err != nil {
			return err
		}
		for _, protocol := range []uint8{TCP, UDP} {
			s, err := openLocal(domain, protocol)
			if err != nil {
				return err
			}
			n.local = append(n.local, s)
		}
	}
	n.loop, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, everyProtocol)
	if err != nil {
		return err
	}
	fds := []int{n.loop}
	for _, s := range n.local {
		fds = append(fds, s.fd)
	}
	for _, fd := range fds { // room for all that SendAll may send at once
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20); err != nil {
			return err
		}
	}
	return unix.Bind(n.loop, &unix.SockaddrLinklayer{Protocol: everyProtocol, Ifindex: 1})
}

// openTUN makes a TUN device in the namespace of the calling thread.
func openTUN(name string) (int, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("open /dev/net/tun: %w", err)
	}
	req, err := unix.NewIfreq(name)
	if err != nil {
		return 0, err
	}
	req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	return fd, unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
}

// patience bounds the wait for a packet that must come.
const patience = 10 * time.Second

// Send is SendAll of one packet.
func (n *Node) Send(p Packet) Fate {
	n.t.Helper()
	return n.SendAll([]Packet{p})[0]
}

// SendAll sends packets from outside, from the pods' side, or by the node itself, as their sources
// say, and sees what becomes of each. Behind them goes one more packet for each side, which is sure to
// be passed on (and one that is sure to be refused by the node itself, for its own): when that is out, nothing of the others is on its way any more. A device queues
// 500 packets, so there should be no more than that.
func (n *Node) SendAll(list []Packet) []Fate {
	n.t.Helper()
	fates := make([]Fate, len(list))
	r := reading{first: n.id + 1, fates: fates, behind: map[uint32]bool{}, refused: map[uint32]bool{}}
	ends := map[int]Packet{}
	for _, p := range list {
		n.id++
		p.ID = n.id
		n.write(p)
		ends[n.side(p)] = p
	}
	for _, p := range ends {
		far, neighbour, pod := netip.MustParseAddr("198.51.100.99"), netip.MustParseAddr("192.0.2.99"), Pods.Addr().Next().Next()
		if !p.Src.Addr().Is4() {
			far, neighbour, pod = netip.MustParseAddr("2001:db8:99::99"), netip.MustParseAddr("2001:db8::99"), Pods6.Addr().Next().Next()
		}
		n.id++
		n.ports++
		r.behind[n.id] = true
		src := p.Src.Addr()
		if src.IsLoopback() { // nobody passes these on
			src = map[string]netip.Addr{"": own[src.Is4()][0], "up0": neighbour, "pods0": pod}[p.Link()]
		}
		if n.Shut {
			delete(r.behind, n.id)
			r.refused[n.id], far = true, own[src.Is4()][0]
		}
		n.write(Packet{Src: netip.AddrPortFrom(src, 1024+n.ports%30000), Dst: netip.AddrPortFrom(far, 9), Protocol: TCP, Via: p.Via, ID: n.id})
		if p.Link() == "" { // what the node sends to itself takes another way
			n.id++
			r.refused[n.id] = true
			n.write(Packet{Src: netip.AddrPortFrom(src, 1024+n.ports%30000), Dst: netip.AddrPortFrom(src, 9), Protocol: TCP, ID: n.id})
		}
	}
	fds := []unix.PollFd{{Fd: int32(n.up), Events: unix.POLLIN}, {Fd: int32(n.pods), Events: unix.POLLIN}, {Fd: int32(n.loop), Events: unix.POLLIN}}
	for deadline := time.Now().Add(patience); len(r.behind)+len(r.refused) > 0; {
		if time.Now().After(deadline) {
			n.t.Fatalf("of the packets behind %d, the last of them %+v, %d did not come out", len(list), list[len(list)-1], len(r.behind)+len(r.refused))
		}
		if _, err := unix.Poll(fds, int(patience.Milliseconds())); err != nil && err != unix.EINTR {
			n.t.Fatal(err)
		}
		n.drain(&r)
	}
	n.drain(&r) // all that was sent before has been answered by now
	return fates
}

// Link is the device that Send brings the packet in by; "" for the node's own.
func (p Packet) Link() string {
	switch src := p.Src.Addr(); {
	case p.Via != "":
		return p.Via
	case src.IsLoopback() || slices.Contains(own[src.Is4()], src):
		return ""
	case Pods.Contains(src) || Pods6.Contains(src):
		return "pods0"
	}
	return "up0"
}

// side tells which way a packet enters.
func (n *Node) side(p Packet) int {
	switch p.Link() {
	case "":
		return n.raw[p.Src.Addr().Is4()]
	case "pods0":
		return n.pods
	}
	return n.up
}

func (n *Node) write(p Packet) {
	n.t.Helper()
	var err error
	switch fd := n.side(p); fd {
	case n.raw[true]:
		err = unix.Sendto(fd, p.bytes(), 0, &unix.SockaddrInet4{Addr: p.Dst.Addr().As4()})
	case n.raw[false]:
		err = unix.Sendto(fd, p.bytes(), 0, &unix.SockaddrInet6{Addr: p.Dst.Addr().As16()})
	default:
		for _, piece := range p.fragments() {
			if _, err = unix.Write(fd, piece); err != nil {
				break
			}
		}
	}
	if err != nil && err != unix.EPERM { // a drop in the output hook
		n.t.Fatalf("send %+v: %v", p, err)
	}
}

// floodQueue is how many packets Flood sends before it empties the devices, whose queues hold 500.
const floodQueue = 400

// Flood sends the same packet over and over, and returns how long the kernel took: it works on a packet, up to the queue of
// the device that it leaves by, while it takes it.
func (n *Node) Flood(p Packet, times int) (took time.Duration) {
	n.t.Helper()
	raw, fd := p.bytes(), n.side(p)
	for sent := 0; sent < times; {
		part := min(times-sent, floodQueue)
		begin := time.Now()
		for range part {
			if _, err := unix.Write(fd, raw); err != nil {
				n.t.Fatalf("send %+v: %v", p, err)
			}
		}
		took += time.Since(begin)
		sent += part
		n.drain(&reading{})
	}
	return took
}

// reading is what SendAll waits for.
type reading struct {
	first  uint32 // ID of the first packet
	fates  []Fate
	behind map[uint32]bool // packets behind that are not out yet
	// Packets behind, to the node itself, that it has not refused yet: nobody listens there.
	refused map[uint32]bool
}

// drain reads what the descriptors have.
func (n *Node) drain(r *reading) {
	buf := make([]byte, 2048)
	for _, fd := range []int{n.up, n.pods, n.loop} {
		for {
			size, err := unix.Read(fd, buf)
			if err != nil {
				break
			}
			p, refusal, ok := parse(buf[:size])
			if ok && refusal == "" {
				delete(r.behind, p.ID)
			}
			if ok && refusal != "" {
				delete(r.refused, p.ID)
			}
			i := p.ID - r.first
			if !ok || i >= uint32(len(r.fates)) {
				continue
			}
			switch f := &r.fates[i]; {
			case refusal != "":
				f.Refused, f.Refusal = true, refusal
			case fd != n.loop:
				f.Sent = &p
			}
		}
	}
	for _, s := range n.local {
		for {
			p, ok := s.read(buf)
			if !ok {
				break
			}
			if i := p.ID - r.first; i < uint32(len(r.fates)) {
				r.fates[i].Local = &p
			}
		}
	}
}
