package dir

import (
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"sort"
	"strings"
	"testing"

	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/internal/source"
)

// doc is one document of the naive model: a service, good or broken in one of several ways.
type doc struct {
	name, ip string
	fault    int
}

const (
	good     = iota
	badValue // the identity is known, the value is not
	badYAML  // the identity can be seen in the text
	nameless // nothing tells which object it is
	stranger // of another kind
	faults
)

func (d doc) text() string {
	switch d.fault {
	case badValue:
		return svc(d.name, "bad")
	case badYAML:
		return svc(d.name, d.ip) + "   - x\n"
	case nameless:
		return "{]\n"
	case stranger:
		return "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: " + d.name + "}\n"
	}
	return svc(d.name, d.ip)
}

// naive is the plainest thing that could be right: what each file gives, by name of the object.
type naive map[string]map[string]string

// write applies the rules of a file's new content to what the file gave before.
func (n naive) write(file string, list []doc) {
	next := map[string]string{}
	for _, d := range list {
		if _, have := next[d.name]; d.fault == good && !have {
			next[d.name] = d.ip
		}
	}
	for name, ip := range n[file] {
		if _, have := next[name]; have {
			continue
		}
		for _, d := range list {
			if d.fault == nameless || d.name == name && (d.fault == badValue || d.fault == badYAML) {
				next[name] = ip
			}
		}
	}
	n[file] = next
}

// holds returns what the store should hold, as world.holds prints it.
func (n naive) holds() string {
	var files []string
	for f := range n {
		files = append(files, f)
	}
	sort.Strings(files)
	won := map[string]string{}
	for _, f := range files {
		for name, ip := range n[f] {
			if _, have := won[name]; !have {
				won[name] = ip
			}
		}
	}
	var out []string
	for name, ip := range won {
		out = append(out, name+"="+ip)
	}
	sort.Strings(out)
	return strings.Join(out, " ")
}

// editor makes random edits to a folder and tells the naive model.
type editor struct {
	r      *rand.Rand
	w      *world
	n      naive
	faults int // documents have faults below this
}

var fileNames = []string{"a.yaml", "b.yml", "c.json"}

func (e *editor) docs() []doc {
	list := make([]doc, e.r.IntN(4))
	for i := range list {
		list[i] = doc{name: string(rune('p' + e.r.IntN(5))), ip: fmt.Sprintf("10.0.0.%d", e.r.IntN(5))}
		if e.r.IntN(2) == 0 {
			list[i].fault = e.r.IntN(e.faults)
		}
	}
	return list
}

// edit does one thing, and returns what, for people.
func (e *editor) edit() string {
	name := fileNames[e.r.IntN(len(fileNames))]
	switch e.r.IntN(5) {
	case 0:
		_ = os.Remove(e.w.path(name)) // it may not be there, which is fine
		delete(e.n, name)
		return "remove " + name
	case 1:
		from := fileNames[e.r.IntN(len(fileNames))]
		if from == name || e.n[from] == nil || e.faults > 1 {
			return "nothing"
		}
		// With good documents only, a renamed file gives what it gave under its old name.
		e.w.must(os.Rename(e.w.path(from), e.w.path(name)))
		e.n[name] = e.n[from]
		delete(e.n, from)
		return "rename " + from + " to " + name
	}
	list := e.docs()
	texts := make([]string, len(list))
	for i, d := range list {
		texts[i] = d.text()
	}
	if e.r.IntN(2) == 0 {
		e.w.write(name, docs(texts...))
	} else {
		e.w.must(os.WriteFile(e.w.path("tmp"), []byte(docs(texts...)), 0o644))
		e.w.must(os.Rename(e.w.path("tmp"), e.w.path(name)))
	}
	e.n.write(name, list)
	return fmt.Sprintf("write %s %v", name, list)
}

// TestEveryStepMatchesTheNaiveModel looks at the folder after each edit, broken documents and all.
func TestEveryStepMatchesTheNaiveModel(t *testing.T) {
	for seed := range uint64(10) {
		w := newWorld(t)
		log := slog.New(slog.DiscardHandler)
		f := &follower{path: w.dir, store: w.store, log: log, scanner: scanner{path: w.dir, stamps: map[string]stamp{}},
			book: newBook(), board: source.NewBoard(log, nil), listed: map[[2]string]bool{}}
		e := &editor{r: rand.New(rand.NewPCG(seed, 1)), w: w, n: naive{}, faults: faults}
		var steps []string
		for range 40 {
			steps = append(steps, e.edit())
			w.must(f.look())
			if got, want := w.holds(), e.n.holds(); got != want {
				t.Fatalf("seed %d: store holds %q, want %q after\n%s", seed, got, want, strings.Join(steps, "\n"))
			}
			if f.report(); f.board.Len() < len(f.book.shared) {
				t.Fatalf("seed %d: %d problems for %d objects given twice", seed, f.board.Len(), len(f.book.shared))
			}
		}
	}
}

// TestRandomEditsEndRight edits while the source follows; however the edits fall into its looks, it
// must end with what a fresh start reads.
func TestRandomEditsEndRight(t *testing.T) {
	w := newWorld(t)
	w.follow(w.dir)
	e := &editor{r: rand.New(rand.NewPCG(7, 7)), w: w, n: naive{}, faults: 1}
	for round := range 30 {
		for range 1 + e.r.IntN(10) {
			e.edit()
		}
		w.awaitStore(e.n.holds())
		fresh := newWorld(t)
		fresh.follow(w.dir)
		if got := fresh.holds(); got != w.holds() {
			t.Fatalf("round %d: a fresh start reads %q, the follower holds %q", round, got, w.holds())
		}
	}
}

// TestPublishedManifests reads manifests as their authors wrote them, where they are present.
func TestPublishedManifests(t *testing.T) {
	files, _ := filepath.Glob(filepath.Join("..", "..", "..", "..", "shared", "data", "*.yaml"))
	if len(files) == 0 {
		t.Skip("the folder of published manifests is not there")
	}
	service := regexp.MustCompile(`(?m)^kind: Service\s*$`)
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		w := newWorld(t)
		w.follow(file)
		if got, want := w.store.Len(model.KindService), len(service.FindAll(data, -1)); got != want || want == 0 {
			t.Errorf("%s: %d services, want %d", file, got, want)
		}
		if p := w.problem(); p != "" || strings.Contains(w.log(), "level=WARN") {
			t.Errorf("%s: problems %q, log\n%s", file, p, w.log())
		}
	}
}
