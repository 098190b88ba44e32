package iptables

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/netagent/policy"
	"github.com/braidnet/braid/netagent/policy/worlds"
	"github.com/braidnet/braid/netagent/policy/worlds/probe"
)

// TestNoWindow changes clusters one object at a time, and asks after each step of each plan: a packet is allowed only
// if it was before or is afterwards, whatever is done in between; and it is allowed at each end of a plan exactly if Eval says so.
func TestNoWindow(t *testing.T) {
	refused, steps := 0, 0
	for i := range uint64(100) {
		m, c, s := newSimulation(), policy.NewCompiler("n1"), NewState(both, Options{Bridge: "pods0", Links: "brd", Log: true})
		c.Flush()
		p, why := s.Replace(c.All(), m.contents())
		if err := m.take(p, func(string) {}); err != nil || len(why) > 0 {
			t.Fatal(err, why)
		}
		at := worlds.World{}
		for n := range uint64(3) {
			d := worlds.NewDice(5, i*10+n)
			w := probe.WithOpenPod(d.World())
			var packets []worlds.Packet
			for range 60 {
				if p := d.Packet(w); p.Port > 0 && !p.FromNode {
					packets = append(packets, p)
				}
			}
			for _, change := range worlds.Changes(at, w, probe.Convert) {
				c.Apply(0, []model.Change{change})
				p, err := s.Apply(c.Flush())
				if err != nil {
					t.Fatal(err)
				}
				before := m.judge(packets)
				after := make([]bool, len(packets))
				for i, p := range packets {
					after[i] = c.Eval(policy.Packet(p)).Allowed && known(s, p)
				}
				err = m.take(p, func(step string) {
					steps++
					for i, allowed := range m.judge(packets) {
						if allowed && !before[i] && !after[i] {
							t.Fatalf("world %d.%d, %s: %+v is allowed after %q, neither before nor later", i, n, change.Ref, packets[i], step)
						}
						if !allowed && before[i] && after[i] {
							refused++
						}
					}
				})
				if err != nil {
					t.Fatalf("world %d.%d, %s: %v", i, n, change.Ref, err)
				}
				for i, allowed := range m.judge(packets) {
					if allowed != after[i] {
						t.Fatalf("world %d.%d, %s: %+v is allowed: %v", i, n, change.Ref, packets[i], allowed)
					}
				}
			}
			at = w
			if p, why := NewState(both, s.options).Replace(c.All(), m.contents()); !p.Empty() {
				t.Fatalf("world %d.%d: differs from the whole: %v\n%+v", i, n, why, p)
			}
		}
	}
	t.Logf("%d steps, in which %d times a packet was refused that is allowed before and later", steps, refused)
}

// known reports whether a packet's ends on this node are pods that the node knows.
func known(s *State, p worlds.Packet) bool {
	for _, a := range []netip.Addr{p.Src, p.Dst} {
		if side(a) != "pods0" {
			continue
		}
		if !slices.ContainsFunc(slices.Collect(maps.Values(s.targets)), func(t policy.Target) bool { return slices.Contains(t.Addrs, a) }) {
			return false
		}
	}
	return true
}

// side is the device that an address is behind.
func side(a netip.Addr) string {
	if strings.HasPrefix(a.String(), "10.244.1.") || strings.HasPrefix(a.String(), "fd00:10:244:1:") {
		return "pods0"
	}
	return "up0"
}

func (m *simulation) judge(packets []worlds.Packet) []bool {
	out := make([]bool, len(packets))
	for i, p := range packets {
		out[i] = m.passes(p, side(p.Src), side(p.Dst))
	}
	return out
}
