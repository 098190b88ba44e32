package fastpath

import (
	"fmt"
	"reflect"
	"runtime"
	"slices"
	"strings"

	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"
	"github.com/coredns/coredns/plugin/metrics"
	"github.com/miekg/dns"

	"github.com/braidnet/braid/plugin/kubernetes"
)

// plan is what may be answered here for one server.
type plan struct {
	server *dnsserver.Server
	zones  []*zone // those with more labels first
}

// zone is one zone of the kubernetes plugin, with what the plugins around that do to its answers.
type zone struct {
	*kubernetes.Front
	suffix   string // the zone's name, as it ends names
	primary  string // the zone that PTR records point into, without the dot at its end
	wireLen  int    // octets of the name on the wire
	answer   clamp
	denial   clamp
	shuffled bool
	counts   *counts // nil without prometheus
}

// clamp holds a TTL, in seconds, between two bounds. The zero value leaves it alone.
type clamp struct{ min, max uint32 }

func (c clamp) apply(ttl uint32) uint32 {
	if c == (clamp{}) {
		return ttl
	}
	return min(max(ttl, c.min), c.max)
}

// harmless are the handlers that change no answer made here: they act on other classes, types, names or
// options than those of plain questions, or only on what kubernetes hands on.
var harmless = []string{
	"any", "cancel", "chaos", "errors", "kubernetes", "metadata", "nsid", "transfer", // before kubernetes
	"file", "auto", "secondary", "etcd", "loop", "forward", "grpc", "erratic", "whoami", "sign", "nomad", // behind it
}

// zonesOf returns the zones of a server block that can be answered here, on the server they belong to,
// or why none can.
func zonesOf(s *dnsserver.Server, block *dnsserver.Config, others served) ([]*zone, error) {
	k, ok := block.Handler("kubernetes").(*kubernetes.Kubernetes)
	switch {
	case !ok:
		return nil, fmt.Errorf("plugin kubernetes is not in this server block")
	case block.Transport != "dns":
		return nil, fmt.Errorf("this server block is for %s, not for DNS over UDP", block.Transport)
	case len(block.FilterFuncs) > 0:
		return nil, fmt.Errorf("plugin view chooses by more than the name")
	case block.ProxyProtoConnPolicy != nil:
		return nil, fmt.Errorf("plugin proxyproto changes what a packet looks like")
	case len(s.TsigSecret) > 0:
		return nil, fmt.Errorf("plugin tsig signs answers")
	}
	common := zone{}
	var measured *metrics.Metrics
	for _, h := range block.Handlers() {
		switch name := h.Name(); {
		case name == "prometheus":
			measured, _ = h.(*metrics.Metrics)
		case name == "cache":
			if err := common.cached(h); err != nil {
				return nil, err
			}
		case name == "loadbalance":
			if !shuffles(h) {
				return nil, fmt.Errorf("plugin loadbalance does more than shuffle")
			}
			common.shuffled = true
		case !slices.Contains(harmless, name):
			return nil, fmt.Errorf("plugin %s could change the answers", name)
		}
	}
	fronts := k.Fronts()
	if len(fronts) == 0 {
		return nil, fmt.Errorf("plugin kubernetes has no plain zone, or its answers depend on who asks (nearest, explain)")
	}
	var out []*zone
	for _, f := range fronts {
		if !others.routes(f.Zone, block) {
			continue
		}
		z := common
		z.Front, z.suffix, z.primary, z.wireLen = f, f.Zone, strings.TrimSuffix(f.Primary, "."), len(f.Zone)+1
		if measured != nil {
			label := plugin.Zones(measured.ZoneNames()).Matches(f.Zone)
			if below(measured.ZoneNames(), f.Zone) {
				continue // names in it are counted under different labels
			}
			if label == "" {
				label = "."
			}
			z.counts = newCounts(s.Addr, label, measured.Next.Name())
		}
		out = append(out, &z)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("other server blocks have names within its zones")
	}
	return out, nil
}

// cached takes over what a cache does to the TTLs of answers that pass it, which it does whether or not
// it keeps them. One that it keeps is never asked for: the index is as fast, and newer.
func (z *zone) cached(h plugin.Handler) error {
	v := reflect.ValueOf(h)
	if v.Kind() == reflect.Pointer {
		v = v.Elem()
	}
	seconds := func(field string) (uint32, bool) {
		f := v.FieldByName(field)
		if !f.IsValid() || f.Kind() != reflect.Int64 {
			return 0, false
		}
		return uint32(f.Int() / 1e9), true
	}
	var ok [4]bool
	z.answer.min, ok[0] = seconds("minpttl")
	z.answer.max, ok[1] = seconds("pttl")
	z.denial.min, ok[2] = seconds("minnttl")
	z.denial.max, ok[3] = seconds("nttl")
	zones := v.FieldByName("Zones")
	if ok != [4]bool{true, true, true, true} || !zones.IsValid() || zones.Len() != 1 || zones.Index(0).String() != "." {
		return fmt.Errorf("plugin cache is set up for some zones only")
	}
	return nil
}

// shuffles reports whether a loadbalance handler brings addresses into random order, and no more.
func shuffles(h plugin.Handler) bool {
	v := reflect.ValueOf(h)
	if v.Kind() == reflect.Pointer {
		v = v.Elem()
	}
	f := v.FieldByName("shuffle")
	if !f.IsValid() || f.Kind() != reflect.Func || f.IsNil() {
		return false
	}
	fn := runtime.FuncForPC(f.Pointer())
	return fn != nil && strings.HasSuffix(fn.Name(), "loadbalance.randomShuffle")
}

// served are the server blocks of a server by their zones.
type served map[string][]uintptr

// servedBy reads that out of a server, which does not offer it.
func servedBy(s *dnsserver.Server) (served, error) {
	m := reflect.ValueOf(s).Elem().FieldByName("zones")
	if !m.IsValid() || m.Type() != reflect.TypeFor[map[string][]*dnsserver.Config]() {
		return nil, fmt.Errorf("this CoreDNS keeps its zones in another way")
	}
	out := served{}
	for it := m.MapRange(); it.Next(); {
		for i := range it.Value().Len() {
			key := it.Key().String()
			out[key] = append(out[key], it.Value().Index(i).Pointer())
		}
	}
	return out, nil
}

// routes reports whether a server block gets every question for names in a zone, and no other does.
func (s served) routes(zone string, block *dnsserver.Config) bool {
	best := ""
	for z := range s {
		if z != zone && dns.IsSubDomain(zone, z) {
			return false
		}
		if dns.IsSubDomain(z, zone) && len(z) > len(best) {
			best = z
		}
	}
	list := s[best]
	return len(list) == 1 && list[0] == reflect.ValueOf(block).Pointer()
}

// below reports whether one of the zones lies under zone.
func below(zones []string, zone string) bool {
	return slices.ContainsFunc(zones, func(z string) bool { return z != zone && dns.IsSubDomain(zone, z) })
}
