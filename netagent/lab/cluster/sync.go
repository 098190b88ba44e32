package cluster

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
)

// sync derives everything from the objects and the state of the pods: which pods to make and end,
// where they go, the endpoints, the files. It is called with the lock held, after every change. It
// looks at everything each time: a playground is small, and what is simple here is right.
func (c *Controller) sync() error {
	for c.plan() {
	}
	c.place()
	c.choosePorts()
	pods := c.podObjects()
	var errs []error
	for _, s := range sorted(c.services) {
		if err := c.slices.reconcile(s, selected(s, pods)); err != nil {
			errs = append(errs, err)
		}
	}
	if err := c.folder.write(c.entries(pods)); err != nil {
		errs = append(errs, err)
	}
	err := errors.Join(errs...)
	if err != nil && (c.failed == nil || c.failed.Error() != err.Error()) {
		c.log.Error("the folder of objects is behind", "dir", c.folder.dir, "err", err)
	}
	c.failed = err
	close(c.changed)
	c.changed = make(chan struct{})
	c.kick()
	if c.cfg.Progress != nil {
		c.cfg.Progress()
	}
	return err
}

// plan lets every workload take its next step. It reports whether a pod was removed on the spot, so
// that the workloads should look again.
func (c *Controller) plan() (again bool) {
	c.wanted = len(c.bare)
	for _, w := range c.sortedWorkloads() {
		s := w.plan(c.podsOf(w), c.fits(&w.template.Spec))
		c.wanted += s.wanted
		for _, p := range s.remove {
			again = c.terminate(p) || again
		}
		for _, n := range s.create {
			w.made++
			c.add(podOf(w, n, w.made), w, n.ordinal)
		}
	}
	for _, p := range c.sortedPods() {
		if p.owner == nil && c.bare[p.key] == nil {
			again = c.terminate(p) || again
		}
	}
	for _, want := range sorted(c.bare) {
		switch p := c.pods[keyOf(want)]; {
		case p == nil:
			c.add(*want.DeepCopy(), nil, 0)
		case p.owner == nil && !p.terminating:
			again = c.updateBare(p, want) || again
		}
	}
	return again
}

// updateBare follows the manifest of a pod: labels and annotations in place, anything else by
// replacing the pod. It reports whether the old pod is gone on the spot.
func (c *Controller) updateBare(p *pod, want *corev1.Pod) (gone bool) {
	if hash, err := hashOf(corev1.PodTemplateSpec{Spec: want.Spec}); err == nil && hash != p.hash {
		return c.terminate(p)
	}
	if !maps.Equal(p.base.Labels, want.Labels) || !maps.Equal(p.base.Annotations, want.Annotations) {
		p.base.Labels, p.base.Annotations = maps.Clone(want.Labels), maps.Clone(want.Annotations)
		p.refresh()
	}
	return false
}

// add makes a pod. A name that is taken, by a pod of another owner or one that is still going, is
// tried again at the next sync.
func (c *Controller) add(base corev1.Pod, owner *workload, ordinal int) {
	key := keyOf(&base)
	if c.pods[key] != nil {
		return
	}
	c.made++
	base.UID = uidOf("Pod", key, c.made)
	p := &pod{seq: c.made, key: key, owner: owner, ordinal: ordinal, created: time.Now(), base: base}
	if owner != nil {
		p.hash = owner.hash
	} else if hash, err := hashOf(corev1.PodTemplateSpec{Spec: base.Spec}); err == nil {
		p.hash = hash
	}
	p.refresh()
	c.pods[key] = p
}

// terminate begins the end of a pod. It reports whether the pod is gone on the spot, as one that was
// never started is.
func (c *Controller) terminate(p *pod) (gone bool) {
	if p.terminating {
		return false
	}
	if !p.tried {
		delete(c.pods, p.key)
		return true
	}
	now := time.Now()
	p.terminating, p.deletedAt = true, now.Truncate(time.Second)
	p.err, p.failures, p.next = "", 0, now
	if p.running {
		p.next = now.Add(p.grace(c.cfg.Grace))
	}
	if p.cancel != nil {
		p.cancel()
	}
	p.refresh()
	return false
}

// place gives pods a node: round robin, except that pods of one template spread first. A pod that
// has its node keeps it.
func (c *Controller) place() {
	for _, p := range c.sortedPods() {
		if p.tried || p.terminating {
			continue
		}
		before, why := p.base.Spec.NodeName, p.err
		p.err = ""
		switch {
		case before == "":
			p.base.Spec.NodeName, p.err = c.choose(p)
		case c.node(before) == nil:
			p.err = fmt.Sprintf("node %s does not exist: the nodes are %s", before, strings.Join(c.nodeNames(), ", "))
		}
		if n := c.node(p.base.Spec.NodeName); n != nil && p.hostIPs == nil {
			p.hostIPs = internalIPs(n)
		}
		if p.base.Spec.NodeName != before || p.err != why {
			p.refresh()
		}
	}
}

// choose finds a node for a pod, or says why there is none.
func (c *Controller) choose(p *pod) (node, why string) {
	fits := c.fits(&p.base.Spec)
	if len(fits) == 0 {
		return "", fmt.Sprintf("no node has the labels of its nodeSelector, %s", labels.Set(p.base.Spec.NodeSelector))
	}
	if fits = slices.DeleteFunc(fits, c.portsTaken(p)); len(fits) == 0 {
		return "", fmt.Sprintf("each node that fits has a pod with one of its host ports, %v", hostPorts(&p.base.Spec))
	}
	siblings := map[string]int{}
	for _, o := range c.pods {
		if p.owner != nil && o.owner == p.owner && o.hash == p.hash && o != p {
			siblings[o.base.Spec.NodeName]++
		}
	}
	// The turn is counted over all nodes, so that a selector does not bind it to a few of them.
	all := c.nodeNames()
	best := ""
	for i := range all {
		n := all[(c.placed+i)%len(all)]
		if slices.Contains(fits, n) && (best == "" || siblings[n] < siblings[best]) {
			best = n
		}
	}
	c.placed = slices.Index(all, best) + 1
	return best, ""
}

// fits lists the nodes that have the labels a pod asks for.
func (c *Controller) fits(s *corev1.PodSpec) (out []string) {
	sel := labels.SelectorFromSet(s.NodeSelector)
	for _, n := range c.nodes {
		if sel.Matches(labels.Set(n.Labels)) {
			out = append(out, n.Name)
		}
	}
	return out
}

// choosePorts settles what each pod serves.
func (c *Controller) choosePorts() {
	selecting := map[types.NamespacedName][]*corev1.Service{}
	pods := c.podObjects()
	for _, s := range sorted(c.services) {
		if !selects(s) {
			continue
		}
		for _, p := range selected(s, pods) {
			selecting[keyOf(p)] = append(selecting[keyOf(p)], s)
		}
	}
	for _, p := range c.pods {
		if ports := servedPorts(&p.base.Spec, selecting[p.key]); !slices.Equal(ports, p.ports) {
			p.ports, p.portsStale = ports, p.tried
		}
	}
}

// entries lists the objects of the folder in the order in which they are written.
func (c *Controller) entries(pods []*corev1.Pod) (out []entry) {
	for _, name := range slices.Sorted(maps.Keys(c.spaces)) {
		out = append(out, entryOf(c.spaces[name]))
	}
	for _, n := range c.nodes {
		out = append(out, entryOf(n))
	}
	out = append(out, entryOf(c.ranges))
	for _, p := range pods {
		out = append(out, entryOf(p))
	}
	for _, o := range sorted(c.policies) {
		out = append(out, entryOf(o))
	}
	for _, o := range sorted(c.services) {
		out = append(out, entryOf(o))
	}
	for _, o := range sorted(c.userSlice) {
		out = append(out, entryOf(o))
	}
	for _, o := range sorted(c.slices.made) {
		out = append(out, entryOf(o))
	}
	return out
}

func entryOf(o object) entry {
	return entry{fileName(kindOf(o), o.GetNamespace(), o.GetName()), o}
}

func (c *Controller) podObjects() (out []*corev1.Pod) {
	for _, p := range c.sortedPods() {
		out = append(out, p.obj)
	}
	return out
}

func (c *Controller) sortedPods() []*pod {
	return slices.SortedFunc(maps.Values(c.pods), func(a, b *pod) int { return a.seq - b.seq })
}

func (c *Controller) podsOf(w *workload) (out []*pod) {
	for _, p := range c.sortedPods() {
		if p.owner == w {
			out = append(out, p)
		}
	}
	return out
}

func (c *Controller) sortedWorkloads() []*workload {
	return slices.SortedFunc(maps.Values(c.workloads), func(a, b *workload) int { return a.seq - b.seq })
}

func sorted[T any](m map[types.NamespacedName]T) (out []T) {
	keys := slices.SortedFunc(maps.Keys(m), compareKeys)
	for _, k := range keys {
		out = append(out, m[k])
	}
	return out
}

func compareKeys(a, b types.NamespacedName) int {
	return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}

func metaOf(name string) metav1.ObjectMeta { return metav1.ObjectMeta{Name: name} }
