package policy

import (
	"fmt"
	"slices"
	"strings"

	"github.com/braidnet/braid/internal/model"
)

// maxRanges is how many ranges of addresses a policy may have in one direction, after exceptions are taken
// out. An object of the API server's size limit hardly has more; as exceptions it might.
const maxRanges = 1 << 15

// Fault is a policy of which not all is in force. What is not allows nothing: its pods stay isolated.
type Fault struct {
	Policy model.Origin
	UID    string
	Closed bool // none of its rules is in force, and other policies' rules for the same pods are
	Why    string
}

// String prints "shop/web is closed, its rules allow nothing: …".
func (f Fault) String() string {
	if f.Closed {
		return fmt.Sprintf("policy %s is closed, its rules allow nothing: %s", f.Policy.Key, f.Why)
	}
	return fmt.Sprintf("policy %s allows less than it says: %s", f.Policy.Key, f.Why)
}

// tooLarge says why a section cannot be enforced; empty when it can.
func tooLarge(s *Section) string {
	n := 0
	for _, r := range s.Rules {
		for _, x := range r.Peers {
			n += len(x.Ranges)
		}
	}
	if n <= maxRanges {
		return ""
	}
	return fmt.Sprintf("its %s rules have %d ranges of addresses, after exceptions are taken out: at most %d can be enforced", s.Direction, n, maxRanges)
}

// Close takes the rules of policies out of force with the next Flush, until Reopen or until they change.
// Whom they isolate stays isolated.
func (c *Compiler) Close(policies []model.Key, why string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, k := range policies {
		c.closed[k] = why
		c.retell(k)
	}
}

// Reopen puts the rules of policies into force again.
func (c *Compiler) Reopen(policies []model.Key) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, k := range policies {
		delete(c.closed, k)
		c.retell(k)
	}
}

// Faults lists the policies that isolate pods here and are not, or not wholly, in force, by name.
func (c *Compiler) Faults() (out []Fault) {
	c.mu.Lock()
	defer c.mu.Unlock()
	seen := map[model.Key]bool{}
	for _, s := range c.sections {
		ns := c.namespaces[s.policy.Namespace]
		if seen[s.policy] || ns == nil || ns.all[s.policy.Name] == nil {
			continue
		}
		seen[s.policy] = true
		o := ns.all[s.policy.Name]
		f := Fault{Policy: o.Origin, UID: o.UID, Why: c.closed[s.policy]}
		switch f.Closed = f.Why != ""; {
		case f.Closed:
		case len(o.Faults) > 0:
			f.Why = strings.Join(o.Faults, "; ")
		default:
			continue
		}
		out = append(out, f)
	}
	slices.SortFunc(out, func(a, b Fault) int { return strings.Compare(a.Policy.Key.String(), b.Policy.Key.String()) })
	return out
}

// Policies lists those of which a section that is in force concerns the caller, by name. Closed ones are left
// out: nothing of them is in force.
func (c *Compiler) Policies(concerned func(section *Section) bool) (out []model.Key) {
	c.mu.Lock()
	defer c.mu.Unlock()
	seen := map[model.Key]bool{}
	for _, s := range c.sections {
		if c.closed[s.policy] == "" && !seen[s.policy] && concerned(s.value) {
			seen[s.policy] = true
			out = append(out, s.policy)
		}
	}
	slices.SortFunc(out, func(a, b model.Key) int { return strings.Compare(a.String(), b.String()) })
	return out
}

// Audited lists the namespaces under audit that have pods here, by name.
func (c *Compiler) Audited() (out []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for name, ns := range c.namespaces {
		if ns.audit && len(ns.targets) > 0 {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}
