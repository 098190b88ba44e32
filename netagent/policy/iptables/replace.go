package iptables

import (
	"fmt"
	"slices"
	"strings"

	"github.com/braidnet/braid/internal/desired"
	"github.com/braidnet/braid/internal/desired/xt"
	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/netagent/policy"
)

// Contents is what was read back from the kernel for a family.
type Contents struct {
	Rules map[string][]string // by chain of our table, others' chains too
	Sets  map[string]Set      // ours, by name
}

// InForce reports whether packets of pods meet rules of ours.
func (c Contents) InForce() bool {
	for from, jump := range jumps {
		if !slices.Contains(c.Rules[from], jump) {
			return false
		}
	}
	return len(c.Rules[chainForward]) > 0 && len(c.Rules[chainInput]) > 0
}

// Set is a set with its members.
type Set struct {
	desired.IPSet
	Members []desired.IPSetMember
}

// Replace plans what makes the kernel hold exactly the compiled value, which all tells of as
// policy.Compiler.All does, and says what of ours was not as it had to be. Its order is that of any Plan: packets meet what
// was there before, or the whole.
func (s *State) Replace(all policy.Delta, have map[bool]Contents) (p Plan, why []string) {
	s.known = true
	s.sections, s.chains, s.targets = map[string]*policy.Section{}, map[string]*policy.Chain{}, map[model.Key]policy.Target{}
	s.take(all)
	for _, k := range s.kernels {
		c := &planner{family: k.family}
		why = append(why, k.replace(s, c, all, have[k.ipv6])...)
		c.into(&p)
	}
	return p, why
}

// replace compares one family.
func (k *kernel) replace(s *State, c *planner, all policy.Delta, have Contents) (why []string) {
	k.rules, k.inForce, k.sizes = map[string][]string{}, map[list]version{}, map[string]int{}
	lists := []list{{policy.Ingress, ""}, {policy.Egress, ""}}
	for _, x := range s.chains {
		lists = append(lists, list{x.Direction, x.ID})
	}
	for _, l := range lists {
		k.inForce[l] = k.found(l, have)
	}
	moved, wrong := k.movesFrom(s.targets, lists, have)
	rewrite := k.compareRules(s, c, have) || wrong || several(moved)
	pods, affected := k.podsOf(s.targets), affected(moved)
	for _, l := range lists {
		now := k.podsSet(l, k.inForce[l])
		there, exists := have.Sets[now.Name]
		if exists && rewrite && (wrong || affected[l]) { // it takes effect with the rules
			k.inForce[l] = k.inForce[l].other()
			now = k.podsSet(l, k.inForce[l])
			there, exists = have.Sets[now.Name]
			c.fresh = append(c.fresh, difference(now, there.Members, pods[l], !exists))
		} else if !exists {
			c.fresh = append(c.fresh, difference(now, nil, pods[l], true))
		}
		k.sizes[now.Name] = len(pods[l])
	}
	if rewrite { // with the versions that are in force then
		k.compareRules(s, c, have)
	} else {
		c.moves = k.inPlace(moved)
	}
	for _, d := range all.Sets {
		set, want := k.set(d.Set), c.all(d)
		there, exists := have.Sets[set.Name]
		x := difference(set, there.Members, want, !exists)
		if exists {
			c.sets = append(c.sets, x)
		} else {
			c.fresh = append(c.fresh, x)
		}
		k.sizes[set.Name] = len(want)
	}
	for _, name := range xt.SortedNames(have.Sets) {
		if _, wanted := k.sizes[name]; !wanted {
			c.sets = append(c.sets, setChange{IPSet: have.Sets[name].IPSet, gone: true})
		}
	}
	return k.reasons(c, have)
}

// movesFrom compares the sets of pods in force with what they have to be. Wrong is when an address is in two of them.
func (k *kernel) movesFrom(targets map[model.Key]policy.Target, lists []list, have Contents) (moved map[pod]move, wrong bool) {
	moved = map[pod]move{}
	for _, l := range lists {
		for _, x := range have.Sets[k.podsName(l, k.inForce[l])].Members {
			p := pod{x.Prefix.Addr(), l.direction}
			wrong = wrong || moved[p].was
			moved[p] = move{from: l, was: true}
		}
	}
	for _, t := range targets {
		k.each(&t, func(p pod, l list) { m := moved[p]; m.to, m.is = l, true; moved[p] = m })
	}
	for p, m := range moved {
		if m.was == m.is && m.from == m.to {
			delete(moved, p)
		}
	}
	return moved, wrong
}

// found is the version of a list's set that the kernel's rules refer to; "a" when they refer to none.
func (k *kernel) found(l list, have Contents) version {
	chain := map[policy.Direction]string{policy.Egress: chainFrom, policy.Ingress: chainTo}[l.direction]
	b := k.podsName(l, "b")
	if slices.ContainsFunc(have.Rules[chain], func(r string) bool { return slices.Contains(xt.Words(r), b) }) {
		return "b"
	}
	return "a"
}

// compareRules plans the rules that differ, and reports whether any of our chains does.
func (k *kernel) compareRules(s *State, c *planner, have Contents) (differ bool) {
	want := k.skeleton(s.options)
	for id, x := range s.chains {
		want[chainName(id)] = k.rulesOf(s.options, x, s.sections)
	}
	want[chainFrom] = k.dispatch(s.options, policy.Egress, k.inForce, s.chains)
	want[chainTo] = k.dispatch(s.options, policy.Ingress, k.inForce, s.chains)
	k.rules = want
	c.rules, c.delete, c.fix = map[string][]string{}, nil, nil
	for name, rules := range want {
		if there, exists := have.Rules[name]; !exists || !xt.EqualRules(rules, there) {
			c.rules[name] = rules
		}
	}
	for _, name := range xt.SortedNames(have.Rules) {
		if _, wanted := want[name]; !wanted && strings.HasPrefix(name, xt.PolicyPrefix) {
			c.delete = append(c.delete, name)
		}
	}
	for _, chain := range xt.SortedNames(jumps) {
		c.fix = append(c.fix, fixJump(chain, have.Rules[chain])...)
	}
	// Rules in other chains that lead to ours are remains, and would keep a chain from going.
	for _, name := range xt.SortedNames(have.Rules) {
		if jumps[name] == "" && !strings.HasPrefix(name, xt.PolicyPrefix) {
			for _, r := range have.Rules[name] {
				if leadsToUs(r) {
					c.fix = append(c.fix, "-D "+name+" "+r)
				}
			}
		}
	}
	return len(c.rules)+len(c.delete) > 0
}

// fixJump returns the commands after which the first rule of a chain of the kernel leads to ours, and no other does.
func fixJump(chain string, rules []string) (commands []string) {
	ours := 0
	for _, r := range rules {
		if leadsToUs(r) {
			ours++
		}
	}
	if ours == 1 && xt.EqualRule(rules[0], jumps[chain]) {
		return nil
	}
	commands = append(commands, "-I "+chain+" 1 "+jumps[chain])
	// The rule that was just inserted may equal one to delete, which takes the first of them; so it is counted from the end.
	for n := len(rules); n > 0; n-- {
		if leadsToUs(rules[n-1]) {
			commands = append(commands, fmt.Sprintf("-D %s %d", chain, n+1))
		}
	}
	return commands
}

func leadsToUs(rule string) bool { return strings.HasPrefix(xt.LeadsTo(rule), xt.PolicyPrefix) }

// reasons says what somebody else changed; nothing where none of ours was.
func (k *kernel) reasons(c *planner, have Contents) (why []string) {
	name := map[bool]string{false: "iptables", true: "ip6tables"}[k.ipv6]
	there := func(chain string) bool { return strings.HasPrefix(chain, xt.PolicyPrefix) }
	if !slices.ContainsFunc(xt.SortedNames(have.Rules), there) && len(have.Sets) == 0 {
		return nil
	}
	for _, chain := range xt.SortedNames(c.rules) {
		why = append(why, fmt.Sprintf("%s chain %s: its rules are not ours", name, chain))
	}
	for _, chain := range c.delete {
		why = append(why, fmt.Sprintf("%s chain %s: nothing leads to it", name, chain))
	}
	if len(c.fix) > 0 {
		why = append(why, fmt.Sprintf("%s: what leads to our chains is not in its place", name))
	}
	for _, op := range c.moves {
		why = append(why, fmt.Sprintf("ipset %s: %d members were missing or not ours", op.Set.Name, len(op.Members)))
	}
	for _, x := range c.sets {
		switch {
		case x.gone:
			why = append(why, fmt.Sprintf("ipset %s: nothing refers to it", x.Name))
		case len(x.add)+len(x.remove) > 0:
			why = append(why, fmt.Sprintf("ipset %s: it lacked %d members and had %d that are not ours", x.Name, len(x.add), len(x.remove)))
		}
	}
	for _, x := range c.fresh {
		if x.isNew {
			why = append(why, fmt.Sprintf("ipset %s was missing", x.Name))
		}
	}
	return why
}
