package tun

import (
	"bytes"
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// A merger turns runs of TCP or UDP packets of one flow back into one packet each that stands for them
// (generic receive offload), so that the kernel handles 64 KB at once. What it makes is split by the
// kernel into the very packets it was made of, wherever somebody asks for single ones. So it merges
// only packets that differ in nothing but what splitting gives back, and whose checksums are right.
//
// The packets of a flow stay in order. Those of different flows may overtake each other until flush.
type merger struct {
	tcp, udp bool // merge packets of these protocols
	write    func(iov []unix.Iovec)

	runs   [8]run // in use: the first n
	n      int
	recent int // the run that grew last, plus 1; 0 = not to be gone on with
	single [headerLen]byte
	one    [2]unix.Iovec
}

// run is one packet in the making.
type run struct {
	flow
	virtio [headerLen]byte
	iov    []unix.Iovec // header, first packet, payloads of the others
	first  []byte
	next   uint32 // TCP: sequence number that may follow
	id     uint16 // IPv4: identification that may follow
	size   int    // payload of all but the last
	total  int    // bytes of the packet so far
	count  int
	closed bool // nothing may follow
}

// flow is what a packet is, as far as merging is concerned.
type flow struct {
	transport
	headers int
	packet  []byte
	checked bool // the checksum is right, or partial
	partial bool
}

// maxRun is the most packets in one: the kernel's own UDP_MAX_SEGMENTS of old, and a bound for memory.
const maxRun = 64

// dontFragment is IPv4's flag of that name, in the byte that it is in. With it the identification means
// nothing (RFC 6864).
const dontFragment = 0x40

// maxPacket is the most bytes that an IP packet can have (for IPv6 a little less than it could).
const maxPacket = 65535

func newMerger(tcp, udp bool, write func([]unix.Iovec)) *merger {
	m := &merger{tcp: tcp, udp: udp, write: write}
	for i := range m.runs {
		m.runs[i].iov = make([]unix.Iovec, 0, maxRun+1)
	}
	return m
}

// add takes a packet, which has to stay as it is until flush. It is an IP packet by checkIP.
func (m *merger) add(p []byte) {
	f, mergeable := m.classify(p)
	if f.proto != 0 {
		for i := 0; i < m.n; i++ {
			if !m.runs[i].same(f) {
				continue
			}
			if mergeable && m.runs[i].extend(f) {
				m.recent = i + 1
				return
			}
			m.end(i)
			break
		}
	} else {
		m.flush() // a fragment, or something else that may belong to any of the flows
	}
	if !mergeable {
		v := virtio{}
		if f.partial {
			v = f.header()
		}
		v.put(m.single[:])
		m.one[0], m.one[1] = iovec(m.single[:]), iovec(p)
		m.write(m.one[:])
		return
	}
	if m.n == len(m.runs) {
		m.end(0)
	}
	m.runs[m.n].begin(f)
	m.n++
	m.recent = m.n
}

// next takes a datagram that goes on with the packet that was added last, and of which nothing else has to be
// known: its headers say the same, so it is of the same length, sender and flow, and its checksum is partial
// as well. That is most of what comes. The caller sees to it that both have come from one node.
func (m *merger) next(p []byte) bool {
	if m.recent == 0 || !m.runs[m.recent-1].follows(p) {
		return false
	}
	m.runs[m.recent-1].grow(p)
	return true
}

// fresh says that what comes next is from somebody else.
func (m *merger) fresh() { m.recent = 0 }

// flush hands everything over.
func (m *merger) flush() {
	for m.n > 0 {
		m.end(0)
	}
}

// end hands run i over and closes the gap, so that the runs stay in the order in which they began.
func (m *merger) end(i int) {
	m.recent = 0
	r := &m.runs[i]
	r.finish()
	r.iov[0] = iovec(r.virtio[:]) // here, because runs move
	m.write(r.iov)
	done := *r
	copy(m.runs[i:m.n-1], m.runs[i+1:m.n])
	m.n--
	m.runs[m.n] = run{iov: done.iov[:0]}
}

// classify finds the flow of a packet (proto 0: none) and whether packets may be added to it. Those with
// options or extensions of IP, fragments, segments that open, close or reset a connection, and empty ones
// are left alone.
func (m *merger) classify(p []byte) (f flow, mergeable bool) {
	t, ok := findTransport(p)
	if !ok {
		return flow{}, false
	}
	f = flow{transport: t, packet: p, partial: t.isPartial(p)}
	f.checked = f.partial
	if t.proto == protoTCP {
		f.headers = t.at + int(p[t.at+12]>>4)*4
		return f, m.tcp && f.headers >= t.at+tcpLen && f.headers < len(p) && p[t.at+13]&^tcpPSH == tcpACK
	}
	f.headers = t.at + udpLen
	whole := int(binary.BigEndian.Uint16(p[t.at+4:])) == len(p)-t.at
	return f, m.udp && whole && len(p) > f.headers && (f.partial || !bytes.Equal(p[t.at+udpChecksum:][:2], []byte{0, 0}))
}

// same reports whether two packets have the same family, protocol, addresses and ports.
func (f *flow) same(o flow) bool {
	from := 12
	if f.at == ipv6Len {
		from = 8
	}
	return f.proto == o.proto && f.at == o.at && bytes.Equal(f.packet[from:f.at+4], o.packet[from:o.at+4])
}

func (r *run) begin(f flow) {
	r.flow, r.first, r.size, r.total, r.count = f, f.packet, len(f.packet)-f.headers, len(f.packet), 1
	r.iov = append(r.iov[:0], unix.Iovec{}, iovec(f.packet))
	if isIPv4(f.packet) {
		r.id = binary.BigEndian.Uint16(f.packet[4:]) + 1
	}
	if f.proto == protoTCP {
		r.next = binary.BigEndian.Uint32(f.packet[f.at+4:]) + uint32(r.size)
		r.closed = f.packet[f.at+13]&tcpPSH != 0
	}
}

// extend adds a packet of the same flow when splitting would give it back.
func (r *run) extend(f flow) bool {
	p, n := f.packet, len(f.packet)-f.headers
	if r.closed || r.count == maxRun || n > r.size || r.total+n > maxPacket || f.headers != r.headers || !r.sameHeaders(p) {
		return false
	}
	if !r.checked {
		if !checksumOK(r.first, r.at, r.proto) {
			r.closed = true
			return false
		}
		r.checked = true
	}
	if !f.checked && !checksumOK(p, f.at, f.proto) {
		return false
	}
	if f.proto == protoTCP && p[f.at+13]&tcpPSH != 0 {
		r.first[r.at+13] |= tcpPSH
		r.closed = true
	}
	r.closed = r.closed || n < r.size
	r.grow(p)
	return true
}

// grow adds a packet that may be added.
func (r *run) grow(p []byte) {
	n := len(p) - r.headers
	r.iov = append(r.iov, iovec(p[r.headers:]))
	r.next += uint32(n)
	r.id++
	r.count++
	r.total += n
}

// follows reports whether a datagram is the next packet of full size of a run with partial checksums. All of
// its headers are compared with the first packet's, so what is known of that one is true of it.
func (r *run) follows(p []byte) bool {
	a, at := r.first, r.at
	if r.closed || !r.partial || len(p) != len(a) || r.count == maxRun || r.total+r.size > maxPacket {
		return false
	}
	if at == ipv4Len {
		if [4]byte(a) != [4]byte(p) || [4]byte(a[6:]) != [4]byte(p[6:]) || [8]byte(a[12:]) != [8]byte(p[12:]) || a[6]&dontFragment == 0 && binary.BigEndian.Uint16(p[4:]) != r.id {
			return false
		}
	} else if [ipv6Len]byte(a) != [ipv6Len]byte(p) {
		return false
	}
	a, p = a[at:r.headers], p[at:r.headers]
	if r.proto == protoUDP {
		return [udpLen]byte(a) == [udpLen]byte(p)
	}
	return [4]byte(a) == [4]byte(p) && binary.BigEndian.Uint32(p[4:]) == r.next && bytes.Equal(a[8:], p[8:])
}

// sameHeaders compares everything of the headers that splitting repeats or counts on.
func (r *run) sameHeaders(p []byte) bool {
	a, at := r.first, r.at
	if isIPv4(a) {
		if a[1] != p[1] || a[6] != p[6] || a[8] != p[8] || a[6]&dontFragment == 0 && binary.BigEndian.Uint16(p[4:]) != r.id {
			return false
		}
	} else if !bytes.Equal(a[:4], p[:4]) || a[7] != p[7] {
		return false
	}
	if r.proto == protoUDP {
		return true
	}
	return binary.BigEndian.Uint32(p[at+4:]) == r.next && bytes.Equal(a[at+8:at+13], p[at+8:at+13]) &&
		bytes.Equal(a[at+14:at+16], p[at+14:at+16]) && bytes.Equal(a[at+18:r.headers], p[at+18:r.headers])
}

// finish writes the lengths and the virtio header of a run of several.
func (r *run) finish() {
	v := virtio{}
	if r.partial {
		v = r.header()
	}
	if r.count > 1 {
		v = r.header()
		v.headers, v.size = uint16(r.headers), uint16(r.size)
		p := r.first
		if isIPv4(p) {
			v.gso = gsoTCPv4
			binary.BigEndian.PutUint16(p[2:], uint16(r.total))
			setIPv4Checksum(p, ipv4Len)
		} else {
			v.gso = gsoTCPv6
			binary.BigEndian.PutUint16(p[4:], uint16(r.total-ipv6Len))
		}
		if r.proto == protoUDP {
			v.gso = gsoUDP
			binary.BigEndian.PutUint16(p[r.at+4:], uint16(r.total-r.at))
		}
		putSum(p[r.at+r.sum:], r.transport.partial(p, r.total))
	}
	v.put(r.virtio[:])
}

func iovec(b []byte) (v unix.Iovec) {
	if len(b) > 0 {
		v.Base = &b[0]
	}
	v.SetLen(len(b))
	return v
}
