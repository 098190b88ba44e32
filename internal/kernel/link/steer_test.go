package link_test

import (
	"net"
	"net/netip"
	"strconv"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/braidnet/braid/internal/desired"
	"github.com/braidnet/braid/internal/kernel/link"
	"github.com/braidnet/braid/internal/kernel/netns/nstest"
)

// TestSteer sends to several destinations by one device, and counts what leaves by the other.
func TestSteer(t *testing.T) {
	ns, far := nstest.New(t), nstest.New(t)
	for _, dev := range []string{"one", "two"} {
		nstest.Veth(t, ns, dev, far, dev)
		ns.Sysctl(t, "net/ipv6/conf/"+dev+"/router_solicitations", "0")
	}
	ns.Exec(t, "ip", "addr", "add", "10.244.0.1/16", "dev", "one")
	ns.Exec(t, "ip", "addr", "add", "fd00::1/32", "dev", "one", "nodad")
	to := []string{"10.244.1.5", "10.244.2.5", "10.244.130.5", "fd00:0:1::5", "fd00:0:2::5", "fd00:0:2:1::5"}
	for _, ip := range to {
		ns.Exec(t, "ip", "neigh", "add", ip, "lladdr", "02:00:00:00:00:01", "dev", "one")
	}
	list := func(texts ...string) (out []netip.Prefix) {
		for _, s := range texts {
			out = append(out, netip.MustParsePrefix(s))
		}
		return out
	}
	for _, tc := range []struct {
		want desired.Steering
		by   string // for each destination, 1 or 2
	}{
		{desired.Steering{}, "111111"},
		{desired.Steering{Prefixes: list("10.244.2.0/24", "fd00:0:2::/64")}, "121121"},
		{desired.Steering{Prefixes: list("10.244.2.0/24", "10.244.128.0/17", "fd00:0:2::/47")}, "122122"},
		{desired.Steering{All: true}, "222222"},
		{desired.Steering{All: true, Prefixes: list("10.244.1.0/24", "fd00:0:2::/48")}, "122211"},
		{desired.Steering{Prefixes: list("10.244.1.5/32", "fd00:0:1::5/128")}, "211211"},
		{desired.Steering{}, "111111"},
	} {
		ns.Run(t, func() error {
			h, err := netlink.NewHandle()
			if err != nil {
				return err
			}
			defer h.Close()
			table, err := link.ReadTable(h)
			if err != nil {
				return err
			}
			if _, err := link.Steer(h, table, "one", "two", tc.want); err != nil {
				return err
			}
			if changed, err := link.Steer(h, table, "one", "two", tc.want); err != nil || changed {
				t.Errorf("%s: a second time: changed %v, %v", tc.want, changed, err)
			}
			return nil
		})
		got := ""
		for _, ip := range to {
			before := sent(t, ns, "two")
			ns.Run(t, func() error { // nobody takes them
				c, err := net.Dial("udp", net.JoinHostPort(ip, "9"))
				if err != nil {
					return err
				}
				defer c.Close()
				for range 50 { // more than what the device says of its own accord
					if _, err = c.Write([]byte{1}); err != nil {
						return err
					}
				}
				return nil
			})
			got += strconv.Itoa(1 + (sent(t, ns, "two")-before)/50)
		}
		if got != tc.by {
			t.Errorf("%s: %v go by %s, want %s", tc.want, to, got, tc.by)
		}
	}
}

func sent(t *testing.T, ns *nstest.NS, dev string) int {
	t.Helper()
	n := 0
	ns.Run(t, func() error {
		l, err := netlink.LinkByName(dev)
		if err == nil {
			n = int(l.Attrs().Statistics.TxPackets)
		}
		return err
	})
	return n
}
