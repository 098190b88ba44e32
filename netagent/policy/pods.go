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
func claimed(o *model.Pod) []netip.Addr {
	if o == nil || o.Finished() || o.HostNetwork {
		return nil
	}
	return o.IPs
}

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
	p.claims = claimed(o)
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
// to the other and news of that come in the wrong order: then one that is not about to end, and among
// those the one that claimed it last.
func (c *Compiler) owner(a netip.Addr) *pod {
	var best *pod
	for _, p := range c.owners[a] {
		if best == nil || best.obj.Terminating || !p.obj.Terminating {
			best = p
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
		p.chains[dir] = c.takeChain(Direction(dir), list[dir])
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
