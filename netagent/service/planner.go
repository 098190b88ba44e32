package service

import (
	"net/netip"
	"slices"
	"sync"

	"github.com/braidnet/braid/internal/model"
)

// Config says for which node a Planner plans, and what its administrator decided.
type Config struct {
	Node          string // name of the Node this agent runs on: decides what is local and which hints apply
	MasqueradeAll bool   // cluster IPs hide pods' addresses too, for networks that cannot route replies
	// ExternalIPs are the ranges in which spec.externalIPs of Services count; empty: nowhere.
	ExternalIPs []netip.Prefix
	// NodePortAddresses are the addresses of this node that serve node ports; empty: all. NodePortPrimary
	// means the node's InternalIPs instead.
	NodePortAddresses []netip.Prefix
	NodePortPrimary   bool
	Local             Local // who counts as a pod of this node
	Loopback          bool  // see Net.Loopback
}

// Planner turns the cluster's Services and EndpointSlices into the frontends of one node.
//
// Apply is called by the store's writer and only indexes; Flush, on any other goroutine, recomputes
// the services that were touched since and says what changed. Neither loops over all services, unless
// this node's own zone changed. All methods may be called from different goroutines.
type Planner struct {
	in  inputs
	out outputs
}

// NewPlanner returns a planner that knows nothing yet.
func NewPlanner(c Config) *Planner {
	return &Planner{
		in: inputs{
			at:       place{Config: c},
			cidrs:    map[model.Key][]netip.Prefix{},
			health:   map[model.Key]uint16{},
			services: map[model.Key]*model.Service{},
			slices:   map[model.Key][]*model.EndpointSlice{},
			owner:    map[model.Key]model.Key{},
			dirty:    map[model.Key]struct{}{},
			pods:     newPodNets(),
			netDirty: true,
		},
		out: outputs{
			plans:     map[model.Key]plan{},
			claims:    map[slot][]*Frontend{},
			contested: map[slot]struct{}{},
			told:      map[slot]*Frontend{},
		},
	}
}

// Apply takes one batch of changes; its shape is that of model.Subscriber.
func (p *Planner) Apply(rev uint64, changes []model.Change) {
	p.in.mu.Lock()
	defer p.in.mu.Unlock()
	p.in.rev = rev
	for _, c := range changes {
		switch c.Kind {
		case model.KindService:
			svc, _ := c.New.(*model.Service)
			p.in.setService(c.Key, svc)
		case model.KindEndpointSlice:
			slice, _ := c.New.(*model.EndpointSlice)
			p.in.setSlice(c.Key, slice)
		case model.KindNode:
			node, _ := c.New.(*model.Node)
			p.in.setNode(c.Name, node)
		case model.KindServiceCIDR:
			cidr, _ := c.New.(*model.ServiceCIDR)
			p.in.setCIDR(c.Key, cidr)
		}
	}
}

// Dirty reports whether Flush has something to compute.
func (p *Planner) Dirty() bool {
	p.in.mu.Lock()
	defer p.in.mu.Unlock()
	return len(p.in.dirty) > 0 || p.in.netDirty
}

// Flush recomputes what changed since the last call and returns the difference between the table
// before and after. Delete and Set never name the same Key, and both are sorted. When one address
// passes from one kind of frontend to another, Delete has the old Key and Set the new one: a consumer
// that indexes by address must handle Delete first.
func (p *Planner) Flush() Delta {
	p.out.mu.Lock()
	defer p.out.mu.Unlock()
	work := p.in.take()
	touched := map[slot]struct{}{}
	for _, j := range work.jobs {
		p.out.replace(j.key, compute(j, work.at), touched)
	}
	d := p.out.settle(touched)
	d.Rev = work.rev
	if work.net != nil && !equalNet(p.out.net, *work.net) {
		p.out.net = *work.net
		d.Net = work.net
	}
	return d
}

// All returns the whole table as of the last Flush, sorted by key.
func (p *Planner) All() ([]Frontend, Net) {
	p.out.mu.Lock()
	defer p.out.mu.Unlock()
	all := make([]Frontend, 0, len(p.out.told))
	for _, f := range p.out.told {
		all = append(all, *f)
	}
	slices.SortFunc(all, func(a, b Frontend) int { return compareKeys(a.Key, b.Key) })
	return all, p.out.net
}

// inputs indexes the objects of the cluster by what depends on them: one Service.
type inputs struct {
	mu       sync.Mutex
	at       place
	rev      uint64
	services map[model.Key]*model.Service
	slices   map[model.Key][]*model.EndpointSlice // by service, in no order
	owner    map[model.Key]model.Key              // slice -> service it was last indexed under
	cidrs    map[model.Key][]netip.Prefix         // of ServiceCIDRs
	health   map[model.Key]uint16                 // health check node ports of Services
	pods     podNets
	dirty    map[model.Key]struct{} // services to recompute
	netDirty bool
}

func (in *inputs) setService(k model.Key, svc *model.Service) {
	if svc == nil {
		delete(in.services, k)
	} else {
		in.services[k] = svc
	}
	in.dirty[k] = struct{}{}
	port := healthPort(svc)
	if port == in.health[k] {
		return
	}
	in.netDirty = true
	if port == 0 {
		delete(in.health, k)
	} else {
		in.health[k] = port
	}
}

// setSlice indexes a slice under the service its label names now, and takes it away from the one it
// named before: both are touched when the label changed.
func (in *inputs) setSlice(k model.Key, slice *model.EndpointSlice) {
	if was, ok := in.owner[k]; ok {
		left := slices.DeleteFunc(in.slices[was], func(s *model.EndpointSlice) bool { return s.Key == k })
		if in.slices[was] = left; len(left) == 0 {
			delete(in.slices, was)
		}
		delete(in.owner, k)
		in.dirty[was] = struct{}{}
	}
	if slice == nil || !balanced(slice) {
		return
	}
	svc := slice.Service
	in.slices[svc] = append(in.slices[svc], slice)
	in.owner[k] = svc
	in.dirty[svc] = struct{}{}
}

func (in *inputs) setNode(name string, node *model.Node) {
	if in.pods.set(name, node) {
		in.netDirty = true
	}
	if name != in.at.Node {
		return
	}
	var zone string
	var addrs []netip.Addr
	if node != nil {
		zone, addrs = node.Labels[labelZone], node.InternalIPs
	}
	moved, pods := !slices.Equal(addrs, in.at.addrs), in.pods.nodes[name]
	if zone == in.at.zone && !moved && slices.Equal(pods, in.at.pods) {
		return
	}
	in.at.zone, in.at.addrs, in.at.pods = zone, addrs, pods
	in.netDirty = in.netDirty || moved
	for k := range in.services { // hints name zones: another zone may mean other backends anywhere
		in.dirty[k] = struct{}{}
	}
}

func (in *inputs) setCIDR(k model.Key, cidr *model.ServiceCIDR) {
	if cidr == nil {
		delete(in.cidrs, k)
	} else {
		in.cidrs[k] = cidr.CIDRs
	}
	in.netDirty = true
}

// net gathers what translation needs to know about addresses.
func (in *inputs) net() Net {
	n := in.pods.net(in.at.Node)
	n.Local, n.Loopback = in.at.Local, in.at.Loopback
	for _, port := range in.health {
		n.HealthPorts = append(n.HealthPorts, port)
	}
	slices.Sort(n.HealthPorts)
	n.HealthPorts = slices.Compact(n.HealthPorts)
	for _, list := range in.cidrs {
		n.Services = append(n.Services, list...)
	}
	n.Services = merge(n.Services)
	switch {
	case in.at.NodePortPrimary:
		for _, a := range in.at.addrs {
			n.NodePorts = append(n.NodePorts, netip.PrefixFrom(a, a.BitLen()))
		}
	case len(in.at.NodePortAddresses) > 0:
		n.NodePorts = slices.Clone(in.at.NodePortAddresses)
	default:
		n.NodePorts = []netip.Prefix{netip.PrefixFrom(unspecified(true), 0), netip.PrefixFrom(unspecified(false), 0)}
	}
	n.NodePorts = merge(n.NodePorts)
	return n
}

// job is one service to recompute, with everything that it depends on.
type job struct {
	key    model.Key
	svc    *model.Service // nil: it is gone
	slices []*model.EndpointSlice
}

// work is a consistent snapshot of what is dirty. The objects are immutable, so it may be used
// without holding the lock.
type work struct {
	rev  uint64
	at   place
	jobs []job
	net  *Net // nil when unchanged
}

func (in *inputs) take() work {
	in.mu.Lock()
	defer in.mu.Unlock()
	w := work{rev: in.rev, at: in.at, jobs: make([]job, 0, len(in.dirty))}
	for k := range in.dirty {
		j := job{key: k, svc: in.services[k]}
		if j.svc != nil {
			j.slices = slices.Clone(in.slices[k])
		}
		w.jobs = append(w.jobs, j)
	}
	in.dirty = map[model.Key]struct{}{} // a map that was large once stays so
	if in.netDirty {
		n := in.net()
		w.net = &n
		in.netDirty = false
	}
	return w
}
