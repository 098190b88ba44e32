package icmp_test

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/braidnet/braid/internal/kernel/icmp"
	"github.com/braidnet/braid/internal/kernel/netns/nstest"
	"github.com/braidnet/braid/internal/kernel/sysctl"
)

// wire is two machines with a router between them, whose far link takes 1400 bytes and which tells nobody.
func wire(t *testing.T) (near *nstest.NS) {
	t.Helper()
	near, router, far := nstest.New(t), nstest.New(t), nstest.New(t)
	nstest.Veth(t, near, "eth0", router, "near")
	nstest.Veth(t, router, "far", far, "eth0")
	near.Exec(t, "ip", "addr", "add", "192.0.2.1/24", "dev", "eth0")
	near.Exec(t, "ip", "addr", "add", "2001:db8:1::1/64", "dev", "eth0", "nodad")
	router.Exec(t, "ip", "addr", "add", "192.0.2.254/24", "dev", "near")
	router.Exec(t, "ip", "addr", "add", "2001:db8:1::fe/64", "dev", "near", "nodad")
	router.Exec(t, "ip", "addr", "add", "198.51.100.254/24", "dev", "far")
	router.Exec(t, "ip", "addr", "add", "2001:db8:2::fe/64", "dev", "far", "nodad")
	far.Exec(t, "ip", "addr", "add", "198.51.100.1/24", "dev", "eth0")
	far.Exec(t, "ip", "addr", "add", "2001:db8:2::1/64", "dev", "eth0", "nodad")
	near.Exec(t, "ip", "route", "add", "default", "via", "192.0.2.254")
	near.Exec(t, "ip", "route", "add", "default", "via", "2001:db8:1::fe")
	far.Exec(t, "ip", "route", "add", "default", "via", "198.51.100.254")
	far.Exec(t, "ip", "route", "add", "default", "via", "2001:db8:2::fe")
	router.Sysctl(t, "net/ipv4/ip_forward", "1")
	router.Sysctl(t, "net/ipv6/conf/all/forwarding", "1")
	router.Exec(t, "ip", "link", "set", "far", "mtu", "1400")
	router.Exec(t, "nft", "table inet quiet {\nchain out {\ntype filter hook output priority 0;\nicmp type destination-unreachable drop\nicmpv6 type packet-too-big drop\n}\n}")
	return near
}

func TestAsk(t *testing.T) {
	near := wire(t)
	for name, groups := range map[string]string{"raw socket": "1 0", "ping socket": "0 0"} {
		t.Run(name, func(t *testing.T) {
			near.Sysctl(t, "net/ipv4/ping_group_range", groups)
			for _, to := range []string{"198.51.100.1", "2001:db8:2::1"} {
				addr := netip.MustParseAddr(to)
				nstest.Wait(t, "answers from "+to, func() error { return ask(near, addr, []int{100, 1399, 1400}, 5*time.Second) })
				near.Run(t, func() error {
					got, err := icmp.Echo(t.Context(), addr, []int{1401, 1500, 9000}, 300*time.Millisecond)
					if slices.Contains(got, true) {
						t.Errorf("%s: answers to %v of 1401, 1500, 9000 bytes", to, got)
					}
					return err
				})
			}
		})
	}
}

type unanswered struct{ err error }

func (u unanswered) Error() string { return "no answer" }

func ask(ns *nstest.NS, to netip.Addr, sizes []int, wait time.Duration) error {
	return ns.Do(func() error {
		got, err := icmp.Echo(context.Background(), to, sizes, wait)
		if err != nil || slices.Contains(got, false) {
			return unanswered{err}
		}
		return nil
	})
}

// Without NET_RAW, and where no group may ask, the group root is let in. What somebody else has set stays, and the error says
// what to give.
func TestAskWithoutRaw(t *testing.T) {
	near := wire(t)
	to := netip.MustParseAddr("198.51.100.1")
	nstest.Wait(t, "an answer", func() error { return ask(near, to, []int{100}, time.Second) })
	without := func(fn func() error) error {
		return near.Do(func() error { // capabilities are those of the thread
			header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
			var caps [2]unix.CapUserData
			if err := unix.Capget(&header, &caps[0]); err != nil {
				return err
			}
			less := caps
			less[0].Effective &^= 1 << unix.CAP_NET_RAW
			if err := unix.Capset(&header, &less[0]); err != nil {
				return err
			}
			return errors.Join(fn(), unix.Capset(&header, &caps[0]))
		})
	}
	near.Sysctl(t, "net/ipv4/ping_group_range", "7 7")
	err := without(func() error { _, err := icmp.Echo(t.Context(), to, []int{100}, time.Second); return err })
	if err == nil || !strings.Contains(err.Error(), "NET_RAW") || !strings.Contains(err.Error(), "ping_group_range") {
		t.Errorf("%v: want a word on what to give", err)
	}
	near.Sysctl(t, "net/ipv4/ping_group_range", "1 0")
	err = without(func() error {
		if got, err := icmp.Echo(t.Context(), to, []int{100}, 5*time.Second); err != nil || !got[0] {
			t.Errorf("%v, %v", got, err)
		}
		if groups, err := sysctl.Get("net/ipv4/ping_group_range"); err != nil || strings.Fields(groups)[1] != "0" {
			t.Errorf("groups %q, %v", groups, err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestAskEnds(t *testing.T) {
	near := wire(t)
	nobody := netip.MustParseAddr("192.0.2.99")
	ctx, cancel := context.WithCancel(t.Context())
	near.Run(t, func() error {
		time.AfterFunc(20*time.Millisecond, cancel)
		got, err := icmp.Echo(ctx, nobody, []int{100}, time.Hour) // a test that hangs here has failed
		if err != nil || got[0] {
			t.Errorf("%v, %v", got, err)
		}
		if got, err := icmp.Echo(t.Context(), netip.MustParseAddr("198.51.100.1"), []int{30}, time.Second); err == nil || !strings.Contains(err.Error(), "44 to 65535") {
			t.Errorf("%v, %v: want a word on the size", got, err)
		}
		return nil
	})
	alone := nstest.New(t)
	if err := ask(alone, nobody, []int{100}, time.Second); err == nil {
		t.Error("an answer from nowhere")
	}
}
