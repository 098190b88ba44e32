package ipam

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func addr(s string) netip.Addr {
	if s == "" {
		return netip.Addr{}
	}
	return netip.MustParseAddr(s)
}

func mustRange(t testing.TB, subnet, first, last, gw string) Range {
	t.Helper()
	r, err := NewRange(netip.MustParsePrefix(subnet), addr(first), addr(last), addr(gw))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestNewRange(t *testing.T) {
	for _, c := range []struct {
		subnet, first, last, gw string
		want                    string // "first-last gateway" or a part of the error
	}{
		{"10.244.1.0/24", "", "", "", "10.244.1.1-10.244.1.254 10.244.1.1"},
		{"10.0.0.0/30", "", "", "", "10.0.0.1-10.0.0.2 10.0.0.1"},
		{"10.0.0.0/22", "", "", "10.0.3.254", "10.0.0.1-10.0.3.254 10.0.3.254"},
		{"fd00:10:244:1::/64", "", "", "", "fd00:10:244:1::1-fd00:10:244:1:ffff:ffff:ffff:ffff fd00:10:244:1::1"},
		{"fd00::/120", "fd00::10", "fd00::20", "fd00::ff", "fd00::10-fd00::20 fd00::ff"},
		{"10.0.0.5/24", "", "", "", "host bits set: expected 10.0.0.0/24"},
		{"10.0.0.0/31", "", "", "", "too small"},
		{"fd00::/127", "", "", "", "expected /126"},
		{"10.0.0.0/24", "10.0.1.1", "", "", "rangeStart is 10.0.1.1: expected a host address of subnet 10.0.0.0/24"},
		{"10.0.0.0/24", "", "fd00::1", "", "rangeEnd is fd00::1"},
		{"10.0.0.0/24", "", "", "10.0.0.0", "gateway is 10.0.0.0"},
		{"10.0.0.0/24", "10.0.0.9", "10.0.0.8", "", "expected the lower address first"},
	} {
		r, err := NewRange(netip.MustParsePrefix(c.subnet), addr(c.first), addr(c.last), addr(c.gw))
		got := r.String() + " " + r.Gateway.String()
		if err != nil {
			got = err.Error()
		}
		if !strings.Contains(got, c.want) {
			t.Errorf("%s %s %s %s: got %q, want %q", c.subnet, c.first, c.last, c.gw, got, c.want)
		}
	}
}

func TestCheck(t *testing.T) {
	four := mustRange(t, "10.0.0.0/24", "", "", "")
	low := mustRange(t, "10.0.0.0/24", "10.0.0.2", "10.0.0.9", "")
	high := mustRange(t, "10.0.0.0/24", "10.0.0.10", "", "")
	six := mustRange(t, "fd00::/64", "", "", "")
	for _, c := range []struct {
		sets []Set
		want string
	}{
		{[]Set{{four}, {six}}, ""},
		{[]Set{{low, high}, {six}}, ""},
		{[]Set{{low}, {high}}, ""},
		{[]Set{{four}, {}}, "ranges[1] is empty"},
		{[]Set{{four, six}}, "ranges[0][1].subnet is fd00::/64: expected the family of 10.0.0.0/24"},
		{[]Set{{six}, {high, four}}, "ranges[1][1] is 10.0.0.1-10.0.0.254: expected no overlap with ranges[1][0]"},
	} {
		err := Check(c.sets)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v: got %v, want %q", c.sets, err, c.want)
		}
	}
}

// naivePick lists every address of the set and walks the list.
func naivePick(s Set, last netip.Addr, taken map[netip.Addr]bool) netip.Addr {
	var all []netip.Addr
	for _, r := range s {
		for a := r.First; ; a = a.Next() {
			all = append(all, a)
			if a == r.Last {
				break
			}
		}
	}
	from := slices.Index(all, last) + 1 // 0 when last is not there
	for i := range all {
		if a := all[(from+i)%len(all)]; !taken[a] {
			return a
		}
	}
	return netip.Addr{}
}

func TestPickAgainstNaiveModel(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	bases := []string{"10.0.0.0", "10.0.255.0", "fd00::", "fd00::ffff:0:0:ff00"}
	for round := range 2000 {
		base := addr(bases[rng.IntN(len(bases))])
		var set Set
		at := base.Next()
		for range 1 + rng.IntN(3) {
			for range rng.IntN(3) {
				at = at.Next()
			}
			r := Range{Subnet: netip.PrefixFrom(base, base.BitLen()-16).Masked(), First: at, Last: at, Gateway: base.Next()}
			for range rng.IntN(6) {
				r.Last = r.Last.Next()
			}
			at = r.Last.Next()
			set = append(set, r)
		}
		rng.Shuffle(len(set), func(i, j int) { set[i], set[j] = set[j], set[i] })
		taken := map[netip.Addr]bool{}
		var last netip.Addr
		for step := range 30 {
			want := naivePick(set, last, taken)
			lease, ok := set.Pick(last, func(a netip.Addr) bool { return taken[a] })
			if ok != want.IsValid() || lease.Addr != want {
				t.Fatalf("round %d step %d: set %v last %v taken %v: picked %v, the model %v", round, step, set, last, taken, lease.Addr, want)
			}
			if ok {
				taken[want], last = true, want
			}
			for a := range taken {
				if rng.IntN(4) == 0 {
					delete(taken, a)
				}
			}
		}
	}
}

func TestPickGatewayOfTheRange(t *testing.T) {
	set := Set{mustRange(t, "10.0.0.0/30", "", "", ""), mustRange(t, "10.0.1.0/30", "", "", "10.0.1.2")}
	lease, ok := set.Pick(addr("10.0.0.2"), func(netip.Addr) bool { return false })
	if want := (Lease{addr("10.0.1.1"), addr("10.0.1.2"), netip.MustParsePrefix("10.0.1.0/30")}); !ok || lease != want {
		t.Errorf("got %v %v, want %v", lease, ok, want)
	}
}
