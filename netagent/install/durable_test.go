package install

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// What a power cut leaves cannot be tried here, so the system calls are looked at: the content reaches the disk
// under a temporary name before the file gets its own, and the name reaches the disk too.
func TestReplaceIsDurable(t *testing.T) {
	const dirEnv = "BRAID_TEST_REPLACE"
	if dir := os.Getenv(dirEnv); dir != "" {
		if err := Replace(filepath.Join(dir, Name), []byte("new"), mode); err != nil {
			t.Fatal(err)
		}
		return
	}
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Skipf("skipped: package strace is needed: %v", err)
	}
	dir, trace := t.TempDir(), filepath.Join(t.TempDir(), "trace")
	cmd := exec.Command(strace, "-f", "-y", "-o", trace, "-e", "trace=openat,fsync,rename,renameat,renameat2",
		os.Args[0], "-test.run", "^TestReplaceIsDurable$")
	cmd.Env = append(os.Environ(), dirEnv+"="+dir)
	if out, err := cmd.CombinedOutput(); err != nil {
		if strings.Contains(string(out), "Operation not permitted") {
			t.Skipf("skipped: strace may not trace here: %s", out)
		}
		t.Fatalf("%v\n%s", err, out)
	}
	data, err := os.ReadFile(trace)
	if err != nil {
		t.Fatal(err)
	}
	path := regexp.QuoteMeta(dir)
	steps := []struct{ name, call string }{
		{"make a temporary file", `openat\(.*"` + path + `/\.[^"]+", [^)]*O_CREAT\|O_EXCL`},
		{"sync it", `fsync\(\d+<` + path + `/\.[^>]+>\) += 0`},
		{"rename it", `rename\w*\(.*"` + path + `/\.[^"]+".*"` + path + `/` + Name + `".*\) += 0`},
		{"sync the folder", `fsync\(\d+<` + path + `>\) += 0`},
	}
	var got, want []string
	for _, s := range steps {
		want = append(want, s.name)
	}
	for _, line := range strings.Split(string(data), "\n") {
		for _, s := range steps {
			if regexp.MustCompile(s.call).MatchString(line) {
				got = append(got, s.name)
			}
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("steps %q, want %q\n%s", got, want, data)
	}
}
