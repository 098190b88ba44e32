package agent

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/braidnet/braid/internal/kernel/netns/nstest"
	"github.com/braidnet/braid/internal/model"
)

// packetLab is a node whose links are ours byte by byte: what we write to one comes in there, from
// whatever source we please, and what the node sends out we read. Nobody answers, so each packet is
// the first of a connection, and of protocols the kernel has no sockets for too.
//
//	outside (default route) -- up0  node  pods0 -- pods of this node
type packetLab struct {
	t     *testing.T
	node  *nstest.NS
	up    int // TUN devices
	pods  int
	loop  int // sees what the node answers itself
	raw   map[bool]int
	id    uint32 // of the packet sent last
	ports uint16
}

// The node's addresses, which its own packets come from.
var packetNode = map[bool][]netip.Addr{
	true:  {netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("10.244.1.1")},
	false: {netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("fd00:10:244:1::1")},
}

func newPacketLab(t *testing.T) *packetLab {
	l := &packetLab{t: t, node: nstest.New(t), raw: map[bool]int{}}
	l.node.Forward(t)
	for key, value := range map[string]string{"net.ipv4.conf.all.send_redirects": "0", "net.ipv4.conf.default.send_redirects": "0",
		"net.ipv4.icmp_ratelimit": "0", "net.ipv4.icmp_msgs_per_sec": "1000000", "net.ipv4.icmp_msgs_burst": "1000000", "net.ipv6.icmp.ratelimit": "0"} {
		l.node.Exec(t, "sysctl", "-qw", key+"="+value)
	}
	l.node.Run(t, func() (err error) {
		if l.up, err = openTUN("up0"); err != nil {
			return err
		}
		if l.pods, err = openTUN("pods0"); err != nil {
			return err
		}
		for ipv4, domain := range map[bool]int{true: unix.AF_INET, false: unix.AF_INET6} {
			if l.raw[ipv4], err = unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW); err != nil {
				return err
			}
		}
		l.loop, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, everyProtocol)
		if err != nil {
			return err
		}
		return unix.Bind(l.loop, &unix.SockaddrLinklayer{Protocol: everyProtocol, Ifindex: 1})
	})
	t.Cleanup(func() {
		for _, fd := range []int{l.up, l.pods, l.loop, l.raw[true], l.raw[false]} {
			unix.Close(fd)
		}
	})
	for dev, i := range map[string]int{"up0": 0, "pods0": 1} {
		l.node.Exec(t, "ip", "addr", "add", packetNode[true][i].String()+"/32", "dev", dev)
		l.node.Exec(t, "ip", "addr", "add", packetNode[false][i].String()+"/128", "dev", dev, "nodad")
		l.node.Exec(t, "ip", "link", "set", dev, "up", "addrgenmode", "none")
	}
	l.node.Exec(t, "ip", "-4", "route", "add", "default", "dev", "up0", "src", packetNode[true][0].String())
	l.node.Exec(t, "ip", "-6", "route", "add", "default", "dev", "up0", "src", packetNode[false][0].String())
	l.node.Exec(t, "ip", "-4", "route", "add", "10.244.1.0/24", "dev", "pods0")
	l.node.Exec(t, "ip", "-6", "route", "add", "fd00:10:244:1::/64", "dev", "pods0")
	for _, own := range [][]netip.Addr{packetNode[true], packetNode[false]} {
		for _, a := range own { // of IPv6, a device that comes up gets them a moment later
			nstest.Wait(t, a.String(), func() error {
				if out := l.node.Exec(t, "ip", "route", "get", a.String()); !strings.HasPrefix(out, "local") {
					return errors.New(out)
				}
				return nil
			})
		}
	}
	return l
}

// everyProtocol is ETH_P_ALL in network byte order, on a little-endian machine.
const everyProtocol = unix.ETH_P_ALL << 8

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

// packet is what a test looks at in one.
type packet struct {
	src, dst netip.AddrPort
	protocol model.Protocol
	id       uint32 // TCP sequence number, first bytes of a UDP datagram, SCTP initiate tag
}

// fate is what became of a packet.
type fate struct {
	sent    *packet // how it left the node
	refused bool    // its sender was told
}

// send sends a packet from outside, from a pod's side, or by the node itself, and sees what becomes of
// it. A second packet, which is sure to be passed on, is sent behind it: when that one is out, nothing
// of the first is on its way any more.
func (l *packetLab) send(p packet) fate {
	l.t.Helper()
	l.id++
	p.id = l.id
	l.write(p)
	far := netip.MustParseAddr("198.51.100.99")
	if !p.src.Addr().Is4() {
		far = netip.MustParseAddr("2001:db8:99::99")
	}
	l.id++
	l.ports++
	l.write(packet{src: netip.AddrPortFrom(p.src.Addr(), 1024+l.ports%30000), dst: netip.AddrPortFrom(far, 9), protocol: model.TCP, id: l.id})
	var f fate
	fds := []unix.PollFd{{Fd: int32(l.up), Events: unix.POLLIN}, {Fd: int32(l.pods), Events: unix.POLLIN}, {Fd: int32(l.loop), Events: unix.POLLIN}}
	deadline := time.Now().Add(patience)
	for seen := false; ; {
		for _, fd := range fds {
			if l.drain(int(fd.Fd), p.id, &f) {
				seen = true
			}
		}
		if seen { // all that was sent before it has been read by now
			l.drain(l.up, p.id, &f)
			l.drain(l.pods, p.id, &f)
			l.drain(l.loop, p.id, &f)
			return f
		}
		if time.Now().After(deadline) {
			l.t.Fatalf("the packet behind %+v did not come out", p)
		}
		if _, err := unix.Poll(fds, int(patience.Milliseconds())); err != nil && err != unix.EINTR {
			l.t.Fatal(err)
		}
	}
}

func (l *packetLab) write(p packet) {
	l.t.Helper()
	var err error
	switch ipv4 := p.src.Addr().Is4(); {
	case p.src.Addr() == packetNode[ipv4][0] && ipv4:
		err = unix.Sendto(l.raw[true], p.bytes(), 0, &unix.SockaddrInet4{Addr: p.dst.Addr().As4()})
	case p.src.Addr() == packetNode[ipv4][0]:
		err = unix.Sendto(l.raw[false], p.bytes(), 0, &unix.SockaddrInet6{Addr: p.dst.Addr().As16()})
	case packetPods.Contains(p.src.Addr()) || packetPods6.Contains(p.src.Addr()):
		_, err = unix.Write(l.pods, p.bytes())
	default:
		_, err = unix.Write(l.up, p.bytes())
	}
	if err != nil && err != unix.EPERM { // a drop in the output hook
		l.t.Fatalf("send %+v: %v", p, err)
	}
}

var packetPods, packetPods6 = netip.MustParsePrefix("10.244.1.0/24"), netip.MustParsePrefix("fd00:10:244:1::/64")

// drain reads what a descriptor has, notes what is about the packet id, and reports whether the one
// behind it came out.
func (l *packetLab) drain(fd int, id uint32, f *fate) (behind bool) {
	buf := make([]byte, 2048)
	for {
		n, err := unix.Read(fd, buf)
		if err != nil {
			return behind
		}
		p, refusal, ok := parsePacket(buf[:n])
		switch {
		case !ok:
		case p.id == id+1 && !refusal:
			behind = true
		case p.id == id && refusal:
			f.refused = true
		case p.id == id && fd != l.loop:
			f.sent = &p
		}
	}
}

// bytes is the packet with its checksums: conntrack does not track one whose are wrong.
func (p packet) bytes() []byte {
	var body []byte
	ports := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, p.src.Port()), p.dst.Port())
	sum := 0
	switch p.protocol {
	case model.TCP: // SYN, window 1000 (RFC 9293 §3.1)
		body = binary.BigEndian.AppendUint32(ports, p.id)
		body = append(body, 0, 0, 0, 0, 5<<4, 2, 0x03, 0xe8, 0, 0, 0, 0)
		sum = 16
	case model.UDP:
		body = append(ports, 0, 12, 0, 0)
		body = binary.BigEndian.AppendUint32(body, p.id)
		sum = 6
	case model.SCTP: // INIT (RFC 9260 §3.3.2)
		body = append(ports, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 20)
		body = binary.BigEndian.AppendUint32(body, p.id)
		body = append(body, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1)
		binary.LittleEndian.PutUint32(body[8:], crc32.Checksum(body, crc32.MakeTable(crc32.Castagnoli)))
	}
	if sum > 0 {
		pseudo := append(p.src.Addr().AsSlice(), p.dst.Addr().AsSlice()...)
		pseudo = append(binary.BigEndian.AppendUint32(pseudo, uint32(len(body))), 0, 0, 0, byte(p.protocol))
		binary.BigEndian.PutUint16(body[sum:], internetSum(append(pseudo, body...)))
	}
	if p.src.Addr().Is4() {
		h := []byte{0x45, 0, 0, byte(20 + len(body)), byte(p.id >> 8), byte(p.id), 0x40, 0, 64, byte(p.protocol), 0, 0}
		h = append(append(h, p.src.Addr().AsSlice()...), p.dst.Addr().AsSlice()...)
		binary.BigEndian.PutUint16(h[10:], internetSum(h))
		return append(h, body...)
	}
	h := []byte{0x60, 0, 0, 0, 0, byte(len(body)), byte(p.protocol), 64}
	h = append(append(h, p.src.Addr().AsSlice()...), p.dst.Addr().AsSlice()...)
	return append(h, body...)
}

// internetSum is the checksum of RFC 1071.
func internetSum(b []byte) uint16 {
	var s uint32
	for i := 0; i+1 < len(b); i += 2 {
		s += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return ^uint16(s)
}

// parsePacket reads a packet of ours, or an answer that refuses one (TCP reset, ICMP unreachable): then it
// returns the packet that is refused.
func parsePacket(b []byte) (p packet, refusal, ok bool) {
	var src, dst netip.Addr
	var proto byte
	switch {
	case len(b) >= 20 && b[0]>>4 == 4:
		src, _ = netip.AddrFromSlice(b[12:16])
		dst, _ = netip.AddrFromSlice(b[16:20])
		proto, b = b[9], b[int(b[0]&15)*4:]
	case len(b) >= 40 && b[0]>>4 == 6:
		src, _ = netip.AddrFromSlice(b[8:24])
		dst, _ = netip.AddrFromSlice(b[24:40])
		proto, b = b[6], b[40:]
	default:
		return p, false, false
	}
	// ICMPv6 calls a protocol that nobody speaks an unrecognized header (RFC 4443 §3.4), ICMP an unreachable one.
	if icmp := len(b) > 8 && (proto == 1 && b[0] == 3 || proto == 58 && (b[0] == 1 || b[0] == 4 && b[1] == 1)); icmp {
		p, _, ok = parsePacket(b[8:])
		return p, true, ok
	}
	if len(b) < 12 {
		return p, false, false
	}
	p = packet{protocol: model.Protocol(proto), src: netip.AddrPortFrom(src, binary.BigEndian.Uint16(b)),
		dst: netip.AddrPortFrom(dst, binary.BigEndian.Uint16(b[2:]))}
	switch {
	case p.protocol == model.TCP && len(b) >= 20 && b[13]&4 != 0: // a reset acknowledges what it refuses
		p.id = binary.BigEndian.Uint32(b[8:]) - 1
		return p, true, true
	case p.protocol == model.TCP:
		p.id = binary.BigEndian.Uint32(b[4:])
	case p.protocol == model.UDP:
		p.id = binary.BigEndian.Uint32(b[8:])
	case p.protocol == model.SCTP && len(b) >= 20 && bytes.Equal(b[12:14], []byte{1, 0}):
		p.id = binary.BigEndian.Uint32(b[16:])
	default:
		return p, false, false
	}
	return p, false, true
}
