package agent

import (
	"fmt"
	"log/slog"
	"net/netip"
	"testing"

	"github.com/braidnet/braid/internal/kernel/netns/nstest"
	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/netagent/service"
)

// manyFrontends makes n cluster IPs with two backends of their own.
func manyFrontends(n int) ([]service.Frontend, service.Net) {
	all := make([]service.Frontend, n)
	for i := range all {
		var backends []service.Backend
		for j := range 2 {
			addr := netip.AddrFrom4([4]byte{10, byte(128 + i>>15), byte(i >> 7), byte(i<<1 | j)})
			backends = append(backends, service.Backend{AddrPort: netip.AddrPortFrom(addr, 8080)})
		}
		vip := netip.AddrFrom4([4]byte{10, 96 + byte(i>>16), byte(i >> 8), byte(i)})
		all[i] = dpFrontend(fmt.Sprintf("service-%d", i), service.ClusterIP, model.TCP, vip, 80, backends...)
	}
	return all, service.Net{
		LocalPods:   []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24")},
		ClusterPods: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")},
	}
}

// BenchmarkNFTables measures the life of a large cluster on an agent: first load into an empty
// kernel, a restart that finds everything in place, and one endpoint coming and going.
func BenchmarkNFTables(b *testing.B) {
	for _, n := range []int{1000, 10_000, 44_000} {
		all, net := manyFrontends(n)
		ns := nstest.New(b)
		construct := func() (dp service.Dataplane) {
			ns.Run(b, func() (err error) { dp, err = newNFTables(slog.New(slog.DiscardHandler)); return err })
			return dp
		}
		check := func(err error) {
			if err != nil {
				b.Fatal(err)
			}
		}
		dp := construct()
		b.Run(fmt.Sprintf("load/%dx2", n), func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				_, err := dp.Cleanup()
				check(err)
				b.StartTimer()
				check(dp.Replace(all, net))
			}
		})
		check(dp.Replace(all, net))
		b.Run(fmt.Sprintf("restart/%dx2", n), func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				dp = construct()
				b.StartTimer()
				check(dp.Replace(all, net))
			}
		})
		less := all[n/2]
		less.Backends = less.Backends[:1]
		moved := all[n/2]
		moved.Backends = append([]service.Backend{{AddrPort: netip.MustParseAddrPort("10.250.0.1:8080")}}, less.Backends...)
		for name, other := range map[string]service.Frontend{"count": less, "address": moved} {
			b.Run(fmt.Sprintf("endpoint-%s/%dx2", name, n), func(b *testing.B) {
				for i := 0; b.Loop(); i++ {
					f := other
					if i%2 == 1 {
						f = all[n/2]
					}
					check(dp.Apply(service.Delta{Set: []service.Frontend{f}}))
				}
			})
		}
	}
}
