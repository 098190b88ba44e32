package scenario

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestServices runs testdata/services/*.txtar, each in both service modes ($MODE). What stands below
// the line "and after a restart:" of a script runs a second time after all agents were killed, so it ends
// with the cluster as it found it. README.md says which line of the feature list is judged where.
func TestServices(t *testing.T) {
	inModes(t, "testdata/services/*.txtar")
}

// TestPolicies runs testdata/policy/*.txtar likewise. $BRAID_KILLS is how often agents are killed there under load (1),
// $BRAID_PAUSE the pause between two connections of the load (20ms), $BRAID_RACERS how many pods come (20, a hundred at once), and
// $BRAID_HINDRANCE for how long their agents stop meanwhile, every other such time (not at all).
func TestPolicies(t *testing.T) {
	inModes(t, "testdata/policy/*.txtar")
}

func inModes(t *testing.T, pattern string) {
	needRoot(t)
	files, err := filepath.Glob(pattern)
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts %s: %v", pattern, err)
	}
	for _, mode := range []string{"nftables", "iptables"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			params := parameters(t)
			dir, setup := t.TempDir(), params.Setup
			params.Setup = func(e *testscript.Env) error {
				e.Setenv("MODE", mode)
				e.Setenv("KILLS", cmp.Or(os.Getenv("BRAID_KILLS"), "1"))
				e.Setenv("RACERS", cmp.Or(os.Getenv("BRAID_RACERS"), "20"))
				e.Setenv("HINDRANCE", cmp.Or(os.Getenv("BRAID_HINDRANCE"), "0s"))
				e.Setenv("PAUSE", cmp.Or(os.Getenv("BRAID_PAUSE"), "20ms"))
				return setup(e)
			}
			for _, f := range files {
				params.Files = append(params.Files, withRestart(t, f, dir, mode))
			}
			testscript.Run(t, params)
		})
	}
}

// withRestart writes a script out with its lower part twice, and the restart in between.
func withRestart(t *testing.T, file, dir, mode string) string {
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	script, files, _ := strings.Cut(string(data), "\n-- ")
	const mark = "# and after a restart:\n"
	before, again, ok := strings.Cut(script, mark)
	if !ok {
		t.Fatalf("%s has no line %q", file, mark)
	}
	out := filepath.Join(dir, mode[:3]+filepath.Base(file))
	text := fmt.Sprintf("%s\n%s\n# after a restart of all agents:\nrestart\n%s\n-- %s", before, again, again, files)
	if err := os.WriteFile(out, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return out
}
