package names

import (
	"net/netip"
	"strings"

	"github.com/braidnet/braid/internal/model"
)

// View is how one consumer wants to see the cluster. The index is shared; views differ.
type View struct {
	PodNames    bool // endpoints without a hostname are called after their pods
	IgnoreEmpty bool // a service with cluster IPs but no ready endpoint does not exist
	NoEndpoints bool // behave as if there were no endpoints
}

// Target is one address a name leads to, and a port when ports were asked for.
type Target struct {
	Addr netip.Addr
	Port uint16 // 0 = the service names no port; there is no SRV record for it

	podNames bool
	endpoint *Endpoint // nil for the service itself
	cluster  string    // of the endpoint, in a set of clusters
}

// IsEndpoint reports whether the target is an endpoint, not the service itself.
func (t Target) IsEndpoint() bool { return t.endpoint != nil }

// Labels returns what stands in front of the service's name in the target's own; empty for the service
// itself.
func (t Target) Labels() string { return string(t.AppendLabels(nil)) }

// AppendLabels appends to b what Labels returns.
func (t Target) AppendLabels(b []byte) []byte {
	if t.endpoint == nil {
		return b
	}
	b = t.endpoint.appendLabel(b, t.podNames)
	if t.cluster != "" {
		b = append(append(b, '.'), t.cluster...)
	}
	return b
}

// Place returns where the endpoint runs, as far as that is known.
func (t Target) Place() Place {
	if t.endpoint == nil {
		return Place{}
	}
	return t.endpoint.Place()
}

// Answer is what the index knows of a service name.
type Answer struct {
	Exists   bool   // false means NXDOMAIN; true without targets means the name has no such records
	External string // target of an ExternalName service, as written in the object
	Targets  []Target
}

// HasNamespace reports whether a namespace exists.
func (x *Index) HasNamespace(ns string) bool {
	_, ok := x.namespaces.get(ns)
	return ok
}

// UsesNamespace reports whether a service, slice or pod is in a namespace. Folders of manifests rarely
// declare the namespaces they use; an API server would not let them be used otherwise.
func (x *Index) UsesNamespace(ns string) bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.used[ns] > 0
}

// Resolve answers a parsed name of kind Svc with an Object, for addresses of any family. With ports
// it gives one target per address and port, else one per address.
func (x *Index) Resolve(n Name, v View, ports bool) Answer { return x.ResolveInto(nil, n, v, ports) }

// ResolveInto is Resolve with the targets in the array of buf, as far as that reaches: it then
// allocates nothing.
func (x *Index) ResolveInto(buf []Target, n Name, v View, ports bool) Answer {
	s, list := x.service(model.Key{Namespace: n.Namespace, Name: n.Object})
	if v.NoEndpoints {
		list = nil
	}
	return resolve(buf[:0], s, list, n, v, ports)
}

// ResolveImport answers in a zone of a cluster set as Resolve does in a cluster's. Endpoints exist
// there whether or not the view has any.
func (x *Index) ResolveImport(n Name, v View, ports bool) Answer {
	k := model.Key{Namespace: n.Namespace, Name: n.Object}
	x.mu.RLock()
	s, list := x.imports[k], x.byImport[k]
	x.mu.RUnlock()
	return resolve(nil, s, list, n, v, ports)
}

func resolve(buf []Target, s *model.Service, list []*slice, n Name, v View, ports bool) Answer {
	switch {
	case s == nil:
		return Answer{}
	case n.Zone != "" || n.Holder:
		return scoped(buf, s, list, n, v, ports)
	case s.Type == model.ExternalName:
		return external(s, n)
	case v.IgnoreEmpty && !s.Headless && empty(list):
		return Answer{}
	case s.Headless || n.Endpoint != "":
		return fromEndpoints(buf, s, list, n, v, ports)
	}
	return fromClusterIPs(buf, s, n, ports)
}

// scoped answers for zone-scoped names, which only headless services have: a cluster IP is in no zone.
// They exist whether or not an endpoint is in the zone, so that all servers say the same at all times.
func scoped(buf []Target, s *model.Service, list []*slice, n Name, v View, ports bool) Answer {
	if !s.Headless || s.Type == model.ExternalName {
		return Answer{}
	}
	if n.Holder {
		return Answer{Exists: true}
	}
	all := fromEndpoints(buf, s, list, Name{}, v, ports).Targets
	out := Answer{Exists: true}
	for _, t := range all {
		if strings.EqualFold(t.Place().Zone, n.Zone) {
			out.Targets = append(out.Targets, t)
		}
	}
	if len(out.Targets) == 0 && n.Prefer {
		out.Targets = all
	}
	return out
}

// service returns a service and its slices. It takes no lock.
func (x *Index) service(k model.Key) (*model.Service, []*slice) {
	r, _ := x.records.get(k)
	return r.service, r.slices
}

// external answers for ExternalName services. They have no endpoints and no ports, and an address in
// place of a name is not served: a CNAME cannot point to it.
func external(s *model.Service, n Name) Answer {
	if n.Endpoint != "" || n.Port != "" || n.Protocol != "" || s.ExternalName == "" {
		return Answer{}
	}
	if _, err := netip.ParseAddr(s.ExternalName); err == nil {
		return Answer{}
	}
	return Answer{Exists: true, External: s.ExternalName}
}

func fromClusterIPs(buf []Target, s *model.Service, n Name, ports bool) (out Answer) {
	out.Targets = buf
	all := s.Ports
	if len(all) == 0 {
		all = []model.ServicePort{{}}
	}
	for _, p := range all {
		if !matches(n, p.Name, p.Protocol, len(s.Ports) > 0) {
			continue
		}
		out.Exists = true
		for _, a := range s.ClusterIPs {
			out.Targets = append(out.Targets, Target{Addr: a, Port: p.Port})
		}
		if !ports {
			break
		}
	}
	return out
}

// fromEndpoints answers for headless services, and for endpoint names of any service: CoreDNS always
// served the latter, beyond what the specification asks for.
func fromEndpoints(buf []Target, s *model.Service, list []*slice, n Name, v View, ports bool) (out Answer) {
	out.Targets = buf
	set := s.Kind == model.KindServiceImport
	chosen := newMatcher(n.Endpoint, v.PodNames)
	for _, sl := range list {
		if n.Cluster != "" && !strings.EqualFold(n.Cluster, sl.Cluster) {
			continue
		}
		if n.Endpoint != "" && n.Cluster == "" && set {
			// Endpoints of a set are below their cluster, which holds no records itself.
			out.Exists = out.Exists || (len(sl.Endpoints) > 0 && strings.EqualFold(n.Endpoint, sl.Cluster))
			continue
		}
		for i := range sl.Endpoints {
			e := &sl.Endpoints[i]
			if !chosen.matches(e) {
				continue
			}
			t := Target{Addr: e.Addr, podNames: v.PodNames, endpoint: e}
			if set {
				t.cluster = sl.Cluster
			}
			out.Targets = sl.withPorts(out.Targets, t, n, ports)
		}
	}
	out.Exists = out.Exists || len(out.Targets) > 0 || isProtocol(s, list, n.Endpoint)
	return out
}

// noPorts stands for the ports of a slice without any: one without a number, so that its addresses
// are found by plain names.
var noPorts = []model.EndpointPort{{}}

// withPorts appends a target once for each port that a name asks for, or once for all of them.
func (s *slice) withPorts(list []Target, t Target, n Name, all bool) []Target {
	ports := s.Ports
	if len(ports) == 0 {
		ports = noPorts
	}
	for i := range ports {
		if !matches(n, ports[i].Name, ports[i].Protocol, len(s.Ports) > 0) {
			continue
		}
		t.Port = ports[i].Port
		if list = append(list, t); !all {
			break
		}
	}
	return list
}

// matches compares a port with the labels of a name. declared is false for the stand-in of a service
// without ports, which only plain names match.
func matches(n Name, port string, protocol model.Protocol, declared bool) bool {
	if !declared {
		return n.Port == "" && n.Protocol == ""
	}
	return (n.Port == "" || strings.EqualFold(n.Port, port)) &&
		(n.Protocol == "" || strings.EqualFold(n.Protocol, protocol.String()))
}

// isProtocol reports whether a label such as "_tcp" stands between a service and port names that
// exist: it holds nothing itself but must not be denied (RFC 8020).
func isProtocol(s *model.Service, list []*slice, label string) bool {
	name, ok := strings.CutPrefix(label, "_")
	if !ok || name == "" {
		return false
	}
	n := Name{Protocol: name}
	if !s.Headless {
		return len(s.Ports) > 0 && fromClusterIPs(nil, s, n, false).Exists
	}
	for _, sl := range list {
		if len(sl.Endpoints) > 0 && len(sl.withPorts(nil, Target{}, n, false)) > 0 {
			return true
		}
	}
	return false
}

func empty(list []*slice) bool {
	for _, s := range list {
		if len(s.Endpoints) > 0 {
			return false
		}
	}
	return true
}

// ClusterIP returns the services that have a cluster IP, sorted; more than one only while an address
// moves from one service to another.
func (x *Index) ClusterIP(a netip.Addr) []model.Key {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return append([]model.Key(nil), x.clusterIPs[a]...)
}

// Service returns a service by its key, or nil.
func (x *Index) Service(k model.Key) *model.Service {
	s, _ := x.service(k)
	return s
}

// HasPod reports whether a living pod of the namespace has the address.
func (x *Index) HasPod(ns string, a netip.Addr) bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	for _, k := range x.podIPs[a] {
		if k.Namespace == ns {
			return true
		}
	}
	return false
}
