package dir

import (
	"os"
	"reflect"
	"testing"
	"time"
)

// TestOnlyWhatChangedIsRead checks the scanner's idea of a change.
func TestOnlyWhatChangedIsRead(t *testing.T) {
	w := newWorld(t)
	w.write("a.yaml", "a")
	w.write("b.yaml", "b")
	old := time.Now().Add(-time.Hour)
	settle := func(name string) { w.must(os.Chtimes(w.path(name), old, old)) }
	settle("a.yaml")
	settle("b.yaml")
	s := scanner{path: w.dir, stamps: map[string]stamp{}}
	changed := func() []string {
		t.Helper()
		found, err := s.scan()
		w.must(err)
		names := []string{}
		for _, n := range []string{"a.yaml", "b.yaml"} {
			if found.changed[w.path(n)] != nil {
				names = append(names, n)
			}
		}
		return names
	}
	expect := func(what string, want ...string) {
		t.Helper()
		if got := changed(); !reflect.DeepEqual(got, append([]string{}, want...)) {
			t.Errorf("%s: changed %q, want %q", what, got, want)
		}
	}
	expect("at first", "a.yaml", "b.yaml")
	expect("at rest")
	w.write("a.yaml", "a")
	expect("the same content again")
	w.write("a.yaml", "x")
	soon := time.Now().Add(time.Hour) // stands for a clock too coarse to tell two writes apart
	w.must(os.Chtimes(w.path("a.yaml"), soon, soon))
	expect("other content", "a.yaml")
	w.write("a.yaml", "z")
	w.must(os.Chtimes(w.path("a.yaml"), soon, soon))
	expect("other content of the same size, within one tick of the clock", "a.yaml")
	w.must(os.WriteFile(w.path("tmp"), []byte("y"), 0o644))
	w.must(os.Chtimes(w.path("tmp"), old, old))
	w.must(os.Rename(w.path("tmp"), w.path("b.yaml")))
	expect("another file of the same size and time", "b.yaml")
}
