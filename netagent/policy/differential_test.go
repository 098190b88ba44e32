package policy

import (
	"flag"
	"fmt"
	"testing"

	"k8s.io/apimachinery/pkg/runtime"

	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/internal/source"
	"github.com/braidnet/braid/netagent/policy/worlds"
)

var (
	count = flag.Int("policy.worlds", 1000, "how many random clusters TestDifferential tries")
	seed  = flag.Uint64("policy.seed", 1, "of TestDifferential's random clusters")
)

const packetsPerWorld = 40

func convert(o runtime.Object) model.Object {
	value, err := source.Convert(o, model.Origin{})
	if err != nil {
		panic(fmt.Sprintf("the test made an object that cannot be: %v", err))
	}
	return value
}

func changes(from, to worlds.World) []model.Change { return worlds.Changes(from, to, convert) }

// compiled compiles a world from nothing.
func compiled(w worlds.World) (*Compiler, Delta) {
	c := NewCompiler("")
	c.Apply(1, changes(worlds.World{}, w))
	return c, c.Flush()
}

// disagreement is a packet about which the compiler says something else than the API's text, if it is one.
func disagreement(w worlds.World, mutant string, packets []worlds.Packet) *worlds.Packet {
	c, _ := compiled(w)
	n := worlds.Naive{World: w, Mutant: mutant}
	for i := range packets {
		if c.Eval(Packet(packets[i])).Allowed != n.Allows(packets[i]) {
			return &packets[i]
		}
		p := packets[i]
		if p.FromNode = false; c.Reach(p.Src, p.Dst).Contains(p.Protocol, p.Port) != n.Allows(p) {
			return &p
		}
	}
	return nil
}

// TestDifferential compares the compiler with the naive model on random clusters, and what it says of its
// changes, one after the other, with what it says of the end at once.
func TestDifferential(t *testing.T) {
	decided := map[bool]int{}
	for i := range *count {
		d := worlds.NewDice(*seed, uint64(i))
		w := d.World()
		packets := make([]worlds.Packet, packetsPerWorld)
		for j := range packets {
			packets[j] = d.Packet(w)
			decided[(worlds.Naive{World: w}).Allows(packets[j])]++
		}
		if p := disagreement(w, "", packets); p != nil {
			small := worlds.Shrink(w, *p, func(w worlds.World, p worlds.Packet) bool { return disagreement(w, "", []worlds.Packet{p}) != nil })
			c, _ := compiled(small)
			t.Fatalf("world %d of seed %d: %+v\ncompiler: %v\nnaive: allowed %v\n%s", i, *seed, *p, c.Eval(Packet(*p)), worlds.Naive{World: small}.Allows(*p), small)
		}
		if text := unlike(d, w); text != "" {
			t.Fatalf("world %d of seed %d: %s", i, *seed, text)
		}
	}
	t.Logf("%d random clusters, %d packets (%d allowed, %d denied), mismatches: 0", *count, *count*packetsPerWorld, decided[true], decided[false])
	if decided[true] < decided[false]/9 || decided[false] < decided[true]/9 {
		t.Errorf("%v packets allowed: the worlds are too lopsided to find anything", decided)
	}
}

// unlike leads a compiler from another world to w in small steps, in a random order, and compares the
// sum of what it said with what a new compiler says of w.
func unlike(d worlds.Dice, w worlds.World) string {
	c, mirror := NewCompiler(""), newMirror()
	var steps []model.Change
	at := worlds.World{}
	for _, next := range []worlds.World{d.World(), d.World(), w} {
		steps = append(steps, shuffled(d, changes(at, next))...)
		at = next
	}
	for len(steps) > 0 {
		n := min(1+d.IntN(4), len(steps))
		c.Apply(0, steps[:n])
		steps = steps[n:]
		if d.One(2) || len(steps) == 0 {
			if err := mirror.apply(c.Flush()); err != nil {
				return err.Error()
			}
		}
	}
	fresh := newMirror()
	_, delta := compiled(w)
	if err := fresh.apply(delta); err != nil {
		return err.Error()
	}
	all := newMirror()
	if err := all.apply(c.All()); err != nil {
		return err.Error()
	}
	if a, b := mirror.String(), all.String(); a != b {
		return fmt.Sprintf("step by step:\n%s\nall:\n%s", a, b)
	}
	if a, b := mirror.String(), fresh.String(); a != b {
		return fmt.Sprintf("step by step:\n%s\nat once:\n%s\n%s", a, b, w)
	}
	// Nothing must be left when everything goes.
	c.Apply(0, shuffled(d, changes(w, worlds.World{})))
	if err := mirror.apply(c.Flush()); err != nil {
		return err.Error()
	}
	if text := mirror.String(); text != "" || len(c.namespaces)+len(c.owners)+len(c.sets)+len(c.sections)+len(c.chains)+len(c.ports)+len(c.spread.byPair)+len(c.spread.others) > 0 {
		return fmt.Sprintf("left when everything was gone: %q and %+v", text, c)
	}
	return ""
}

func shuffled(d worlds.Dice, list []model.Change) []model.Change {
	d.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	return list
}

// TestEachMistakeShows: with any of these mistakes the comparison would fail, so the worlds that are
// drawn do reach these sentences of the API.
func TestEachMistakeShows(t *testing.T) {
	for _, mutant := range []string{"ended pods keep addresses", "host network counts", "always both types", "directions mixed", "except of one peer binds all",
		"except ignored", "blocks do not hold pods", "pod selector spans namespaces", "no default namespace label", "protocol ignored", "endPort ignored",
		"endPort excluded", "sidecars ignored", "init containers serve", "port name regardless of protocol", "NotIn needs the label", "audit denies"} {
		t.Run(mutant, func(t *testing.T) {
			for i := range 20000 {
				d := worlds.NewDice(7, uint64(i))
				w := d.World()
				packets := make([]worlds.Packet, packetsPerWorld)
				for j := range packets {
					packets[j] = d.Packet(w)
				}
				if disagreement(w, mutant, packets) != nil {
					return
				}
			}
			t.Error("20000 random clusters do not show it")
		})
	}
}
