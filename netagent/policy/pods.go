package policy

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/braidnet/braid/internal/model"
)

// pod is a pod of the cluster.
type pod struct {
	ns     *namespace
	obj    *model.Pod
	claims []netip.Addr // what it says it has
	addrs  []netip.Addr // what of these is its own, sorted
	sets   map[*set]struct{}
	target bool      // policies are enforced for it here
	chains [2]*chain // by direction; nil: not isolated
	told   Target    // as Flush last told it
}

// claimed are the addresses that a pod may have. One that is finished has none, whatever its status
// says: they may be another pod's by now. A pod on the host's network has those of the node, which
// stand for everything that runs there; selectors do not see it.
func (c *Compiler) claimed(o *model.Pod) []netip.Addr {
	if o == nil || o.Finished() || o.HostNetwork {
		return nil
	}
	if x, ok := c.attached[o.Key]; ok && x.of(o) {
		return slices.Concat(o.IPs, x.Addrs)
	}
	return o.IPs
}

// Attachment is an interface that the node made for a pod, known before the API server knows the pod's
// addresses.
type Attachment struct {
	Pod   model.Key
	UID   string // of the pod; empty where the runtime does not say
	Link  string // the node's end of the interface
	Addrs []netip.Addr
}

// Attach gives a pod its addresses. They are in force with the next Flush if the pod is known by then, and
// else when it is. A later attachment takes the place of an earlier one of the same pod.
func (c *Compiler) Attach(a Attachment) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.attached[a.Pod] = a
	c.again(a.Pod)
}

// Detach forgets the attachments whose interfaces are gone.
func (c *Compiler) Detach(alive func(link string) bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for key, a := range c.attached {
		if !alive(a.Link) {
			delete(c.attached, key)
			c.again(key)
		}
	}
}

// again looks at a pod once more, after something other than its object changed.
func (c *Compiler) again(key model.Key) {
	if ns := c.namespaces[key.Namespace]; ns != nil && ns.pods[key.Name] != nil {
		c.setPod(key, ns.pods[key.Name].obj)
	}
}

// here reports whether a pod is attached to this node under an address.
func (c *Compiler) here(p *pod, a netip.Addr) bool {
	x, ok := c.attached[p.obj.Key]
	return ok && x.of(p.obj) && slices.Contains(x.Addrs, a)
}

// of reports whether an attachment is that of a pod, and not of another one of the same name.
func (a Attachment) of(o *model.Pod) bool { return a.UID == "" || o.UID == "" || a.UID == o.UID }

// setPod takes in a pod as it is now; nil when it is gone.
func (c *Compiler) setPod(key model.Key, o *model.Pod) {
	ns := c.namespace(key.Namespace)
	p := ns.pods[key.Name]
	if p == nil {
		if o == nil {
			c.drop(ns)
			return
		}
		p = &pod{ns: ns, obj: o, sets: map[*set]struct{}{}}
		ns.pods[key.Name] = p
	}
	old, before := p.obj, p.claims
	c.leave(p)
	p.claims = c.claimed(o)
	if o != nil {
		p.obj = o
	}
	if old.UID != p.obj.UID || !slices.Equal(before, p.claims) {
		c.unclaim(p, before)
		for _, a := range p.claims {
			if !slices.Contains(c.owners[a], p) {
				c.owners[a] = append(c.owners[a], p)
			}
		}
	}
	p.addrs = nil
	for _, a := range slices.Concat(before, p.claims) { // who loses an address leaves its sets before the new owner joins them
		for _, other := range c.owners[a] {
			if other != p {
				c.recount(other)
			}
		}
	}
	p.addrs = c.owned(p)
	c.join(p)
	c.retake(p, o)
	if o == nil {
		if x, ok := c.attached[key]; ok && x.of(p.obj) {
			delete(c.attached, key)
		}
		delete(ns.pods, key.Name)
		c.drop(ns)
	}
}

func (c *Compiler) unclaim(p *pod, addrs []netip.Addr) {
	for _, a := range addrs {
		c.owners[a] = slices.DeleteFunc(c.owners[a], func(o *pod) bool { return o == p })
		if len(c.owners[a]) == 0 {
			delete(c.owners, a)
		}
	}
}

// owner is the pod that an address belongs to. Two may claim it for a while, when it passes from one
// to the other and news of that come in the wrong order: then the one that this node has it attached for, or
// one that is not about to end, and among equals the one that claimed it last.
func (c *Compiler) owner(a netip.Addr) *pod {
	var best *pod
	most := 0
	for _, p := range c.owners[a] {
		rank := 1
		switch {
		case c.here(p, a):
			rank = 3
		case !p.obj.Terminating:
			rank = 2
		}
		if rank >= most {
			best, most = p, rank
		}
	}
	return best
}

func (c *Compiler) owned(p *pod) (out []netip.Addr) {
	for _, a := range p.claims {
		if c.owner(a) == p {
			out = append(out, a)
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out)
}

// recount finds out which addresses a pod has now, after another one came or went that claims one of them.
func (c *Compiler) recount(p *pod) {
	now := c.owned(p)
	if slices.Equal(now, p.addrs) {
		return
	}
	c.leave(p)
	p.addrs = now
	c.join(p)
	c.retake(p, p.obj)
}

// retake decides whether policies are enforced for a pod here.
func (c *Compiler) retake(p *pod, o *model.Pod) {
	if o != nil && len(p.addrs) > 0 && (c.node == "" || o.Node == c.node) {
		p.target = true
		p.ns.targets[p] = struct{}{}
		c.dirtyTargets[p] = struct{}{}
		return
	}
	if !p.target {
		return
	}
	p.target = false
	delete(p.ns.targets, p)
	delete(c.dirtyTargets, p)
	for dir, x := range p.chains {
		c.leaveChain(x)
		p.chains[dir] = nil
	}
	if p.told.Pod.Name != "" {
		c.gone[p.told.Pod] = p.told
		p.told = Target{}
	}
}

// retarget finds out anew which policies isolate a pod.
func (c *Compiler) retarget(p *pod, d *Delta) {
	if !p.target {
		return
	}
	var list [2][]*model.NetworkPolicy
	p.ns.policies.match(p.obj.Labels, func(o *model.NetworkPolicy) {
		if o.Ingress {
			list[Ingress] = append(list[Ingress], o)
		}
		if o.Egress {
			list[Egress] = append(list[Egress], o)
		}
	})
	for dir := range list {
		slices.SortFunc(list[dir], func(a, b *model.NetworkPolicy) int { return strings.Compare(a.Name, b.Name) })
		old := p.chains[dir]
		p.chains[dir] = c.takeChain(Direction(dir), p.ns.audit, list[dir])
		c.leaveChain(old)
	}
	t := p.value()
	if gone, was := c.gone[t.Pod]; was {
		delete(c.gone, t.Pod)
		p.told = gone
	}
	if !t.same(p.told) {
		p.told = t
		d.Targets = append(d.Targets, t)
	}
}

// value is the pod as a target.
func (p *pod) value() Target {
	t := Target{Pod: p.obj.Key, UID: p.obj.UID, Addrs: slices.Clone(p.addrs)}
	if x := p.chains[Ingress]; x != nil {
		t.Ingress = &x.Chain
	}
	if x := p.chains[Egress]; x != nil {
		t.Egress = &x.Chain
	}
	return t
}

// same reports whether nothing differs that a filter has to know. Chains are the same when their IDs are.
func (t Target) same(o Target) bool {
	id := func(x *Chain) string {
		if x == nil {
			return ""
		}
		return x.ID
	}
	return t.Pod == o.Pod && t.UID == o.UID && slices.Equal(t.Addrs, o.Addrs) && id(t.Ingress) == id(o.Ingress) && id(t.Egress) == id(o.Egress)
}
