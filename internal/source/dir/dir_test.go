package dir

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/braidnet/braid/internal/model"
)

func TestEditsAreFollowed(t *testing.T) {
	w := newWorld(t)
	w.follow(w.dir)
	w.check("")
	w.write("a.yaml", svc("a", "10.0.0.1"))
	w.awaitStore("a=10.0.0.1")
	w.write("a.yaml", docs(svc("a", "10.0.0.2"), svc("b", "10.0.0.3")))
	w.awaitStore("a=10.0.0.2 b=10.0.0.3")
	w.must(os.WriteFile(w.path(".tmp-a"), []byte(svc("b", "10.0.0.4")), 0o644))
	w.must(os.Rename(w.path(".tmp-a"), w.path("a.yaml")))
	w.awaitStore("b=10.0.0.4")
	w.must(os.Rename(w.path("a.yaml"), w.path("z.json")))
	w.write("c.yaml", svc("c", "10.0.0.5")) // by the time it is seen the move was seen too
	w.awaitStore("b=10.0.0.4 c=10.0.0.5")
	b := w.store.Get(model.Ref{Kind: model.KindService, Key: model.Key{Namespace: "default", Name: "b"}})
	if got, want := b.From().File, w.path("z.json"); got != want {
		t.Errorf("b comes from %s, want %s", got, want)
	}
	w.must(os.Remove(w.path("c.yaml")))
	w.must(os.Remove(w.path("z.json")))
	w.awaitStore("")
}

func TestOtherFilesAreLeftAlone(t *testing.T) {
	w := newWorld(t)
	w.must(os.Mkdir(w.path("sub.yaml"), 0o755))
	w.must(os.WriteFile(filepath.Join(w.path("sub.yaml"), "x.yaml"), []byte(svc("sub", "10.0.0.9")), 0o644))
	for _, name := range []string{".hidden.yaml", ".a.yaml.swp", "a.yaml~", "#a.yaml#", "4913", "a.txt", "a.yaml.bak"} {
		w.write(name, svc("other", "10.0.0.9"))
	}
	w.must(os.Symlink("nowhere", w.path("dangling.yaml")))
	w.write("a.yml", svc("a", "10.0.0.1"))
	w.follow(w.dir)
	w.check("a=10.0.0.1")
	if p := w.problem(); p != "" {
		t.Errorf("problems %q", p)
	}
}

// TestBrokenDocuments checks that what is broken keeps its last good version and its neighbours
// take effect.
func TestBrokenDocuments(t *testing.T) {
	w := newWorld(t)
	w.write("a.yaml", docs(svc("a", "10.0.0.1"), svc("b", "10.0.0.2"), svc("c", "10.0.0.3")))
	w.follow(w.dir)
	w.check("a=10.0.0.1 b=10.0.0.2 c=10.0.0.3")

	// A bad value.
	w.write("a.yaml", docs(svc("a", "10.0.0.300"), svc("b", "10.0.0.4")))
	w.awaitProblem(`a.yaml:6: Service a: spec.clusterIP: is "10.0.0.300", expected an IPv4 or IPv6 address`)
	w.check("a=10.0.0.1 b=10.0.0.4") // c was taken out on purpose

	// A wrong type, and a new object that never was good.
	w.write("a.yaml", docs(strings.Replace(svc("a", "x"), "clusterIP:", "ports:", 1), svc("new", "bad"), svc("b", "10.0.0.4")))
	w.awaitProblem(`a.yaml:13: Service new: spec.clusterIP: is "bad", expected an IPv4 or IPv6 address` + "\n" +
		"a.yaml:6: Service a: spec.ports: is the text \"x\", expected a list")
	w.check("a=10.0.0.1 b=10.0.0.4")

	// No YAML, but its identity can be seen.
	w.write("a.yaml", docs(svc("a", "10.0.0.9")+"  - x\n", svc("d", "10.0.0.5")))
	w.awaitProblem("a.yaml:7: Service a: is not YAML: this does not continue the mapping above it, expected a key at the same indentation")
	w.check("a=10.0.0.1 d=10.0.0.5")

	// No identity: everything stays that no good document replaces.
	w.write("a.yaml", docs("{]\n", svc("d", "10.0.0.6")))
	w.await("the problem", func() bool { return strings.HasPrefix(w.problem(), "a.yaml:1: document: is not YAML") })
	w.check("a=10.0.0.1 d=10.0.0.6")

	w.write("a.yaml", docs(svc("a", "10.0.0.7")))
	w.awaitStore("a=10.0.0.7")
	w.awaitProblem("")

	// Of a broken file that is deleted nothing stays.
	w.write("a.yaml", svc("a", "bad"))
	w.await("the problem", func() bool { return w.problem() != "" })
	w.must(os.Remove(w.path("a.yaml")))
	w.awaitStore("")
	w.awaitProblem("")
}

func TestSameObjectInTwoFiles(t *testing.T) {
	w := newWorld(t)
	w.write("b.yaml", docs(svc("a", "10.0.0.2"), svc("a", "10.0.0.9")))
	w.follow(w.dir)
	inFile := "b.yaml:8: Service default/a: is also given at b.yaml:1, which comes first in the file and is used; expected one of the two to be deleted"
	w.awaitProblem(inFile)
	w.check("a=10.0.0.2")
	w.write("c.yaml", svc("a", "10.0.0.3"))
	w.awaitProblem(inFile + "\n" + "c.yaml:1: Service default/a: is also given at b.yaml:1, which comes first by file name and is used; expected one of the two to be deleted")
	w.check("a=10.0.0.2")
	w.write("a.yaml", svc("a", "10.0.0.1"))
	w.awaitStore("a=10.0.0.1")
	w.must(os.Remove(w.path("a.yaml")))
	w.awaitStore("a=10.0.0.2")
	w.must(os.Remove(w.path("b.yaml")))
	w.awaitStore("a=10.0.0.3")
	w.awaitProblem("")
	if n := strings.Count(w.log(), "level=ERROR"); n != 5 {
		t.Errorf("%d problems logged, want 5: b in itself, c after b, b and c after a, c after b again\n%s", n, w.log())
	}
}

func TestUnknownKindsAndWarningsAreLoggedOnce(t *testing.T) {
	w := newWorld(t)
	deploy := "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\n"
	odd := strings.Replace(svc("a", "10.0.0.1"), "spec:", "spec:\n  colour: red", 1)
	w.write("a.yaml", docs(deploy, deploy, odd))
	w.follow(w.dir)
	w.write("b.yaml", docs(deploy, svc("b", "10.0.0.2")))
	w.awaitStore("a=10.0.0.1 b=10.0.0.2")
	w.write("a.yaml", docs("# moved\n"+deploy, odd))
	w.write("c.yaml", svc("c", "10.0.0.3"))
	w.awaitStore("a=10.0.0.1 b=10.0.0.2 c=10.0.0.3")
	log := w.log()
	if n := strings.Count(log, "kind not used"); n != 1 || !strings.Contains(log, "first="+w.path("a.yaml")+":1") {
		t.Errorf("Deployments are listed %d times, want once:\n%s", n, log)
	}
	if n := strings.Count(log, "a.yaml:14: Service a: spec.colour: unknown field"); n != 1 || strings.Count(log, "level=WARN") != 1 {
		t.Errorf("the warning is logged %d times, want once:\n%s", n, log)
	}
	if p := w.problem(); p != "" {
		t.Errorf("problems %q: neither is one", p)
	}
}

// TestConfigMapSwap changes a folder as the kubelet changes a ConfigMap volume.
func TestConfigMapSwap(t *testing.T) {
	w := newWorld(t)
	version := 0
	swap := func(files map[string]string) {
		version++
		data := fmt.Sprintf("..2024_%d", version)
		w.must(os.Mkdir(w.path(data), 0o755))
		for name, text := range files {
			w.write(filepath.Join(data, name), text)
		}
		w.must(os.Symlink(data, w.path("..data_tmp")))
		w.must(os.Rename(w.path("..data_tmp"), w.path("..data")))
		for name := range files {
			if _, err := os.Lstat(w.path(name)); err != nil {
				w.must(os.Symlink(filepath.Join("..data", name), w.path(name)))
			}
		}
		if version > 1 {
			w.must(os.RemoveAll(w.path(fmt.Sprintf("..2024_%d", version-1))))
		}
	}
	swap(map[string]string{"a.yaml": svc("a", "10.0.0.1"), "b.yaml": docs(svc("b", "10.0.0.2"), svc("moves", "10.0.0.9"))})
	w.follow(w.dir)
	w.check("a=10.0.0.1 b=10.0.0.2 moves=10.0.0.9")
	for i := range 5 {
		first, second := svc("moves", "10.0.0.9"), ""
		if i%2 == 1 {
			first, second = second, first
		}
		ip := fmt.Sprintf("10.0.1.%d", i)
		swap(map[string]string{"a.yaml": docs(svc("a", ip), first), "b.yaml": docs(svc("b", ip), second)})
		w.awaitStore(fmt.Sprintf("a=%s b=%s moves=10.0.0.9", ip, ip))
	}
	w.mu.Lock()
	for _, batch := range w.batches[1:] {
		if len(batch) != 2 {
			t.Errorf("a swap came as a batch of %d changes, want those of both files in one: %v", len(batch), batch)
		}
	}
	w.mu.Unlock()
	swap(map[string]string{"a.yaml": svc("a", "10.0.2.1")}) // b.yaml is now a link to nothing
	w.awaitStore("a=10.0.2.1")
	if p := w.problem(); p != "" {
		t.Errorf("problems %q", p)
	}
}

func TestFolderGoesAndComesBack(t *testing.T) {
	w := newWorld(t)
	w.write("a.yaml", svc("a", "10.0.0.1"))
	w.follow(w.dir)
	away := w.dir + ".away"
	w.must(os.Rename(w.dir, away))
	w.await("the folder to be missed", func() bool { return strings.Contains(w.problem(), "create it or correct the path") })
	w.check("a=10.0.0.1")
	w.must(os.WriteFile(filepath.Join(away, "b.yaml"), []byte(svc("b", "10.0.0.2")), 0o644))
	w.must(os.Rename(away, w.dir))
	w.awaitStore("a=10.0.0.1 b=10.0.0.2")
	w.awaitProblem("")
	w.write("b.yaml", svc("b", "10.0.0.3"))
	w.awaitStore("a=10.0.0.1 b=10.0.0.3")

	// Another folder in its place.
	next := w.dir + ".next"
	w.must(os.Mkdir(next, 0o755))
	w.must(os.WriteFile(filepath.Join(next, "c.yaml"), []byte(svc("c", "10.0.0.4")), 0o644))
	w.must(os.Rename(w.dir, away))
	w.must(os.Rename(next, w.dir))
	w.awaitStore("c=10.0.0.4")
	w.write("c.yaml", svc("c", "10.0.0.5"))
	w.awaitStore("c=10.0.0.5")
}

func TestFolderThroughALink(t *testing.T) {
	w := newWorld(t)
	for i, ip := range []string{"10.0.0.1", "10.0.0.2"} {
		w.must(os.Mkdir(w.path(fmt.Sprint("v", i)), 0o755))
		w.write(fmt.Sprintf("v%d/a.yaml", i), svc("a", ip))
	}
	w.must(os.Symlink("v0", w.path("current")))
	w.follow(w.path("current"))
	w.check("a=10.0.0.1")
	w.must(os.Symlink("v1", w.path("next")))
	w.must(os.Rename(w.path("next"), w.path("current")))
	w.awaitStore("a=10.0.0.2")
	w.write("v1/a.yaml", svc("a", "10.0.0.3"))
	w.awaitStore("a=10.0.0.3")
}

func TestOneFile(t *testing.T) {
	w := newWorld(t)
	w.write("one.txt", svc("a", "10.0.0.1"))
	w.write("other.yaml", svc("other", "10.0.0.9"))
	w.follow(w.path("one.txt"))
	w.check("a=10.0.0.1")
	w.write("one.txt", svc("a", "10.0.0.2"))
	w.awaitStore("a=10.0.0.2")
	w.write("new", svc("a", "10.0.0.3"))
	w.must(os.Rename(w.path("new"), w.path("one.txt")))
	w.awaitStore("a=10.0.0.3")
	w.must(os.Remove(w.path("one.txt")))
	w.await("the file to be missed", func() bool { return w.problem() != "" })
	w.check("a=10.0.0.3")
	w.write("one.txt", svc("b", "10.0.0.4"))
	w.awaitStore("b=10.0.0.4")
	w.awaitProblem("")
}

func TestFilesThatCannotBeRead(t *testing.T) {
	w := newWorld(t)
	w.must(syscall.Mkfifo(w.path("pipe.yaml"), 0o600))
	w.write("a.yaml", svc("a", "10.0.0.1"))
	w.follow(w.dir)
	w.check("a=10.0.0.1")
	w.awaitProblem("read manifests at pipe.yaml: is a p---------, expected an ordinary file; check the path")
	w.write("pipe2", svc("b", "10.0.0.2"))
	w.must(os.Rename(w.path("pipe2"), w.path("pipe.yaml")))
	w.awaitStore("a=10.0.0.1 b=10.0.0.2")
	w.awaitProblem("")
}

func TestPathThatCannotBeRead(t *testing.T) {
	w := newWorld(t)
	w.write("a", "")
	for path, want := range map[string]string{
		w.path("nothing"): "no such file or directory; create it or correct the path",
		w.path("a/b"):     "not a directory; check the path",
	} {
		err := Run(t.Context(), path, w.store, w.options())
		if err == nil || !strings.HasSuffix(err.Error(), want) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: error %v, want %s", path, err, want)
		}
	}
	if w.store.HasSynced() {
		t.Error("synced without having read anything")
	}
}
