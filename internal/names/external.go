package names

import (
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/braidnet/braid/internal/model"
)

// ExternalAddrs returns the addresses by which a service is reached from outside the cluster:
// spec.externalIPs, then those of its load balancers.
func ExternalAddrs(s *model.Service) []netip.Addr {
	out := slices.Clone(s.ExternalIPs)
	for _, in := range s.Ingress {
		if in.Addr.IsValid() {
			out = append(out, in.Addr)
		}
	}
	return out
}

// ExternalHosts returns the host names of a service's load balancers, which have no addresses.
func ExternalHosts(s *model.Service) (out []string) {
	for _, in := range s.Ingress {
		if !in.Addr.IsValid() && in.Hostname != "" {
			out = append(out, in.Hostname)
		}
	}
	return out
}

// OutsideTarget is an address or a host by which a service is reached from outside.
type OutsideTarget struct {
	Target
	Host string // a name to follow instead of an address
}

// ResolveExternal answers for service.namespace and what is in front of it in a zone of external
// addresses. With headless, endpoints of headless services without an external address are in it too.
func (x *Index) ResolveExternal(n Name, v View, headless bool) (targets []OutsideTarget, exists bool) {
	s, list := x.service(model.Key{Namespace: n.Namespace, Name: n.Object})
	if s == nil {
		return nil, false
	}
	addrs, hosts := ExternalAddrs(s), ExternalHosts(s)
	if headless && len(s.ExternalIPs) == 0 && len(s.Ingress) == 0 && (s.Headless || n.Endpoint != "") {
		if v.NoEndpoints {
			return nil, false
		}
		a := fromEndpoints(nil, s, list, n, v, true)
		for _, t := range a.Targets {
			targets = append(targets, OutsideTarget{Target: t})
		}
		return targets, a.Exists
	}
	ports := s.Ports
	if len(ports) == 0 {
		ports = []model.ServicePort{{}}
	}
	if len(addrs)+len(hosts) == 0 {
		return nil, false
	}
	for _, p := range ports {
		if !matches(n, p.Name, p.Protocol, len(s.Ports) > 0) {
			continue
		}
		for _, a := range addrs {
			targets = append(targets, OutsideTarget{Target: Target{Addr: a, Port: p.Port}})
		}
		for _, h := range hosts {
			targets = append(targets, OutsideTarget{Target: Target{Port: p.Port}, Host: h})
		}
	}
	return targets, len(targets) > 0
}

// ExternalIP returns the services that are reached from outside by an address, sorted.
func (x *Index) ExternalIP(a netip.Addr) []model.Key {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return slices.Clone(x.externals[a])
}

// ExternalIPs returns every address that a service is reached by from outside, sorted.
func (x *Index) ExternalIPs() []netip.Addr {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return slices.SortedFunc(maps.Keys(x.externals), netip.Addr.Compare)
}

// Services returns all services, sorted by key. It is for zone transfers and people.
func (x *Index) Services() []*model.Service {
	all := map[model.Key]*model.Service{}
	for k, r := range x.records.all() {
		if r.service != nil {
			all[k] = r.service
		}
	}
	return sorted(all)
}

// Imports returns the services of the cluster set, sorted by key, each in the form of a service.
func (x *Index) Imports() []*model.Service {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return sorted(x.imports)
}

func sorted[T model.Object](m map[model.Key]T) []T {
	out := make([]T, 0, len(m))
	for _, o := range m {
		out = append(out, o)
	}
	slices.SortFunc(out, func(a, b T) int { return compareKeys(a.From().Key, b.From().Key) })
	return out
}

// slicesOf returns the slices of a service, or of one of a set of clusters.
func (x *Index) slicesOf(s *model.Service) []*slice {
	if s.Kind != model.KindServiceImport {
		_, list := x.service(s.Key)
		return list
	}
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.byImport[s.Key]
}

// Labels returns what stands in front of a service in the names of its endpoints: one entry for each
// distinct one, sorted.
func (x *Index) Labels(s *model.Service, v View) []string {
	var out []string
	for _, sl := range x.slicesOf(s) {
		for _, e := range sl.Endpoints {
			label := e.Label(v.PodNames)
			if s.Kind == model.KindServiceImport {
				label += "." + sl.Cluster
			}
			out = append(out, label)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// Ports returns "_port._protocol" for each distinct named port of a service, or of its endpoints when
// it is headless, sorted.
func (x *Index) Ports(s *model.Service) []string {
	var out []string
	add := func(name string, p model.Protocol) {
		if name != "" {
			out = append(out, strings.ToLower("_"+name+"._"+p.String()))
		}
	}
	if s.Headless {
		for _, sl := range x.slicesOf(s) {
			for _, p := range sl.Ports {
				add(p.Name, p.Protocol)
			}
		}
	} else {
		for _, p := range s.Ports {
			add(p.Name, p.Protocol)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// Zones returns the topology zones that endpoints of a service are in, sorted.
func (x *Index) Zones(s *model.Service) []string {
	var out []string
	for _, sl := range x.slicesOf(s) {
		for _, e := range sl.Endpoints {
			if zone := e.Place().Zone; zone != "" {
				out = append(out, strings.ToLower(zone))
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// Pods returns the pods that have an address, sorted by key.
func (x *Index) Pods() []*model.Pod {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return sorted(x.pods)
}

// PodAt returns the first pod that has an address, or nil.
func (x *Index) PodAt(a netip.Addr) *model.Pod {
	x.mu.RLock()
	defer x.mu.RUnlock()
	for _, k := range x.podIPs[a] {
		return x.pods[k]
	}
	return nil
}

// Addresses returns every address that has a reverse name: cluster IPs and ready endpoints.
func (x *Index) Addresses() []netip.Addr {
	x.mu.RLock()
	out := make([]netip.Addr, 0, len(x.clusterIPs)+x.endpoints.used)
	for a := range x.clusterIPs {
		out = append(out, a)
	}
	for a := range x.endpoints.all() {
		out = append(out, a)
	}
	x.mu.RUnlock()
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out)
}
