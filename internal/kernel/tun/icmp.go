package tun

import (
	"encoding/binary"
	"sync/atomic"
	"time"
)

// reason is why a packet is told back to its sender.
type reason int

const (
	noRoute     reason = iota // no node has the destination
	unreachable               // the node that has it cannot be reached
	tooBig                    // the way to that node carries less
)

// icmpError builds the message that a router sends for a packet (RFC 792, 1191, 4443), or nil where none
// may be sent: about messages of that kind, fragments but the first, and groups. mtu counts with tooBig.
//
// The message has the packet's destination as its source. An address of this node would be a router's,
// but the kernel takes no packet from a device that has an address of its own as source.
func icmpError(p []byte, why reason, mtu int) []byte {
	src, dst := source(p), destination(p)
	if dst.IsMulticast() || src.IsMulticast() || src.IsUnspecified() {
		return nil
	}
	if isIPv4(p) {
		return icmp4(p, why, mtu)
	}
	return icmp6(p, why, mtu)
}

// quote4 is what an ICMP message quotes of an IPv4 packet after its header; quote6 keeps the message
// within the MTU that every link has.
const (
	quote4 = 8
	quote6 = 1280 - ipv6Len - 8
)

func icmp4(p []byte, why reason, mtu int) []byte {
	n := ipv4Header(p)
	if binary.BigEndian.Uint16(p[6:])&0x1fff != 0 || p[9] == protoICMP && !echo(p, n, 8, 0) {
		return nil
	}
	quote := p[:min(len(p), n+quote4)]
	b := make([]byte, ipv4Len+8+len(quote))
	b[0], b[8], b[9] = 0x45, 64, protoICMP
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	copy(b[12:], p[16:20])
	copy(b[16:], p[12:16])
	setIPv4Checksum(b, ipv4Len)
	m := b[ipv4Len:]
	m[0] = 3
	switch why {
	case unreachable:
		m[1] = 1
	case tooBig:
		m[1] = 4
		binary.BigEndian.PutUint16(m[6:], uint16(mtu))
	}
	copy(m[8:], quote)
	putSum(m[2:], ^fold(sum(m, 0)))
	return b
}

func icmp6(p []byte, why reason, mtu int) []byte {
	if p[6] == protoICMPv6 && !echo(p, ipv6Len, 128, 129) {
		return nil
	}
	quote := p[:min(len(p), quote6)]
	b := make([]byte, ipv6Len+8+len(quote))
	b[0], b[6], b[7] = 0x60, protoICMPv6, 64
	binary.BigEndian.PutUint16(b[4:], uint16(len(b)-ipv6Len))
	copy(b[8:], p[24:40])
	copy(b[24:], p[8:24])
	m := b[ipv6Len:]
	m[0] = 1
	switch why {
	case unreachable:
		m[1] = 3
	case tooBig:
		m[0] = 2
		binary.BigEndian.PutUint32(m[4:], uint32(mtu))
	}
	copy(m[8:], quote)
	putSum(m[2:], ^fold(sum(m, pseudo(b, protoICMPv6, len(m)))))
	return b
}

// echo reports whether the ICMP message at is one of two types; others may be errors themselves.
func echo(p []byte, at int, types ...byte) bool {
	return len(p) > at && (p[at] == types[0] || p[at] == types[1])
}

// limiter lets a number of messages a second through.
type limiter struct{ second, count atomic.Int64 }

const icmpPerSecond = 1000

func (l *limiter) allow(now time.Time) bool {
	if s := now.Unix(); l.second.Swap(s) != s {
		l.count.Store(0)
	}
	return l.count.Add(1) <= icmpPerSecond
}
