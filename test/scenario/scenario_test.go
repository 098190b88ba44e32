// Package scenario runs txtar scripts against whole playgrounds on the real kernel: manifests in,
// answers out. Each script has a playground of its own and must leave nothing behind.
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

// bin is the folder of the three binaries, built by `make build`; $BRAID_BIN names another one.
func bin(t testing.TB) string {
	dir, err := filepath.Abs(cmp.Or(os.Getenv("BRAID_BIN"), "../../bin"))
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range []string{"netagent", "coredns", "braid"} {
		if _, err := os.Stat(filepath.Join(dir, b)); err != nil {
			t.Fatalf("%v: run `make build` first", err)
		}
	}
	return dir
}

func needRoot(t testing.TB) {
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatal("the scenarios need root, and CI must not skip them")
	}
	t.Skip("skipped: scenarios need root, since they make network namespaces")
}

// TestScenarios runs testdata/*.txtar. Inside a script $LAB is the name of its playground.
func TestScenarios(t *testing.T) {
	needRoot(t)
	params := parameters(t)
	params.Dir = "testdata"
	testscript.Run(t, params)
}

// parameters are what all scripts run with.
func parameters(t *testing.T) testscript.Params {
	dir := bin(t)
	data, err := filepath.Abs("../../../shared/data")
	if err != nil {
		t.Fatal(err)
	}
	examples, err := filepath.Abs("../../examples")
	if err != nil {
		t.Fatal(err)
	}
	return testscript.Params{
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Cmds:                commands,
		Condition: func(cond string) (bool, error) {
			if cond == "data" { // manifests others wrote lie beside the checkout
				_, err := os.Stat(data)
				return err == nil, nil
			}
			return false, fmt.Errorf("unknown condition %q", cond)
		},
		Setup: func(e *testscript.Env) error {
			lab := labName(e.WorkDir)
			e.Setenv("LAB", lab)
			e.Setenv("DATA", data)
			e.Setenv("EXAMPLES", examples)
			e.Setenv("BIN", dir)
			e.Setenv("PATH", dir+":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
			e.Defer(func() { tearDown(t, dir, lab) })
			return nil
		},
	}
}

// labName derives a name that no other script and no other run uses at the same time.
func labName(workDir string) string {
	base := strings.TrimPrefix(filepath.Base(workDir), "script-")
	clean := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			return r
		}
		return -1
	}, base)
	if len(clean) > 9 {
		clean = clean[:9]
	}
	return fmt.Sprintf("t%s%d", clean, os.Getpid()%100000)
}
