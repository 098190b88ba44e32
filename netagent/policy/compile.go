package policy

import (
	"net/netip"
	"slices"
	"strings"
	"sync"

	"k8s.io/apimachinery/pkg/labels"

	"github.com/braidnet/braid/internal/model"
)

// Compiler keeps the compiled value of one node equal to the cluster. Apply, which is called by the
// store's writer, only queues; Flush, on any other goroutine, works that off and says what changed.
//
// A change costs what depends on it: a pod the sets it is in, a policy the pods of this node in its
// namespace, a namespace its pods. Only a selector that is new is tried on all pods it may match.
type Compiler struct {
	node string

	queue queue

	mu         sync.Mutex // held over Flush and Eval
	namespaces map[string]*namespace
	attached   map[model.Key]Attachment
	owners     map[netip.Addr][]*pod // who claims an address, the latest last
	sets       map[string]*set       // by ID
	spread     *index[*set]          // sets that choose namespaces by their labels
	ports      map[string]map[*set]struct{}
	sections   map[string]*section
	chains     map[string]*chain
	closed     map[model.Key]string // policies that allow nothing, and why

	touched      map[*set]struct{}
	dirtyTargets map[*pod]struct{}
	retold       map[*section]struct{} // sections to be compiled again
	gone         map[model.Key]Target  // targets that Flush has told of and are no more
	newSections  map[*section]struct{} // that came, changed, or lost their last reference
	newChains    map[*chain]struct{}
}

// NewCompiler returns a compiler for the pods of one node; with an empty name, for all pods.
func NewCompiler(node string) *Compiler {
	return &Compiler{
		node:       node,
		namespaces: map[string]*namespace{}, attached: map[model.Key]Attachment{}, owners: map[netip.Addr][]*pod{}, sets: map[string]*set{}, spread: newIndex[*set](),
		ports: map[string]map[*set]struct{}{}, sections: map[string]*section{}, chains: map[string]*chain{}, closed: map[model.Key]string{},
		touched: map[*set]struct{}{}, dirtyTargets: map[*pod]struct{}{}, retold: map[*section]struct{}{}, gone: map[model.Key]Target{},
		newSections: map[*section]struct{}{}, newChains: map[*chain]struct{}{},
	}
}

// namespace is what is known of a namespace. It may be used before its object comes: then it has no
// labels, and no selector of namespaces matches it.
type namespace struct {
	name     string
	known    bool
	audit    bool // its pods' chains deny nothing
	labels   labels.Set
	pods     map[string]*pod
	targets  map[*pod]struct{}
	policies *index[*model.NetworkPolicy]
	all      map[string]*model.NetworkPolicy
	sets     *index[*set] // those that take pods of this namespace
}

func (c *Compiler) namespace(name string) *namespace {
	ns := c.namespaces[name]
	if ns == nil {
		ns = &namespace{name: name, pods: map[string]*pod{}, targets: map[*pod]struct{}{}, policies: newIndex[*model.NetworkPolicy](),
			all: map[string]*model.NetworkPolicy{}, sets: newIndex[*set]()}
		c.namespaces[name] = ns
	}
	return ns
}

// drop lets go of a namespace about which nothing is known any more.
func (c *Compiler) drop(ns *namespace) {
	if !ns.known && len(ns.pods)+len(ns.all)+len(ns.sets.others)+len(ns.sets.byPair) == 0 {
		delete(c.namespaces, ns.name)
	}
}

// Apply takes one batch of changes; its shape is that of model.Subscriber.
func (c *Compiler) Apply(_ uint64, changes []model.Change) {
	c.queue.add(changes)
}

// Pending reports whether Flush has something to work off.
func (c *Compiler) Pending() bool { return c.queue.waiting() }

// Flush brings the compiled value up to date and returns how it changed since the last call.
func (c *Compiler) Flush() Delta {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, change := range c.queue.take() {
		switch change.Kind {
		case model.KindNamespace:
			o, _ := change.New.(*model.Namespace)
			c.setNamespace(change.Name, o)
		case model.KindPod:
			o, _ := change.New.(*model.Pod)
			c.setPod(change.Key, o)
		case model.KindNetworkPolicy:
			o, _ := change.New.(*model.NetworkPolicy)
			c.setPolicy(change.Key, o)
		}
	}
	var d Delta
	for p := range c.dirtyTargets {
		c.retarget(p, &d)
	}
	clear(c.dirtyTargets)
	for len(c.retold) > 0 { // closing one section of a policy closes the other
		for s := range c.retold {
			delete(c.retold, s)
			c.recompile(s)
		}
	}
	c.settle(&d)
	return d
}

func (c *Compiler) setNamespace(name string, o *model.Namespace) {
	ns := c.namespace(name)
	matched := func() map[*set]struct{} {
		out := map[*set]struct{}{}
		if ns.known {
			c.spread.match(ns.labels, func(s *set) { out[s] = struct{}{} })
		}
		return out
	}
	before := matched()
	audit := o != nil && o.Audit
	if audit != ns.audit {
		ns.audit = audit
		for p := range ns.targets {
			c.dirtyTargets[p] = struct{}{}
		}
	}
	ns.known, ns.labels = o != nil, nil
	if o != nil {
		ns.labels = o.Labels
	}
	after := matched()
	for s := range before {
		if _, still := after[s]; !still {
			c.withdraw(ns, s)
		}
	}
	for s := range after {
		if _, was := before[s]; !was {
			c.offer(ns, s)
		}
	}
	c.drop(ns)
}

func (c *Compiler) setPolicy(key model.Key, o *model.NetworkPolicy) {
	ns := c.namespace(key.Namespace)
	old := ns.all[key.Name]
	if old != nil {
		ns.policies.remove(old.PodSelector, old)
		delete(ns.all, key.Name)
	}
	if o != nil {
		ns.policies.add(o.PodSelector, o)
		ns.all[key.Name] = o
	}
	for p := range ns.targets {
		if old != nil && old.PodSelector.Matches(p.obj.Labels) || o != nil && o.PodSelector.Matches(p.obj.Labels) {
			c.dirtyTargets[p] = struct{}{}
		}
	}
	delete(c.closed, key) // it may be another one now
	if o != nil {
		c.retell(key)
	}
	c.drop(ns)
}

// retell has the sections of a policy compiled again.
func (c *Compiler) retell(key model.Key) {
	for _, dir := range []Direction{Ingress, Egress} {
		if s := c.sections[sectionID(key, dir)]; s != nil {
			c.retold[s] = struct{}{}
		}
	}
}

// settle tells of what changed and lets go of what nothing refers to.
func (c *Compiler) settle(d *Delta) {
	for x := range c.newChains {
		switch {
		case x.refs == 0:
			if x.told {
				d.DeleteChains = append(d.DeleteChains, &x.Chain)
			}
			c.forgetChain(x)
		case !x.told:
			d.Chains = append(d.Chains, &x.Chain)
			x.told = true
		}
	}
	clear(c.newChains)
	for s := range c.newSections {
		switch {
		case s.refs == 0:
			if s.told {
				d.DeleteSections = append(d.DeleteSections, s.value)
			}
			c.forgetSection(s)
		case s.changed:
			d.Sections = append(d.Sections, s.value)
			s.told, s.changed = true, false
		}
	}
	clear(c.newSections)
	for s := range c.touched {
		if delta, ok := s.delta(); ok {
			d.Sets = append(d.Sets, delta)
		}
		if s.refs == 0 {
			c.forget(s)
		}
	}
	clear(c.touched)
	for _, t := range c.gone {
		d.DeleteTargets = append(d.DeleteTargets, t)
	}
	clear(c.gone)
	d.sort()
}

func (d *Delta) sort() {
	slices.SortFunc(d.Sets, func(a, b SetDelta) int { return strings.Compare(a.Set.ID, b.Set.ID) })
	for _, list := range [][]*Section{d.Sections, d.DeleteSections} {
		slices.SortFunc(list, func(a, b *Section) int { return strings.Compare(a.ID, b.ID) })
	}
	for _, list := range [][]*Chain{d.Chains, d.DeleteChains} {
		slices.SortFunc(list, func(a, b *Chain) int { return strings.Compare(a.ID, b.ID) })
	}
	for _, list := range [][]Target{d.Targets, d.DeleteTargets} {
		slices.SortFunc(list, func(a, b Target) int { return strings.Compare(a.Pod.String(), b.Pod.String()) })
	}
}

// All tells of everything, as of the last Flush, as if it were new.
func (c *Compiler) All() Delta {
	c.mu.Lock()
	defer c.mu.Unlock()
	var d Delta
	for _, s := range c.sets {
		d.Sets = append(d.Sets, SetDelta{Set: &s.Set, New: true, Add: s.sorted()})
	}
	for _, s := range c.sections {
		d.Sections = append(d.Sections, s.value)
	}
	for _, x := range c.chains {
		d.Chains = append(d.Chains, &x.Chain)
	}
	for _, ns := range c.namespaces {
		for p := range ns.targets {
			d.Targets = append(d.Targets, p.told)
		}
	}
	d.sort()
	return d
}
