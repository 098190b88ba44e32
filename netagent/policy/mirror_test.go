package policy

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/braidnet/braid/internal/model"
)

// mirror is what somebody knows who was told of every delta, as a renderer is. It refuses what a kernel
// would refuse: references to what is not there, and removal of what is referred to.
type mirror struct {
	sets     map[string]*Set
	members  map[string]map[Member]bool
	sections map[string]*Section
	chains   map[string]*Chain
	targets  map[model.Key]Target
}

func newMirror() *mirror {
	return &mirror{map[string]*Set{}, map[string]map[Member]bool{}, map[string]*Section{}, map[string]*Chain{}, map[model.Key]Target{}}
}

func (m *mirror) apply(d Delta) error {
	var gone []string
	for _, s := range d.Sets {
		id := s.Set.ID
		switch have := m.sets[id] != nil; {
		case s.New && have, !s.New && !have:
			return fmt.Errorf("set %s: told as new: %v, known: %v", s.Set.About, s.New, have)
		case s.Gone:
			gone = append(gone, id)
			continue
		case s.New:
			m.sets[id], m.members[id] = s.Set, map[Member]bool{}
		}
		for _, x := range s.Add {
			if m.members[id][x] {
				return fmt.Errorf("set %s: %v added twice", s.Set.About, x)
			}
			m.members[id][x] = true
		}
		for _, x := range s.Remove {
			if !m.members[id][x] {
				return fmt.Errorf("set %s: %v removed, and was not there", s.Set.About, x)
			}
			delete(m.members[id], x)
		}
	}
	for _, s := range d.Sections {
		m.sections[s.ID] = s
	}
	for _, c := range d.Chains {
		m.chains[c.ID] = c
	}
	for _, t := range d.Targets {
		m.targets[t.Pod] = t
	}
	for _, t := range d.DeleteTargets {
		if _, have := m.targets[t.Pod]; !have {
			return fmt.Errorf("target %s deleted, and was not there", t.Pod)
		}
		delete(m.targets, t.Pod)
	}
	for _, c := range d.DeleteChains {
		delete(m.chains, c.ID)
	}
	for _, s := range d.DeleteSections {
		delete(m.sections, s.ID)
	}
	for _, id := range gone {
		delete(m.sets, id)
		delete(m.members, id)
	}
	return m.whole()
}

// whole checks that everything referred to is there, and nothing else.
func (m *mirror) whole() error {
	chains, sections, sets := map[string]bool{}, map[string]bool{}, map[string]bool{}
	holders := map[string]model.Key{}
	for _, t := range m.targets {
		for _, a := range t.Addrs {
			if other, taken := holders[a.String()]; taken {
				return fmt.Errorf("%s is %s's and %s's", a, other, t.Pod)
			}
			holders[a.String()] = t.Pod
		}
		for _, x := range []*Chain{t.Ingress, t.Egress} {
			if x != nil {
				chains[x.ID] = true
			}
		}
	}
	for _, x := range m.chains {
		for _, s := range x.Tiers[0].Sections {
			sections[s.ID] = true
		}
	}
	for _, s := range m.sections {
		for _, r := range s.Rules {
			for _, x := range slices.Concat(r.Peers, r.Named) {
				sets[x.ID] = true
			}
		}
	}
	for what, both := range map[string][2][]string{
		"chains":   {slices.Sorted(maps.Keys(chains)), slices.Sorted(maps.Keys(m.chains))},
		"sections": {slices.Sorted(maps.Keys(sections)), slices.Sorted(maps.Keys(m.sections))},
		"sets":     {slices.Sorted(maps.Keys(sets)), slices.Sorted(maps.Keys(m.sets))},
	} {
		if !slices.Equal(both[0], both[1]) {
			return fmt.Errorf("%s that are referred to: %v; that are there: %v", what, both[0], both[1])
		}
	}
	return nil
}

// String prints everything, in order.
func (m *mirror) String() string {
	var lines []string
	for id, s := range m.sets {
		lines = append(lines, fmt.Sprintf("set %s %s %v: %v", id, s.About, s.Ranges, slices.SortedFunc(maps.Keys(m.members[id]), compareMembers)))
	}
	for _, s := range m.sections {
		line := fmt.Sprintf("section %s %s %s", s.ID, s.Direction, s.Policy.Key)
		for _, r := range s.Rules {
			line += fmt.Sprintf(" [%d %v %v %v", r.Index, r.AnyPeer, r.AnyPort, r.Ports)
			for _, x := range slices.Concat(r.Peers, r.Named) {
				line += " " + x.ID
			}
			line += "]"
		}
		lines = append(lines, line)
	}
	for _, x := range m.chains {
		lines = append(lines, fmt.Sprintf("chain %s %s %v", x.ID, x.Direction, x.Tiers))
	}
	for _, t := range m.targets {
		line := fmt.Sprintf("target %s %s %v", t.Pod, t.UID, t.Addrs)
		for _, x := range []*Chain{t.Ingress, t.Egress} {
			if x != nil {
				line += " " + x.ID
			} else {
				line += " -"
			}
		}
		lines = append(lines, line)
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}
