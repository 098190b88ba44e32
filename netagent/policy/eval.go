package policy

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/braidnet/braid/internal/model"
)

// Packet is the first packet of a connection, as it is routed: after a service's address was replaced
// by a backend's, and before the source is.
type Packet struct {
	Src, Dst netip.Addr
	Protocol model.Protocol // or another IP protocol's number
	Port     uint16         // of the destination; of protocols other than TCP, UDP and SCTP, not looked at
	FromNode bool           // Src is an address of the destination pod's own node
}

// Step is what one end's policies make of a packet.
type Step struct {
	Direction Direction
	Pod       model.Key    // whose policies were asked; zero: at this end is no pod that they are enforced for here
	Allowed   bool         // also when nobody was asked
	Policy    model.Origin // of the rule that allows it; zero: another reason
	Rule      int          // its index in spec.ingress or spec.egress
	Isolating []model.Key  // the policies that isolate the pod in this direction
	Audited   bool         // no rule matches, and it is allowed because the pod's namespace is under audit
	Closed    string       // no rule matches, and a policy that might allow it is closed: which, and why
	exempt    bool
}

// Verdict is what becomes of a packet. Both steps must allow it.
type Verdict struct {
	Allowed         bool
	Egress, Ingress Step
}

// Audited reports whether a packet is allowed only because a namespace is under audit.
func (v Verdict) Audited() bool { return v.Allowed && (v.Egress.Audited || v.Ingress.Audited) }

// Eval says what becomes of a packet, as of the last Flush.
func (c *Compiler) Eval(p Packet) Verdict {
	c.mu.Lock()
	defer c.mu.Unlock()
	var v Verdict
	v.Egress = c.step(Egress, p.Src, p.Dst, p)
	v.Ingress = c.step(Ingress, p.Dst, p.Src, p)
	if p.FromNode && !v.Ingress.Allowed {
		// The kubelet's probes have to reach the pod: the API exempts its own node.
		v.Ingress.Allowed, v.Ingress.exempt = true, true
	}
	v.Allowed = v.Egress.Allowed && v.Ingress.Allowed
	return v
}

func (c *Compiler) step(dir Direction, self, other netip.Addr, p Packet) Step {
	s := Step{Direction: dir, Allowed: true}
	owner := c.owner(self)
	if owner == nil || !owner.target {
		return s
	}
	s.Pod = owner.obj.Key
	x := owner.chains[dir]
	if x == nil {
		return s
	}
	for _, tier := range x.Tiers {
		s.Allowed = false
		for _, ref := range tier.Sections {
			s.Isolating = append(s.Isolating, ref.Policy)
		}
		for _, ref := range tier.Sections {
			section := c.sections[ref.ID].value
			for i := range section.Rules {
				if r := &section.Rules[i]; c.peerMatches(r, other) && c.portMatches(r, p) {
					s.Allowed, s.Policy, s.Rule = true, section.Policy, r.Index
					return s
				}
			}
		}
	}
	for _, k := range s.Isolating {
		if why := c.closed[k]; why != "" {
			s.Closed = k.String() + " is closed: " + why
			break
		}
	}
	if x.Audit {
		s.Allowed, s.Audited = true, true
	}
	return s
}

func (c *Compiler) peerMatches(r *Rule, other netip.Addr) bool {
	return r.AnyPeer || slices.ContainsFunc(r.Peers, func(s *Set) bool { return c.holds(s, other, 0) })
}

func (c *Compiler) portMatches(r *Rule, p Packet) bool {
	return r.AnyPort ||
		slices.ContainsFunc(r.Ports, func(x PortRange) bool { return x.Protocol == p.Protocol && x.From <= p.Port && p.Port <= x.To }) ||
		slices.ContainsFunc(r.Named, func(s *Set) bool { return s.Protocol == p.Protocol && c.holds(s, p.Dst, p.Port) })
}

// String says why: "allowed by shop/web (ingress, rule 0)", "denied: isolated for ingress by shop/deny, no rule matches".
func (s Step) String() string {
	switch {
	case s.Pod.Name == "":
		return "no policy is asked: not a pod of this node"
	case s.exempt:
		return "allowed: from the pod's own node"
	case len(s.Isolating) == 0:
		return fmt.Sprintf("allowed: no policy isolates %s for %s", s.Pod, s.Direction)
	case s.Allowed && !s.Audited:
		return fmt.Sprintf("allowed by %s (%s, rule %d)", s.Policy.Key, s.Direction, s.Rule)
	}
	why := fmt.Sprintf("%s is isolated for %s by %s, and %s", s.Pod, s.Direction, s.isolating(), cmp.Or(s.Closed, "no rule matches"))
	if s.Audited {
		return "allowed only because its namespace is under audit: " + why
	}
	return "denied: " + why
}

func (s Step) isolating() string {
	names := make([]string, len(s.Isolating))
	for i, k := range s.Isolating {
		names[i] = k.String()
	}
	return strings.Join(names, ", ")
}
