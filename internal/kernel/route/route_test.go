package route_test

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/braidnet/braid/internal/desired"
	"github.com/braidnet/braid/internal/kernel/link"
	"github.com/braidnet/braid/internal/kernel/netns/nstest"
	"github.com/braidnet/braid/internal/kernel/route"
)

func machine(t testing.TB) (*nstest.NS, *netlink.Handle, *link.Table) {
	t.Helper()
	ns := nstest.New(t)
	for _, dev := range []string{"eth0", "eth1"} {
		nstest.Veth(t, ns, dev, nstest.New(t), dev)
	}
	ns.Exec(t, "ip", "addr", "add", "192.0.2.1/24", "dev", "eth0")
	ns.Exec(t, "ip", "addr", "add", "2001:db8::1/64", "dev", "eth0", "nodad")
	h, err := link.OpenAt(ns.Fd())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Close)
	return ns, h, readTable(t, h)
}

func readTable(t testing.TB, h *netlink.Handle) *link.Table {
	t.Helper()
	tab, err := link.ReadTable(h)
	if err != nil {
		t.Fatal(err)
	}
	return tab
}

// apply sets a route and reads it back.
func apply(t *testing.T, h *netlink.Handle, tab *link.Table, want desired.Route) {
	t.Helper()
	if err := route.Apply(h, tab, desired.Edit[desired.Route]{New: &want}); err != nil {
		t.Fatal(err)
	}
	if got, err := route.List(h, tab); err != nil || !slices.Contains(got, want) {
		t.Errorf("routes %v, %v, want %v", got, err, want)
	}
}

func routeTo(dst, via, dev string, onlink bool) desired.Route {
	return desired.Route{Dst: netip.MustParsePrefix(dst), Via: netip.MustParseAddr(via), Dev: dev, OnLink: onlink}
}

func TestApplyAndList(t *testing.T) {
	ns, h, tab := machine(t)
	ns.Exec(t, "ip", "route", "add", "10.9.0.0/16", "via", "192.0.2.9", "proto", "static")
	ns.Exec(t, "ip", "route", "add", "10.8.0.0/16", "dev", "eth0", "proto", "66")
	ns.Exec(t, "ip", "route", "add", "10.7.0.0/16", "via", "192.0.2.9", "proto", "66", "table", "77")
	set := func(list ...desired.Route) {
		t.Helper()
		for i := range list {
			if err := route.Apply(h, tab, desired.Edit[desired.Route]{New: &list[i]}); err != nil {
				t.Fatal(err)
			}
		}
		got, err := route.List(h, tab)
		slices.SortFunc(got, func(a, b desired.Route) int { return desired.ComparePrefix(a.Dst, b.Dst) })
		if err != nil || !slices.Equal(got, list) {
			t.Fatalf("routes %v, %v, want %v", got, err, list)
		}
	}
	first := []desired.Route{routeTo("10.244.2.0/24", "192.0.2.2", "eth0", false), routeTo("fd00:2::/64", "2001:db8::2", "eth0", false)}
	set(first...)
	set(first...)
	// The gateway inside the destination, on another device: IPv6 refuses while the old route covers it.
	moved := []desired.Route{routeTo("10.244.2.0/24", "10.244.2.0", "eth1", true), routeTo("fd00:2::/64", "fd00:2::", "eth1", true)}
	set(moved...)
	// Somebody else's route to the destination gives way.
	ns.Exec(t, "ip", "route", "replace", "10.244.2.0/24", "via", "192.0.2.3", "proto", "static")
	ns.Exec(t, "ip", "-6", "route", "replace", "fd00:2::/64", "via", "2001:db8::3", "proto", "static")
	set(moved...)
	for i := range moved {
		for range 2 {
			if err := route.Apply(h, tab, desired.Edit[desired.Route]{Old: &moved[i]}); err != nil {
				t.Error(err)
			}
		}
	}
	set()
	if out := ns.Exec(t, "ip", "route", "show", "table", "all"); !strings.Contains(out, "10.9.0.0/16") || !strings.Contains(out, "10.8.0.0/16") || !strings.Contains(out, "10.7.0.0/16") {
		t.Errorf("routes of others are gone:\n%s", out)
	}
}

func TestApplyErrorsHelp(t *testing.T) {
	ns, h, tab := machine(t)
	ns.Exec(t, "ip", "-6", "route", "add", "fd00::/32", "dev", "eth0")
	for _, tc := range []struct {
		r    desired.Route
		text string
	}{
		{routeTo("10.244.2.0/24", "198.51.100.2", "eth0", false), "not on the link of eth0"},
		{routeTo("10.244.2.0/24", "192.0.2.2", "none", false), "no such device"},
		{routeTo("fd00:0:2::/64", "fd00:0:2::", "eth1", true), "ip route get fd00:0:2::"},
	} {
		if err := route.Apply(h, tab, desired.Edit[desired.Route]{New: &tc.r}); err == nil || !strings.Contains(err.Error(), tc.text) {
			t.Errorf("%s: error %v, want %q in it", tc.r, err, tc.text)
		}
	}
}

func TestOnLink(t *testing.T) {
	ns, h, tab := machine(t)
	ns.Exec(t, "ip", "route", "add", "198.51.100.0/24", "dev", "eth0")
	ns.Exec(t, "ip", "route", "add", "203.0.113.0/24", "via", "192.0.2.9")
	ns.Exec(t, "ip", "route", "add", "default", "dev", "eth0")
	ns.Exec(t, "ip", "route", "add", "10.0.0.0/8", "dev", "eth1")
	for is4, want := range map[bool]string{true: "[192.0.2.0/24 198.51.100.0/24]", false: "[2001:db8::/64]"} {
		got, err := route.OnLink(h, tab, "eth0", is4)
		if err != nil {
			t.Fatal(err)
		}
		text := make([]string, len(got))
		for i := range got {
			text[i] = got[i].String()
		}
		if s := "[" + strings.Join(text, " ") + "]"; s != want {
			t.Errorf("on the link of eth0: %s, want %s", s, want)
		}
	}
}
