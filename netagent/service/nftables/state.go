package nftables

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/braidnet/braid/internal/desired"
	"github.com/braidnet/braid/netagent/service"
)

// State is what the kernel holds as far as we wrote it, and turns wishes into changes. What is kept
// is the frontends themselves: their elements follow from them. The zero State knows nothing; it
// needs a Replace before anything else. For one goroutine.
type State struct {
	families []desired.NFTFamily
	liberal  bool
	fronts   map[service.Key]service.Frontend // Backends and Inside in the order of their slots
	shared   map[elementOf]int                // how many frontends have the element
	sources  map[chainID]int                  // how many frontends have the list
	chains   map[chainID]bool
	net      service.Net
}

type chainID struct {
	family desired.NFTFamily
	name   string
}

// elementOf is one element of one family.
type elementOf struct {
	family desired.NFTFamily
	elementID
}

// NewState makes a State for the families the kernel has. Liberal is explained at Skeleton.
func NewState(families []desired.NFTFamily, liberal bool) *State {
	return &State{families: families, liberal: liberal}
}

// Forget makes the next change start from a Replace: after a transaction failed, nobody knows what
// the kernel holds.
func (s *State) Forget() { s.fronts = nil }

// Contents is what was read back from the kernel for each family; absent tables are nil.
type Contents map[desired.NFTFamily]*desired.NFTContents

// wanted is what one table is to hold besides the skeleton.
type wanted struct {
	elements []desired.NFTElement
	chains   map[string]desired.NFTChain
}

// Replace lists the changes that turn what the kernel has into exactly these frontends, and says
// why, for each table that has to be made anew. Slots that are right keep their number.
func (s *State) Replace(all []service.Frontend, net service.Net, have Contents) (ops []desired.NFTOp, why []string) {
	s.fronts = make(map[service.Key]service.Frontend, len(all))
	s.shared, s.sources, s.chains = map[elementOf]int{}, map[chainID]int{}, map[chainID]bool{}
	s.net = net
	for i := range all {
		if slices.Contains(s.families, familyOf(all[i].Addr)) {
			s.fronts[all[i].Key] = all[i]
		}
	}
	slots := map[desired.NFTFamily]map[elementID]taken{}
	want := map[desired.NFTFamily]*wanted{}
	for _, f := range s.families {
		slots[f] = readSlots(have[f])
		want[f] = &wanted{NetElements(f, net), map[string]desired.NFTChain{}}
		if loopbackServed(f, net) {
			want[f].chains[chainLoopback] = loopbackChain(f)
		}
	}
	for i := range all {
		f := s.winner(all[i].Key)
		if f == nil || f.Key != all[i].Key {
			continue
		}
		family := familyOf(f.Addr)
		if old, ok := slots[family][elementID{setFor(f.Kind == service.NodePort, setSlots), string(entry(f.Key))}]; ok {
			f.Backends, f.Inside = arrange(old.backends, f.Backends), arrange(old.inside, f.Inside)
			s.fronts[f.Key] = *f
		}
		w := want[family]
		for _, c := range missing(f, func(name string) bool { _, there := w.chains[name]; return there }) {
			w.chains[c.Name] = c
		}
		elements := Elements(f)
		w.elements = append(w.elements, elements...)
		s.count(f, elements, 1)
	}
	for _, f := range s.families {
		e, reason := s.table(f, want[f], have[f])
		if reason != "" {
			why = append(why, reason)
		}
		ops = append(ops, e.ops()...)
	}
	return ops, why
}

// picksOf lists what Picks returns.
func picksOf(f *service.Frontend) (out []Pick) {
	entry, inside := Picks(f)
	if inside != nil {
		out = append(out, *inside)
	}
	if entry != nil {
		out = append(out, *entry)
	}
	return out
}

// count counts what f shares with other frontends, of its elements those that are shared, up or down by step.
func (s *State) count(f *service.Frontend, elements []desired.NFTElement, step int) {
	for i := range elements {
		if el := &elements[i]; shared(el.Set) {
			s.shared[elementOf{familyOf(f.Addr), elementID{el.Set, el.Key}}] += step
		}
	}
	if c, filtered := filteredBy(f); filtered {
		s.sources[chainID{familyOf(f.Addr), c.Name}] += step
	}
}

// table compares one table with what it should hold: elements, and chains.
func (s *State) table(f desired.NFTFamily, want *wanted, have *desired.NFTContents) (*edits, string) {
	e := &edits{family: f}
	skeleton := Skeleton(f, s.liberal)
	needed := map[string]bool{}
	for _, c := range skeleton.Chains {
		needed[c.Name] = true
		s.chains[chainID{f, c.Name}] = true
	}
	var reason string
	if have == nil {
		e.fresh = &skeleton
	} else if err := intact(&skeleton, want.chains, have); err != nil {
		e.rebuild, have = &skeleton, nil
		reason = fmt.Sprintf("table %s %s: %v", f, TableName, err)
	}
	if have == nil {
		have = &desired.NFTContents{}
	}
	for name := range have.Rules {
		s.chains[chainID{f, name}] = true
	}
	for name, c := range want.chains {
		needed[name] = true
		s.addChain(e, c)
	}
	for name := range have.Rules {
		if !needed[name] {
			e.unneeded = append(e.unneeded, name)
			delete(s.chains, chainID{f, name})
		}
	}
	e.diff(have.Elements, want.elements)
	return e, reason
}

// addChain adds a chain that the kernel does not have yet.
func (s *State) addChain(e *edits, c desired.NFTChain) {
	if id := (chainID{e.family, c.Name}); !s.chains[id] {
		s.chains[id] = true
		e.chains = append(e.chains, c)
	}
}

// winner is the frontend that the kernel sees at k's address, protocol and port. One address may be
// a frontend in several ways, an external IP that is also the load balancer's, say: the first kind
// counts, whatever the order of events. It is a copy; nil when there is none.
func (s *State) winner(k service.Key) *service.Frontend {
	kinds := []service.Kind{service.ClusterIP, service.LoadBalancerIP, service.ExternalIP}
	if k.Kind == service.NodePort {
		kinds = []service.Kind{service.NodePort}
	}
	for _, k.Kind = range kinds {
		if f, ok := s.fronts[k]; ok {
			return &f
		}
	}
	return nil
}

var errUnknown = errors.New("what the kernel holds is not known: replace everything first")

// Apply lists the changes for a delta, looking at nothing that the delta does not touch.
func (s *State) Apply(d service.Delta) ([]desired.NFTOp, error) {
	if s.fronts == nil {
		return nil, errUnknown
	}
	changes := make(map[desired.NFTFamily]*edits, len(s.families))
	for _, f := range s.families {
		changes[f] = &edits{family: f}
	}
	before := map[service.Key]*service.Frontend{} // winners, by their key as if of the first kind
	var touched []service.Key
	touch := func(k service.Key) {
		if k.Kind != service.NodePort {
			k.Kind = service.ClusterIP
		}
		if _, seen := before[k]; !seen {
			before[k] = s.winner(k)
			touched = append(touched, k)
		}
	}
	for _, k := range d.Delete {
		touch(k)
		delete(s.fronts, k)
	}
	for i := range d.Set {
		if k := d.Set[i].Key; changes[familyOf(k.Addr)] != nil {
			touch(k)
			s.fronts[k] = d.Set[i]
		}
	}
	joint, lists := map[elementOf]int{}, map[chainID]int{} // counts before
	for _, k := range touched {
		if e := changes[familyOf(k.Addr)]; e != nil {
			s.frontend(e, before[k], s.winner(k), joint, lists)
		}
	}
	for id, was := range joint {
		changes[id.family].change(id.element(was), id.element(s.shared[id]))
		if s.shared[id] == 0 {
			delete(s.shared, id)
		}
	}
	for id := range lists {
		if s.sources[id] == 0 {
			delete(s.sources, id)
			delete(s.chains, id)
			changes[id.family].unneeded = append(changes[id.family].unneeded, id.name)
		}
	}
	if d.Net != nil {
		for f, e := range changes {
			s.changeNet(e, f, *d.Net)
		}
		s.net = *d.Net
	}
	var ops []desired.NFTOp
	for _, f := range s.families {
		ops = append(ops, changes[f].ops()...)
	}
	return ops, nil
}

// changeNet notes what another Net changes in one table.
func (s *State) changeNet(e *edits, f desired.NFTFamily, net service.Net) {
	e.diff(NetElements(f, s.net), NetElements(f, net))
	switch id := (chainID{f, chainLoopback}); {
	case loopbackServed(f, net):
		s.addChain(e, loopbackChain(f))
	case s.chains[id]:
		delete(s.chains, id)
		e.unneeded = append(e.unneeded, id.name)
	}
}

// element is the element while somebody needs it.
func (id elementOf) element(count int) *desired.NFTElement {
	if count == 0 {
		return nil
	}
	return &desired.NFTElement{Set: id.set, Key: id.key}
}

// frontend notes how the elements at one address change; was and is may be nil. The counts that
// shared elements and lists of sources had before go to the maps joint and lists.
func (s *State) frontend(e *edits, was, is *service.Frontend, joint map[elementOf]int, lists map[chainID]int) {
	count := func(f *service.Frontend, elements []desired.NFTElement, step int) {
		for _, el := range elements {
			id := elementOf{e.family, elementID{el.Set, el.Key}}
			if _, seen := joint[id]; !seen {
				joint[id] = s.shared[id]
			}
		}
		if c, filtered := filteredBy(f); filtered {
			id := chainID{e.family, c.Name}
			if _, seen := lists[id]; !seen {
				lists[id] = s.sources[id]
			}
		}
		s.count(f, elements, step)
	}
	var old, next []desired.NFTElement
	if was != nil {
		own, shares := split(Elements(was))
		old = own
		count(was, shares, -1)
	}
	if is != nil {
		if was != nil {
			is.Backends, is.Inside = arrange(addrPorts(was.Backends), is.Backends), arrange(addrPorts(was.Inside), is.Inside)
			s.fronts[is.Key] = *is
		}
		for _, c := range missing(is, func(name string) bool { return s.chains[chainID{e.family, name}] }) {
			s.addChain(e, c)
		}
		own, shares := split(Elements(is))
		next = own
		count(is, shares, 1)
	}
	e.diff(old, next)
}

// missing are the chains that a frontend needs of which the kernel may not have all. Most often that is none, and
// rules are not made to be thrown away.
func missing(f *service.Frontend, have func(name string) bool) (out []desired.NFTChain) {
	for _, p := range picksOf(f) {
		if !have(p.chain()) {
			out = append(out, p.Chains()...)
		}
	}
	if c, filtered := filteredBy(f); filtered {
		out = append(out, c)
	}
	return out
}

// split parts a frontend's own elements from those that others may have as well. It uses up the list.
func split(list []desired.NFTElement) (own, joint []desired.NFTElement) {
	own = list[:0]
	for _, e := range list {
		if shared(e.Set) {
			joint = append(joint, e)
		} else {
			own = append(own, e)
		}
	}
	return own, joint
}

// taken is which backend has which slot.
type taken struct{ backends, inside []netip.AddrPort }

// readSlots finds out which backend has which slot in the kernel, by slot set and frontend key.
func readSlots(have *desired.NFTContents) map[elementID]taken {
	if have == nil {
		return nil
	}
	out := map[elementID]taken{}
	for _, e := range have.Elements {
		if e.Set != setSlots && e.Set != setFor(true, setSlots) || len(e.Key) < 4 {
			continue
		}
		front, slot := e.Key[:len(e.Key)-4], binary.NativeEndian.Uint32([]byte(e.Key[len(e.Key)-4:]))
		id := elementID{e.Set, front}
		t := out[id]
		list := &t.backends
		if slot >= insideSlots {
			list, slot = &t.inside, slot-insideSlots
		}
		for uint32(len(*list)) <= slot && slot < maxBackends {
			*list = append(*list, netip.AddrPort{})
		}
		if slot < maxBackends {
			(*list)[slot] = parseBackend(e.Value)
		}
		out[id] = t
	}
	return out
}
