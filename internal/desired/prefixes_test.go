package desired

import (
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"testing"
)

func prefixList(list ...string) (out []netip.Prefix) {
	for _, p := range list {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

func TestAggregate(t *testing.T) {
	got := Aggregate(prefixList("10.244.3.0/24", "10.244.0.0/24", "10.244.2.0/24", "10.244.1.0/24", "10.244.5.0/24", "10.244.2.128/25", "fd00::/64", "fd00:0:0:1::/64"))
	want := prefixList("10.244.0.0/22", "10.244.5.0/24", "fd00::/63")
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// TestAggregateCoversTheSame compares with the plain question "is the address in any prefix".
func TestAggregateCoversTheSame(t *testing.T) {
	for seed := range uint64(200) {
		rnd := rand.New(rand.NewPCG(seed, 2))
		var list []netip.Prefix
		for range rnd.IntN(20) {
			list = append(list, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(rnd.IntN(256))}), 24+rnd.IntN(9)).Masked())
		}
		merged := Aggregate(list)
		for i := range 256 {
			a := netip.AddrFrom4([4]byte{10, 0, 0, byte(i)})
			in := func(p netip.Prefix) bool { return p.Contains(a) }
			if slices.ContainsFunc(list, in) != slices.ContainsFunc(merged, in) {
				t.Fatalf("seed %d: %v became %v, which differs at %s", seed, list, merged, a)
			}
		}
		if len(merged) > len(list) {
			t.Fatalf("seed %d: %v became more: %v", seed, list, merged)
		}
	}
}

// TestNFTRanges compares ranges with asking every prefix.
func TestNFTRanges(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for range 500 {
		var prefixes []netip.Prefix
		for range rng.IntN(6) {
			a := netip.AddrFrom4([4]byte{255, 255, byte(0xf0 | rng.IntN(16)), byte(rng.IntN(256))})
			prefixes = append(prefixes, netip.PrefixFrom(a, 20+rng.IntN(13)))
		}
		if rng.IntN(20) == 0 {
			prefixes = append(prefixes, netip.MustParsePrefix("0.0.0.0/0"))
		}
		ranges := NFTRanges(NFTIPv4, "s", prefixes)
		for i, r := range ranges[:max(0, len(ranges)-1)] {
			if r.End == "" || r.End >= ranges[i+1].Key {
				t.Fatalf("%v: ranges %x overlap or touch", prefixes, ranges)
			}
		}
		for a := netip.MustParseAddr("255.255.239.0"); a.IsValid(); a = a.Next() {
			key := string(a.AsSlice())
			want := slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(a) })
			got := slices.ContainsFunc(ranges, func(r NFTElement) bool { return r.Key <= key && (r.End == "" || key < r.End) })
			if got != want {
				t.Fatalf("%v: %s inside is %v, ranges %x", prefixes, a, want, ranges)
			}
		}
	}
}
