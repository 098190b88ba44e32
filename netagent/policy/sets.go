package policy

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"

	"k8s.io/apimachinery/pkg/labels"

	"github.com/braidnet/braid/internal/model"
)

// identity makes an ID of texts: no two lists of texts have the same, whatever is in them.
func identity(texts ...string) string {
	h := sha256.New()
	for _, t := range texts {
		h.Write(binary.BigEndian.AppendUint32(nil, uint32(len(t))))
		h.Write([]byte(t))
	}
	return hex.EncodeToString(h.Sum(nil)[:10])
}

// set is a Set that changes.
type set struct {
	Set
	refs       int // rules that refer to it
	namespace  string
	namespaces labels.Selector // instead of namespace; nil: only that one
	pods       labels.Selector // of a PodSet
	portName   string          // of a PortSet
	members    map[Member]struct{}
	changed    map[Member]bool // since the last Flush: true = came, false = left
	told       bool            // the last Flush said that it is there
}

func (s *set) put(m Member) {
	if _, have := s.members[m]; !have {
		s.members[m] = struct{}{}
		s.note(m, true)
	}
}

func (s *set) drop(m Member) {
	if _, have := s.members[m]; have {
		delete(s.members, m)
		s.note(m, false)
	}
}

// note remembers a change, unless it undoes another one.
func (s *set) note(m Member, came bool) {
	if _, undone := s.changed[m]; undone {
		delete(s.changed, m)
		return
	}
	s.changed[m] = came
}

func (s *set) sorted() []Member {
	out := make([]Member, 0, len(s.members))
	for m := range s.members {
		out = append(out, m)
	}
	slices.SortFunc(out, compareMembers)
	return out
}

func compareMembers(a, b Member) int {
	if n := a.Addr.Compare(b.Addr); n != 0 {
		return n
	}
	return int(a.Port) - int(b.Port)
}

// delta tells how the set changed since this was called last.
func (s *set) delta() (SetDelta, bool) {
	d := SetDelta{Set: &s.Set}
	switch {
	case s.refs == 0 && s.told:
		d.Gone = true
	case s.refs == 0:
		return d, false
	case !s.told:
		d.New, d.Add = true, s.sorted()
	default:
		for m, came := range s.changed {
			if came {
				d.Add = append(d.Add, m)
			} else {
				d.Remove = append(d.Remove, m)
			}
		}
		slices.SortFunc(d.Add, compareMembers)
		slices.SortFunc(d.Remove, compareMembers)
	}
	s.told = s.refs > 0
	clear(s.changed)
	return d, d.New || d.Gone || len(d.Add)+len(d.Remove) > 0
}

// refer counts one more reference to the set like want, which it makes and fills when there is none.
func (c *Compiler) refer(want set) *Set {
	s := c.sets[want.ID]
	if s == nil {
		s = &want
		s.members, s.changed = map[Member]struct{}{}, map[Member]bool{}
		c.sets[s.ID] = s
		c.fill(s)
	}
	s.refs++
	c.touched[s] = struct{}{}
	return &s.Set
}

func (c *Compiler) release(r *Set) {
	s := c.sets[r.ID]
	s.refs--
	c.touched[s] = struct{}{}
}

// fill enters a new set where the pods that it may take will find it, and takes in those that are there.
func (c *Compiler) fill(s *set) {
	switch {
	case s.Kind == RangeSet:
	case s.Kind == PortSet:
		byName := c.ports[s.portName]
		if byName == nil {
			byName = map[*set]struct{}{}
			c.ports[s.portName] = byName
		}
		byName[s] = struct{}{}
		for _, ns := range c.namespaces {
			for _, p := range ns.pods {
				c.enterPorts(p, s)
			}
		}
	case s.namespaces != nil:
		c.spread.add(s.namespaces, s)
		for _, ns := range c.namespaces {
			if ns.known && s.namespaces.Matches(ns.labels) {
				c.offer(ns, s)
			}
		}
	default:
		c.offer(c.namespace(s.namespace), s)
	}
}

// offer lets a set take pods of a namespace.
func (c *Compiler) offer(ns *namespace, s *set) {
	ns.sets.add(s.pods, s)
	for _, p := range ns.pods {
		if len(p.addrs) > 0 && s.pods.Matches(p.obj.Labels) {
			c.enter(p, s)
		}
	}
}

// withdraw takes a namespace's pods out of a set.
func (c *Compiler) withdraw(ns *namespace, s *set) {
	ns.sets.remove(s.pods, s)
	for _, p := range ns.pods {
		if _, in := p.sets[s]; in {
			delete(p.sets, s)
			for _, a := range p.addrs {
				s.drop(Member{Addr: a})
			}
			c.touched[s] = struct{}{}
		}
	}
}

// forget takes out a set that nothing refers to.
func (c *Compiler) forget(s *set) {
	delete(c.sets, s.ID)
	switch {
	case s.Kind == RangeSet:
	case s.Kind == PortSet:
		delete(c.ports[s.portName], s)
		if len(c.ports[s.portName]) == 0 {
			delete(c.ports, s.portName)
		}
	case s.namespaces != nil:
		c.spread.remove(s.namespaces, s)
		for _, ns := range c.namespaces {
			if ns.known && s.namespaces.Matches(ns.labels) {
				c.withdraw(ns, s)
			}
		}
	default:
		ns := c.namespace(s.namespace)
		c.withdraw(ns, s)
		c.drop(ns)
	}
}

// enter makes a pod a member of a PodSet.
func (c *Compiler) enter(p *pod, s *set) {
	p.sets[s] = struct{}{}
	for _, a := range p.addrs {
		s.put(Member{Addr: a})
	}
	c.touched[s] = struct{}{}
}

// enterPorts makes those ports of a pod members of a PortSet that have its name and protocol.
func (c *Compiler) enterPorts(p *pod, s *set) {
	for _, port := range p.obj.Ports {
		if port.Name != s.portName || port.Protocol != s.Protocol {
			continue
		}
		for _, a := range p.addrs {
			s.put(Member{a, port.Port})
		}
		c.touched[s] = struct{}{}
	}
}

// join makes a pod, as it is now, a member of every set it belongs to.
func (c *Compiler) join(p *pod) {
	if len(p.addrs) == 0 {
		return
	}
	p.ns.sets.match(p.obj.Labels, func(s *set) { c.enter(p, s) })
	for _, port := range p.obj.Ports {
		for s := range c.ports[port.Name] {
			c.enterPorts(p, s)
		}
	}
}

// leave takes a pod, as it was, out of all sets.
func (c *Compiler) leave(p *pod) {
	for s := range p.sets {
		for _, a := range p.addrs {
			s.drop(Member{Addr: a})
		}
		c.touched[s] = struct{}{}
	}
	clear(p.sets)
	if len(p.addrs) == 0 {
		return
	}
	for _, port := range p.obj.Ports {
		for s := range c.ports[port.Name] {
			for _, a := range p.addrs {
				s.drop(Member{a, port.Port})
			}
			c.touched[s] = struct{}{}
		}
	}
}

// podSet is the set of a selector's pods.
func podSet(namespace string, peer model.PolicyPeer) set {
	s := set{Set: Set{Kind: PodSet}, pods: peer.Pods, namespace: namespace, namespaces: peer.Namespaces}
	if peer.Namespaces == nil {
		s.ID = identity("pods", namespace, canonical(peer.Pods))
		s.About = fmt.Sprintf("pods %s of namespace %s", describe(peer.Pods), namespace)
		return s
	}
	s.ID = identity("pods of", canonical(peer.Namespaces), canonical(peer.Pods))
	s.About = fmt.Sprintf("pods %s of namespaces %s", describe(peer.Pods), describe(peer.Namespaces))
	return s
}

// portSet is the set of all pods' ports of a name. Which pods count is for the rules' peers to say and,
// for ingress, for the pod that is asked; so one set does for all rules.
func portSet(p model.PolicyPort) set {
	return set{portName: p.Name, Set: Set{Kind: PortSet, Protocol: p.Protocol, ID: identity("ports", p.Protocol.String(), p.Name),
		About: fmt.Sprintf("ports %s/%s", p.Name, p.Protocol)}}
}

func rangeSet(ranges []Range) set {
	texts := []string{"ranges"}
	for _, r := range ranges {
		texts = append(texts, r.String())
	}
	about := "addresses " + texts[1]
	if len(ranges) > 1 {
		about += fmt.Sprintf(" and %d more ranges", len(ranges)-1)
	}
	return set{Set: Set{Kind: RangeSet, ID: identity(texts...), About: about, Ranges: ranges}}
}

// holds reports whether a set has an address, and for a PortSet the port too.
func (c *Compiler) holds(r *Set, a netip.Addr, port uint16) bool {
	switch r.Kind {
	case RangeSet:
		_, found := slices.BinarySearchFunc(r.Ranges, a, func(x Range, a netip.Addr) int {
			switch {
			case x.To.Less(a):
				return -1
			case a.Less(x.From):
				return 1
			}
			return 0
		})
		return found
	case PodSet:
		port = 0
	}
	_, ok := c.sets[r.ID].members[Member{a, port}]
	return ok
}
