package neigh_test

import (
	"cmp"
	"net/netip"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/braidnet/braid/internal/desired"
	"github.com/braidnet/braid/internal/kernel/link"
	"github.com/braidnet/braid/internal/kernel/neigh"
	"github.com/braidnet/braid/internal/kernel/netns/nstest"
)

const dev = "braid.vx6"

func machine(t *testing.T) (*nstest.NS, *netlink.Handle, *link.Table) {
	t.Helper()
	ns := nstest.New(t)
	nstest.Veth(t, ns, "eth0", nstest.New(t), "eth0")
	ns.Exec(t, "ip", "addr", "add", "2001:db8::1/64", "dev", "eth0", "nodad")
	ns.Exec(t, "ip", "link", "add", dev, "type", "vxlan", "id", "1", "dstport", "8472", "dev", "eth0", "local", "2001:db8::1", "nolearning")
	ns.Exec(t, "ip", "link", "set", dev, "up")
	ns.Exec(t, "ip", "neigh", "add", "192.0.2.7", "lladdr", "02:00:00:00:00:07", "nud", "permanent", "dev", "eth0")
	h, err := link.OpenAt(ns.Fd())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Close)
	tab, err := link.ReadTable(h)
	if err != nil {
		t.Fatal(err)
	}
	return ns, h, tab
}

// run applies edits twice each way and compares with the kernel after every step.
func run[T desired.Object[T, K], K comparable](t *testing.T, list func() ([]T, error), apply func(desired.Edit[T]) error, before, after []T) {
	t.Helper()
	expect := func(want []T) {
		t.Helper()
		got, err := list()
		slices.SortFunc(got, func(a, b T) int { return cmp.Compare(a.String(), b.String()) })
		if err != nil || !slices.Equal(got, want) {
			t.Fatalf("kernel has %v, %v, want %v", got, err, want)
		}
	}
	for _, want := range [][]T{before, before, after} {
		for i := range want {
			if err := apply(desired.Edit[T]{New: &want[i]}); err != nil {
				t.Fatal(err)
			}
		}
		expect(want)
	}
	for range 2 {
		for i := range after {
			if err := apply(desired.Edit[T]{Old: &after[i]}); err != nil {
				t.Fatal(err)
			}
		}
		expect(nil)
	}
}

func TestNeighbours(t *testing.T) {
	ns, h, tab := machine(t)
	ns.Exec(t, "ip", "neigh", "add", "10.0.0.9", "lladdr", "02:00:00:00:00:07", "nud", "stale", "dev", dev)
	entry := func(ip string, last byte) desired.Neigh {
		return desired.Neigh{Dev: dev, IP: netip.MustParseAddr(ip), MAC: desired.MAC{2, 0, 0, 0, 0, last}}
	}
	run(t, func() ([]desired.Neigh, error) { return neigh.List(h, tab) },
		func(e desired.Edit[desired.Neigh]) error { return neigh.Apply(h, tab, e) },
		[]desired.Neigh{entry("10.244.2.0", 2), entry("fd00:2::", 2)}, []desired.Neigh{entry("10.244.2.0", 3), entry("fd00:2::", 4)})
	gone := entry("10.0.0.1", 1)
	gone.Dev = "none"
	if err := neigh.Apply(h, tab, desired.Edit[desired.Neigh]{New: &gone}); err == nil {
		t.Error("an entry was added to a device that is not there")
	}
}

func TestForwardingEntries(t *testing.T) {
	_, h, tab := machine(t)
	entry := func(last byte, dst string) desired.FDB {
		return desired.FDB{Dev: dev, MAC: desired.MAC{2, 0, 0, 0, 0, last}, Dst: netip.MustParseAddr(dst)}
	}
	run(t, func() ([]desired.FDB, error) { return neigh.ListFDB(h, tab) },
		func(e desired.Edit[desired.FDB]) error { return neigh.ApplyFDB(h, tab, e) },
		[]desired.FDB{entry(2, "2001:db8::2"), entry(3, "2001:db8::3")}, []desired.FDB{entry(2, "2001:db8::9"), entry(3, "2001:db8::3")})
}
