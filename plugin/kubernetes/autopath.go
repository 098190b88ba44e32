package kubernetes

import (
	"net/netip"

	"github.com/coredns/coredns/plugin"
	"github.com/coredns/coredns/plugin/pkg/dnsutil"
	"github.com/coredns/coredns/request"
	"github.com/miekg/dns"

	"github.com/braidnet/braid/internal/model"
)

const resolvConf = "/etc/resolv.conf"

// searchPath returns the search path of a resolv.conf; a file that is not there has none.
func searchPath(file string) []string {
	rc, err := dns.ClientConfigFromFile(file)
	if err != nil {
		return nil
	}
	plugin.Zones(rc.Search).Normalize()
	return rc.Search
}

// AutoPath implements autopath.AutoPather: the search path of the pod that asks, or nil when it is not
// known. It needs "pods verified".
func (k *Kubernetes) AutoPath(state request.Request) []string {
	zone := plugin.Zones(k.cfg.zones).Matches(state.Name())
	if zone == "" {
		return nil
	}
	pod := k.client(state)
	if pod == nil {
		return nil
	}
	path := []string{dnsutil.Join(pod.Namespace, "svc", zone), dnsutil.Join("svc", zone), zone}
	path = append(path, k.search...)
	return append(path, "") // autopath wants to see the end
}

// client returns the pod that asks, or nil.
func (k *Kubernetes) client(state request.Request) *model.Pod {
	if k.cfg.pods != podsVerified || k.live.Load() == nil {
		return nil
	}
	a, err := netip.ParseAddr(state.IP())
	if err != nil {
		return nil
	}
	return k.index().PodAt(a.Unmap().WithZone(""))
}
