package tun

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// sumBy is the checksum as RFC 1071 writes it down: 16 bits at a time, in network order.
func sumBy(parts ...[]byte) uint16 {
	var acc uint32
	for _, b := range parts {
		for i := 0; i < len(b); i += 2 {
			w := uint32(b[i]) << 8
			if i+1 < len(b) {
				w |= uint32(b[i+1])
			}
			acc += w
			acc = acc&0xffff + acc>>16
		}
	}
	return ^uint16(acc)
}

// rightSums reports what is wrong with the checksums and lengths of a TCP or UDP packet without options of IP.
func rightSums(p []byte) error {
	at, addrs, proto := ipv4Len, p[12:20], p[9]
	if p[0]>>4 == 6 {
		at, addrs, proto = ipv6Len, p[8:40], p[6]
		if n := int(binary.BigEndian.Uint16(p[4:])); n != len(p)-ipv6Len {
			return fmt.Errorf("payload length %d in a packet of %d", n, len(p))
		}
	} else {
		if n := int(binary.BigEndian.Uint16(p[2:])); n != len(p) {
			return fmt.Errorf("total length %d in a packet of %d", n, len(p))
		}
		if sumBy(p[:ipv4Len]) != 0 {
			return errors.New("the IPv4 header's checksum is wrong")
		}
	}
	if proto == protoUDP && int(binary.BigEndian.Uint16(p[at+4:])) != len(p)-at {
		return errors.New("the UDP length is wrong")
	}
	n := binary.BigEndian.AppendUint32(nil, uint32(len(p)-at))
	if sumBy(addrs, n, []byte{0, 0, 0, proto}, p[at:]) != 0 {
		return fmt.Errorf("the checksum of protocol %d is wrong", proto)
	}
	return nil
}

func TestSum(t *testing.T) {
	for n := range 300 {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(rand.Uint32())
		}
		var out [2]byte
		putSum(out[:], ^fold(sum(b, 0)))
		if got, want := binary.BigEndian.Uint16(out[:]), sumBy(b); got != want && got^want != 0xffff { // zero has two forms
			t.Fatalf("%d bytes: %04x, want %04x", n, got, want)
		}
	}
}

// kind says what packet to make.
type kind struct {
	is4, udp bool
	size     int // of a segment's payload
	total    int // payload
	options  int // of TCP, bytes
	seed     uint64
}

// superpacket makes one as the kernel hands it over, with its virtio header.
func superpacket(k kind) []byte {
	rng := rand.New(rand.NewPCG(k.seed, 1))
	at, proto, transport := ipv6Len, byte(protoTCP), tcpLen+k.options
	if k.is4 {
		at = ipv4Len
	}
	if k.udp {
		proto, transport = protoUDP, udpLen
	}
	p := make([]byte, at+transport+k.total)
	for i := at; i < len(p); i++ {
		p[i] = byte(rng.Uint32())
	}
	if k.is4 {
		copy(p, []byte{0x45, 0, 0, 0, 0x12, 0x34, 0x40, 0, 64, proto, 0, 0, 10, 244, 2, 5, 10, 244, 1, 5})
		binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
		setIPv4Checksum(p, ipv4Len)
	} else {
		copy(p, []byte{0x60, 1, 2, 3, 0, 0, proto, 64})
		binary.BigEndian.PutUint16(p[4:], uint16(len(p)-ipv6Len))
		from, to := node("fd00:10:244:%d::5", 2).As16(), node("fd00:10:244:%d::5", 1).As16()
		copy(p[8:], from[:])
		copy(p[24:], to[:])
	}
	h := virtio{flags: needsChecksum, headers: uint16(at + transport), start: uint16(at), offset: tcpChecksum}
	if k.udp {
		h.offset = udpChecksum
		binary.BigEndian.PutUint16(p[at+4:], uint16(udpLen+k.total))
	} else {
		p[at+12], p[at+13] = byte(transport/4)<<4, tcpACK|tcpPSH
	}
	if k.total > k.size {
		h.size = uint16(k.size)
		switch {
		case k.udp:
			h.gso = gsoUDP
		case k.is4:
			h.gso = gsoTCPv4
		default:
			h.gso = gsoTCPv6
		}
	}
	putSum(p[at+int(h.offset):], fold(pseudo(p, proto, len(p)-at)))
	out := make([]byte, headerLen, headerLen+len(p))
	h.put(out)
	return append(out, p...)
}

func kinds() (out []kind) {
	for _, is4 := range []bool{true, false} {
		for _, udp := range []bool{true, false} {
			for _, size := range []int{1, 100, 1201, 1400} {
				for _, segments := range []float64{0.5, 1, 2, 2.5, 40} {
					k := kind{is4: is4, udp: udp, size: size, total: max(1, int(float64(size)*segments)), seed: uint64(size)}
					if !udp {
						k.options = 12
					}
					out = append(out, k)
				}
			}
		}
	}
	return out
}

// split returns the packets that a superpacket stands for.
func split(t testing.TB, raw []byte, partial bool) (out [][]byte) {
	t.Helper()
	p, err := checkIP(raw[headerLen:])
	if err != nil {
		t.Fatal(err)
	}
	s, err := newSuper(readVirtio(raw), p)
	if err != nil {
		t.Fatal(err)
	}
	for i := range s.count() {
		head, body := s.segment(i, make([]byte, maxHeaders), partial)
		out = append(out, slices.Concat(head, body))
	}
	return out
}

// join concatenates what a merger writes.
func join(iov []unix.Iovec) (out []byte) {
	for _, v := range iov {
		if v.Len > 0 {
			out = append(out, unsafe.Slice(v.Base, v.Len)...)
		}
	}
	return out
}

// merge returns what a merger makes of packets, each with its virtio header.
func merge(packets [][]byte) (out [][]byte) {
	m := newMerger(true, true, func(iov []unix.Iovec) { out = append(out, join(iov)) })
	for _, p := range packets {
		m.add(p)
	}
	m.flush()
	return out
}

func clone(list [][]byte) (out [][]byte) {
	for _, b := range list {
		out = append(out, bytes.Clone(b))
	}
	return out
}

// What a superpacket is split into has to be right, packet by packet; merging gives one packet again where
// there is room for it, and splitting that gives the same packets.
func TestSplitAndMerge(t *testing.T) {
	for _, k := range kinds() {
		raw := superpacket(k)
		payload := bytes.Clone(raw[len(raw)-k.total:])
		packets := split(t, raw, false)
		want := max(1, (k.total+k.size-1)/k.size)
		if len(packets) != want {
			t.Fatalf("%+v: %d packets, want %d", k, len(packets), want)
		}
		var got []byte
		for i, p := range packets {
			if err := rightSums(p); err != nil {
				t.Fatalf("%+v: packet %d: %v", k, i, err)
			}
			got = append(got, p[len(p)-min(k.size, k.total-i*k.size):]...)
			if at := len(p) - min(k.size, k.total-i*k.size) - tcpLen - k.options; !k.udp && (p[at+13]&tcpPSH != 0) != (i == want-1) {
				t.Errorf("%+v: packet %d of %d: flags %02x", k, i, want, p[at+13])
			}
		}
		if !bytes.Equal(got, payload) {
			t.Fatalf("%+v: the payload changed", k)
		}
		merged := merge(clone(packets))
		if want <= maxRun && len(merged) != 1 {
			t.Fatalf("%+v: %d packets were merged into %d", k, want, len(merged))
		}
		var again [][]byte
		for _, raw := range merged {
			if len(merged) == 1 && want > 1 && readVirtio(raw).gso == gsoNone {
				t.Fatalf("%+v: merged, yet not to be split", k)
			}
			again = append(again, split(t, raw, false)...)
		}
		if !slices.EqualFunc(packets, again, bytes.Equal) {
			t.Fatalf("%+v: merging and splitting changed the packets", k)
		}
	}
}

// With partial checksums the packets end up the same.
func TestPartialChecksums(t *testing.T) {
	for _, k := range kinds() {
		want := split(t, superpacket(k), false)
		wire := split(t, superpacket(k), true)
		for i, p := range wire {
			if tr, ok := findTransport(p); !ok || !tr.isPartial(p) {
				t.Fatalf("%+v: packet %d: the checksum is not partial", k, i)
			}
			if k.is4 && sumBy(p[:ipv4Len]) != 0 {
				t.Fatalf("%+v: packet %d: the checksum of the IPv4 header is wrong", k, i)
			}
		}
		var got [][]byte
		for _, raw := range merge(wire) {
			if readVirtio(raw).flags&needsChecksum == 0 {
				t.Fatalf("%+v: the kernel is not told that the checksum is partial", k)
			}
			got = append(got, split(t, raw, false)...)
		}
		if !slices.EqualFunc(want, got, bytes.Equal) {
			t.Fatalf("%+v: the packets are not those that full checksums give", k)
		}
	}
}

// Whatever would not come out of splitting again must not be merged, and order must be kept.
func TestMergeLeavesAlone(t *testing.T) {
	tcp := kind{is4: true, size: 100, total: 300, options: 12}
	for name, spoil := range map[string]func(p []byte){
		"another acknowledgement": func(p []byte) { p[ipv4Len+8]++ },
		"another window":          func(p []byte) { p[ipv4Len+14]++ },
		"another option":          func(p []byte) { p[ipv4Len+tcpLen]++ },
		"end of stream":           func(p []byte) { p[ipv4Len+13] |= tcpFIN },
		"urgent":                  func(p []byte) { p[ipv4Len+13] |= 0x20 },
		"a gap":                   func(p []byte) { p[ipv4Len+7]++ },
		"another type of service": func(p []byte) { p[1]++ },
		"another time to live":    func(p []byte) { p[8]-- },
		"a fragment":              func(p []byte) { p[6] |= 0x20 },
		"no DF, another id":       func(p []byte) { p[6], p[5] = 0, p[5]+7 },
	} {
		packets := split(t, superpacket(tcp), false)
		p := packets[1]
		spoil(p)
		setIPv4Checksum(p, ipv4Len)
		p[ipv4Len+16], p[ipv4Len+17] = 0, 0
		putSum(p[ipv4Len+16:], ^fold(sum(p[ipv4Len:], pseudo(p, protoTCP, len(p)-ipv4Len))))
		sent := clone(packets)
		var got [][]byte
		for _, raw := range merge(packets) {
			got = append(got, split(t, raw, false)...)
		}
		if !slices.EqualFunc(sent, got, bytes.Equal) {
			t.Errorf("%s: other packets came out, or in another order", name)
		}
	}
	packets := split(t, superpacket(tcp), false)
	packets[1][len(packets[1])-1]++ // damaged: it must stay so
	sent := clone(packets)
	var got [][]byte
	for _, raw := range merge(packets) {
		got = append(got, split(t, raw, false)...)
	}
	if !slices.EqualFunc(sent, got, bytes.Equal) {
		t.Error("a damaged packet was repaired")
	}
}

// Packets of several flows, interleaved: each flow keeps its order.
func TestMergeSeveralFlows(t *testing.T) {
	var flows [12][][]byte
	var mixed [][]byte
	for i := range flows {
		flows[i] = split(t, superpacket(kind{is4: i%2 == 0, udp: i%3 == 0, size: 50, total: 500, seed: uint64(i)}), false)
	}
	for k := range 10 {
		for _, f := range flows {
			mixed = append(mixed, bytes.Clone(f[k]))
		}
	}
	out := merge(mixed)
	got := map[string][][]byte{}
	for _, raw := range out {
		for _, p := range split(t, raw, false) {
			f, _ := newMerger(true, true, nil).classify(p)
			key := string(p[f.at : f.at+4])
			got[key] = append(got[key], p)
		}
	}
	for i, want := range flows {
		f, _ := newMerger(true, true, nil).classify(want[0])
		if !slices.EqualFunc(want, got[string(want[0][f.at:f.at+4])], bytes.Equal) {
			t.Errorf("flow %d: other packets came out, or in another order", i)
		}
	}
	few := merge(slices.Concat(clone(flows[0][:5]), clone(flows[1][:5]), clone(flows[0][5:]), clone(flows[1][5:])))
	if len(few) != 2 {
		t.Errorf("two flows gave %d packets, want 2", len(few))
	}
}
