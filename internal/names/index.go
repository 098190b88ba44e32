// Package names keeps the answers to cluster DNS names: an index from names and addresses to
// services, endpoints and pods that follows a model.Store change by change, and the grammar of the
// names themselves (Kubernetes DNS specification, schema 1.1.0).
//
// It knows nothing of a DNS server: names are parsed without their zone, answers are netip
// addresses, ports and labels. plugin/kubernetes turns them into records.
package names

import (
	"hash/maphash"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/braidnet/braid/internal/model"
)

// Index answers look-ups while a writer feeds it changes. An event costs time in proportion to the
// objects it names (and to the number of slices of the one service a slice belongs to), never to
// the size of the cluster. Create it with New.
type Index struct {
	now func() time.Time

	// What almost every answer needs is read without a lock.
	namespaces table[string, struct{}]
	records    table[model.Key, record]
	published  [3]atomic.Uint32 // values of serials

	mu         sync.RWMutex
	rev        uint64
	serials    [3]serial                    // by ZoneClass
	used       map[string]int               // services, slices and pods held, by namespace
	imports    map[model.Key]*model.Service // ServiceImports, as services with the set's addresses
	slices     map[model.Key]*slice         // by the slice's own name
	byImport   map[model.Key][]*slice       // sorted by name; replaced, never changed in place
	clusterIPs map[netip.Addr][]model.Key
	externals  map[netip.Addr][]model.Key // external and load-balancer addresses
	endpoints  reverse
	pods       map[model.Key]*model.Pod
	podIPs     map[netip.Addr][]model.Key
	nodes      nodes
}

// record is what there is of a service: itself, its slices sorted by name, or both.
type record struct {
	service *model.Service
	slices  []*slice // replaced, never changed in place
}

// New returns an empty index.
func New() *Index {
	return &Index{
		now:        time.Now,
		namespaces: table[string, struct{}]{hash: func(s maphash.Seed, ns string) uint64 { return maphash.String(s, ns) }, seed: maphash.MakeSeed()},
		records:    table[model.Key, record]{hash: hashKey, seed: maphash.MakeSeed()},
		used:       map[string]int{},
		imports:    map[model.Key]*model.Service{},
		slices:     map[model.Key]*slice{},
		byImport:   map[model.Key][]*slice{},
		clusterIPs: map[netip.Addr][]model.Key{},
		externals:  map[netip.Addr][]model.Key{},
		endpoints:  newReverse(),
		pods:       map[model.Key]*model.Pod{},
		podIPs:     map[netip.Addr][]model.Key{},
		nodes:      newNodes(),
	}
}

// Apply takes one batch of changes; it is a model.Subscriber. It trusts what it holds itself over
// Change.Old, so a repeated or late event leaves the same index as a clean one.
func (x *Index) Apply(rev uint64, changes []model.Change) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.rev = rev
	var touched [3]bool
	for _, c := range changes {
		for _, z := range x.apply(c) {
			touched[z] = true
		}
	}
	for z, yes := range touched {
		if yes {
			x.serials[z].advance(x.now())
			x.published[z].Store(x.serials[z].value)
		}
	}
	x.namespaces.publish()
	x.records.publish()
}

// apply returns the zones whose answers may have changed.
func (x *Index) apply(c model.Change) []ZoneClass {
	switch c.Kind {
	case model.KindNamespace:
		return x.setNamespace(c.Key, c.New != nil)
	case model.KindService:
		s, _ := c.New.(*model.Service)
		return x.setService(c.Key, s)
	case model.KindServiceImport:
		s, _ := c.New.(*model.ServiceImport)
		return x.setImport(c.Key, s)
	case model.KindEndpointSlice:
		return x.setSlice(c.Key, SliceOf(c.New))
	case model.KindPod:
		p, _ := c.New.(*model.Pod)
		return x.setPod(c.Key, p)
	case model.KindNode:
		n, _ := c.New.(*model.Node)
		x.nodes.set(c.Key.Name, n)
	}
	return nil
}

func (x *Index) setNamespace(k model.Key, present bool) []ZoneClass {
	_, had := x.namespaces.coming(k.Name)
	if present {
		x.namespaces.set(k.Name, struct{}{})
	} else {
		x.namespaces.remove(k.Name)
	}
	if had == present {
		return nil
	}
	return []ZoneClass{ClusterZone, ExternalZone, SetZone}
}

func (x *Index) setService(k model.Key, s *model.Service) []ZoneClass {
	touched := []ZoneClass{ClusterZone}
	r, _ := x.records.coming(k)
	old := r.service
	if old != nil {
		for _, a := range old.ClusterIPs {
			removeKey(x.clusterIPs, a, k)
		}
		for _, a := range ExternalAddrs(old) {
			removeKey(x.externals, a, k)
		}
		x.use(k, -1)
	}
	x.setRecord(k, record{s, r.slices})
	if outside(old) || outside(s) {
		touched = append(touched, ExternalZone)
	}
	if s == nil {
		return touched
	}
	x.use(k, 1)
	for _, a := range s.ClusterIPs {
		addKey(x.clusterIPs, a, k)
	}
	for _, a := range ExternalAddrs(s) {
		addKey(x.externals, a, k)
	}
	return touched
}

func (x *Index) setRecord(k model.Key, r record) {
	if r.service == nil && len(r.slices) == 0 {
		x.records.remove(k)
	} else {
		x.records.set(k, r)
	}
}

func (x *Index) setImport(k model.Key, s *model.ServiceImport) []ZoneClass {
	if x.imports[k] != nil {
		delete(x.imports, k)
		x.use(k, -1)
	}
	if s != nil {
		x.imports[k] = &model.Service{Origin: s.Origin, Headless: s.Headless, ClusterIPs: s.IPs, Ports: s.Ports}
		x.use(k, 1)
	}
	return []ZoneClass{SetZone}
}

func (x *Index) setSlice(k model.Key, s *Slice) (touched []ZoneClass) {
	touch := func(sl *slice) {
		if sl.Service.Name != "" {
			touched = append(touched, ClusterZone, ExternalZone)
		}
		if sl.Import.Name != "" {
			touched = append(touched, SetZone)
		}
	}
	if old := x.slices[k]; old != nil {
		touch(old)
		x.removeSlice(old)
	}
	// A slice without a service has no name in the DNS, as slices of other controllers do not.
	if s == nil || (s.Service.Name == "" && s.Import.Name == "") {
		return touched
	}
	fresh := &slice{Slice: s}
	touch(fresh)
	x.slices[k] = fresh
	x.use(k, 1)
	addSlice(x.byImport, fresh.Import, fresh)
	if fresh.Service.Name == "" {
		return touched
	}
	r, _ := x.records.coming(fresh.Service)
	x.setRecord(fresh.Service, record{r.service, withSlice(r.slices, fresh)})
	x.endpoints.add(fresh)
	return touched
}

func (x *Index) removeSlice(old *slice) {
	delete(x.slices, old.Key)
	x.use(old.Key, -1)
	removeSlice(x.byImport, old.Import, old)
	if old.Service.Name == "" {
		return
	}
	r, _ := x.records.coming(old.Service)
	x.setRecord(old.Service, record{r.service, withoutSlice(r.slices, old)})
	x.endpoints.remove(old)
}

// setPod says that the zone changed only when the pod's addresses did: its readiness has no name.
func (x *Index) setPod(k model.Key, p *model.Pod) []ZoneClass {
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
	if p != nil {
		x.pods[k] = p
		x.use(k, 1)
		for _, a := range p.IPs {
			addKey(x.podIPs, a, k)
		}
	}
	if (old == nil) == (p == nil) && (p == nil || slices.Equal(old.IPs, p.IPs)) {
		return nil
	}
	return []ZoneClass{ClusterZone}
}

func (x *Index) use(k model.Key, by int) {
	if x.used[k.Namespace] += by; x.used[k.Namespace] == 0 {
		delete(x.used, k.Namespace)
	}
}

// Rev returns the store revision of the last batch.
func (x *Index) Rev() uint64 {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.rev
}
