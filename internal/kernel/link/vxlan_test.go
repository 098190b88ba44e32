package link_test

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/braidnet/braid/internal/desired"
	"github.com/braidnet/braid/internal/kernel/link"
	"github.com/braidnet/braid/internal/kernel/netns/nstest"
)

// machine makes a namespace with an underlay device eth0 and a handle in it.
func machine(t *testing.T) (*nstest.NS, *netlink.Handle) {
	t.Helper()
	ns := nstest.New(t)
	nstest.Veth(t, ns, "eth0", nstest.New(t), "eth0")
	ns.Exec(t, "ip", "addr", "add", "192.0.2.1/24", "dev", "eth0")
	ns.Exec(t, "ip", "addr", "add", "2001:db8::1/64", "dev", "eth0", "nodad")
	h, err := link.OpenAt(ns.Fd())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Close)
	return ns, h
}

func table(t *testing.T, h *netlink.Handle) *link.Table {
	t.Helper()
	tab, err := link.ReadTable(h)
	if err != nil {
		t.Fatal(err)
	}
	return tab
}

func wanted(name, local string) desired.Link {
	return desired.Link{Name: name, MTU: 1400, MAC: desired.MAC{2, 0, 0, 0, 0, 1}, Origin: "the test",
		VXLAN: desired.VXLAN{VNI: 5, Port: 8472, Underlay: "eth0", Local: netip.MustParseAddr(local)}}
}

func TestEnsureVXLAN(t *testing.T) {
	for name, local := range map[string]string{"braid.vx4": "192.0.2.1", "braid.vx6": "2001:db8::1"} {
		t.Run(name, func(t *testing.T) {
			_, h := machine(t)
			want := wanted(name, local)
			ensure := func() []string {
				t.Helper()
				done, err := link.Ensure(h, table(t, h), want)
				if err != nil {
					t.Fatal(err)
				}
				ours := table(t, h).Ours
				if len(ours) != 1 || !desired.Same(ours[0].Link, want) || !ours[0].Up {
					t.Fatalf("the kernel has %+v, want %+v up", ours, want)
				}
				return done
			}
			if done := ensure(); len(done) != 1 || !strings.HasPrefix(done[0], "added") {
				t.Errorf("first: %q", done)
			}
			index := table(t, h).Index(name)
			if done := ensure(); len(done) != 0 {
				t.Errorf("second: %q, want nothing done", done)
			}
			want.MTU, want.MAC[5] = 1350, 9
			if done := ensure(); len(done) != 2 || table(t, h).Index(name) != index {
				t.Errorf("MTU and address must change on the living device: %q", done)
			}
			want.VXLAN.VNI, want.VXLAN.Port, want.VXLAN.GBP = 6, 4789, true
			if done := ensure(); len(done) != 2 || table(t, h).Index(name) == index {
				t.Errorf("a new id takes a new device: %q", done)
			}
			d := table(t, h).Ours[0]
			for range 2 { // the second time there is nothing to delete
				if err := link.DeleteLink(h, d); err != nil {
					t.Error(err)
				}
			}
			if ours := table(t, h).Ours; len(ours) != 0 {
				t.Errorf("left: %v", ours)
			}
		})
	}
}

func TestEnsureVXLANErrors(t *testing.T) {
	ns, h := machine(t)
	ns.Exec(t, "ip", "link", "add", "braid.vx4", "type", "bridge")
	ns.Exec(t, "ip", "link", "add", "vxother", "type", "vxlan", "id", "5", "dstport", "8472", "dev", "eth0", "local", "2001:db8::1")
	far := wanted("braid.far", "192.0.2.1")
	far.VXLAN.Underlay = "eth9"
	for _, tc := range []struct {
		want desired.Link
		text string
	}{
		{wanted("braid.vx4", "192.0.2.1"), "ip link delete braid.vx4"},
		{wanted("braid.vx6", "2001:db8::1"), "--vni"},
		{far, "no device eth9"},
	} {
		done, err := link.Ensure(h, table(t, h), tc.want)
		if err == nil || !strings.Contains(err.Error(), tc.text) || len(done) != 0 {
			t.Errorf("%s: done %q, error %v, want %q in it", tc.want.Name, done, err, tc.text)
		}
	}
	if ours := table(t, h).Ours; len(ours) != 0 {
		t.Errorf("a bridge and another's VXLAN device are not ours: %v", ours)
	}
}

func TestAddresses(t *testing.T) {
	_, h := machine(t)
	if _, err := link.Ensure(h, table(t, h), wanted("braid.vx4", "192.0.2.1")); err != nil {
		t.Fatal(err)
	}
	tab := table(t, h)
	want := []desired.Addr{{Dev: "braid.vx4", Prefix: netip.MustParsePrefix("10.244.1.0/32")}, {Dev: "braid.vx4", Prefix: netip.MustParsePrefix("fd00:10:244:1::/128")}}
	for i := range want {
		for range 2 {
			if err := link.ApplyAddr(h, tab, desired.Edit[desired.Addr]{New: &want[i]}); err != nil {
				t.Fatal(err)
			}
		}
	}
	got, err := link.Addrs(h, tab, "braid.vx4")
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("addresses %v, %v, want %v", got, err, want)
	}
	all, err := link.HostAddrs(h, tab)
	for _, a := range []string{"192.0.2.1", "2001:db8::1"} {
		if err != nil || !slices.Contains(all, link.HostAddr{Addr: netip.MustParseAddr(a), Dev: "eth0"}) {
			t.Errorf("%s is not in %v, %v", a, all, err)
		}
	}
	if slices.ContainsFunc(all, func(a link.HostAddr) bool { return a.Addr.IsLoopback() }) || slices.Contains(tab.Names(), "lo") {
		t.Errorf("loopback holds no address of the machine: %v, %v", all, tab.Names())
	}
	for i := range want {
		for range 2 {
			if err := link.ApplyAddr(h, tab, desired.Edit[desired.Addr]{Old: &want[i]}); err != nil {
				t.Error(err)
			}
		}
	}
	if got, _ := link.Addrs(h, tab, "braid.vx4"); len(got) != 0 {
		t.Errorf("left: %v", got)
	}
	if err := link.ApplyAddr(h, tab, desired.Edit[desired.Addr]{New: &desired.Addr{Dev: "none", Prefix: want[0].Prefix}}); err == nil {
		t.Error("an address was added to a device that is not there")
	}
}

func TestDumpReadsAgain(t *testing.T) {
	calls := 0
	list, err := link.Dump(func() (int, error) {
		calls++
		return calls, []error{netlink.ErrDumpInterrupted, unix.EINTR, nil}[calls-1]
	})
	if list != 3 || err != nil {
		t.Errorf("got %d, %v, want the third read", list, err)
	}
	calls = 0
	if _, err := link.Dump(func() (int, error) { calls++; return 0, unix.EPERM }); !errors.Is(err, unix.EPERM) || calls != 1 {
		t.Errorf("%v after %d reads: other errors are for the caller", err, calls)
	}
	if _, err := link.Dump(func() (int, error) { return 0, netlink.ErrDumpInterrupted }); !errors.Is(err, netlink.ErrDumpInterrupted) {
		t.Errorf("a list that never holds still: %v", err)
	}
}
