package agent

import (
	"log/slog"
	"net/netip"
	"testing"

	"github.com/braidnet/braid/internal/kernel/netns/nstest/wire"
	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/netagent/service"
)

// TestBackendAtFrontend: a backend on the node's own network may have the address and port of another
// service's frontend without endpoints. The node's connections to it come in a second time, translated, by
// loopback, and are not meant for that frontend.
func TestBackendAtFrontend(t *testing.T) {
	for mode, construct := range testedPlanes {
		t.Run(mode, func(t *testing.T) {
			node := wire.New(t)
			for _, a := range dpFamilies {
				own := wire.Own(a.node.Is4())[0]
				at := netip.AddrPortFrom(own, dpPort)
				all := []service.Frontend{
					dpFrontend("empty", service.LoadBalancerIP, model.TCP, own, dpPort),
					dpFrontend("host", service.ClusterIP, model.TCP, a.web, dpPort, service.Backend{AddrPort: at, Local: true}),
				}
				node.Run(t, func() error {
					dp, err := construct(slog.New(slog.DiscardHandler))
					if err != nil {
						return err
					}
					_, net := dpState()
					return dp.Replace(all, net)
				})
				p := wire.Packet{Src: netip.AddrPortFrom(own, 2000), Dst: netip.AddrPortFrom(a.web, dpPort), Protocol: wire.TCP}
				if f := node.Send(p); f.Local == nil || f.Local.Dst != at {
					t.Errorf("%s: the node's packet to %s became %+v, want it delivered to %s", a.family, p.Dst, f, at)
				}
				p.Dst = at
				if f := node.Send(p); f.Local != nil || !f.Refused {
					t.Errorf("%s: the node's packet to %s, which has no endpoints, became %+v, want it refused", a.family, p.Dst, f)
				}
			}
		})
	}
}
