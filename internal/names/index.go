// Package names keeps the answers to cluster DNS names: an index from names and addresses to
// services, endpoints and pods that follows a model.Store change by change, and the grammar of the
// names themselves (Kubernetes DNS specification, schema 1.1.0).
//
// It knows nothing of a DNS server: names are parsed without their zone, answers are netip
// addresses, ports and labels. plugin/kubernetes turns them into records.
package names

import (
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/braidnet/braid/internal/model"
)

// Index answers look-ups while a writer feeds it changes. An event costs time in proportion to the
// objects it names (and to the number of slices of the one service a slice belongs to), never to
// the size of the cluster. Create it with New.
type Index struct {
	now func() time.Time

	mu         sync.RWMutex
	rev        uint64
	serial     uint32
	namespaces map[string]struct{}
	used       map[string]int // services, slices and pods held, by namespace
	services   map[model.Key]*model.Service
	slices     map[model.Key]*slice   // by the slice's own name
	byService  map[model.Key][]*slice // sorted by name; replaced, never changed in place
	clusterIPs map[netip.Addr][]model.Key
	endpoints  map[netip.Addr][]endpointRef
	pods       map[model.Key]*model.Pod
	podIPs     map[netip.Addr][]model.Key
}

// endpointRef points at one address of a slice.
type endpointRef struct {
	slice *slice
	i     int
}

// New returns an empty index.
func New() *Index {
	return &Index{
		now:        time.Now,
		namespaces: map[string]struct{}{},
		used:       map[string]int{},
		services:   map[model.Key]*model.Service{},
		slices:     map[model.Key]*slice{},
		byService:  map[model.Key][]*slice{},
		clusterIPs: map[netip.Addr][]model.Key{},
		endpoints:  map[netip.Addr][]endpointRef{},
		pods:       map[model.Key]*model.Pod{},
		podIPs:     map[netip.Addr][]model.Key{},
	}
}

// Apply takes one batch of changes; it is a model.Subscriber. It trusts what it holds itself over
// Change.Old, so a repeated or late event leaves the same index as a clean one.
func (x *Index) Apply(rev uint64, changes []model.Change) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.rev = rev
	changed := false
	for _, c := range changes {
		if x.apply(c) {
			changed = true
		}
	}
	if changed {
		// A serial never goes back, even when the clock does.
		x.serial = max(x.serial, uint32(x.now().Unix()))
	}
}

// apply reports whether an answer may have changed.
func (x *Index) apply(c model.Change) bool {
	switch c.Kind {
	case model.KindNamespace:
		return x.setNamespace(c.Key, c.New != nil)
	case model.KindService:
		s, _ := c.New.(*model.Service)
		x.setService(c.Key, s)
		return true
	case model.KindEndpointSlice:
		s, _ := c.New.(*model.EndpointSlice)
		x.setSlice(c.Key, s)
		return true
	case model.KindPod:
		p, _ := c.New.(*model.Pod)
		return x.setPod(c.Key, p)
	}
	return false
}

func (x *Index) setNamespace(k model.Key, present bool) bool {
	_, had := x.namespaces[k.Name]
	if present {
		x.namespaces[k.Name] = struct{}{}
	} else {
		delete(x.namespaces, k.Name)
	}
	return had != present
}

func (x *Index) setService(k model.Key, s *model.Service) {
	if old := x.services[k]; old != nil {
		for _, a := range old.ClusterIPs {
			removeKey(x.clusterIPs, a, k)
		}
		delete(x.services, k)
		x.use(k, -1)
	}
	if s == nil {
		return
	}
	x.services[k] = s
	x.use(k, 1)
	for _, a := range s.ClusterIPs {
		addKey(x.clusterIPs, a, k)
	}
}

func (x *Index) setSlice(k model.Key, s *model.EndpointSlice) {
	if old := x.slices[k]; old != nil {
		x.removeSlice(old)
	}
	// A slice without a service has no name in the DNS, as slices of other controllers do not.
	if s == nil || s.Service.Name == "" {
		return
	}
	fresh := newSlice(s)
	x.slices[k] = fresh
	x.use(k, 1)
	list := x.byService[fresh.service]
	at, _ := slices.BinarySearchFunc(list, fresh, compareSlices)
	x.byService[fresh.service] = slices.Insert(slices.Clone(list), at, fresh)
	for i, e := range fresh.endpoints {
		refs := x.endpoints[e.Addr]
		at, _ := slices.BinarySearchFunc(refs, endpointRef{fresh, i}, compareRefs)
		x.endpoints[e.Addr] = slices.Insert(refs, at, endpointRef{fresh, i})
	}
}

func (x *Index) removeSlice(old *slice) {
	delete(x.slices, old.key)
	x.use(old.key, -1)
	list := x.byService[old.service]
	if at, ok := slices.BinarySearchFunc(list, old, compareSlices); ok {
		list = slices.Delete(slices.Clone(list), at, at+1)
	}
	if len(list) == 0 {
		delete(x.byService, old.service)
	} else {
		x.byService[old.service] = list
	}
	for _, e := range old.endpoints {
		refs := slices.DeleteFunc(x.endpoints[e.Addr], func(r endpointRef) bool { return r.slice == old })
		if len(refs) == 0 {
			delete(x.endpoints, e.Addr)
		} else {
			x.endpoints[e.Addr] = refs
		}
	}
}

// setPod reports whether the pod's addresses changed: its readiness and labels have no name.
func (x *Index) setPod(k model.Key, p *model.Pod) bool {
	// The addresses of a pod that has ended may be another pod's by now.
	if p != nil && (p.Finished() || p.Phase == model.PhaseUnknown || len(p.IPs) == 0) {
		p = nil
	}
	old := x.pods[k]
	if old != nil {
		for _, a := range old.IPs {
			removeKey(x.podIPs, a, k)
		}
		delete(x.pods, k)
		x.use(k, -1)
	}
	if p == nil {
		return old != nil
	}
	x.pods[k] = p
	x.use(k, 1)
	for _, a := range p.IPs {
		addKey(x.podIPs, a, k)
	}
	return old == nil || !slices.Equal(old.IPs, p.IPs)
}

func (x *Index) use(k model.Key, by int) {
	if x.used[k.Namespace] += by; x.used[k.Namespace] == 0 {
		delete(x.used, k.Namespace)
	}
}

// addKey and removeKey keep each list sorted, so that an answer does not depend on the order of events.
func addKey(m map[netip.Addr][]model.Key, a netip.Addr, k model.Key) {
	list := m[a]
	if at, ok := slices.BinarySearchFunc(list, k, compareKeys); !ok {
		m[a] = slices.Insert(list, at, k)
	}
}

func removeKey(m map[netip.Addr][]model.Key, a netip.Addr, k model.Key) {
	list := m[a]
	if at, ok := slices.BinarySearchFunc(list, k, compareKeys); ok {
		list = slices.Delete(list, at, at+1)
	}
	if len(list) == 0 {
		delete(m, a)
	} else {
		m[a] = list
	}
}

func compareKeys(a, b model.Key) int {
	if c := strings.Compare(a.Namespace, b.Namespace); c != 0 {
		return c
	}
	return strings.Compare(a.Name, b.Name)
}

func compareSlices(a, b *slice) int { return compareKeys(a.key, b.key) }

func compareRefs(a, b endpointRef) int {
	if c := compareSlices(a.slice, b.slice); c != 0 {
		return c
	}
	return a.i - b.i
}

// Rev returns the store revision of the last batch.
func (x *Index) Rev() uint64 {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.rev
}

// Serial returns the SOA serial of the zones made from this index: the Unix time of the last change
// that could alter an answer, 0 before the first.
func (x *Index) Serial() uint32 {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.serial
}
