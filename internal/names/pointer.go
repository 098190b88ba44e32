package names

import (
	"net/netip"

	"github.com/braidnet/braid/internal/model"
)

// Pointer is what an address leads back to: a service, or an endpoint of one.
type Pointer struct {
	Service model.Key

	podNames bool
	endpoint *Endpoint // nil for the service itself
}

// Labels returns what stands in front of the service's name; empty for the service itself.
func (p Pointer) Labels() string { return string(p.AppendLabels(nil)) }

// AppendLabels appends to b what Labels returns.
func (p Pointer) AppendLabels(b []byte) []byte {
	if p.endpoint == nil {
		return b
	}
	return p.endpoint.appendLabel(b, p.podNames)
}

// same reports whether two pointers for one address have one name.
func (p Pointer) same(q Pointer) bool {
	if p.Service != q.Service || p.endpoint.Hostname != q.endpoint.Hostname {
		return false
	}
	return p.endpoint.Hostname != "" || !p.podNames || p.endpoint.Pod == q.endpoint.Pod
}

// PointersInto returns the distinct names that an address leads back to: the first service with this
// cluster IP in a namespace that may be told, else every endpoint with it. They are in the array of buf
// as far as it reaches.
func (x *Index) PointersInto(buf []Pointer, a netip.Addr, v View, told func(namespace string) bool) []Pointer {
	var few [8]endpointRef
	x.mu.RLock()
	keys, refs := x.clusterIPs[a], few[:0]
	if !v.NoEndpoints {
		refs = x.endpoints.find(refs, a)
	}
	x.mu.RUnlock()
	buf = buf[:0]
	for _, k := range keys {
		if told(k.Namespace) {
			return append(buf, Pointer{Service: k})
		}
	}
next:
	for _, r := range refs {
		p := Pointer{Service: r.slice.Service, podNames: v.PodNames, endpoint: &r.slice.Endpoints[r.i]}
		if !told(p.Service.Namespace) {
			continue
		}
		for _, q := range buf {
			if p.same(q) {
				continue next
			}
		}
		buf = append(buf, p)
	}
	return buf
}

// Owner is a service that an address is an endpoint of.
type Owner struct {
	Service model.Key
	Endpoint
	Peers []Endpoint // all ready endpoints of the same slice; shared, not to be changed
}

// Owners returns every use of an address as a ready endpoint.
func (x *Index) Owners(a netip.Addr) []Owner {
	x.mu.RLock()
	defer x.mu.RUnlock()
	refs := x.endpoints.find(nil, a)
	out := make([]Owner, len(refs))
	for i, r := range refs {
		out[i] = Owner{r.slice.Service, r.slice.Endpoints[r.i], r.slice.Endpoints}
	}
	return out
}
