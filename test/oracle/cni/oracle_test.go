package cni

import (
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/braidnet/braid/internal/kernel/netns/nstest"
)

var (
	flagSeed  = flag.Uint64("oracle.seed", 1, "seed of all that is random")
	flagCases = flag.Int("oracle.cases", 40, "how many configurations to compare")
	flagCase  = flag.String("oracle.case", "", "file with one configuration to compare, as this test prints it")
	flagAll   = flag.Bool("oracle.all", false, "list all differences instead of making a small case of the first of each world")
)

const worlds = 4

// bin is where the plugins are.
var bin string

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(func() int {
		var err error
		if bin, err = os.MkdirTemp("", "oracle-cni"); err == nil {
			defer os.RemoveAll(bin)
			err = build(bin)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return m.Run()
	}())
}

// total counts what was compared.
type total struct {
	sync.Mutex
	cases, calls, facts int
	intended            map[string]int
}

// TestPlugins is the whole comparison.
func TestPlugins(t *testing.T) {
	nstest.RequireRoot(t)
	start := time.Now()
	all := &total{intended: map[string]int{}}
	t.Run("worlds", func(t *testing.T) {
		for i := range worlds {
			t.Run(fmt.Sprint(i), func(t *testing.T) {
				t.Parallel()
				r := newRun(t, i, all)
				for range (*flagCases + worlds - 1 - i) / worlds {
					r.next()
				}
			})
		}
	})
	all.report(t, start)
}

// TestCase compares one configuration from a file.
func TestCase(t *testing.T) {
	if *flagCase == "" {
		t.Skip("-oracle.case names no file")
	}
	data, err := os.ReadFile(*flagCase)
	n := &network{}
	if err == nil {
		err = json.Unmarshal(data, n)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range newRun(t, 0, &total{intended: map[string]int{}}).compare(n, true) {
		t.Errorf("%s", d)
	}
}

// run is one world's: three nodes.
type run struct {
	*testing.T
	*maker
	all                *total
	ours, theirs, both *plane
	before             facts // of ours
}

func newRun(t *testing.T, i int, all *total) *run {
	r := &run{T: t, all: all, maker: &maker{Rand: rand.New(rand.NewPCG(*flagSeed, uint64(i))), dir: t.TempDir()}}
	r.ours, r.theirs, r.both = newPlane(t, "ours", bin), newPlane(t, "reference", bin), newPlane(t, "migrated", bin)
	if err := r.files(); err != nil {
		t.Fatal(err)
	}
	return r
}

// next compares one more network.
func (r *run) next() {
	n := r.maker.next()
	found := r.compare(n, true)
	for _, d := range found {
		r.Errorf("%s", d)
	}
	if len(found) > 0 && *flagAll {
		r.Logf("%s", n)
	} else if len(found) > 0 {
		small, d := r.shrink(n, found[0])
		r.Fatalf("seed %d: %s\n%s", *flagSeed, d, small)
	}
}

// difference is one fact that is not the same on two nodes.
type difference struct {
	*network
	step
	name         string
	a, b         string // what it is, and in comparison; empty: it is not there
	ours, theirs facts  // all that was seen after the step
	before       facts  // of ours, after the last step
	where        string // which nodes
}

func (d *difference) String() string {
	text := fmt.Sprintf("%s, %s: %s: %q instead of %q", d.where, d.step, d.name, d.a, d.b)
	for _, f := range []facts{d.ours, d.theirs} {
		if f["error"] != "" {
			text += "; " + f["error"]
		}
	}
	return text
}

// compare makes the calls on all nodes and returns the differences that are not intended.
func (r *run) compare(n *network, count bool) (out []*difference) {
	r.ours.use(n.ours(r.ours.dataDir()))
	r.theirs.use(n.theirs(r.theirs.dataDir()))
	sides := [][]byte{n.theirs(r.both.dataDir()), n.ours(r.both.dataDir())}
	if n.Back {
		slices.Reverse(sides)
	}
	r.both.use(sides[0])
	defer func() {
		r.ours.end(n)
		r.theirs.end(n)
		r.both.end(n)
	}()
	r.before = facts{}
	for _, s := range n.Steps {
		if s.Verb == handover {
			r.both.use(sides[1])
			continue
		}
		if s.Verb == addElsewhere && r.theirs.results[s.Pod] == nil {
			s.Verb = add // it has no interface anywhere
		}
		var wg sync.WaitGroup
		var a, b, c facts
		wg.Go(func() { a = r.ours.step(n, s) })
		wg.Go(func() { b = r.theirs.step(n, s) })
		if s.Verb != probe {
			wg.Go(func() { c = r.both.step(n, s) })
		}
		wg.Wait()
		r.all.note(count, func() { r.all.calls++; r.all.facts += len(a) })
		apart := a["failed"] != b["failed"] || s.Verb == gc // from here on the nodes are not in the same state
		for _, name := range a.differ(b) {
			d := &difference{network: n, step: s, name: name, a: a[name], b: b[name], ours: a, theirs: b, before: r.before, where: "ours instead of the reference"}
			apart = apart || strings.HasPrefix(name, "disk ") && name != "disk lock"
			if why := intendedName(d); why != "" {
				r.all.note(count, func() { r.all.intended[why]++ })
			} else {
				out = append(out, d)
			}
		}
		if s.Verb == probe {
			continue
		}
		out = append(out, migrated(n, s, a, b, c)...)
		apart = apart || c["failed"] != a["failed"]
		if len(out) > 0 || apart {
			break
		}
		r.before = a
		r.afterwards(n, s, a)
	}
	r.all.note(count, func() { r.all.cases++ })
	return out
}

// afterwards removes what a runtime would: what failed, and namespaces that it said were gone.
func (r *run) afterwards(n *network, s step, f facts) {
	for _, p := range []*plane{r.ours, r.theirs, r.both} {
		switch {
		case s.Verb == delGone || s.Verb == delNowhere:
			p.wipe(p.pods[s.Pod])
		case f["failed"] == "":
		case s.Verb == add && p.results[s.Pod] == nil:
			_, _ = p.do(n, step{Verb: del, Pod: s.Pod})
			p.wipe(p.pods[s.Pod])
		case s.Verb == addElsewhere:
			p.wipe(p.elsewhere)
		}
	}
}

// migrated compares the reservations of the node that changes its plugin with those of the others.
func migrated(n *network, s step, ours, theirs, both facts) (out []*difference) {
	if both["failed"] != "" || ours["failed"] != "" || theirs["failed"] != "" {
		return nil
	}
	for _, name := range both.differ(ours) {
		if strings.HasPrefix(name, "disk ") && both[name] != theirs[name] {
			out = append(out, &difference{network: n, step: s, name: name, a: both[name], b: ours[name], ours: both, theirs: ours, where: "migrated instead of ours"})
		}
	}
	return out
}

// shrink makes a network as small as it can get with the difference still there.
func (r *run) shrink(n *network, d *difference) (*network, *difference) {
	kind := func(d *difference) string { return d.where + strings.Join(strings.Fields(d.name)[:1], " ") + d.Verb }
	trials := 0
	for again := true; again && trials < 80; {
		again = false
		for _, c := range n.smaller() {
			if trials++; trials > 80 {
				break
			}
			for _, found := range r.compare(c, false) {
				if kind(found) == kind(d) {
					n, d, again = c, found, true
					break
				}
			}
			if again {
				break
			}
		}
	}
	return n, d
}

func (t *total) note(count bool, do func()) {
	if count {
		t.Lock()
		defer t.Unlock()
		do()
	}
}

// report prints the line that sums up.
func (t *total) report(tt *testing.T, start time.Time) {
	for _, x := range intendeds {
		if t.cases >= fullLength && t.intended[x.name] == 0 {
			tt.Errorf("%q never came: the difference is gone, take it out of the list", x.name)
		}
	}
	var texts []string
	for _, name := range slices.Sorted(maps.Keys(t.intended)) {
		texts = append(texts, fmt.Sprintf("%s: %d", name, t.intended[name]))
	}
	fmt.Printf("seed %d: %d configurations, %d calls, %d facts, intended differences: %s; %s\n", *flagSeed, t.cases, t.calls, t.facts,
		strings.Join(texts, "; "), time.Since(start).Round(time.Second))
}
