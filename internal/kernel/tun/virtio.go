package tun

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// The header that stands before each packet of a device with IFF_VNET_HDR: struct virtio_net_hdr of
// virtio 1.2 section 5.1.6, without num_buffers, in the machine's own byte order.
const headerLen = 10

const (
	needsChecksum = 1 // flags: the checksum field holds the sum of the pseudo-header only

	gsoNone  = 0
	gsoTCPv4 = 1
	gsoTCPv6 = 4
	gsoUDP   = 5
)

// virtio is the header in Go.
type virtio struct {
	flags, gso byte
	headers    uint16 // length of all headers of the packet; what the kernel says of it is only a hint
	size       uint16 // payload of each segment, bytes
	start      uint16 // where the transport part, which the checksum covers, begins
	offset     uint16 // where in it the checksum is
}

func readVirtio(b []byte) virtio {
	return virtio{flags: b[0], gso: b[1], headers: binary.NativeEndian.Uint16(b[2:]), size: binary.NativeEndian.Uint16(b[4:]),
		start: binary.NativeEndian.Uint16(b[6:]), offset: binary.NativeEndian.Uint16(b[8:])}
}

func (v virtio) put(b []byte) {
	b[0], b[1] = v.flags, v.gso
	binary.NativeEndian.PutUint16(b[2:], v.headers)
	binary.NativeEndian.PutUint16(b[4:], v.size)
	binary.NativeEndian.PutUint16(b[6:], v.start)
	binary.NativeEndian.PutUint16(b[8:], v.offset)
}

// IP and transport headers: lengths and places of fields (RFC 791, 8200, 9293, 768).
const (
	ipv4Len = 20 // without options
	ipv6Len = 40
	tcpLen  = 20 // without options
	udpLen  = 8

	protoICMP   = 1
	protoTCP    = 6
	protoUDP    = 17
	protoICMPv6 = 58

	tcpChecksum = 16
	udpChecksum = 6

	tcpFIN = 0x01
	tcpPSH = 0x08
	tcpACK = 0x10
	tcpCWR = 0x80
)

var errPacket = errors.New("not a whole IP packet")

func isIPv4(p []byte) bool { return p[0]>>4 == 4 }

// checkIP returns the packet cut to the length that its header says, so that the fixed part of the IP
// header, with IPv4's options, can be read. It fails for what is no IP packet or has lost its end.
func checkIP(p []byte) ([]byte, error) {
	if len(p) < ipv4Len {
		return nil, fmt.Errorf("%w: %d bytes", errPacket, len(p))
	}
	total := 0
	switch p[0] >> 4 {
	case 4:
		total = int(binary.BigEndian.Uint16(p[2:]))
		if n := ipv4Header(p); n < ipv4Len || n > total {
			return nil, fmt.Errorf("%w: header of %d bytes in an IPv4 packet of %d", errPacket, n, total)
		}
	case 6:
		total = ipv6Len + int(binary.BigEndian.Uint16(p[4:]))
	default:
		return nil, fmt.Errorf("%w: version %d", errPacket, p[0]>>4)
	}
	if total > len(p) {
		return nil, fmt.Errorf("%w: %d bytes of %d", errPacket, len(p), total)
	}
	return p[:total], nil
}

// transport is the TCP or UDP part of a packet.
type transport struct {
	proto byte
	at    int // where it begins
	sum   int // where in it the checksum is
}

// findTransport returns it for packets that have it right behind the IP header, whole, and with all of the
// fixed part of its header; others are of no concern to checksums and merging.
func findTransport(p []byte) (t transport, ok bool) {
	if isIPv4(p) {
		t.at, t.proto = ipv4Len, p[9]
		if ipv4Header(p) != ipv4Len || binary.BigEndian.Uint16(p[6:])&0x3fff != 0 {
			return t, false
		}
	} else {
		t.at, t.proto = ipv6Len, p[6]
	}
	switch t.proto {
	case protoTCP:
		t.sum = tcpChecksum
		return t, len(p) >= t.at+tcpLen
	case protoUDP:
		t.sum = udpChecksum
		return t, len(p) >= t.at+udpLen
	}
	return t, false
}

// partial is the checksum of a packet of n bytes as far as it is computed before a network card does the
// rest: the sum of the pseudo-header.
func (t transport) partial(p []byte, n int) uint16 { return fold(pseudo(p, t.proto, n-t.at)) }

// isPartial reports whether the checksum of a packet is not computed. One right checksum of 65,536 looks
// the same; to take it for partial does no harm.
func (t transport) isPartial(p []byte) bool {
	return binary.NativeEndian.Uint16(p[t.at+t.sum:]) == t.partial(p, len(p))
}

// header returns what tells the kernel that a checksum is partial.
func (t transport) header() virtio {
	return virtio{flags: needsChecksum, start: uint16(t.at), offset: uint16(t.sum)}
}

// ipv4Header is the length of an IPv4 header.
func ipv4Header(p []byte) int { return int(p[0]&15) * 4 }
