package policy

import (
	"reflect"

	"github.com/braidnet/braid/internal/model"
)

// chain is a Chain and the pods that use it.
type chain struct {
	Chain
	refs     int
	told     bool
	sections []*section
}

// section is a Section and the chains that refer to it.
type section struct {
	id        string
	policy    model.Key
	direction Direction
	refs      int
	value     *Section
	changed   bool // since Flush told of it
	told      bool
}

func sectionID(policy model.Key, dir Direction) string {
	return identity("section", dir.String(), policy.Namespace, policy.Name)
}

// takeChain returns the chain for a list of policies, which are all of one namespace and sorted by
// name, with one more reference; nil for none.
func (c *Compiler) takeChain(dir Direction, audit bool, list []*model.NetworkPolicy) *chain {
	if len(list) == 0 {
		return nil
	}
	texts := []string{"chain", dir.String(), list[0].Namespace}
	if audit {
		texts[0] = "audit"
	}
	for _, o := range list {
		texts = append(texts, o.Name)
	}
	id := identity(texts...)
	x := c.chains[id]
	if x == nil {
		x = &chain{Chain: Chain{ID: id, Direction: dir, Audit: audit}}
		tier := Tier{Name: "NetworkPolicy"}
		for _, o := range list {
			s := c.takeSection(dir, o)
			x.sections = append(x.sections, s)
			tier.Sections = append(tier.Sections, SectionRef{s.id, s.policy})
		}
		x.Tiers = []Tier{tier}
		c.chains[id] = x
	}
	x.refs++
	c.newChains[x] = struct{}{}
	return x
}

func (c *Compiler) leaveChain(x *chain) {
	if x != nil {
		x.refs--
		c.newChains[x] = struct{}{}
	}
}

func (c *Compiler) forgetChain(x *chain) {
	delete(c.chains, x.ID)
	for _, s := range x.sections {
		s.refs--
		c.newSections[s] = struct{}{}
	}
}

func (c *Compiler) takeSection(dir Direction, o *model.NetworkPolicy) *section {
	id := sectionID(o.Key, dir)
	s := c.sections[id]
	if s == nil {
		s = &section{id: id, policy: o.Key, direction: dir, value: c.compile(dir, o), changed: true}
		c.sections[id] = s
	}
	s.refs++
	c.newSections[s] = struct{}{}
	return s
}

func (c *Compiler) forgetSection(s *section) {
	delete(c.sections, s.id)
	c.releaseAll(s.value)
}

// recompile makes a section say what its policy says now.
func (c *Compiler) recompile(s *section) {
	o := c.namespace(s.policy.Namespace).all[s.policy.Name]
	if o == nil {
		return // nothing refers to it any more
	}
	next := c.compile(s.direction, o)
	c.releaseAll(s.value)
	s.changed = s.changed || !reflect.DeepEqual(next.Rules, s.value.Rules)
	s.value = next
	c.newSections[s] = struct{}{}
}

func (c *Compiler) compile(dir Direction, o *model.NetworkPolicy) *Section {
	out := &Section{ID: sectionID(o.Key, dir), Policy: o.Origin, Direction: dir}
	if c.closed[o.Key] != "" {
		return out
	}
	rules := o.IngressRules
	if dir == Egress {
		rules = o.EgressRules
	}
	for i := range rules {
		out.Rules = append(out.Rules, c.compileRule(o.Namespace, i, &rules[i]))
	}
	if why := tooLarge(out); why != "" {
		c.releaseAll(out)
		out.Rules = nil
		c.closed[o.Key] = why
		c.retell(o.Key) // its other direction closes too
	}
	return out
}

func (c *Compiler) compileRule(namespace string, i int, r *model.PolicyRule) Rule {
	out := Rule{Index: i, AnyPeer: r.AnyPeer, AnyPort: r.AnyPort, Ports: portRanges(r.Ports)}
	seen := map[string]bool{}
	take := func(list *[]*Set, s set) {
		if !seen[s.ID] {
			seen[s.ID] = true
			*list = append(*list, c.refer(s))
		}
	}
	var blocks []Range
	for _, p := range r.Peers {
		if p.Pods != nil {
			take(&out.Peers, podSet(namespace, p))
		} else {
			blocks = append(blocks, without(p.Block, p.Except)...)
		}
	}
	if blocks = union(blocks); len(blocks) > 0 {
		take(&out.Peers, rangeSet(blocks))
	}
	for _, p := range r.Ports {
		if p.Name != "" {
			take(&out.Named, portSet(p))
		}
	}
	return out
}

func (c *Compiler) releaseAll(s *Section) {
	for _, r := range s.Rules {
		for _, list := range [][]*Set{r.Peers, r.Named} {
			for _, x := range list {
				c.release(x)
			}
		}
	}
}
