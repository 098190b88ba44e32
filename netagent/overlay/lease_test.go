package overlay

import (
	"fmt"
	"net/netip"
	"testing"
)

func TestFreeBlockGivesAwayAllBlocksOnce(t *testing.T) {
	for _, tc := range []struct {
		from  string
		bits  int
		count int
	}{{"10.244.0.0/16", 24, 256}, {"10.244.0.0/22", 22, 1}, {"fd00:10:244::/56", 64, 256}, {"10.0.0.0/24", 28, 16}} {
		from := netip.MustParsePrefix(tc.from)
		var taken []netip.Prefix
		for i := range tc.count {
			b, ok := FreeBlock(from, tc.bits, taken, fmt.Sprintf("node-%d", i), i%3)
			if !ok || b != b.Masked() || b.Bits() != tc.bits || !from.Contains(b.Addr()) {
				t.Fatalf("%s: %d-th block is %s, %v", tc.from, i, b, ok)
			}
			for _, o := range taken {
				if o.Overlaps(b) {
					t.Fatalf("%s: %s overlaps %s", tc.from, b, o)
				}
			}
			taken = append(taken, b)
		}
		if b, ok := FreeBlock(from, tc.bits, taken, "late", 0); ok {
			t.Errorf("%s: a block %s beyond the last", tc.from, b)
		}
	}
	large := netip.MustParsePrefix("fd00::/16")
	if b, ok := FreeBlock(large, 64, []netip.Prefix{large}, "n", 0); ok {
		t.Errorf("%s of a range that is taken as a whole", b)
	}
	for _, bits := range []int{15, 129} {
		if b, ok := FreeBlock(large, bits, nil, "n", 0); ok {
			t.Errorf("block %s of length %d", b, bits)
		}
	}
}
