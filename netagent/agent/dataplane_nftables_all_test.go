package agent

import (
	"net/netip"
	"time"

	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/netagent/service"
)

// dpEverything is dpState with something of all that a frontend may say.
func dpEverything() (all []service.Frontend, net service.Net) {
	all, net = dpState()
	for i := range dpFamilies {
		a := &dpFamilies[i]
		for _, k := range []struct {
			kind service.Kind
			addr netip.Addr
			port uint16
		}{{service.ClusterIP, a.moved, dpPort}, {service.NodePort, a.any, dpNodePort + 10}} {
			f := dpFrontend("sticky", k.kind, model.TCP, k.addr, k.port, a.both()...)
			f.Affinity = 3 * time.Hour
			all = append(all, f)
			f = dpFrontend("local", k.kind, model.TCP, k.addr, k.port+1, a.backend1())
			f.Masquerade, f.Inside, f.Affinity = service.MasqueradeNone, a.both(), 90*time.Second
			all = append(all, f)
			f = dpFrontend("elsewhere", k.kind, model.TCP, k.addr, k.port+2)
			f.Masquerade, f.Inside = service.MasqueradeNone, []service.Backend{a.backend2()}
			all = append(all, f)
			f = dpFrontend("guarded", k.kind, model.TCP, k.addr, k.port+3, a.both()...)
			f.Filtered, f.Sources = true, []netip.Prefix{a.localPods, netip.PrefixFrom(a.client, a.client.BitLen())}
			all = append(all, f)
		}
		net.Services = append(net.Services, netip.PrefixFrom(a.web, a.localPods.Bits()).Masked())
	}
	return all, net
}
