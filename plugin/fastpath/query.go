package fastpath

import (
	"encoding/binary"
	"unsafe"

	"github.com/coredns/coredns/plugin/pkg/edns"
	"github.com/miekg/dns"
)

// Lengths of parts of a message (RFC 1035 section 4.1, RFC 6891 section 6.1.2).
const (
	headerLen   = 12
	questionLen = 4  // type and class
	rrLen       = 10 // type, class, TTL, length
	optLen      = 1 + rrLen
)

// Bits of the third and fourth byte of a header.
const (
	bitQR = 0x80
	bitAA = 0x04
	bitTC = 0x02
	bitRD = 0x01
	bitAD = 0x20
	bitCD = 0x10
)

// query is a question as plain as almost all are: one name of letters, digits, hyphens and underscores
// in class IN, and at most an OPT record. All else is read by somebody else.
type query struct {
	packet  []byte
	nameEnd int // behind the name's last byte; the name begins behind the header
	typ     uint16
	edns    bool
	size    int    // octets the client takes over UDP
	opt     uint16 // size as the OPT record gives it
	flags   uint32 // TTL of the OPT record to answer with
	do      bool   // DNSSEC records are welcome
	plain   int    // octets up to which the reply's names are not compressed; set by the reader

	text  [256]byte // the name in lower case, each label with a dot behind it
	textN int
}

// read takes a packet apart. It reports false for everything but a plain question.
func (q *query) read(p []byte) bool {
	if len(p) < headerLen+1+questionLen || p[2]&^bitRD != 0 || p[3]&^(bitAD|bitCD) != 0 {
		return false
	}
	// One question, no answer, no authority, at most one additional record.
	if binary.BigEndian.Uint32(p[4:]) != 1<<16 || binary.BigEndian.Uint32(p[8:]) > 1 {
		return false
	}
	q.packet = p
	at := q.readName()
	if at == 0 || len(p) < at+questionLen {
		return false
	}
	q.nameEnd = at
	q.typ = binary.BigEndian.Uint16(p[at:])
	if binary.BigEndian.Uint16(p[at+2:]) != dns.ClassINET {
		return false
	}
	at += questionLen
	q.edns, q.do, q.size = false, false, dns.MinMsgSize
	if p[11] == 1 {
		return q.readOPT(p[at:])
	}
	return at == len(p)
}

// lower maps the bytes of plain labels to lower case, others to 0.
var lower = func() (t [256]byte) {
	for c := range 256 {
		switch b := byte(c); {
		case 'a' <= b && b <= 'z', '0' <= b && b <= '9', b == '-', b == '_':
			t[c] = b
		case 'A' <= b && b <= 'Z':
			t[c] = b + 'a' - 'A'
		}
	}
	return t
}()

// readName writes the name to text and returns where it ends, or 0 when it is not plain.
func (q *query) readName() int {
	p, at, n := q.packet, headerLen, 0
	for at < len(p) {
		l := int(p[at])
		if l == 0 {
			q.textN = n
			return at + 1
		}
		// Longer labels are compression pointers, of no use in a question. A name has 255 octets at most.
		if l > 63 || at+1+l >= len(p) || n+l+1 > 254 {
			return 0
		}
		for _, c := range p[at+1 : at+1+l] {
			b := lower[c]
			if b == 0 {
				return 0
			}
			q.text[n] = b
			n++
		}
		q.text[n] = '.'
		n++
		at += 1 + l
	}
	return 0
}

// readOPT reads an OPT record that takes all of p.
func (q *query) readOPT(p []byte) bool {
	if len(p) < optLen || p[0] != 0 || binary.BigEndian.Uint16(p[1:]) != dns.TypeOPT {
		return false
	}
	q.opt = binary.BigEndian.Uint16(p[3:])
	ttl := binary.BigEndian.Uint32(p[5:])
	options := p[optLen:]
	if ttl>>16 != 0 || int(binary.BigEndian.Uint16(p[9:])) != len(options) {
		return false
	}
	for len(options) > 0 {
		if len(options) < 4 {
			return false
		}
		code, l := binary.BigEndian.Uint16(options), int(binary.BigEndian.Uint16(options[2:]))
		// The server keeps no cookies and drops them from its answers, unless a plugin wants them.
		if code != dns.EDNS0COOKIE || len(options) < 4+l || edns.SupportedOption(code) {
			return false
		}
		options = options[4+l:]
	}
	q.edns, q.do = true, ttl&0x8000 != 0
	q.flags = ttl & 0xff00 // what CoreDNS keeps of them
	q.size = max(int(q.opt), dns.MinMsgSize)
	return true
}

// name returns the name in lower case with a dot at its end. It is gone with the next read.
func (q *query) name() string { return unsafe.String(&q.text[0], q.textN) }

// question returns the question as it came.
func (q *query) question() []byte { return q.packet[headerLen : q.nameEnd+questionLen] }
