package fastpath

import (
	"encoding/hex"
	"flag"
	"math/rand/v2"
	"slices"
	"testing"
)

var mutations = flag.Int("fastpath.mutations", 50000, "packets that TestMutatedPackets makes")

// What FuzzPacket checks, for packets one to three steps away from good ones. Unlike the fuzzer, which
// has to build all of CoreDNS anew, it takes seconds.
func TestMutatedPackets(t *testing.T) {
	b := newBoth(t)
	seeds := packets(t)
	r := rand.New(rand.NewPCG(1, 2))
	answered := 0
	for range *mutations {
		p := slices.Clone(seeds[r.IntN(len(seeds))])
		for range 1 + r.IntN(3) {
			p = mutate(r, p, seeds)
		}
		fast := slices.Clone(b.fast(p))
		if fast == nil {
			continue
		}
		answered++
		if slow := b.slow(t, p); !sameAnswer(fast, slow) {
			t.Fatalf("%x:\nfast\n%s\nslow\n%s", p, hex.Dump(fast), hex.Dump(slow))
		}
	}
	if answered < *mutations/50 {
		t.Errorf("only %d of %d packets were answered: most say nothing", answered, *mutations)
	}
	t.Logf("%d packets, %d answered on the fast path, all like the other plugins'", *mutations, answered)
}

func mutate(r *rand.Rand, p []byte, seeds [][]byte) []byte {
	if len(p) == 0 {
		return append(p, byte(r.Uint32()))
	}
	at := r.IntN(len(p))
	switch r.IntN(7) {
	case 0:
		p[at] = byte(r.Uint32())
	case 1:
		p[at] ^= 1 << r.IntN(8)
	case 2:
		return slices.Insert(p, at, byte(r.Uint32()))
	case 3:
		return slices.Delete(p, at, at+1)
	case 4:
		return p[:at]
	case 5: // the end of another
		other := seeds[r.IntN(len(seeds))]
		return append(p[:at], other[min(at, len(other)):]...)
	case 6: // case, and characters that names rarely have
		const odd = "aAzZ09-_.\\@ \x00\xff"
		p[at] = odd[r.IntN(len(odd))]
	}
	return p
}
