package overlay

import (
	"hash/fnv"
	"math/big"
	"net/netip"
)

// maxBlocks bounds how many blocks of a range are looked at.
const maxBlocks = 1 << 16

// FreeBlock picks a block of bits length out of a range that overlaps none of taken. Where it begins to
// look follows from the node's name and the attempt, so that nodes which look at once seldom want the same
// one. There is none when all are taken, of the first 65536 for large ranges.
func FreeBlock(from netip.Prefix, bits int, taken []netip.Prefix, node string, attempt int) (netip.Prefix, bool) {
	if !from.IsValid() || bits < from.Bits() || bits > from.Addr().BitLen() {
		return netip.Prefix{}, false
	}
	count := maxBlocks
	if bits-from.Bits() < 16 {
		count = 1 << (bits - from.Bits())
	}
	h := fnv.New32a()
	_, _ = h.Write([]byte{byte(attempt), byte(attempt >> 8)}) // a hash does not fail
	_, _ = h.Write([]byte(node))
	start := int(h.Sum32() % uint32(count))
	for i := range count {
		b := block(from, bits, (start+i)%count)
		free := true
		for _, t := range taken {
			if t.Overlaps(b) {
				free = false
				break
			}
		}
		if free {
			return b, true
		}
	}
	return netip.Prefix{}, false
}

// block is the n-th block of a range.
func block(from netip.Prefix, bits, n int) netip.Prefix {
	size := from.Addr().BitLen()
	sum := new(big.Int).SetBytes(from.Masked().Addr().AsSlice())
	sum.Add(sum, new(big.Int).Lsh(big.NewInt(int64(n)), uint(size-bits)))
	raw := make([]byte, size/8)
	sum.FillBytes(raw)
	a, _ := netip.AddrFromSlice(raw)
	return netip.PrefixFrom(a, bits)
}
