package tun

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// mergeQuick is merge with the way that most packets take, and how many took it.
func mergeQuick(packets [][]byte) (out [][]byte, quick int) {
	m := newMerger(true, true, func(iov []unix.Iovec) { out = append(out, join(iov)) })
	for _, p := range packets {
		if m.next(p) {
			quick++
		} else {
			m.add(p)
		}
	}
	m.flush()
	return out, quick
}

// What goes on with the packet before it is known by its headers alone. That must never lead elsewhere than a
// look at the whole packet, whatever bit of the headers differs.
func TestNextIsWhatAddWouldDo(t *testing.T) {
	for _, k := range []kind{
		{is4: true, size: 99, total: 990, options: 12}, {size: 99, total: 990}, {is4: true, udp: true, size: 101, total: 1010}, {udp: true, size: 100, total: 950},
		{is4: true, size: 1200, total: 70 * 1200}, {udp: true, size: 1201, total: 70 * 1201},
	} {
		for _, whole := range []bool{true, false} { // with and without IPv4's DF
			raw := superpacket(k)
			if k.is4 && !whole {
				raw[headerLen+6] = 0
			}
			good := split(t, raw, true)
			_, quick := mergeQuick(clone(good))
			if quick < len(good)*3/4 {
				t.Errorf("%+v: only %d of %d packets took the quick way", k, quick, len(good))
			}
			headers := len(good[0]) - k.size
			for bit := range headers * 8 {
				packets := clone(good[:8])
				packets[3][bit/8] ^= 1 << (bit % 8)
				if p, err := checkIP(packets[3]); err != nil || len(p) != len(packets[3]) {
					if quicker, quick := mergeQuick(clone(packets[2:4])); quick > 0 {
						t.Fatalf("%+v: bit %d of the headers differs, and it was merged into %d", k, bit, len(quicker))
					}
					continue
				}
				got, _ := mergeQuick(clone(packets))
				if want := merge(packets); !slices.EqualFunc(want, got, bytes.Equal) {
					t.Fatalf("%+v: bit %d of the headers of a packet differs: %d packets came out, want %d, or others", k, bit, len(got), len(want))
				}
			}
		}
	}
}

// With full checksums equal headers are no proof: equal payloads have equal checksums.
func TestNextNeedsPartialChecksums(t *testing.T) {
	packets := split(t, superpacket(kind{is4: true, udp: true, size: 100, total: 100}), false)
	packets = [][]byte{packets[0], bytes.Clone(packets[0]), bytes.Clone(packets[0])}
	packets[1][5], packets[2][5] = packets[1][5]+1, packets[2][5]+2 // identification
	for _, p := range packets {
		setIPv4Checksum(p, ipv4Len)
	}
	packets[2][60]++ // damaged
	sent := clone(packets)
	out, _ := mergeQuick(packets)
	var got [][]byte
	for _, raw := range out {
		got = append(got, split(t, raw, false)...)
	}
	if !slices.EqualFunc(sent, got, bytes.Equal) {
		t.Error("a damaged packet was repaired")
	}
}

// Packets in any order, of several flows and lengths, some of them twice or damaged.
func TestNextInAnyOrder(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for round := range 300 {
		var all [][]byte
		for i := range 3 {
			k := kind{is4: rng.IntN(2) == 0, udp: rng.IntN(2) == 0, size: 40 + rng.IntN(60), total: 600 + rng.IntN(60), seed: uint64(i)}
			all = append(all, split(t, superpacket(k), rng.IntN(4) > 0)...)
		}
		for range rng.IntN(4) {
			i, j := rng.IntN(len(all)), rng.IntN(len(all))
			all[i], all[j] = all[j], bytes.Clone(all[i])
		}
		for range rng.IntN(3) {
			p := all[rng.IntN(len(all))]
			p[len(p)-1-rng.IntN(30)]++
		}
		want := merge(clone(all))
		got, _ := mergeQuick(clone(all))
		if !slices.EqualFunc(want, got, bytes.Equal) {
			t.Fatalf("round %d: %d packets came out, want %d, or others", round, len(got), len(want))
		}
	}
}

// One node must not go on with what another began: nobody asked whether it may send that.
func TestNextIsOfOneNode(t *testing.T) {
	r, out := newReceiverOnly(t)
	table := r.path.table.Load()
	packets := split(t, superpacket(kind{is4: true, udp: true, size: 100, total: 400}), true)
	r.message(table, fromNode2, packets[0], len(packets[0]))
	other := &hop{addr: node("192.168.77.%d", 9), hello: new(hello)} // of no pods
	table.nodes[other.addr] = other
	r.message(table, netip.AddrPortFrom(other.addr, fromNode2.Port()), packets[1], len(packets[1]))
	r.merger.flush()
	if s := r.path.Stats(); len(*out) != 1 || s.Dropped["spoofed"] != 1 || s.Received != 2 {
		t.Errorf("%d packets came out, %d received, dropped %v; want one, and one dropped as spoofed", len(*out), s.Received, s.Dropped)
	}
}

// A pod's packet with a wrong checksum must arrive with a wrong one, also one that looks as if it were still
// to be computed; and one that is right by chance then must stay as it is.
func TestWrongChecksumsStayWrong(t *testing.T) {
	for _, k := range kinds() {
		if k.total > k.size {
			continue
		}
		good := split(t, superpacket(k), false)[0]
		f, ok := findTransport(good)
		if !ok {
			t.Fatalf("%+v: no transport", k)
		}
		field := f.at + f.sum
		looksPartial, damaged, lucky := bytes.Clone(good), bytes.Clone(good), bytes.Clone(good)
		putSum(looksPartial[field:], f.partial(good, len(good)))
		damaged[len(damaged)-1] ^= 0x40
		for name, p := range map[string][]byte{"as if it were partial": looksPartial, "damaged": damaged, "right": good} {
			wrong := rightSums(p) != nil
			raw := append(make([]byte, headerLen), bytes.Clone(p)...) // the kernel says nothing of a checksum
			out := merge(split(t, raw, true))
			if len(out) != 1 {
				t.Fatalf("%+v: %s: %d packets", k, name, len(out))
			}
			if err := rightSums(split(t, out[0], false)[0]); (err != nil) != wrong {
				t.Errorf("%+v: %s: the checksum was wrong: %v; afterwards: %v", k, name, wrong, err)
			}
		}
		if k.udp && k.total >= 4 { // a payload with which the right checksum looks partial
			body := lucky[f.at+udpLen:]
			clear(body)
			putSum(lucky[field:], f.partial(lucky, len(lucky)))
			at := len(body) &^ 1 // an even place
			rest := fold(sum(lucky[f.at:], pseudo(lucky, f.proto, len(lucky)-f.at)))
			putSum(body[at-2:], ^rest)
			if err := rightSums(lucky); err != nil {
				t.Fatalf("%+v: the test's own packet: %v", k, err)
			}
			raw := append(make([]byte, headerLen), bytes.Clone(lucky)...)
			if got := split(t, raw, true)[0]; !bytes.Equal(got, lucky) {
				t.Errorf("%+v: a right checksum was changed", k)
			}
		}
	}
}

// FuzzNext: as TestNextIsWhatAddWouldDo, for whatever comes.
func FuzzNext(f *testing.F) {
	for i, k := range []kind{{is4: true, size: 100, total: 450, options: 12}, {size: 100, total: 450}, {is4: true, udp: true, size: 100, total: 450}, {udp: true, size: 300, total: 700}} {
		packets := split(f, superpacket(k), i != 1)
		f.Add(bytes.Join(packets, nil), uint16(len(packets[0])))
	}
	f.Fuzz(func(t *testing.T, b []byte, size uint16) {
		quick, outQuick := newReceiverOnly(t)
		slow, outSlow := newReceiverOnly(t)
		table, n := quick.path.table.Load(), max(1, int(size))
		quick.message(table, fromNode2, bytes.Clone(b), n)
		quick.merger.flush()
		rest := bytes.Clone(b)
		for len(rest) > 0 {
			k := min(n, len(rest))
			slow.packet(table, table.nodes[fromNode2.Addr()], rest[:k:k])
			rest = rest[k:]
		}
		slow.merger.flush()
		if !slices.EqualFunc(*outQuick, *outSlow, bytes.Equal) {
			t.Fatalf("%d packets came out, want %d, or others", len(*outQuick), len(*outSlow))
		}
		if a, b := fmt.Sprint(quick.path.Stats().Dropped, quick.path.Stats().Received), fmt.Sprint(slow.path.Stats().Dropped, slow.path.Stats().Received); a != b {
			t.Fatalf("counted %s, want %s", a, b)
		}
	})
}
