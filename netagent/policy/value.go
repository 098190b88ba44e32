// Package policy decides who may reach whom. It compiles NetworkPolicies, once, into values that say
// everything a packet filter has to know; renderers only translate these, and Eval reads the same
// values to say what becomes of a packet, and why.
//
// It is pure: no kernel, no clock, no client. The definition of correct is the API's own text
// (k8s.io/api/networking/v1); where that leaves something open, the comments here say what holds.
package policy

import (
	"net/netip"
	"strings"

	"github.com/braidnet/braid/internal/model"
)

// Direction is one side of a connection, as seen from the pod that a policy selects.
type Direction uint8

// Directions.
const (
	Ingress Direction = iota
	Egress
)

// String prints "ingress" or "egress".
func (d Direction) String() string {
	if d == Ingress {
		return "ingress"
	}
	return "egress"
}

// SetKind says what a Set holds.
type SetKind uint8

// Kinds of sets.
const (
	PodSet   SetKind = iota // addresses of the pods that a selector chooses
	PortSet                 // addresses and port numbers of the pods that have a port of a name
	RangeSet                // ranges of addresses, which never change
)

// Set is something that rules of any number of policies refer to. Those that mean the same share it.
type Set struct {
	ID       string // follows from what the set is about, and from nothing else
	Kind     SetKind
	About    string         // for people
	Protocol model.Protocol // of a PortSet
	Ranges   []Range        // of a RangeSet: sorted, disjoint, not adjacent
}

// Member is an element of a PodSet (Port is 0) or of a PortSet.
type Member struct {
	Addr netip.Addr
	Port uint16
}

// PortRange is a range of destination ports, both ends included.
type PortRange struct {
	Protocol model.Protocol
	From, To uint16
}

// Rule allows a connection whose other end is in one of Peers and whose destination is one of Ports or
// in one of Named. With neither of a kind it matches nothing, unless it says Any.
type Rule struct {
	Index   int  // among the rules of its direction in the manifest
	AnyPeer bool // whoever it is
	AnyPort bool // whatever the protocol
	Peers   []*Set
	Ports   []PortRange // sorted, disjoint
	Named   []*Set      // PortSets
}

// Section is what one policy says about one direction.
type Section struct {
	ID        string
	Policy    model.Origin
	Direction Direction
	Rules     []Rule // none of a policy that is closed, see Fault
}

// Tier is a group of policies without order among them: a connection that none of its sections allows
// is denied. NetworkPolicies are one tier.
type Tier struct {
	Name     string
	Sections []SectionRef // sorted by the policies' names
}

// SectionRef refers to a section, which may change without the chain's changing.
type SectionRef struct {
	ID     string
	Policy model.Key
}

// Chain is what holds for all pods that the same policies isolate in one direction. Tiers are asked in order.
// What none allows is counted and logged, see Mark, and denied unless Audit is set.
type Chain struct {
	ID        string
	Direction Direction
	Audit     bool
	Tiers     []Tier
}

// Policies are those that the chain asks, as people read them: "shop/deny, shop/web".
func (c *Chain) Policies() string {
	var names []string
	for _, t := range c.Tiers {
		for _, s := range t.Sections {
			names = append(names, s.Policy.String())
		}
	}
	return strings.Join(names, ", ")
}

// Target is a pod that policies are enforced for.
type Target struct {
	Pod     model.Key
	UID     string
	Addrs   []netip.Addr // sorted; no other target has them
	Ingress *Chain       // nil: not isolated
	Egress  *Chain
}

// SetDelta is how a set changed.
type SetDelta struct {
	Set         *Set
	New         bool // it was not there: Add has all of it
	Gone        bool // nothing refers to it any more; Remove is empty
	Add, Remove []Member
}

// Delta is the difference between two states of the compiled value. What it sets replaces what had the
// same ID or, for targets, the same pod.
type Delta struct {
	Sets           []SetDelta
	Sections       []*Section
	Chains         []*Chain
	Targets        []Target
	DeleteSections []*Section
	DeleteChains   []*Chain
	DeleteTargets  []Target // as they were
}

// Empty reports whether nothing changed.
func (d *Delta) Empty() bool {
	return len(d.Sets)+len(d.Sections)+len(d.Chains)+len(d.Targets)+len(d.DeleteSections)+len(d.DeleteChains)+len(d.DeleteTargets) == 0
}
