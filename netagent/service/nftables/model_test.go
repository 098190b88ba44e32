package nftables

import (
	"encoding/binary"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/braidnet/braid/internal/desired"
	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/netagent/service"
)

// kernel is a naive model of what nftables makes of operations: strict, and listing what it holds.
type kernel map[desired.NFTFamily]*desired.NFTContents

func (k kernel) apply(op desired.NFTOp) error {
	t := k[op.Family]
	if t == nil && op.Verb != desired.NFTAddTable {
		return fmt.Errorf("%s: no such table", op)
	}
	switch op.Verb {
	case desired.NFTAddTable:
		t = &desired.NFTContents{Comment: op.Def.Comment, Rules: map[string][]string{}, Sets: map[string]bool{}}
		for _, s := range op.Def.Sets {
			t.Sets[s.Name] = true
		}
		for _, c := range op.Def.Chains {
			t.Rules[c.Name] = comments(c)
		}
		k[op.Family] = t
	case desired.NFTDeleteTable:
		delete(k, op.Family)
	case desired.NFTAddChain:
		if _, there := t.Rules[op.Chain.Name]; there {
			return fmt.Errorf("%s: its rules would be there twice", op)
		}
		t.Rules[op.Chain.Name] = comments(*op.Chain)
	case desired.NFTDeleteChain:
		if slices.ContainsFunc(t.Elements, func(e desired.NFTElement) bool { return e.Goto == op.Chain.Name }) {
			return fmt.Errorf("%s: in use", op)
		}
		delete(t.Rules, op.Chain.Name)
	case desired.NFTAddElement, desired.NFTDeleteElement:
		at := slices.IndexFunc(t.Elements, func(e desired.NFTElement) bool { return e.Set == op.Element.Set && e.Key == op.Element.Key })
		if op.Verb == desired.NFTAddElement {
			if _, there := t.Rules[op.Element.Goto]; at >= 0 || op.Element.Goto != "" && !there || !t.Sets[op.Element.Set] {
				return fmt.Errorf("%s: it is there, or its chain or set is not", op)
			}
			t.Elements = append(t.Elements, *op.Element)
			return nil
		}
		if at < 0 {
			return fmt.Errorf("%s: it is not there", op)
		}
		t.Elements = slices.Delete(t.Elements, at, at+1)
	}
	return nil
}

// read lists what the kernel holds, as values of the reader's own.
func (k kernel) read() Contents {
	out := Contents{}
	for f, t := range k {
		out[f] = &desired.NFTContents{Comment: t.Comment, Rules: maps.Clone(t.Rules), Sets: maps.Clone(t.Sets), Elements: slices.Clone(t.Elements)}
	}
	return out
}

func comments(c desired.NFTChain) (out []string) {
	for _, r := range c.Rules {
		out = append(out, r.Comment)
	}
	return out
}

// run applies operations and asks, wherever a transaction may end, whether every frontend that a
// packet can find leads to a backend for every number that may be drawn.
func (k kernel) run(ops []desired.NFTOp) error {
	for i, op := range ops {
		if err := k.apply(op); err != nil {
			return err
		}
		if i+1 == len(ops) || !ops[i+1].Join {
			if err := k.sound(i+1 == len(ops)); err != nil {
				return fmt.Errorf("after %s: %w", op, err)
			}
		}
	}
	return nil
}

// sound asks that. In between, a backend drawn may not be usable yet, or any more: it is not remembered then.
func (k kernel) sound(end bool) error {
	for family, t := range k {
		have := map[elementID]string{}
		for _, e := range t.Elements {
			have[elementID{e.Set, e.Key}] = e.Value + e.Goto
		}
		for _, e := range t.Elements {
			node := strings.HasPrefix(e.Set, nodeWord)
			set := strings.TrimPrefix(e.Set, nodeWord)
			if e.Goto == "" || set == setFiltered {
				continue
			}
			p, ok := parsePick(family, e.Goto)
			if !ok || p.node != node || (p.word == wordInside) != (set == setInside) {
				return fmt.Errorf("%s leads to chain %s", e.Comment, e.Goto)
			}
			if _, ok := have[elementID{setFor(node, setInside), e.Key}]; !ok && p.word == wordOutside {
				return fmt.Errorf("%s leads to %s, but has no way inside", e.Comment, e.Goto)
			}
			if _, ok := have[elementID{setFor(node, setSessions), e.Key}]; !ok && p.keep > 0 {
				return fmt.Errorf("%s leads to %s, but has no session", e.Comment, e.Goto)
			}
			for i := range p.backends {
				b, ok := have[elementID{setFor(node, setSlots), string(number([]byte(e.Key), p.firstSlot()+uint32(i)))}]
				if !ok {
					return fmt.Errorf("%s leads to %s, but has no slot %d", e.Comment, e.Goto, i)
				}
				if _, ok := have[elementID{setFor(node, p.usable()), e.Key + b}]; !ok && p.keep > 0 && end {
					return fmt.Errorf("%s leads to %s, but the backend of slot %d is not usable", e.Comment, e.Goto, i)
				}
			}
		}
	}
	return nil
}

// canonical lists the elements so that two states that balance alike are equal: which slot a backend
// has does not matter.
func (k kernel) canonical() []string {
	var out []string
	for family, t := range k {
		for _, e := range t.Elements {
			key := e.Key
			if strings.HasSuffix(e.Set, setSlots) {
				list := "backends"
				if binary.NativeEndian.Uint32([]byte(key[len(key)-4:])) >= insideSlots {
					list = "inside"
				}
				key = list + key[:len(key)-4]
			}
			out = append(out, fmt.Sprintf("%s %s %x-%x : %x %s %q", family, e.Set, key, e.End, e.Value, e.Goto, e.Comment))
		}
	}
	for family, t := range k {
		for name := range t.Rules {
			if isSources(name) { // of these none may stay; chains for numbers of backends may
				out = append(out, fmt.Sprintf("%s chain %s", family, name))
			}
		}
	}
	slices.Sort(out)
	return out
}

// world makes random clusters small enough for everything to collide.
type world struct {
	rng    *rand.Rand
	fronts map[service.Key]service.Frontend
	net    service.Net
}

func (w *world) addr(six bool) netip.Addr {
	n := byte(1 + w.rng.IntN(3))
	if six {
		return netip.AddrFrom16([16]byte{0xfd, 15: n})
	}
	return netip.AddrFrom4([4]byte{10, 96, 0, n})
}

func (w *world) key() service.Key {
	six := w.rng.IntN(2) == 0
	k := service.Key{
		Kind:     service.Kind(1 + w.rng.IntN(4)),
		Protocol: []model.Protocol{model.TCP, model.UDP}[w.rng.IntN(2)],
		Port:     uint16(80 + w.rng.IntN(2)),
		Addr:     w.addr(six),
	}
	if k.Kind == service.NodePort {
		k.Addr = netip.IPv4Unspecified()
		if six {
			k.Addr = netip.IPv6Unspecified()
		}
	}
	return k
}

func (w *world) frontend() service.Frontend {
	f := service.Frontend{
		Key:        w.key(),
		Origin:     model.Origin{Ref: model.Ref{Kind: model.KindService, Key: model.Key{Namespace: "n", Name: fmt.Sprint("s", w.rng.IntN(3))}}},
		Masquerade: service.Masquerade(1 + w.rng.IntN(3)),
		Empty:      service.Empty(w.rng.IntN(2)),
		Affinity:   []time.Duration{0, 10 * time.Second, time.Hour}[w.rng.IntN(3)],
		Filtered:   w.rng.IntN(3) == 0,
	}
	f.Backends = w.backends(f.Addr.Is6())
	if f.Masquerade == service.MasqueradeNone {
		f.Inside = w.backends(f.Addr.Is6())
		if len(f.Inside) > 0 {
			f.Empty = service.Drop // there are endpoints
		}
	}
	for n := range byte(3) {
		if f.Filtered && w.rng.IntN(2) == 0 {
			f.Sources = append(f.Sources, netip.PrefixFrom(source(f.Addr.Is6(), n), source(f.Addr.Is6(), n).BitLen()))
		}
	}
	return f
}

// source is one of a few addresses that packets come from; 0 and 1 may be pods of this node.
func source(six bool, n byte) netip.Addr {
	if six {
		return netip.AddrFrom16([16]byte{0xfd, 7: n, 8: 1})
	}
	return netip.AddrFrom4([4]byte{10, 244, n, 1})
}

func (w *world) backends(six bool) (out []service.Backend) {
	for n := range byte(6) {
		if w.rng.IntN(2) == 0 {
			a := netip.AddrFrom4([4]byte{10, 244, 1, n})
			if six {
				a = netip.AddrFrom16([16]byte{0xfd, 0, 1, 15: n})
			}
			out = append(out, service.Backend{AddrPort: netip.AddrPortFrom(a, 8080), Local: n%2 == 0})
		}
	}
	return out
}

func (w *world) prefixes() (out []netip.Prefix) {
	for range w.rng.IntN(4) {
		out = append(out, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, byte(w.rng.IntN(4))}), 22+w.rng.IntN(3)).Masked())
		out = append(out, netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 7: byte(w.rng.IntN(4))}), 62+w.rng.IntN(3)).Masked())
	}
	return out
}

// ranges are of the addresses that frontends have.
func (w *world) ranges() (out []netip.Prefix) {
	if w.rng.IntN(2) == 0 {
		out = append(out, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 96}), 29+w.rng.IntN(3)), netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd}), 125+w.rng.IntN(3)))
	}
	return out
}

// step changes the world and says what changed.
func (w *world) step() (d service.Delta) {
	touched := map[service.Key]bool{}
	for range 1 + w.rng.IntN(4) {
		f := w.frontend()
		if touched[f.Key] {
			continue
		}
		touched[f.Key] = true
		if _, there := w.fronts[f.Key]; there && w.rng.IntN(3) == 0 {
			delete(w.fronts, f.Key)
			d.Delete = append(d.Delete, f.Key)
			continue
		}
		w.fronts[f.Key] = f
		d.Set = append(d.Set, f)
	}
	if w.rng.IntN(4) == 0 {
		w.net = service.Net{LocalPods: w.prefixes(), ClusterPods: w.prefixes(), Services: w.ranges(), NodePorts: w.prefixes()}
		w.net.Local = []service.Local{{}, {Sources: w.prefixes()}, {Link: "br0"}, {Link: "br0", Prefix: true}}[w.rng.IntN(4)]
		w.net.Loopback = w.rng.IntN(2) == 0
		if w.rng.IntN(2) == 0 {
			w.net.NodePorts = [][]netip.Prefix{{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")},
				{netip.MustParsePrefix("127.0.0.0/9"), netip.MustParsePrefix("126.0.0.0/7"), netip.MustParsePrefix("::1/128")}}[w.rng.IntN(2)]
		}
		net := w.net
		d.Net = &net
	}
	return d
}

func (w *world) all() []service.Frontend {
	return slices.SortedFunc(maps.Values(w.fronts), func(a, b service.Frontend) int {
		return strings.Compare(fmt.Sprint(a.Key, a.Kind), fmt.Sprint(b.Key, b.Kind))
	})
}

// TestChangesEqualFromScratch: whatever the way there, the kernel ends up as if it had been written
// at once; adopting it needs no change; and no packet ever finds a frontend without its backends.
func TestChangesEqualFromScratch(t *testing.T) {
	for seed := range uint64(8) {
		w := &world{rng: rand.New(rand.NewPCG(seed, 0)), fronts: map[service.Key]service.Frontend{}}
		live, state := kernel{}, NewState(Families, false)
		fail := func(step int, err error) {
			if err != nil {
				t.Fatalf("seed %d, step %d: %v", seed, step, err)
			}
		}
		for step := range 40 {
			if step == 0 || w.rng.IntN(10) == 0 { // a restart: what happened meanwhile is not known as a delta
				w.step()
				state = NewState(Families, false)
				ops, _ := state.Replace(w.all(), w.net, live.read())
				fail(step, live.run(ops))
				again, why := NewState(Families, false).Replace(w.all(), w.net, live.read())
				if len(again) != 0 || len(why) != 0 {
					t.Fatalf("seed %d, step %d: an agent that finds everything in place changes %v (%v)", seed, step, again, why)
				}
			} else {
				d := w.step()
				ops, err := state.Apply(d)
				fail(step, err)
				fail(step, live.run(ops))
			}
			scratch := kernel{}
			ops, _ := NewState(Families, false).Replace(w.all(), w.net, nil)
			fail(step, scratch.run(ops))
			if got, want := live.canonical(), scratch.canonical(); !slices.Equal(got, want) {
				t.Fatalf("seed %d, step %d: the kernel holds\n%s\nwant\n%s", seed, step, strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
			if step%4 == 0 {
				fail(step, w.packets(live))
			}
		}
	}
}
