package iptables

import (
	"cmp"
	"slices"
	"strings"

	"github.com/braidnet/braid/netagent/service"
)

// closed is how a frontend is kept closed, and why.
type closed struct {
	state  closure
	reason string
}

// Closed is a frontend that is left out because its rules were refused.
type Closed struct {
	service.Frontend
	Reason string
}

// Culprit returns the frontend for which a line of what Pending returned was written, false when
// the line is about none.
func (r *Renderer) Culprit(line string) (service.Key, bool) {
	rest, ok := strings.CutPrefix(line, "-A ")
	if !ok {
		return service.Key{}, false
	}
	chain, text, _ := strings.Cut(rest, " ")
	// Only after a refusal, so this may go through all frontends.
	for s, f := range r.frontends {
		key, _ := dispatchKey(f.Key)
		for _, x := range r.dispatch(&f, key, r.closed[s].state) {
			if x == text {
				return f.Key, true
			}
		}
		for id := range r.frontendChains(&f) {
			if id.name == chain {
				return f.Key, true
			}
		}
	}
	return service.Key{}, false
}

// Close leaves frontends out: their new connections are dropped or, when bare, nothing at all is
// written for them. It returns false when they were closed that far already.
func (r *Renderer) Close(keys []service.Key, bare bool, reason string) (more bool) {
	to := dropped
	if bare {
		to = absent
	}
	for _, k := range keys {
		s := slotOf(k)
		f, ok := r.frontends[s]
		if !ok || r.closed[s].state >= to {
			continue
		}
		more = true
		r.closed[s] = closed{to, reason}
		r.touched[s] = struct{}{}
		r.show(&f, to)
	}
	r.plant()
	return more
}

// Reopen wants the rules of closed frontends again; keys that are not closed are passed over.
func (r *Renderer) Reopen(keys []service.Key) {
	for _, k := range keys {
		s := slotOf(k)
		if _, ok := r.closed[s]; !ok {
			continue
		}
		delete(r.closed, s)
		r.touched[s] = struct{}{}
		f := r.frontends[s]
		r.show(&f, open)
	}
	r.plant()
}

// Closed lists the frontends that are left out, sorted by key.
func (r *Renderer) Closed() (list []Closed) {
	for s, c := range r.closed {
		list = append(list, Closed{r.frontends[s], c.reason})
	}
	slices.SortFunc(list, func(a, b Closed) int { return compareKeys(a.Key, b.Key) })
	return list
}

// Touched lists the frontends whose rules may be new in what Pending returns, sorted: one of them must
// be to blame when it is refused without a line being named.
func (r *Renderer) Touched() (keys []service.Key) {
	for s := range r.touched {
		keys = append(keys, r.frontends[s].Key)
	}
	slices.SortFunc(keys, compareKeys)
	return keys
}

func compareKeys(a, b service.Key) int {
	return cmp.Or(a.Addr.Compare(b.Addr), cmp.Compare(a.Port, b.Port), cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Kind, b.Kind))
}
