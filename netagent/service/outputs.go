package service

import (
	"cmp"
	"fmt"
	"slices"
	"sync"

	"github.com/braidnet/braid/internal/model"
)

// slot is what a packet can tell apart: a Key without its kind, for a packet to an address does not
// know whether that is a cluster IP or a load balancer's. Node ports keep their kind, since their
// address stands for all of the node's.
type slot Key

func slotOf(k Key) slot {
	if k.Kind != NodePort {
		k.Kind = 0
	}
	return slot(k)
}

// outputs is the table as of the last Flush.
type outputs struct {
	mu        sync.Mutex
	plans     map[model.Key]plan
	claims    map[slot][]*Frontend // who wants the slot; the first has it
	contested map[slot]struct{}    // slots with more than one claim
	told      map[slot]*Frontend   // what the consumers know
	net       Net
}

// replace swaps the plan of one service and collects the slots whose winner may have changed.
func (o *outputs) replace(key model.Key, now plan, touched map[slot]struct{}) {
	for _, f := range o.plans[key].frontends {
		s := slotOf(f.Key)
		o.setClaims(s, slices.DeleteFunc(o.claims[s], func(c *Frontend) bool { return c == f }))
		touched[s] = struct{}{}
	}
	for _, f := range now.frontends {
		s := slotOf(f.Key)
		o.setClaims(s, append(o.claims[s], f))
		touched[s] = struct{}{}
	}
	if len(now.frontends) == 0 && len(now.notes) == 0 {
		delete(o.plans, key)
	} else {
		o.plans[key] = now
	}
}

func (o *outputs) setClaims(s slot, list []*Frontend) {
	slices.SortFunc(list, precedence)
	if len(list) == 0 {
		delete(o.claims, s)
	} else {
		o.claims[s] = list
	}
	if len(list) > 1 {
		o.contested[s] = struct{}{}
	} else {
		delete(o.contested, s)
	}
}

// precedence decides which of two claims to a slot wins, the same way on every node and whatever the
// order of events: a cluster IP, which the API server handed out, before an address that somebody
// wrote into a Service, then the first by name.
func precedence(a, b *Frontend) int {
	return cmp.Or(cmp.Compare(a.Kind, b.Kind), compareNames(a.Origin.Key, b.Origin.Key))
}

// settle compares the winners of the touched slots with what was told before.
func (o *outputs) settle(touched map[slot]struct{}) (d Delta) {
	for s := range touched {
		old := o.told[s]
		if len(o.claims[s]) == 0 {
			if old != nil {
				d.Delete = append(d.Delete, old.Key)
				delete(o.told, s)
			}
			continue
		}
		now := o.claims[s][0]
		o.told[s] = now
		if old != nil && old.Key != now.Key {
			d.Delete = append(d.Delete, old.Key)
			old = nil
		}
		if old == nil || !equalFrontends(old, now) {
			d.Set = append(d.Set, *now)
		}
	}
	slices.SortFunc(d.Set, func(a, b Frontend) int { return compareKeys(a.Key, b.Key) })
	slices.SortFunc(d.Delete, compareKeys)
	return d
}

// equalFrontends ignores where in a file the Service stands.
func equalFrontends(a, b *Frontend) bool {
	return a.Key == b.Key && a.Origin.Ref == b.Origin.Ref && a.PortName == b.PortName &&
		a.Masquerade == b.Masquerade && a.Empty == b.Empty && a.Why == b.Why &&
		a.Affinity == b.Affinity && a.Filtered == b.Filtered &&
		slices.Equal(a.Backends, b.Backends) && slices.Equal(a.Inside, b.Inside) && slices.Equal(a.Sources, b.Sources)
}

func compareKeys(a, b Key) int {
	return cmp.Or(a.Addr.Compare(b.Addr), cmp.Compare(a.Port, b.Port), cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Kind, b.Kind))
}

// conflicts writes a note for every claim that lost.
func (o *outputs) conflicts() (notes []Note) {
	for s := range o.contested {
		winner := o.claims[s][0]
		for _, f := range o.claims[s][1:] {
			notes = append(notes, Note{
				Origin: f.Origin,
				Field:  fieldOf(f.Kind),
				Text:   fmt.Sprintf("%s is held by %s (%s): not programmed for this service", f.Key, winner.Origin, winner.Kind),
			})
		}
	}
	return notes
}

func fieldOf(k Kind) string {
	switch k {
	case ClusterIP:
		return "spec.clusterIPs"
	case NodePort:
		return "spec.ports[].nodePort"
	case LoadBalancerIP:
		return "status.loadBalancer.ingress"
	}
	return "spec.externalIPs"
}
