package nftables

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/braidnet/braid/internal/desired"
	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/netagent/service"
)

func web(n int, local bool) service.Frontend {
	f := service.Frontend{
		Key:        service.Key{Kind: service.ClusterIP, Protocol: model.TCP, Addr: netip.MustParseAddr("10.96.0.10"), Port: 80},
		Origin:     model.Origin{Ref: model.Ref{Kind: model.KindService, Key: model.Key{Namespace: "default", Name: "web"}}},
		Masquerade: service.MasqueradeForeign,
	}
	for i := range n {
		a := netip.AddrFrom4([4]byte{10, 244, byte(i >> 8), byte(i)})
		f.Backends = append(f.Backends, service.Backend{AddrPort: netip.AddrPortFrom(a, 8080), Local: local})
	}
	return f
}

// TestOneEndpointIsFewElements: the promise of the layout.
func TestOneEndpointIsFewElements(t *testing.T) {
	const n = 1000
	s, k := NewState(Families, false), kernel{}
	ops, _ := s.Replace([]service.Frontend{web(n, false)}, service.Net{}, nil)
	if err := k.run(ops); err != nil {
		t.Fatal(err)
	}
	gone := web(n, false)
	gone.Backends = slices.Delete(gone.Backends, 5, 6)
	for _, f := range []service.Frontend{gone, web(n, false)} {
		ops, err := s.Apply(service.Delta{Set: []service.Frontend{f}})
		if err != nil {
			t.Fatal(err)
		}
		elements := 0
		for _, op := range ops {
			if op.Element != nil {
				elements++
			}
		}
		if elements > 6 { // the frontend and the moved slot deleted and added, one slot more or less
			t.Errorf("to %d endpoints by one: %d element changes", len(f.Backends), elements)
		}
	}
	same, err := s.Apply(service.Delta{Set: []service.Frontend{web(n, false)}})
	if err != nil || len(same) != 0 {
		t.Errorf("the same frontend again: %d changes, error %v", len(same), err)
	}
	again, err := s.Apply(service.Delta{Set: []service.Frontend{gone}})
	if err != nil || slices.ContainsFunc(again, func(op desired.NFTOp) bool { return op.Element == nil }) {
		t.Errorf("a number of backends seen before needs a chain: %v, error %v", again, err)
	}
}

func TestApplyNeedsReplace(t *testing.T) {
	s := NewState(Families, false)
	if _, err := s.Apply(service.Delta{}); !errors.Is(err, errUnknown) {
		t.Errorf("Apply before Replace: error %v", err)
	}
	s.Replace(nil, service.Net{}, nil)
	s.Forget()
	if _, err := s.Apply(service.Delta{}); !errors.Is(err, errUnknown) {
		t.Errorf("Apply after Forget: error %v", err)
	}
}

func TestAlteredTableIsMadeAnew(t *testing.T) {
	all := []service.Frontend{web(3, true)}
	for what, alter := range map[string]func(*desired.NFTContents){
		"other layout":   func(c *desired.NFTContents) { c.Comment = "Braid services, layout 0" },
		"missing set":    func(c *desired.NFTContents) { delete(c.Sets, setSlots) },
		"foreign set":    func(c *desired.NFTContents) { c.Sets["foreign"] = true },
		"missing chain":  func(c *desired.NFTContents) { delete(c.Rules, chainServices) },
		"foreign chain":  func(c *desired.NFTContents) { c.Rules["foreign"] = nil },
		"missing rule":   func(c *desired.NFTContents) { c.Rules[chainPrerouting] = nil },
		"foreign rule":   func(c *desired.NFTContents) { c.Rules[chainOutput] = append(c.Rules[chainOutput], "hello") },
		"altered rule":   func(c *desired.NFTContents) { c.Rules["choose-3"][1] = "hello" },
		"odd pick chain": func(c *desired.NFTContents) { c.Rules["pick-03"] = nil },
	} {
		k := kernel{}
		ops, _ := NewState(Families, false).Replace(all, service.Net{}, nil)
		if err := k.run(ops); err != nil {
			t.Fatal(err)
		}
		want := k.canonical()
		alter(k[desired.NFTIPv4])
		ops, why := NewState(Families, false).Replace(all, service.Net{}, k.read())
		if len(why) != 1 || len(ops) == 0 || ops[0].Verb != desired.NFTDeleteTable || ops[0].Family != desired.NFTIPv4 {
			t.Errorf("%s: %d changes, why %q", what, len(ops), why)
			continue
		}
		for i, op := range ops[1:] {
			if !op.Join {
				t.Errorf("%s: change %d (%s) may come in a later transaction than the deletion", what, i+1, op)
			}
		}
		if err := k.run(ops); err != nil || !slices.Equal(k.canonical(), want) {
			t.Errorf("%s: afterwards the kernel holds %q, error %v", what, k.canonical(), err)
		}
	}
}

func TestUnneededChainsGo(t *testing.T) {
	k := kernel{}
	for n, all := range [][]service.Frontend{{web(3, true)}, {web(2, true)}, nil} {
		ops, why := NewState(Families, false).Replace(all, service.Net{}, k.read())
		if err := k.run(ops); err != nil || len(why) > 0 {
			t.Fatalf("state %d: %v %q", n, err, why)
		}
	}
	if _, there := k[desired.NFTIPv4].Rules["choose-3"]; there || len(k.canonical()) > 0 {
		t.Errorf("chain pick-3 is there: %v; elements: %q", there, k.canonical())
	}
}

// TestMissingFamily: a kernel without IPv6 gets IPv4 only.
func TestMissingFamily(t *testing.T) {
	six := web(1, true)
	six.Addr = netip.MustParseAddr("fd00::1")
	six.Backends[0].AddrPort = netip.MustParseAddrPort("[fd00::2]:80")
	s, k := NewState(Families[:1], false), kernel{}
	ops, _ := s.Replace([]service.Frontend{web(1, true), six}, service.Net{}, nil)
	more, err := s.Apply(service.Delta{Set: []service.Frontend{six}, Delete: []service.Key{six.Key}, Net: &service.Net{}})
	if err != nil {
		t.Fatal(err)
	}
	if err := k.run(append(ops, more...)); err != nil || k[desired.NFTIPv6] != nil || k[desired.NFTIPv4] == nil {
		t.Errorf("tables %v, error %v", k, err)
	}
}

func TestPickNames(t *testing.T) {
	for _, f := range Families {
		for _, c := range append(Skeleton(f, false).Chains, Samples(f)...) {
			if p, ok := parsePick(f, c.Name); ok && (p.chain() != c.Name || p.family != f) {
				t.Errorf("parsePick(%q) = %+v", c.Name, p)
			} else if want := strings.ContainsAny(c.Name, "12") && !isSources(c.Name); ok != want && !strings.HasSuffix(c.Name, "outside-0") {
				t.Errorf("parsePick(%q) says %v", c.Name, ok)
			}
		}
	}
	if p, ok := parsePick(desired.NFTIPv4, "node-outside-2-for-90"); !ok || p != (Pick{desired.NFTIPv4, true, wordOutside, 2, 90}) {
		t.Errorf("node-outside-2-for-90 is %+v, %v", p, ok)
	}
	for _, name := range []string{"", "pick", "pick-", "pick-0", "pick--1", "pick-1x", "pick-01", "3", "node-3", "masquerade-pick-1", "replace-source",
		"pick-1-for-", "pick-1-for-0", "pick-1-for-01", "pick-1-for-1-for-1", "outside-0-for-5", "node-node-pick-1"} {
		if p, ok := parsePick(desired.NFTIPv4, name); ok {
			t.Errorf("parsePick(%q) = %+v", name, p)
		}
	}
}

func TestArrangeKeepsSlots(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	pick := func() (out []service.Backend) {
		for i := range 12 {
			if rng.IntN(2) == 0 {
				out = append(out, service.Backend{AddrPort: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), 80)})
			}
		}
		return out
	}
	for range 1000 {
		before, after := pick(), pick()
		rng.Shuffle(len(before), func(i, j int) { before[i], before[j] = before[j], before[i] })
		got := arrange(addrPorts(before), after)
		for i, b := range before {
			if slices.Contains(after, b) && i < len(after) && got[i] != b {
				t.Fatalf("from %v to %v: %v left its slot in %v", before, after, b, got)
			}
		}
		sorted := slices.SortedFunc(slices.Values(got), func(a, b service.Backend) int { return a.Addr().Compare(b.Addr()) })
		if !slices.Equal(sorted, after) {
			t.Fatalf("from %v to %v: got %v", before, after, got)
		}
	}
}

func TestElementsOfManyBackends(t *testing.T) {
	f := web(maxBackends+5, false)
	elements := Elements(&f)
	if len(elements) != maxBackends+2 || elements[1].Goto != fmt.Sprintf("pick-%d", maxBackends) {
		t.Errorf("%d elements, the second goes to %s", len(elements), elements[1].Goto)
	}
	f.Protocol = 1
	if got := Elements(&f); got != nil {
		t.Errorf("a protocol without ports has %d elements", len(got))
	}
}
