package fastpath

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"

	"github.com/miekg/dns"

	"github.com/braidnet/braid/internal/names"
)

// Limits of replies that are made here, in octets. CoreDNS compresses names beyond the first two, to
// stay below what networks fragment; the last is the room there is for one reply.
const (
	plain4   = 1480
	plain6   = 1220
	maxReply = 4096
)

// header begins a reply to q in out, and returns it with the question.
func (q *query) header(out []byte, rcode byte, answers, authority int) []byte {
	p := q.packet
	out = append(out[:0], p[0], p[1], bitQR|bitAA|p[2]&bitRD, p[3]&bitCD|rcode, 0, 1, byte(answers>>8), byte(answers), 0, byte(authority), 0, 0)
	return append(out, q.question()...)
}

// finish appends the OPT record, for a client that sent one.
func (q *query) finish(out []byte) []byte {
	if !q.edns {
		return out
	}
	out[11]++
	out = append(out, 0, 0, byte(dns.TypeOPT), byte(q.opt>>8), byte(q.opt))
	out = binary.BigEndian.AppendUint32(out, q.flags)
	return append(out, 0, 0)
}

// room is what the OPT record of the reply takes.
func (q *query) room() int {
	if q.edns {
		return optLen
	}
	return 0
}

// record appends the head of a record whose owner is the wire-format name given.
func record(out, owner []byte, typ uint16, ttl uint32, length int) []byte {
	out = append(out, owner...)
	out = append(out, byte(typ>>8), byte(typ), 0, dns.ClassINET)
	out = binary.BigEndian.AppendUint32(out, ttl)
	return append(out, byte(length>>8), byte(length))
}

// wanted keeps, in place, the distinct targets with an address of a type.
func wanted(targets []names.Target, typ uint16) []names.Target {
	n := 0
next:
	for _, t := range targets {
		if t.Addr.Is4() != (typ == dns.TypeA) {
			continue
		}
		for i := range n {
			if targets[i].Addr == t.Addr {
				continue next
			}
		}
		targets[n] = t
		n++
	}
	return targets[:n]
}

// shuffle brings a list into random order.
func shuffle[T any](list []T, r *rand.Rand) {
	for i := len(list) - 1; i > 0; i-- {
		j := int(r.Uint32N(uint32(i + 1)))
		list[i], list[j] = list[j], list[i]
	}
}

// addresses makes the reply with the addresses of targets, which all are of the type asked for. Names are
// compressed when it does not fit otherwise, and addresses left out when it does not fit then.
func (q *query) addresses(out []byte, targets []names.Target, ttl uint32) (reply []byte, whole int) {
	length := 4
	if q.typ == dns.TypeAAAA {
		length = 16
	}
	owner := q.packet[headerLen:q.nameEnd]
	whole = headerLen + len(owner) + questionLen + len(targets)*(len(owner)+rrLen+length)
	n, short := len(targets), whole+q.room() > q.size
	if short || whole+q.room() > q.plain {
		owner = []byte{0xc0, headerLen} // a pointer to the question
	}
	if short {
		n = min(n, (q.size-q.room()-headerLen-len(q.question()))/(len(owner)+rrLen+length))
	}
	if headerLen+len(q.question())+n*(len(owner)+rrLen+length)+q.room() > maxReply {
		return nil, whole
	}
	out = q.header(out, dns.RcodeSuccess, n, 0)
	if n < len(targets) {
		out[2] |= bitTC
	}
	for _, t := range targets[:n] {
		out = record(out, owner, q.typ, ttl, length)
		out = appendAddr(out, t.Addr)
	}
	return q.finish(out), whole
}

func appendAddr(out []byte, a netip.Addr) []byte {
	if a.Is4() {
		b := a.As4()
		return append(out, b[:]...)
	}
	b := a.As16()
	return append(out, b[:]...)
}

// soa is what the SOA record of a zone holds.
type soa struct {
	ttl     uint32 // the record's own
	minimum uint32
	serial  uint32
}

// Names in front of the zone's, in its SOA.
var (
	soaHost = []byte("\x02ns\x03dns")
	soaMail = []byte("\x0ahostmaster")
)

// denial makes the reply without records: the zone's SOA says how long that holds. The zone is the
// last zoneLen octets of the question's name, and written in the case of that.
func (q *query) denial(out []byte, rcode byte, zoneLen int, s soa) (reply []byte, whole int) {
	zone := q.packet[q.nameEnd-zoneLen : q.nameEnd]
	length := len(soaHost) + len(soaMail) + 2*zoneLen + 20
	whole = headerLen + len(q.question()) + zoneLen + rrLen + length
	if whole+q.room() > q.size {
		return nil, whole
	}
	out = q.header(out, rcode, 0, 1)
	out = record(out, zone, dns.TypeSOA, s.ttl, length)
	out = append(append(out, soaHost...), zone...)
	out = append(append(out, soaMail...), zone...)
	for _, n := range [...]uint32{s.serial, 7200, 1800, 86400, s.minimum} {
		out = binary.BigEndian.AppendUint32(out, n)
	}
	return q.finish(out), whole
}
