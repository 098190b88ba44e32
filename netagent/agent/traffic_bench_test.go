package agent

import (
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/braidnet/braid/internal/kernel/netns/nstest/wire"
	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/netagent/service"
)

// BenchmarkTraffic measures what counting costs a packet of a connection through a service, one that goes past services,
// and a start, beside 44,000 services without it. Both are measured in turn, and each metric is the best of several: whatever
// else a machine does makes it worse.
func BenchmarkTraffic(b *testing.B) {
	const n = 44000
	node := wire.New(b)
	client, vip := netip.MustParseAddrPort("198.51.100.7:4000"), netip.MustParseAddrPort("203.0.113.1:80")
	backend := service.Backend{AddrPort: netip.MustParseAddrPort("10.244.1.11:8080"), Local: true}
	lb := dpFrontend("web", service.LoadBalancerIP, model.UDP, vip.Addr(), vip.Port(), backend)
	lb.Masquerade, lb.Inside = service.MasqueradeNone, lb.Backends
	all := []service.Frontend{lb}
	for i := range n {
		a := netip.AddrFrom4([4]byte{10, 100 + byte(i>>16), byte(i >> 8), byte(i)})
		all = append(all, dpFrontend(fmt.Sprint("s", i), service.ClusterIP, model.TCP, a, 80, backend))
	}
	_, net := dpState()
	must := func(step func() error) {
		b.Helper()
		if err := node.Do(step); err != nil {
			b.Fatal(err)
		}
	}
	var dp service.Dataplane
	var c *traffic
	must(func() (err error) { dp, err = newNFTables(slog.New(slog.DiscardHandler)); return err })
	must(func() (err error) { c, err = newTraffic(slog.New(slog.DiscardHandler)); return err })
	defer c.close()
	begin := time.Now()
	must(func() error { return dp.Replace(all, net) })
	b.ReportMetric(time.Since(begin).Seconds(), "start-s")

	through := wire.Packet{Src: client, Dst: vip, Protocol: wire.UDP}
	past := wire.Packet{Src: client, Dst: backend.AddrPort, Protocol: wire.UDP}
	open := func() { // both flows, with an answer each
		for _, p := range []wire.Packet{through, past} {
			node.Send(p)
			node.Send(wire.Packet{Src: backend.AddrPort, Dst: p.Src, Protocol: wire.UDP})
		}
	}
	past.Src = netip.AddrPortFrom(client.Addr(), client.Port()+1)
	open()
	times := map[string][]float64{}
	note := func(what string, v float64) { times[what] = append(times[what], v) }
	for range 9 {
		for _, on := range []bool{false, true} {
			word := "off"
			if on {
				word = "on"
				begin := time.Now()
				must(func() error { c.replaced(all); return c.failed })
				note("counted-start-s", time.Since(begin).Seconds())
			}
			const packets = 50000
			note(word+"-ns/packet", float64(node.Flood(through, packets).Nanoseconds())/packets)
			note(word+"-past-ns/packet", float64(node.Flood(past, packets).Nanoseconds())/packets)
			if on {
				begin := time.Now()
				c.at = time.Time{}
				got, err := c.all()
				note("read-s", time.Since(begin).Seconds())
				if err != nil || got[lb.Key].PacketsIn < packets {
					b.Fatalf("%v %+v", err, got[lb.Key])
				}
				must(func() error { _, err := trafficRemains{}.Cleanup(); return err })
			}
		}
	}
	for what, list := range times {
		b.ReportMetric(slices.Min(list), what)
	}
}
