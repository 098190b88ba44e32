package policy

import (
	"flag"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"

	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/internal/source"
)

var (
	worlds = flag.Int("policy.worlds", 2000, "how many random clusters TestDifferential tries")
	seed   = flag.Uint64("policy.seed", 1, "of TestDifferential's random clusters")
)

const packetsPerWorld = 40

// objects lists everything of a world.
func (w world) objects() (out []runtime.Object) {
	for _, o := range w.namespaces {
		out = append(out, o)
	}
	for _, o := range w.pods {
		out = append(out, o)
	}
	for _, o := range w.policies {
		out = append(out, o)
	}
	return out
}

func convert(o runtime.Object) model.Object {
	value, err := source.Convert(o, model.Origin{})
	if err != nil {
		panic(fmt.Sprintf("the test made an object that cannot be: %v", err))
	}
	return value
}

// changes are what leads from one world to another, in no order.
func changes(from, to world) (out []model.Change) {
	old := map[model.Ref]model.Object{}
	for _, o := range from.objects() {
		value := convert(o)
		old[value.From().Ref] = value
	}
	for _, o := range to.objects() {
		value := convert(o)
		ref := value.From().Ref
		if before := old[ref]; !reflect.DeepEqual(before, value) {
			out = append(out, model.Change{Ref: ref, Old: before, New: value})
		}
		delete(old, ref)
	}
	for ref, value := range old {
		out = append(out, model.Change{Ref: ref, Old: value})
	}
	slices.SortFunc(out, func(a, b model.Change) int { return strings.Compare(a.Ref.String(), b.Ref.String()) })
	return out
}

// compiled compiles a world from nothing.
func compiled(w world) (*Compiler, Delta) {
	c := NewCompiler("")
	c.Apply(1, changes(world{}, w))
	return c, c.Flush()
}

// disagreement is a packet about which the compiler says something else than the API's text, if it is one.
func disagreement(w world, mutant string, packets []Packet) *Packet {
	c, _ := compiled(w)
	n := naive{w, mutant}
	for i := range packets {
		if c.Eval(packets[i]).Allowed != n.allows(packets[i]) {
			return &packets[i]
		}
		p := packets[i]
		if p.FromNode = false; c.Reach(p.Src, p.Dst).Contains(p.Protocol, p.Port) != n.allows(p) {
			return &p
		}
	}
	return nil
}

// TestDifferential compares the compiler with the naive model on random clusters, and what it says of its
// changes, one after the other, with what it says of the end at once.
func TestDifferential(t *testing.T) {
	decided := map[bool]int{}
	for i := range *worlds {
		d := newDice(*seed, uint64(i))
		w := d.world()
		packets := make([]Packet, packetsPerWorld)
		for j := range packets {
			packets[j] = d.packet(w)
			decided[(naive{world: w}).allows(packets[j])]++
		}
		if p := disagreement(w, "", packets); p != nil {
			small, q := shrink(w, *p, func(w world, p Packet) bool { return disagreement(w, "", []Packet{p}) != nil })
			c, _ := compiled(small)
			t.Fatalf("world %d of seed %d: %+v\ncompiler: %v\nnaive: allowed %v\n%s", i, *seed, q, c.Eval(q), naive{world: small}.allows(q), small)
		}
		if text := unlike(d, w); text != "" {
			t.Fatalf("world %d of seed %d: %s", i, *seed, text)
		}
	}
	t.Logf("%d random clusters, %d packets (%d allowed, %d denied), mismatches: 0", *worlds, *worlds*packetsPerWorld, decided[true], decided[false])
	if decided[true] < decided[false]/9 || decided[false] < decided[true]/9 {
		t.Errorf("%v packets allowed: the worlds are too lopsided to find anything", decided)
	}
}

// unlike leads a compiler from another world to w in small steps, in a random order, and compares the
// sum of what it said with what a new compiler says of w.
func unlike(d dice, w world) string {
	c, mirror := NewCompiler(""), newMirror()
	var steps []model.Change
	at := world{}
	for _, next := range []world{d.world(), d.world(), w} {
		steps = append(steps, shuffled(d, changes(at, next))...)
		at = next
	}
	for len(steps) > 0 {
		n := min(1+d.IntN(4), len(steps))
		c.Apply(0, steps[:n])
		steps = steps[n:]
		if d.one(2) || len(steps) == 0 {
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
	if a, b := mirror.String(), fresh.String(); a != b {
		return fmt.Sprintf("step by step:\n%s\nat once:\n%s\n%s", a, b, w)
	}
	// Nothing must be left when everything goes.
	c.Apply(0, shuffled(d, changes(w, world{})))
	if err := mirror.apply(c.Flush()); err != nil {
		return err.Error()
	}
	if text := mirror.String(); text != "" || len(c.namespaces)+len(c.owners)+len(c.sets)+len(c.sections)+len(c.chains)+len(c.ports)+len(c.spread.byPair)+len(c.spread.others) > 0 {
		return fmt.Sprintf("left when everything was gone: %q and %+v", text, c)
	}
	return ""
}

func shuffled(d dice, list []model.Change) []model.Change {
	d.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	return list
}

// TestEachMistakeShows: with any of these mistakes the comparison would fail, so the worlds that are
// drawn do reach these sentences of the API.
func TestEachMistakeShows(t *testing.T) {
	for _, mutant := range []string{"ended pods keep addresses", "host network counts", "always both types", "directions mixed", "except of one peer binds all",
		"except ignored", "blocks do not hold pods", "pod selector spans namespaces", "no default namespace label", "protocol ignored", "endPort ignored",
		"endPort excluded", "sidecars ignored", "init containers serve", "port name regardless of protocol", "NotIn needs the label"} {
		t.Run(mutant, func(t *testing.T) {
			for i := range 20000 {
				d := newDice(7, uint64(i))
				w := d.world()
				packets := make([]Packet, packetsPerWorld)
				for j := range packets {
					packets[j] = d.packet(w)
				}
				if disagreement(w, mutant, packets) != nil {
					return
				}
			}
			t.Error("20000 random clusters do not show it")
		})
	}
}

// String prints a world as manifests.
func (w world) String() string {
	var b strings.Builder
	for _, o := range w.objects() {
		switch o := o.(type) {
		case *corev1.Namespace:
			o.APIVersion, o.Kind = "v1", "Namespace"
		case *corev1.Pod:
			o.APIVersion, o.Kind = "v1", "Pod"
		case *networkingv1.NetworkPolicy:
			o.APIVersion, o.Kind = "networking.k8s.io/v1", "NetworkPolicy"
		}
		text, err := yaml.Marshal(o)
		if err != nil {
			panic(err)
		}
		fmt.Fprintf(&b, "---\n%s", text)
	}
	return b.String()
}
