package route_test

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/braidnet/braid/internal/kernel/route"
)

func TestGet(t *testing.T) {
	ns, h, _ := machine(t)
	ns.Exec(t, "ip", "addr", "add", "198.51.100.1/24", "dev", "eth1")
	ns.Exec(t, "ip", "link", "set", "eth1", "mtu", "1300")
	ns.Exec(t, "ip", "route", "add", "203.0.113.0/24", "via", "192.0.2.9", "mtu", "1400")
	ns.Exec(t, "ip", "route", "add", "203.0.114.0/24", "nexthop", "via", "192.0.2.9", "nexthop", "via", "198.51.100.9")
	ns.Exec(t, "ip", "-6", "route", "add", "2001:db8:7::/64", "via", "2001:db8::9", "mtu", "1420")
	// What a rule says counts: from this source, there is another table.
	ns.Exec(t, "ip", "addr", "add", "192.0.2.5/32", "dev", "eth0")
	ns.Exec(t, "ip", "rule", "add", "from", "192.0.2.5", "lookup", "77")
	ns.Exec(t, "ip", "route", "add", "203.0.113.0/24", "via", "192.0.2.9", "mtu", "1350", "table", "77")
	tab := readTable(t, h)
	for _, tc := range []struct {
		to, from, dev string
		want          route.Way
	}{
		{"192.0.2.7", "", "", route.Way{Dev: "eth0", From: netip.MustParseAddr("192.0.2.1"), MTU: 1500}},
		{"203.0.113.7", "", "", route.Way{Dev: "eth0", From: netip.MustParseAddr("192.0.2.1"), MTU: 1400}},
		{"203.0.113.7", "192.0.2.5", "", route.Way{Dev: "eth0", From: netip.MustParseAddr("192.0.2.5"), MTU: 1350}},
		{"198.51.100.7", "", "", route.Way{Dev: "eth1", From: netip.MustParseAddr("198.51.100.1"), MTU: 1300}},
		{"2001:db8:7::7", "", "", route.Way{Dev: "eth0", From: netip.MustParseAddr("2001:db8::1"), MTU: 1420}},
		{"2001:db8:7::7", "2001:db8::1", "eth0", route.Way{Dev: "eth0", From: netip.MustParseAddr("2001:db8::1"), MTU: 1420}},
	} {
		from, _ := netip.ParseAddr(tc.from)
		got, err := route.Get(h, tab, netip.MustParseAddr(tc.to), from, tc.dev)
		if err != nil || got != tc.want {
			t.Errorf("to %s from %q: %+v, %v, want %+v", tc.to, tc.from, got, err, tc.want)
		}
	}
	if w, err := route.FIB(h, tab, netip.MustParseAddr("203.0.114.7"), netip.Addr{}, ""); err != nil || w.MTU != 1300 || w.Dev != "eth1" {
		t.Errorf("two ways: %+v, %v, want the narrower", w, err)
	}
	if w, err := route.Get(h, tab, netip.MustParseAddr("10.0.0.1"), netip.Addr{}, ""); err == nil {
		t.Errorf("no route: %+v", w)
	}
}

func TestDefaults(t *testing.T) {
	ns, h, tab := machine(t)
	if devs, err := route.Defaults(h, tab, true); err != nil || len(devs) != 0 {
		t.Errorf("%v, %v, want none", devs, err)
	}
	ns.Exec(t, "ip", "addr", "add", "198.51.100.1/24", "dev", "eth1")
	ns.Exec(t, "ip", "route", "add", "10.0.0.0/8", "via", "192.0.2.9")
	ns.Exec(t, "ip", "route", "add", "default", "via", "192.0.2.9", "metric", "200")
	ns.Exec(t, "ip", "route", "add", "default", "via", "198.51.100.9", "metric", "100")
	ns.Exec(t, "ip", "-6", "route", "add", "default", "via", "2001:db8::9")
	for is4, want := range map[bool][]string{true: {"eth1", "eth0"}, false: {"eth0"}} {
		if devs, err := route.Defaults(h, tab, is4); err != nil || !slices.Equal(devs, want) {
			t.Errorf("%v, %v, want %v", devs, err, want)
		}
	}
}

// A route's MTU is written, read back, and told apart.
func TestRouteMTU(t *testing.T) {
	_, h, tab := machine(t)
	for _, r := range []struct{ dst, via string }{{"10.244.2.0/24", "192.0.2.2"}, {"fd00:2::/64", "2001:db8::2"}} {
		for _, mtu := range []int{1400, 1350, 0} {
			want := routeTo(r.dst, r.via, "eth0", false)
			want.MTU = mtu
			apply(t, h, tab, want)
		}
	}
}

func BenchmarkFIB(b *testing.B) {
	_, h, tab := machine(b)
	for b.Loop() {
		if _, err := route.FIB(h, tab, netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("192.0.2.1"), "eth0"); err != nil {
			b.Fatal(err)
		}
	}
}
