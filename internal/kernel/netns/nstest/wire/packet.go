package wire

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// Protocol numbers (IANA).
const (
	TCP  uint8 = unix.IPPROTO_TCP
	UDP  uint8 = unix.IPPROTO_UDP
	SCTP uint8 = unix.IPPROTO_SCTP
	IPIP uint8 = unix.IPPROTO_IPIP // without ports; what is inside is no packet
	SIT  uint8 = unix.IPPROTO_IPV6 // the same
)

// Packet is what a test looks at in one.
type Packet struct {
	Src, Dst netip.AddrPort
	Protocol uint8
	Via      string // device that it comes in by, "up0" or "pods0"; "": the one that its source belongs to
	Pieces   bool   // UDP: it comes in two fragments
	ID       uint32 // set by Send; TCP sequence number, first bytes of a UDP datagram and of what is in IP, SCTP initiate tag
}

// bytes is the packet with its checksums: conntrack does not track one whose are wrong.
func (p Packet) bytes() []byte {
	var body []byte
	ports := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, p.Src.Port()), p.Dst.Port())
	sum := 0
	switch p.Protocol {
	case TCP: // SYN, window 1000 (RFC 9293 §3.1)
		body = binary.BigEndian.AppendUint32(ports, p.ID)
		body = append(body, 0, 0, 0, 0, 5<<4, 2, 0x03, 0xe8, 0, 0, 0, 0)
		sum = 16
	case UDP:
		body = append(ports, 0, 12, 0, 0)
		body = binary.BigEndian.AppendUint32(body, p.ID)
		if p.Pieces {
			body = append(body, make([]byte, 12)...)
			body[5] = byte(len(body))
		}
		sum = 6
	case IPIP, SIT:
		body = append(binary.BigEndian.AppendUint32(nil, p.ID), make([]byte, 40)...)
	case SCTP: // INIT (RFC 9260 §3.3.2)
		body = append(ports, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 20)
		body = binary.BigEndian.AppendUint32(body, p.ID)
		body = append(body, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1)
		binary.LittleEndian.PutUint32(body[8:], crc32.Checksum(body, crc32.MakeTable(crc32.Castagnoli)))
	}
	if sum > 0 {
		pseudo := append(p.Src.Addr().AsSlice(), p.Dst.Addr().AsSlice()...)
		pseudo = append(binary.BigEndian.AppendUint32(pseudo, uint32(len(body))), 0, 0, 0, p.Protocol)
		binary.BigEndian.PutUint16(body[sum:], internetSum(append(pseudo, body...)))
	}
	if p.Src.Addr().Is4() {
		h := []byte{0x45, 0, 0, byte(20 + len(body)), byte(p.ID >> 8), byte(p.ID), 0x40, 0, 64, p.Protocol, 0, 0}
		h = append(append(h, p.Src.Addr().AsSlice()...), p.Dst.Addr().AsSlice()...)
		binary.BigEndian.PutUint16(h[10:], internetSum(h))
		return append(h, body...)
	}
	h := []byte{0x60, 0, 0, 0, 0, byte(len(body)), p.Protocol, 64}
	h = append(append(h, p.Src.Addr().AsSlice()...), p.Dst.Addr().AsSlice()...)
	return append(h, body...)
}

// fragments are the packet as it comes: whole, or in two pieces, the first of which has the ports.
func (p Packet) fragments() [][]byte {
	raw := p.bytes()
	if !p.Pieces {
		return [][]byte{raw}
	}
	const cut = 16 // bytes behind the header
	if p.Src.Addr().Is4() {
		piece := func(body []byte, offset uint16) []byte {
			h := slices.Clone(raw[:20])
			binary.BigEndian.PutUint16(h[2:], uint16(20+len(body)))
			binary.BigEndian.PutUint16(h[6:], offset)
			h[10], h[11] = 0, 0
			binary.BigEndian.PutUint16(h[10:], internetSum(h))
			return append(h, body...)
		}
		return [][]byte{piece(raw[20:20+cut], 0x2000), piece(raw[20+cut:], cut/8)} // RFC 791: more fragments; units of 8 bytes
	}
	piece := func(body []byte, offset uint16) []byte { // RFC 8200 §4.5
		h := slices.Clone(raw[:40])
		binary.BigEndian.PutUint16(h[4:], uint16(8+len(body)))
		h[6] = unix.IPPROTO_FRAGMENT
		h = binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint16(append(h, raw[6], 0), offset), p.ID)
		return append(h, body...)
	}
	return [][]byte{piece(raw[40:40+cut], 1), piece(raw[40+cut:], cut)}
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

// parse reads a packet of ours, or an answer that refuses one (TCP reset, ICMP unreachable): then it
// returns the packet that is refused, and how.
func parse(b []byte) (p Packet, refusal string, ok bool) {
	var src, dst netip.Addr
	var proto byte
	switch {
	case len(b) >= 48 && b[0]>>4 == 6 && b[6] == unix.IPPROTO_FRAGMENT && binary.BigEndian.Uint16(b[42:])&^7 == 0: // the first one
		whole := slices.Concat(b[:40], b[48:])
		whole[6] = b[40]
		return parse(whole)
	case len(b) >= 20 && b[0]>>4 == 4:
		src, _ = netip.AddrFromSlice(b[12:16])
		dst, _ = netip.AddrFromSlice(b[16:20])
		proto, b = b[9], b[int(b[0]&15)*4:]
	case len(b) >= 40 && b[0]>>4 == 6:
		src, _ = netip.AddrFromSlice(b[8:24])
		dst, _ = netip.AddrFromSlice(b[24:40])
		proto, b = b[6], b[40:]
	default:
		return p, "", false
	}
	// ICMPv6 calls a protocol that nobody speaks an unrecognized header (RFC 4443 §3.4), ICMP an unreachable one.
	if icmp := len(b) > 8 && (proto == 1 && b[0] == 3 || proto == 58 && (b[0] == 1 || b[0] == 4 && b[1] == 1)); icmp {
		p, _, ok = parse(b[8:])
		return p, fmt.Sprintf("icmp %d/%d", b[0], b[1]), ok
	}
	return parseTransport(b, src, dst, proto)
}

func parseTransport(b []byte, src, dst netip.Addr, proto uint8) (p Packet, refusal string, ok bool) {
	if len(b) < 12 {
		return p, "", false
	}
	p = Packet{Protocol: proto, Src: netip.AddrPortFrom(src, binary.BigEndian.Uint16(b)), Dst: netip.AddrPortFrom(dst, binary.BigEndian.Uint16(b[2:]))}
	switch {
	case proto == IPIP || proto == SIT:
		p.ID, p.Src, p.Dst = binary.BigEndian.Uint32(b), netip.AddrPortFrom(src, 0), netip.AddrPortFrom(dst, 0)
	case proto == TCP && len(b) >= 20 && b[13]&4 != 0: // a reset acknowledges what it refuses
		p.ID = binary.BigEndian.Uint32(b[8:]) - 1
		return p, "reset", true
	case proto == TCP:
		p.ID = binary.BigEndian.Uint32(b[4:])
	case proto == UDP:
		p.ID = binary.BigEndian.Uint32(b[8:])
	case proto == SCTP && len(b) >= 20 && bytes.Equal(b[12:14], []byte{1, 0}):
		p.ID = binary.BigEndian.Uint32(b[16:])
	default:
		return p, "", false
	}
	return p, "", true
}
