package nftables

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/braidnet/braid/internal/desired"
	"github.com/braidnet/braid/netagent/service"
)

// State is what the kernel holds as far as we wrote it, and turns wishes into changes. What is kept
// is the frontends themselves: their elements follow from them. The zero State knows nothing; it
// needs a Replace before anything else. For one goroutine.
type State struct {
	families []desired.NFTFamily
	fronts   map[service.Key]service.Frontend // Backends in the order of their slots
	hairpins map[netip.Addr]int               // how many frontends have this local backend
	chains   map[chainID]bool
	net      service.Net
}

type chainID struct {
	family desired.NFTFamily
	name   string
}

// NewState makes a State for the families the kernel has.
func NewState(families []desired.NFTFamily) *State { return &State{families: families} }

// Forget makes the next change start from a Replace: after a transaction failed, nobody knows what
// the kernel holds.
func (s *State) Forget() { s.fronts = nil }

// Contents is what was read back from the kernel for each family; absent tables are nil.
type Contents map[desired.NFTFamily]*desired.NFTContents

// Replace lists the changes that turn what the kernel has into exactly these frontends, and says
// why, for each table that has to be made anew. Slots that are right keep their number.
func (s *State) Replace(all []service.Frontend, net service.Net, have Contents) (ops []desired.NFTOp, why []string) {
	s.fronts = make(map[service.Key]service.Frontend, len(all))
	s.hairpins, s.chains = map[netip.Addr]int{}, map[chainID]bool{}
	picks := map[Pick]bool{}
	s.net = net
	for i := range all {
		if slices.Contains(s.families, familyOf(all[i].Addr)) {
			s.fronts[all[i].Key] = all[i]
		}
	}
	slots := map[desired.NFTFamily]map[elementID][]netip.AddrPort{}
	want := map[desired.NFTFamily][]desired.NFTElement{}
	for _, f := range s.families {
		slots[f] = readSlots(have[f])
		want[f] = NetElements(f, net)
	}
	for i := range all {
		f := s.winner(all[i].Key)
		if f == nil || f.Key != all[i].Key {
			continue
		}
		family := familyOf(f.Addr)
		p, ok := PickOf(f)
		if old := slots[family][elementID{p.set(setSlots, setNodeSlots), string(entry(f.Key))}]; ok && len(old) > 0 {
			f.Backends = arrange(old, f.Backends)
			s.fronts[f.Key] = *f
		}
		if ok {
			picks[p] = true
		}
		s.hairpin(f, 1)
		want[family] = append(want[family], Elements(f)...)
	}
	for _, f := range s.families {
		e, reason := s.table(f, want[f], picks, have[f])
		if reason != "" {
			why = append(why, reason)
		}
		ops = append(ops, e.ops()...)
	}
	return ops, why
}

// table compares one table with what it should hold: elements, and the chains of picks.
func (s *State) table(f desired.NFTFamily, want []desired.NFTElement, picks map[Pick]bool, have *desired.NFTContents) (*edits, string) {
	e := &edits{family: f}
	skeleton := Skeleton(f)
	needed := map[string]bool{}
	for _, c := range skeleton.Chains {
		needed[c.Name] = true
		s.chains[chainID{f, c.Name}] = true
	}
	var reason string
	if have == nil {
		e.fresh = &skeleton
	} else if err := intact(&skeleton, have); err != nil {
		e.rebuild, have = &skeleton, nil
		reason = fmt.Sprintf("table %s %s: %v", f, TableName, err)
	}
	if have == nil {
		have = &desired.NFTContents{}
	}
	for name := range have.Rules {
		s.chains[chainID{f, name}] = true
	}
	for p := range picks {
		if p.Family == f {
			for _, c := range p.Chains() {
				needed[c.Name] = true
			}
			s.addChains(e, p)
		}
	}
	for name := range have.Rules {
		if !needed[name] {
			e.unneeded = append(e.unneeded, name)
			delete(s.chains, chainID{f, name})
		}
	}
	slices.SortFunc(e.unneeded, func(a, b string) int { // masquerade-N leads to pick-N
		return cmp.Or(-boolCompare(strings.Contains(a, masqueradeWord), strings.Contains(b, masqueradeWord)), strings.Compare(a, b))
	})
	slices.SortFunc(e.chains, func(a, b desired.NFTChain) int { // and needs it to be there
		return cmp.Or(boolCompare(strings.Contains(a.Name, masqueradeWord), strings.Contains(b.Name, masqueradeWord)), strings.Compare(a.Name, b.Name))
	})
	e.diff(have.Elements, want)
	return e, reason
}

func boolCompare(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

// addChains adds the chains for a number of backends that the kernel does not have yet.
func (s *State) addChains(e *edits, p Pick) {
	for _, c := range p.Chains() {
		if id := (chainID{p.Family, c.Name}); !s.chains[id] {
			s.chains[id] = true
			e.chains = append(e.chains, c)
		}
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

// hairpin counts f's local backends by step and returns their addresses.
func (s *State) hairpin(f *service.Frontend, step int) (touched []netip.Addr) {
	for _, b := range f.Backends {
		if b.Local && known(f.Protocol) {
			s.hairpins[b.Addr()] += step
			touched = append(touched, b.Addr())
		}
	}
	return touched
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
	hairpins := map[netip.Addr]int{} // counts before
	for _, k := range touched {
		if e := changes[familyOf(k.Addr)]; e != nil {
			s.frontend(e, before[k], s.winner(k), hairpins)
		}
	}
	for a, was := range hairpins {
		changes[familyOf(a)].change(hairpinElement(a, was), hairpinElement(a, s.hairpins[a]))
		if s.hairpins[a] == 0 {
			delete(s.hairpins, a)
		}
	}
	if d.Net != nil {
		for f, e := range changes {
			e.diff(NetElements(f, s.net), NetElements(f, *d.Net))
		}
		s.net = *d.Net
	}
	var ops []desired.NFTOp
	for _, f := range s.families {
		ops = append(ops, changes[f].ops()...)
	}
	return ops, nil
}

func hairpinElement(a netip.Addr, count int) *desired.NFTElement {
	if count == 0 {
		return nil
	}
	b := string(a.AsSlice())
	return &desired.NFTElement{Set: setHairpins, Key: b + b}
}

// frontend notes how the elements at one address change; was and is may be nil. The counts that
// hairpins had before go to the map of that name.
func (s *State) frontend(e *edits, was, is *service.Frontend, hairpins map[netip.Addr]int) {
	count := func(f *service.Frontend, step int) {
		for _, b := range f.Backends {
			if _, seen := hairpins[b.Addr()]; b.Local && !seen {
				hairpins[b.Addr()] = s.hairpins[b.Addr()]
			}
		}
		s.hairpin(f, step)
	}
	var old, next []desired.NFTElement
	if was != nil {
		old = withoutHairpins(Elements(was))
		count(was, -1)
	}
	if is != nil {
		if was != nil && len(was.Backends) > 0 {
			is.Backends = arrange(addrPorts(was.Backends), is.Backends)
			s.fronts[is.Key] = *is
		}
		if p, ok := PickOf(is); ok && !s.chains[chainID{p.Family, p.chain()}] {
			s.addChains(e, p)
		}
		next = withoutHairpins(Elements(is))
		count(is, 1)
	}
	e.diff(old, next)
}

// withoutHairpins leaves out the elements that frontends share.
func withoutHairpins(list []desired.NFTElement) []desired.NFTElement {
	return slices.DeleteFunc(list, func(e desired.NFTElement) bool { return e.Set == setHairpins })
}

// readSlots finds out which backend has which slot in the kernel, by slot set and frontend key.
func readSlots(have *desired.NFTContents) map[elementID][]netip.AddrPort {
	if have == nil {
		return nil
	}
	out := map[elementID][]netip.AddrPort{}
	for _, e := range have.Elements {
		if e.Set != setSlots && e.Set != setNodeSlots || len(e.Key) < 4 {
			continue
		}
		front, slot := e.Key[:len(e.Key)-4], binary.NativeEndian.Uint32([]byte(e.Key[len(e.Key)-4:]))
		id := elementID{e.Set, front}
		list := out[id]
		for uint32(len(list)) <= slot && slot < maxBackends {
			list = append(list, netip.AddrPort{})
		}
		if slot < maxBackends {
			list[slot] = parseBackend(e.Value)
		}
		out[id] = list
	}
	return out
}
