package tun

import (
	"encoding/binary"
	"fmt"
)

// maxHeaders is the most that the headers of one packet can have: IPv6 with some extension headers, or
// IPv4 with all options, and TCP with all options.
const maxHeaders = 256

// super is a packet as the kernel hands it over: with a checksum that is not computed, and possibly
// standing for many segments (generic segmentation offload).
type super struct {
	packet  []byte
	virtio  virtio
	headers int // length of the headers that each segment repeats; the whole packet when it is one
	size    int // payload of a segment; 0 = the packet is one
	same    common
}

// common is what need not be computed for each segment of full size.
type common struct {
	known bool
	ip    uint64 // sum of the IPv4 header but for identification and checksum
	rest  uint16 // the partial checksum
}

// newSuper checks what the kernel says of a packet. The packet is an IP packet by checkIP.
func newSuper(h virtio, p []byte) (super, error) {
	s := super{packet: p, virtio: h, headers: len(p)}
	at := int(h.start)
	if h.flags&needsChecksum != 0 && (at < ipv4Len || at+int(h.offset)+2 > len(p)) {
		return s, fmt.Errorf("checksum at %d+%d of a packet of %d bytes", h.start, h.offset, len(p))
	}
	if h.gso == gsoNone {
		return s, nil
	}
	if h.flags&needsChecksum == 0 || h.size == 0 {
		return s, fmt.Errorf("segments of %d bytes without a checksum to compute", h.size)
	}
	switch is4 := isIPv4(p); {
	case h.gso == gsoTCPv4 && is4, h.gso == gsoTCPv6 && !is4:
		if at+tcpLen > len(p) || h.offset != tcpChecksum {
			return s, fmt.Errorf("TCP at %d of a packet of %d bytes", at, len(p))
		}
		s.headers = at + int(p[at+12]>>4)*4
		if s.headers < at+tcpLen {
			return s, fmt.Errorf("TCP header of %d bytes", s.headers-at)
		}
	case h.gso == gsoUDP:
		if h.offset != udpChecksum {
			return s, fmt.Errorf("UDP checksum at %d", h.offset)
		}
		s.headers = at + udpLen
	default:
		return s, fmt.Errorf("segmentation of kind %d, which was not asked for", h.gso)
	}
	if s.headers > len(p) || s.headers > maxHeaders || is4Short(p, at) {
		return s, fmt.Errorf("headers of %d bytes in a packet of %d", s.headers, len(p))
	}
	s.size = int(h.size)
	return s, nil
}

// is4Short reports that the transport part would begin inside the IP header.
func is4Short(p []byte, at int) bool {
	if isIPv4(p) {
		return at < ipv4Header(p)
	}
	return at < ipv6Len
}

// count is the number of segments, at least one.
func (s *super) count() int {
	if s.size == 0 {
		return 1
	}
	return max(1, (len(s.packet)-s.headers+s.size-1)/s.size)
}

// segment returns segment i as head and body, with lengths, sequence number, flags and checksums set;
// with partial the checksum is one that the receiver knows as not computed. The head of a segment of several
// is written to buf, of maxHeaders bytes, the body is part of the packet; a packet that is one is finished in
// place and has no body.
func (s *super) segment(i int, buf []byte, partial bool) (head, body []byte) {
	at := int(s.virtio.start)
	if s.size == 0 {
		if s.virtio.flags&needsChecksum != 0 {
			s.finish(s.packet, nil, at, partial)
		} else if partial {
			keepWrong(s.packet)
		}
		return s.packet, nil
	}
	from := s.headers + i*s.size
	to := min(from+s.size, len(s.packet))
	head, body = buf[:s.headers], s.packet[from:to]
	copy(head, s.packet)
	total := s.headers + len(body)
	full := to-from == s.size
	if isIPv4(head) {
		binary.BigEndian.PutUint16(head[2:], uint16(total))
		binary.BigEndian.PutUint16(head[4:], binary.BigEndian.Uint16(head[4:])+uint16(i))
		if full && s.same.known {
			putSum(head[10:], ^fold(s.same.ip+uint64(binary.NativeEndian.Uint16(head[4:]))))
		} else {
			setIPv4Checksum(head, ipv4Header(head))
		}
	} else {
		binary.BigEndian.PutUint16(head[4:], uint16(total-ipv6Len))
	}
	if s.virtio.gso == gsoUDP {
		binary.BigEndian.PutUint16(head[at+4:], uint16(total-at))
	} else {
		binary.BigEndian.PutUint32(head[at+4:], binary.BigEndian.Uint32(head[at+4:])+uint32(i*s.size))
		if i > 0 { // congestion window reduced is told once (RFC 3168 section 6.1.2)
			head[at+13] &^= tcpCWR
		}
		if to < len(s.packet) {
			head[at+13] &^= tcpFIN | tcpPSH
		}
	}
	switch {
	case partial && full && s.same.known:
		putSum(head[at+int(s.virtio.offset):], s.same.rest)
	case s.finish(head, body, at, partial) && full:
		s.learn(head, at)
	}
	return head, body
}

// learn takes from a finished segment of full size what the others have too.
func (s *super) learn(head []byte, at int) {
	s.same = common{known: true, rest: binary.NativeEndian.Uint16(head[at+int(s.virtio.offset):])}
	if isIPv4(head) {
		s.same.ip = sum(head[12:ipv4Header(head)], uint64(binary.NativeEndian.Uint32(head)))
		s.same.ip = sum(head[6:10], s.same.ip)
	}
}

// finish computes the transport checksum of head and body, whose transport part begins at at. It returns
// whether it left it partial.
func (s *super) finish(head, body []byte, at int, partial bool) bool {
	field := head[at+int(s.virtio.offset):]
	if partial {
		if t, ok := findTransport(head); ok && t.at == at && t.sum == int(s.virtio.offset) {
			putSum(field, t.partial(head, len(head)+len(body)))
			return true
		}
	}
	if s.size == 0 {
		// The field holds the sum of the pseudo-header already, whatever protocol this is.
		putSum(field, nonzero(^fold(sum(head[at:], 0)), s.virtio.offset))
		return false
	}
	proto := byte(protoTCP)
	if s.virtio.gso == gsoUDP {
		proto = protoUDP
	}
	field[0], field[1] = 0, 0 // and the head, whose headers are multiples of four bytes, is of even length
	acc := pseudo(head, proto, len(head)-at+len(body))
	putSum(field, nonzero(^fold(sum(body, sum(head[at:], acc))), s.virtio.offset))
	return false
}

// keepWrong gives a packet with a wrong checksum that happens to look partial another wrong one. The receiver
// would have it computed, and so make good what was damaged before it came here.
func keepWrong(p []byte) {
	t, ok := findTransport(p)
	if !ok || !t.isPartial(p) || checksumOK(p, t.at, t.proto) {
		return
	}
	field := p[t.at+t.sum:]
	for v := binary.NativeEndian.Uint16(field) + 1; ; v++ {
		putSum(field, v)
		if v != 0 && !t.isPartial(p) && !checksumOK(p, t.at, t.proto) { // 0 means none with UDP
			return
		}
	}
}

// nonzero replaces a UDP checksum of zero, which would mean that there is none (RFC 768).
func nonzero(v, offset uint16) uint16 {
	if v == 0 && offset == udpChecksum {
		return 0xffff
	}
	return v
}
