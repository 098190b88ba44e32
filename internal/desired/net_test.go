package desired

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func TestParseMAC(t *testing.T) {
	for in, ok := range map[string]bool{
		"02:00:5e:10:00:01": true, "0a-00-00-00-00-01": true, "00:00:00:00:00:00": false,
		"01:00:5e:00:00:01": false, "ff:ff:ff:ff:ff:ff": false, "": false, "x": false,
		"02:00:00:00:00:00:00:01": false,
	} {
		if _, err := ParseMAC(in); (err == nil) != ok {
			t.Errorf("ParseMAC(%q) error = %v, want valid = %v", in, err, ok)
		}
	}
}

// Applying what Diff says must give exactly the wanted set, and a second Diff must be empty.
func TestDiffReachesWhatIsWanted(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	draw := func(distinct bool) (out []Route) {
		for range rng.IntN(12) {
			r := Route{Dst: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(rng.IntN(6)), 0}), 24),
				Dev: "d", MTU: rng.IntN(3), Origin: string(rune('a' + rng.IntN(3)))}
			if distinct && slices.ContainsFunc(out, func(o Route) bool { return o.Dst == r.Dst }) {
				continue
			}
			out = append(out, r)
		}
		return out
	}
	for range 2000 {
		want, have := draw(true), draw(false)
		got := slices.Clone(have)
		for _, e := range Diff(want, have) {
			if e.Old != nil {
				i := slices.Index(got, *e.Old)
				if i < 0 {
					t.Fatalf("edit of something that is not there: %v", Text(e))
				}
				got = slices.Delete(got, i, i+1)
			}
			if e.New != nil {
				got = append(got, *e.New)
			}
		}
		if len(got) != len(want) {
			t.Fatalf("want %v\nhave %v\ngot  %v", want, have, got)
		}
		if again := Diff(want, got); len(again) != 0 {
			t.Fatalf("second diff: %v", again)
		}
	}
}

// Two devices that differ in what the kernel holds must not read alike, in logs and in status.
func TestTextsTellKindsApart(t *testing.T) {
	texts := map[string]bool{}
	for kind := KindVXLAN; kind <= KindWireGuard; kind++ {
		texts[Link{Name: "d", Kind: kind, MTU: 1400}.String()] = true
	}
	if len(texts) != 5 {
		t.Errorf("%d texts of 5 kinds: %v", len(texts), texts)
	}
}

func TestDiffIgnoresTheReason(t *testing.T) {
	a := []Addr{{Dev: "d", Prefix: netip.MustParsePrefix("10.0.0.0/32"), Origin: "Node a (x.yaml:1)"}}
	b := []Addr{{Dev: "d", Prefix: netip.MustParsePrefix("10.0.0.0/32"), Origin: "Node a (x.yaml:9)"}}
	if d := Diff(a, b); len(d) != 0 {
		t.Errorf("a moved document must change nothing: %v", d)
	}
	if l := (Link{Name: "d", Origin: "Node a"}); !Same(l, Link{Name: "d"}) || Same(l, Link{Name: "d", MTU: 1}) {
		t.Error("devices must be compared by all but the reason")
	}
	if got := Text(Diff(a, nil)[0]); !strings.Contains(got, "x.yaml:1") {
		t.Errorf("%q does not say why", got)
	}
}
