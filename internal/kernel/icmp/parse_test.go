package icmp

import (
	"net/netip"
	"testing"
)

// FuzzParse reads what anybody may send.
func FuzzParse(f *testing.F) {
	token := [tokenLen]byte{1, 2, 3}
	f.Add([]byte{0x45}, true, true)
	f.Add(append([]byte{reply4, 0, 0, 0, 0, 0, 0, 7}, token[:]...), true, false)
	f.Add(append([]byte{reply6, 0, 0, 0, 0, 0, 0, 7}, token[:]...), false, false)
	f.Fuzz(func(t *testing.T, p []byte, is4, raw bool) {
		from := netip.IPv6LinkLocalAllNodes()
		if is4 {
			from = netip.AddrFrom4([4]byte{192, 0, 2, 1})
		}
		if seq, size, err := parse(p, from, raw, token); err == nil && (seq < 0 || seq >= maxSequences || size < MinSize(from)) {
			t.Errorf("%x: %d, %d", p, seq, size)
		}
	})
}

func TestChecksum(t *testing.T) {
	for _, p := range [][]byte{{8, 0, 0, 0, 0x12, 0x34, 0, 1, 'a', 'b', 'c'}, {0, 0, 0, 0}, {255, 255, 0, 0, 255, 255}} {
		sum := checksum(p)
		p[2], p[3] = byte(sum>>8), byte(sum)
		if checksum(p) != 0 {
			t.Errorf("%x does not add up", p)
		}
	}
}
