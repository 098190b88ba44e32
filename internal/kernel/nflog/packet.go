package nflog

import (
	"encoding/binary"
	"net/netip"
)

// Packet is what a copy of a packet says.
type Packet struct {
	Prefix           string // of the rule that sent the copy
	Src, Dst         netip.Addr
	Protocol         uint8
	SrcPort, DstPort uint16 // of TCP, UDP and SCTP; 0 where the copy does not reach that far
}

const tcp, udp, sctp = 6, 17, 132

// parse reads the beginning of an IP packet.
func parse(b []byte) (p Packet, ok bool) {
	if len(b) == 0 {
		return p, false
	}
	switch b[0] >> 4 {
	case 4:
		return parse4(b)
	case 6:
		return parse6(b)
	}
	return p, false
}

func parse4(b []byte) (p Packet, ok bool) {
	if len(b) < 20 {
		return p, false
	}
	size := int(b[0]&15) * 4
	p.Src, p.Dst = netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
	p.Protocol = b[9]
	if size < 20 {
		return p, false
	}
	if first := binary.BigEndian.Uint16(b[6:])&0x1fff == 0; first && size <= len(b) {
		p.ports(b[size:])
	}
	return p, true
}

// Headers between that of IPv6 and that of the transport (RFC 8200 §4, RFC 4302).
const hopByHop, routing, fragment, authentication, destination = 0, 43, 44, 51, 60

func parse6(b []byte) (p Packet, ok bool) {
	if len(b) < 40 {
		return p, false
	}
	p.Src, p.Dst = netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
	next, rest := b[6], b[40:]
	for {
		size := 8
		switch next {
		case hopByHop, routing, destination:
			if len(rest) >= 2 {
				size = 8 * (int(rest[1]) + 1)
			}
		case authentication:
			if len(rest) >= 2 {
				size = 4 * (int(rest[1]) + 2)
			}
		case fragment:
			if len(rest) >= 4 && binary.BigEndian.Uint16(rest[2:])>>3 != 0 { // not the first: no ports follow
				p.Protocol = rest[0]
				return p, true
			}
		default:
			p.Protocol = next
			p.ports(rest)
			return p, true
		}
		if len(rest) < size {
			p.Protocol = next
			return p, true
		}
		next, rest = rest[0], rest[size:]
	}
}

func (p *Packet) ports(b []byte) {
	if (p.Protocol == tcp || p.Protocol == udp || p.Protocol == sctp) && len(b) >= 4 {
		p.SrcPort, p.DstPort = binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])
	}
}
