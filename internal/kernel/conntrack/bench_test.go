package conntrack_test

import (
	"fmt"
	"net"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/braidnet/braid/internal/kernel/conntrack"
	"github.com/braidnet/braid/internal/kernel/netns/nstest"
)

// BenchmarkDelete looks through tables of UDP flows to 64 destinations for those of one, of which none is stale:
// as part of what the kernel hands out, and with the destination left to the kernel to compare.
func BenchmarkDelete(b *testing.B) {
	for _, entries := range []int{1000, 100000} {
		ns := nstest.New(b)
		var c *conntrack.Conn
		ns.Run(b, func() (err error) {
			if c, err = conntrack.Open(); err != nil {
				return err
			}
			return fill(entries)
		})
		defer c.Close()
		for how, f := range map[string]conntrack.Filter{"all-udp": {Protocol: unix.IPPROTO_UDP},
			"one-destination": {Protocol: unix.IPPROTO_UDP, Addr: netip.MustParseAddr("10.96.0.7"), Port: 53}} {
			b.Run(fmt.Sprintf("%d/%s", entries, how), func(b *testing.B) {
				for b.Loop() {
					looked := 0
					if _, err := c.Delete(f, func(f conntrack.Flow) bool { looked++; return false }); err != nil || looked < entries/64 {
						b.Fatalf("looked at %d, %v", looked, err)
					}
				}
			})
		}
	}
}

// fill makes the table hold flows from different ports and addresses.
func fill(n int) error {
	for i := range n {
		client, vip := net.IPv4(10, 244, byte(i>>16), byte(i>>8)).To4(), net.IPv4(10, 96, 0, byte(i%64)).To4()
		sport := uint16(1024 + i)
		err := netlink.ConntrackCreate(netlink.ConntrackTable, unix.AF_INET, &netlink.ConntrackFlow{FamilyType: unix.AF_INET, TimeOut: 600,
			Forward: netlink.IPTuple{Protocol: unix.IPPROTO_UDP, SrcIP: client, DstIP: vip, SrcPort: sport, DstPort: 53},
			Reverse: netlink.IPTuple{Protocol: unix.IPPROTO_UDP, SrcIP: vip, DstIP: client, SrcPort: 53, DstPort: sport}})
		if err != nil {
			return fmt.Errorf("entry %d: %w", i, err)
		}
	}
	return nil
}
