package iptables

import (
	"maps"
	"slices"
	"strings"

	"github.com/braidnet/braid/internal/desired"
	"github.com/braidnet/braid/internal/desired/xt"
)

// Plan is how the kernel comes from one compiled value to the next, in this order: Before, Restore, After. The
// kernel changes sets one by one, so they are changed in an order in which no packet is allowed that neither value
// allows:
//
//   - Before: members leave sets that rules refer to, which allows less; and sets that are new are filled, which nothing
//     refers to yet.
//   - Restore: all rules of a family change at once. When pods come under other policies with it, the rules refer to
//     new versions of the pods' sets, so that these change in the same moment.
//   - After: members come, which the new rules allow; sets go that nothing refers to any more.
//
// While the rules stay, pods that go leave their sets first, one that comes under other policies is put into its new
// set before it leaves the old one (in neither it would be refused), and pods that come are put in last. When several come
// under other policies at once, what one may send now and another may get still could be neither's, so that is done by
// new versions too. Until all is done a connection may be refused that both values allow, when it is another set that
// allows it now.
type Plan struct {
	Before  []desired.IPSetOp
	Restore map[bool]string // IPv6 → input of iptables-restore --noflush; absent: none
	After   []desired.IPSetOp
}

// Empty reports whether there is nothing to do.
func (p *Plan) Empty() bool { return len(p.Before)+len(p.Restore)+len(p.After) == 0 }

// setChange is a set as it is and as it has to be.
type setChange struct {
	desired.IPSet
	isNew, gone bool
	remove, add []desired.IPSetMember
}

// difference is what makes of a set's members, nil where there is no set, those it has to have.
func difference(s desired.IPSet, have, want []desired.IPSetMember, isNew bool) setChange {
	c := setChange{IPSet: s, isNew: isNew}
	in := make(map[desired.IPSetMember]bool, len(want))
	for _, m := range want {
		in[m] = true
	}
	for _, m := range have {
		if !in[m] {
			c.remove = append(c.remove, m)
		}
		delete(in, m)
	}
	for _, m := range want {
		if in[m] {
			c.add = append(c.add, m)
			delete(in, m)
		}
	}
	return c
}

// planner collects the changes of one family.
type planner struct {
	family
	sets   []setChange       // that rules refer to: before and after
	fresh  []setChange       // that rules will refer to
	moves  []desired.IPSetOp // of pods, while the rules stay
	rules  map[string][]string
	delete []string // chains
	fix    []string // commands about chains of the kernel
}

func (c *planner) into(p *Plan) {
	op := func(list *[]desired.IPSetOp, verb desired.IPSetVerb, s desired.IPSet, members []desired.IPSetMember) {
		if verb == desired.IPSetCreate || verb == desired.IPSetDestroy || len(members) > 0 {
			*list = append(*list, desired.IPSetOp{Verb: verb, Set: s, Members: members})
		}
	}
	fill := func(s setChange) {
		if s.isNew {
			op(&p.Before, desired.IPSetCreate, s.IPSet, nil)
		}
		op(&p.Before, desired.IPSetRemove, s.IPSet, s.remove)
		op(&p.Before, desired.IPSetAdd, s.IPSet, s.add)
	}
	for _, s := range c.sets {
		op(&p.Before, desired.IPSetRemove, s.IPSet, s.remove)
	}
	for _, s := range c.fresh {
		fill(s)
	}
	p.Before = append(p.Before, c.moves...)
	if text := c.restore(); text != "" {
		if p.Restore == nil {
			p.Restore = map[bool]string{}
		}
		p.Restore[c.ipv6] = text
	}
	for _, s := range c.sets {
		if s.gone {
			op(&p.After, desired.IPSetDestroy, s.IPSet, nil)
			continue
		}
		op(&p.After, desired.IPSetAdd, s.IPSet, s.add)
	}
}

// restore declares every chain first, which empties it, so that no rule is left that leads to one about to go.
func (c *planner) restore() string {
	if len(c.rules)+len(c.delete)+len(c.fix) == 0 {
		return ""
	}
	var b strings.Builder
	b.WriteString("*" + Table + "\n")
	for _, name := range slices.Concat(xt.SortedNames(c.rules), c.delete) {
		b.WriteString(":" + name + " - [0:0]\n")
	}
	for _, name := range slices.Sorted(maps.Keys(c.rules)) {
		for _, r := range c.rules[name] {
			b.WriteString("-A " + name + " " + r + "\n")
		}
	}
	for _, command := range c.fix {
		b.WriteString(command + "\n")
	}
	for _, name := range c.delete {
		b.WriteString("-X " + name + "\n")
	}
	b.WriteString("COMMIT\n")
	return b.String()
}

// Cleanup returns the input that removes our chains and what leads to them from what iptables-save printed, "" when
// there is nothing. The sets can go after it.
func Cleanup(saved xt.Saved) string {
	return xt.Remove(saved, func(_, chain string) bool { return strings.HasPrefix(chain, xt.PolicyPrefix) })
}
