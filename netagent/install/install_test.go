package install

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// executable writes a program with some content and returns its path.
func executable(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "source")
	if err := os.WriteFile(path, []byte(content), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// wantOnly fails unless dir holds the plugin with this content and nothing else.
func wantOnly(t *testing.T, dir, content string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 || entries[0].Name() != Name {
		t.Fatalf("%s holds %v (%v), want only %s", dir, entries, err, Name)
	}
	data, err := os.ReadFile(filepath.Join(dir, Name))
	if err != nil || string(data) != content {
		t.Errorf("the plugin holds %q (%v), want %q", data, err, content)
	}
	if info, err := os.Stat(filepath.Join(dir, Name)); err != nil || info.Mode() != 0o755 {
		t.Errorf("mode %v (%v), want 0755", info.Mode(), err)
	}
}

func TestPluginInstallsOnceAndUpgrades(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "opt", "cni", "bin")
	for i, step := range []struct {
		content string
		changed bool
	}{{"one", true}, {"one", false}, {"two", true}, {"two", false}} {
		changed, err := Plugin(executable(t, step.content), dir)
		if err != nil || changed != step.changed {
			t.Fatalf("step %d: changed %v, %v; want %v", i, changed, err, step.changed)
		}
		wantOnly(t, dir, step.content)
	}
}

// A file of another mode, or a link to elsewhere, is no installed plugin, whatever it holds.
func TestPluginRepairsModeAndLinks(t *testing.T) {
	dir := t.TempDir()
	dst := filepath.Join(dir, Name)
	if err := os.WriteFile(dst, []byte("one"), 0o644); err != nil {
		t.Fatal(err)
	}
	if changed, err := Plugin(executable(t, "one"), dir); err != nil || !changed {
		t.Fatalf("not executable: changed %v, %v", changed, err)
	}
	wantOnly(t, dir, "one")
	other := executable(t, "one")
	if err := errors.Join(os.Remove(dst), os.Symlink(other, dst)); err != nil {
		t.Fatal(err)
	}
	if changed, err := Plugin(executable(t, "two"), dir); err != nil || !changed {
		t.Fatalf("link: changed %v, %v", changed, err)
	}
	wantOnly(t, dir, "two")
	if data, _ := os.ReadFile(other); string(data) != "one" {
		t.Errorf("the link's target was written: %q", data)
	}
}

// Replacing the plugin must work while the runtime runs it, and not disturb that run.
func TestPluginReplacesARunningOne(t *testing.T) {
	program, err := exec.LookPath("cat")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if _, err := Plugin(program, dir); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(filepath.Join(dir, Name))
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	cmd.Stdout = &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, Name), []byte("x"), 0o755); err == nil {
		t.Error("the running plugin could be written into: this test shows nothing")
	}
	if changed, err := Plugin(executable(t, "new"), dir); err != nil || !changed {
		t.Errorf("changed %v, %v", changed, err)
	}
	wantOnly(t, dir, "new")
	fmt.Fprint(in, "still here")
	in.Close()
	if err := cmd.Wait(); err != nil || out.String() != "still here" {
		t.Errorf("the old plugin ended with %v, having said %q", err, out.String())
	}
}

// What a killed run left goes with the next one, and other files of the folder stay.
func TestLeftoversAreSwept(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{".braid-123.tmp", ".braid-9.tmp", "bridge", ".braid-keep", "x.tmp"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Plugin(executable(t, "one"), dir); err != nil {
		t.Fatal(err)
	}
	if removed, err := Remove(dir); err != nil || !removed {
		t.Fatalf("Remove: %v, %v", removed, err)
	}
	if removed, err := Remove(dir); err != nil || removed {
		t.Fatalf("Remove again: %v, %v", removed, err)
	}
	entries, _ := os.ReadDir(dir)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if got := strings.Join(names, " "); got != ".braid-keep bridge x.tmp" {
		t.Errorf("left: %s", got)
	}
}

func TestRemoveWithoutFolder(t *testing.T) {
	if removed, err := Remove(filepath.Join(t.TempDir(), "none")); err != nil || removed {
		t.Errorf("%v, %v", removed, err)
	}
}

// Several at once: the winner's file is whole, and no temporary file is left or taken from another.
func TestPluginConcurrently(t *testing.T) {
	dir := t.TempDir()
	contents := map[string]bool{}
	var sources []string
	for i := range 8 {
		c := strings.Repeat(fmt.Sprint(i), 1<<16)
		contents[c] = true
		sources = append(sources, executable(t, c))
	}
	var wg sync.WaitGroup
	for _, src := range sources {
		wg.Go(func() {
			if _, err := Plugin(src, dir); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	data, err := os.ReadFile(filepath.Join(dir, Name))
	if err != nil || !contents[string(data)] {
		t.Errorf("the plugin is none of those installed (%d bytes, %v)", len(data), err)
	}
	wantOnly(t, dir, string(data))
}

func TestPluginRefusals(t *testing.T) {
	plain := filepath.Join(t.TempDir(), "plain")
	if err := os.WriteFile(plain, []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	occupied := t.TempDir()
	if err := os.MkdirAll(filepath.Join(occupied, Name, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ name, src, dir, want string }{
		{"missing source", "/nonexistent/braid", t.TempDir(), "no such file"},
		{"not executable", plain, t.TempDir(), "no executable file"},
		{"empty", executable(t, ""), t.TempDir(), "no executable file"},
		{"a folder", t.TempDir(), t.TempDir(), "no executable file"},
		{"folder is a file", executable(t, "x"), plain, "make the folder of CNI plugins"},
		{"name is taken by a folder", executable(t, "x"), occupied, "install CNI plugin"},
	} {
		t.Run(c.name, func(t *testing.T) {
			changed, err := Plugin(c.src, c.dir)
			if err == nil || changed || !strings.Contains(err.Error(), c.want) {
				t.Errorf("changed %v, error %v; want one with %q", changed, err, c.want)
			}
			if left, _ := filepath.Glob(filepath.Join(c.dir, temporary)); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

// As in the init container: root without the right to override permissions, on somebody else's folder.
func TestRefusalSaysWhatToDo(t *testing.T) {
	err := explain("/opt/cni/bin", &fs.PathError{Op: "open", Path: "/opt/cni/bin/.braid-1.tmp", Err: fs.ErrPermission})
	if !strings.Contains(err.Error(), "must belong to root") {
		t.Error(err)
	}
}
