package iptables

import (
	"cmp"
	"errors"
	"maps"
	"net/netip"
	"slices"

	"github.com/braidnet/braid/internal/desired"
	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/netagent/policy"
)

// State is what the kernel holds as far as we wrote it, and turns changes of the compiled value into
// Plans. The zero State knows nothing and needs a Replace before anything else. For one goroutine.
type State struct {
	options  Options
	known    bool
	sections map[string]*policy.Section
	chains   map[string]*policy.Chain
	targets  map[model.Key]policy.Target
	kernels  []*kernel
}

// kernel is one family's part of it.
type kernel struct {
	family
	rules   map[string][]string // by chain of ours
	inForce map[list]version    // which of a list's two sets the rules refer to
	sizes   map[string]int      // members by set
}

// NewState makes a State for the families the kernel has: false is IPv4, true IPv6.
func NewState(ipv6 []bool, o Options) *State {
	s := &State{options: o}
	for _, f := range ipv6 {
		s.kernels = append(s.kernels, &kernel{family: families[f]})
	}
	return s
}

// Forget makes the next change start from a Replace: after an error nobody knows what the kernel holds.
func (s *State) Forget() { s.known = false }

var errUnknown = errors.New("what the kernel holds is not known: replace everything first")

// Apply plans a change. It looks at nothing that the change does not touch, but for the pods of this node when their
// policies' rules change.
func (s *State) Apply(d policy.Delta) (Plan, error) {
	var p Plan
	if !s.known {
		return p, errUnknown
	}
	moved := make([]map[pod]move, len(s.kernels))
	for i, k := range s.kernels {
		moved[i] = k.moves(s.targets, d)
	}
	dirty := s.take(d)
	for i, k := range s.kernels {
		c := &planner{family: k.family}
		for _, x := range d.Sets {
			c.set(x)
		}
		if !k.rewrite(s, c, dirty, d.DeleteChains, moved[i]) {
			c.moves = k.inPlace(moved[i])
		}
		k.count(c)
		c.into(&p)
	}
	return p, nil
}

// count notes how many members the sets have when a plan is done.
func (k *kernel) count(c *planner) {
	for _, x := range slices.Concat(c.sets, c.fresh) {
		if x.gone {
			delete(k.sizes, x.Name)
		} else {
			k.sizes[x.Name] += len(x.add) - len(x.remove)
		}
	}
	for _, op := range c.moves {
		k.sizes[op.Set.Name] += map[desired.IPSetVerb]int{desired.IPSetAdd: 1, desired.IPSetRemove: -1}[op.Verb] * len(op.Members)
	}
}

// Sizes tells how many members each of our sets has to have.
func (s *State) Sizes() map[string]int {
	out := map[string]int{}
	for _, k := range s.kernels {
		maps.Copy(out, k.sizes)
	}
	return out
}

// set plans the change of a set that the compiler tells of.
func (c *planner) set(d policy.SetDelta) {
	set := c.family.set(d.Set)
	if d.New {
		c.fresh = append(c.fresh, setChange{IPSet: set, isNew: true, add: c.all(d)})
		return
	}
	c.sets = append(c.sets, setChange{IPSet: set, gone: d.Gone, add: c.members(d.Set, d.Add), remove: c.members(d.Set, d.Remove)})
}

// take notes a change, and returns the chains whose rules may be others now.
func (s *State) take(d policy.Delta) (dirty map[string]bool) {
	dirty = map[string]bool{}
	for _, x := range d.Sections {
		s.sections[x.ID] = x
	}
	for _, x := range d.DeleteSections {
		delete(s.sections, x.ID)
	}
	for _, c := range d.DeleteChains {
		delete(s.chains, c.ID)
	}
	for _, c := range d.Chains {
		s.chains[c.ID] = c
		dirty[c.ID] = true
	}
	for _, t := range d.DeleteTargets {
		delete(s.targets, t.Pod)
	}
	for _, t := range d.Targets {
		s.targets[t.Pod] = t
	}
	if len(d.Sections) == 0 {
		return dirty
	}
	changed := map[string]bool{}
	for _, x := range d.Sections {
		changed[x.ID] = true
	}
	for id, c := range s.chains {
		for _, tier := range c.Tiers {
			if slices.ContainsFunc(tier.Sections, func(r policy.SectionRef) bool { return changed[r.ID] }) {
				dirty[id] = true
			}
		}
	}
	return dirty
}

// rewrite plans the rules that change, and with them the sets of pods that come under other policies. It reports
// false when there is no need for that.
func (k *kernel) rewrite(s *State, c *planner, dirty map[string]bool, gone []*policy.Chain, moved map[pod]move) bool {
	affected := affected(moved)
	c.rules = map[string][]string{}
	for _, id := range slices.Sorted(maps.Keys(dirty)) {
		if rules := k.rulesOf(s.options, s.chains[id], s.sections); !slices.Equal(rules, k.rules[chainName(id)]) {
			c.rules[chainName(id)] = rules
		}
	}
	inForce := maps.Clone(k.inForce)
	for _, x := range gone {
		l := list{x.Direction, x.ID}
		if v, there := inForce[l]; there {
			c.sets = append(c.sets, setChange{IPSet: k.podsSet(l, v), gone: true})
			delete(inForce, l)
			c.delete = append(c.delete, chainName(x.ID))
		}
	}
	for id := range dirty {
		if l := (list{s.chains[id].Direction, id}); inForce[l] == "" {
			inForce[l] = "b"
			affected[l] = true
		}
	}
	if len(c.rules)+len(c.delete) == 0 && !several(moved) {
		return false
	}
	pods := k.podsOf(s.targets)
	for _, l := range sortedLists(affected) {
		if inForce[l] == "" {
			continue // it is gone
		}
		if v, there := k.inForce[l]; there {
			c.sets = append(c.sets, setChange{IPSet: k.podsSet(l, v), gone: true})
		}
		inForce[l] = inForce[l].other()
		c.fresh = append(c.fresh, setChange{IPSet: k.podsSet(l, inForce[l]), isNew: true, add: pods[l]})
	}
	k.inForce = inForce
	for name, dir := range map[string]policy.Direction{chainFrom: policy.Egress, chainTo: policy.Ingress} {
		if rules := k.dispatch(s.options, dir, inForce, s.chains); !slices.Equal(rules, k.rules[name]) {
			c.rules[name] = rules
		}
	}
	for name, rules := range c.rules {
		k.rules[name] = rules
	}
	for _, name := range c.delete {
		delete(k.rules, name)
	}
	return true
}

// pod is an address of a pod of this node, in one direction.
type pod struct {
	addr      netip.Addr
	direction policy.Direction
}

// move is a pod's way from one list to another; without is or was it goes or comes.
type move struct {
	from, to list
	was, is  bool
}

// moves lists the addresses that change their list. One may pass from one pod to another.
func (k *kernel) moves(targets map[model.Key]policy.Target, d policy.Delta) map[pod]move {
	out := map[pod]move{}
	for _, t := range slices.Concat(d.Targets, d.DeleteTargets) {
		old := targets[t.Pod]
		k.each(&old, func(p pod, l list) { m := out[p]; m.from, m.was = l, true; out[p] = m })
	}
	for _, t := range d.Targets {
		k.each(&t, func(p pod, l list) { m := out[p]; m.to, m.is = l, true; out[p] = m })
	}
	for p, m := range out {
		if m.was == m.is && m.from == m.to {
			delete(out, p)
		}
	}
	return out
}

// each tells of a target's addresses in each direction and of the list that isolates it.
func (k *kernel) each(t *policy.Target, do func(pod, list)) {
	for dir, c := range map[policy.Direction]*policy.Chain{policy.Ingress: t.Ingress, policy.Egress: t.Egress} {
		l := list{dir, ""}
		if c != nil {
			l.chain = c.ID
		}
		for _, a := range t.Addrs {
			if k.has(a) {
				do(pod{a, dir}, l)
			}
		}
	}
}

// podsOf are the members of all sets of pods.
func (k *kernel) podsOf(targets map[model.Key]policy.Target) map[list][]desired.IPSetMember {
	out := map[list][]desired.IPSetMember{}
	for _, t := range targets {
		k.each(&t, func(p pod, l list) { out[l] = append(out[l], host(p.addr)) })
	}
	return out
}

// affected are the lists that moves are about.
func affected(moved map[pod]move) map[list]bool {
	out := map[list]bool{}
	for _, m := range moved {
		if m.was {
			out[m.from] = true
		}
		if m.is {
			out[m.to] = true
		}
	}
	return out
}

// several reports whether more than one pod comes under other policies.
func several(moved map[pod]move) bool {
	addrs := map[netip.Addr]bool{}
	for p, m := range moved {
		if m.was && m.is {
			addrs[p.addr] = true
		}
	}
	return len(addrs) > 1
}

// inPlace changes the members of the sets of pods, in the order that Plan tells of.
func (k *kernel) inPlace(moved map[pod]move) (ops []desired.IPSetOp) {
	pass := func(verb desired.IPSetVerb, members func(move) (list, bool)) {
		changes := map[list][]desired.IPSetMember{}
		for p, m := range moved {
			if l, ok := members(m); ok {
				changes[l] = append(changes[l], host(p.addr))
			}
		}
		for l, list := range changes {
			ops = append(ops, desired.IPSetOp{Verb: verb, Set: k.podsSet(l, k.inForce[l]), Members: list})
		}
	}
	pass(desired.IPSetRemove, func(m move) (list, bool) { return m.from, m.was && !m.is })
	pass(desired.IPSetAdd, func(m move) (list, bool) { return m.to, m.was && m.is })
	pass(desired.IPSetRemove, func(m move) (list, bool) { return m.from, m.was && m.is })
	pass(desired.IPSetAdd, func(m move) (list, bool) { return m.to, m.is && !m.was })
	return ops
}

func sortedLists(m map[list]bool) []list {
	return slices.SortedFunc(maps.Keys(m), func(a, b list) int {
		return cmp.Or(cmp.Compare(a.direction, b.direction), cmp.Compare(a.chain, b.chain))
	})
}
