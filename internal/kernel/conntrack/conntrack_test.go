package conntrack_test

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/braidnet/braid/internal/kernel/conntrack"
	"github.com/braidnet/braid/internal/kernel/netns/nstest"
)

// lab is a namespace that tracks what it sends to itself, and translates port 53 to 5353.
func lab(t *testing.T) (*nstest.NS, *conntrack.Conn) {
	t.Helper()
	ns := nstest.New(t)
	for _, family := range []string{"ip", "ip6"} {
		ns.Exec(t, "nft", "add table "+family+" lab; add chain "+family+" lab out { type nat hook output priority -100; }; "+
			"add rule "+family+" lab out udp dport 53 redirect to :5353; "+
			"add chain "+family+" lab raw { type filter hook output priority -300; }; add rule "+family+" lab raw udp sport 7777 ct zone set 7")
	}
	var c *conntrack.Conn
	ns.Run(t, func() (err error) { c, err = conntrack.Open(); return err })
	t.Cleanup(c.Close)
	return ns, c
}

// send makes the namespace track flows: from the port given, else from one of the kernel's choice.
func send(t *testing.T, ns *nstest.NS, network, from, to string) {
	t.Helper()
	ns.Run(t, func() error {
		d := net.Dialer{}
		if from != "" {
			d.LocalAddr = net.UDPAddrFromAddrPort(netip.MustParseAddrPort(from))
		}
		c, err := d.Dial(network, to)
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.Write([]byte("?"))
		return err
	})
}

// tracked lists what the namespace tracks as "protocol destination", sorted, by another reader.
func tracked(t *testing.T, ns *nstest.NS, families ...netlink.InetFamily) (out []string) {
	t.Helper()
	ns.Run(t, func() error {
		for _, f := range families {
			list, err := netlink.ConntrackTableList(netlink.ConntrackTable, f)
			if err != nil {
				return err
			}
			for _, e := range list {
				out = append(out, fmt.Sprintf("%d %s:%d", e.Forward.Protocol, e.Forward.DstIP, e.Forward.DstPort))
			}
		}
		return nil
	})
	slices.Sort(out)
	return out
}

func TestDeleteTakesWhatIsNamedAndNothingElse(t *testing.T) {
	ns, c := lab(t)
	var l net.Listener
	ns.Run(t, func() (err error) { l, err = net.Listen("tcp", "127.0.0.1:80"); return err })
	defer l.Close()
	send(t, ns, "tcp", "", "127.0.0.1:80")
	for _, to := range []string{"127.0.0.1:53", "127.0.0.2:53", "127.0.0.1:99", "[::1]:53"} {
		send(t, ns, "udp", "", to)
	}
	send(t, ns, "udp", "127.0.0.1:7777", "127.0.0.1:53") // in a zone of somebody else
	all := []string{"17 127.0.0.1:53", "17 127.0.0.1:53", "17 127.0.0.1:99", "17 127.0.0.2:53", "6 127.0.0.1:80"}
	if got := tracked(t, ns, unix.AF_INET); !slices.Equal(got, all) {
		t.Fatalf("tracked %v, want %v", got, all)
	}
	for _, step := range []struct {
		filter conntrack.Filter
		stale  func(conntrack.Flow) bool
		seen   []string // what the kernel hands out
		left   []string
	}{
		{conntrack.Filter{Protocol: unix.IPPROTO_UDP}, func(conntrack.Flow) bool { return false },
			[]string{"127.0.0.1:53>127.0.0.1:5353", "127.0.0.1:99>127.0.0.1:99", "127.0.0.2:53>127.0.0.1:5353"}, all},
		{conntrack.Filter{Protocol: unix.IPPROTO_UDP, Port: 53}, func(f conntrack.Flow) bool { return f.Dst.Addr() == netip.MustParseAddr("127.0.0.2") },
			[]string{"127.0.0.1:53>127.0.0.1:5353", "127.0.0.2:53>127.0.0.1:5353"},
			[]string{"17 127.0.0.1:53", "17 127.0.0.1:53", "17 127.0.0.1:99", "6 127.0.0.1:80"}},
		{conntrack.Filter{Protocol: unix.IPPROTO_UDP, Addr: netip.MustParseAddr("127.0.0.1"), Port: 53}, func(conntrack.Flow) bool { return true },
			[]string{"127.0.0.1:53>127.0.0.1:5353"}, []string{"17 127.0.0.1:53", "17 127.0.0.1:99", "6 127.0.0.1:80"}},
		{conntrack.Filter{Protocol: unix.IPPROTO_TCP}, func(conntrack.Flow) bool { return true },
			[]string{"127.0.0.1:80>127.0.0.1:80"}, []string{"17 127.0.0.1:53", "17 127.0.0.1:99"}},
	} {
		before := len(tracked(t, ns, unix.AF_INET))
		var seen []string
		n, err := c.Delete(step.filter, func(f conntrack.Flow) bool {
			seen = append(seen, fmt.Sprintf("%s>%s", f.Dst, f.Answers))
			return step.stale(f)
		})
		slices.Sort(seen)
		left := tracked(t, ns, unix.AF_INET)
		if err != nil || n != before-len(step.left) || !slices.Equal(seen, step.seen) || !slices.Equal(left, step.left) {
			t.Errorf("%+v: deleted %d, %v; saw %v, want %v; left %v, want %v", step.filter, n, err, seen, step.seen, left, step.left)
		}
	}
	n, err := c.Delete(conntrack.Filter{IPv6: true, Protocol: unix.IPPROTO_UDP, Addr: netip.IPv6Loopback(), Port: 53},
		func(f conntrack.Flow) bool { return f.Answers == netip.MustParseAddrPort("[::1]:5353") })
	if left := tracked(t, ns, unix.AF_INET6); err != nil || n != 1 || len(left) != 0 {
		t.Errorf("IPv6: deleted %d, %v; left %v", n, err, left)
	}
}

func TestLocalAddrs(t *testing.T) {
	ns, c := lab(t)
	ns.Exec(t, "ip", "addr", "add", "192.0.2.7/24", "dev", "lo")
	got, err := c.LocalAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"192.0.2.7", "127.0.0.1", "::1"} {
		if _, ok := got[netip.MustParseAddr(want)]; !ok {
			t.Errorf("%s is missing in %v", want, got)
		}
	}
}

// TestKernelCompares shows that the filter works in the kernel: without it, a table of another
// protocol would come through the socket for each clean-up.
func TestKernelCompares(t *testing.T) {
	ns, c := lab(t)
	for i := range 50 {
		send(t, ns, "udp", "", fmt.Sprintf("127.0.0.1:%d", 1000+i))
	}
	for want, f := range map[int]conntrack.Filter{
		50: {Protocol: unix.IPPROTO_UDP},
		1:  {Protocol: unix.IPPROTO_UDP, Port: 1007},
		0:  {Protocol: unix.IPPROTO_TCP},
	} {
		if n, err := c.Messages(f); err != nil || n != want {
			t.Errorf("%+v: the kernel sent %d entries, %v; want %d", f, n, err, want)
		}
	}
}
