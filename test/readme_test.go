package test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// readmeCommands returns the command lines of the README: lines indented by four spaces that begin
// with make or bin/.
func readmeCommands(t *testing.T) (out []string) {
	t.Helper()
	data, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Split(string(data), "\n") {
		cmd, indented := strings.CutPrefix(line, "    ")
		if indented && (strings.HasPrefix(cmd, "make ") || strings.HasPrefix(cmd, "bin/")) {
			out = append(out, cmd)
		}
	}
	if len(out) < 8 {
		t.Fatalf("only %d commands found in the README: %v", len(out), out)
	}
	return out
}

// Every make command names a target, and every target that the README speaks of exists.
func TestReadmeMakeTargets(t *testing.T) {
	makefile, err := os.ReadFile("../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	readme, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	spoken := regexp.MustCompile("(?m)(?:^    |`)make ([a-z-]+)").FindAllStringSubmatch(string(readme), -1)
	if len(spoken) < 3 {
		t.Fatalf("only %d make commands found", len(spoken))
	}
	for _, m := range spoken {
		if !strings.Contains(string(makefile), "\n"+m[1]+":") {
			t.Errorf("the README says `make %s`, and the Makefile has no such target", m[1])
		}
	}
	out, err := exec.Command("make", "-C", "..", "--no-print-directory").Output()
	if err != nil || !strings.Contains(string(out), "make demo-down") {
		t.Errorf("make alone must print what each target does: %v\n%s", err, out)
	}
}

// The commands of the playground and of the programs are run as they stand, in their order; only a
// name is added, so that a playground of the reader is left alone. bin/coredns would take port 53:
// its Corefile is run by every playground.
func TestReadmeCommandsRun(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("the README's commands need root, and CI must not skip them")
		}
		t.Skip("skipped: the README's commands need root, since they make network namespaces")
	}
	name := fmt.Sprintf("readme%d", os.Getpid()%100000)
	t.Cleanup(func() {
		if out, err := exec.Command("../bin/netagent", "lab", "down", "--name", name).CombinedOutput(); err != nil {
			t.Errorf("lab down: %v\n%s", err, out)
		}
	})
	ran := 0
	for _, line := range readmeCommands(t) {
		argv := strings.Fields(line)
		if argv[0] != "bin/netagent" {
			continue
		}
		if argv[1] == "lab" && len(argv) > 2 {
			argv = slices.Insert(argv, 3, "--name", name)
		}
		cmd := exec.Command(filepath.Join("..", argv[0]), argv[1:]...)
		cmd.Path, cmd.Dir = filepath.Join("..", argv[0]), ".."
		if abs, err := filepath.Abs(cmd.Path); err == nil {
			cmd.Path = abs
		}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", line, err, out)
		}
		ran++
	}
	if ran < 6 {
		t.Errorf("only %d commands were run", ran)
	}
}

// Files that the README points at exist.
func TestReadmeLinks(t *testing.T) {
	for _, doc := range []string{"../README.md", "../docs/design.md", "../plugin/kubernetes/README.md"} {
		data, err := os.ReadFile(doc)
		if err != nil {
			t.Error(err)
			continue
		}
		for _, m := range regexp.MustCompile(`\]\(([^)#:]+)\)`).FindAllStringSubmatch(string(data), -1) {
			if _, err := os.Stat(filepath.Join(filepath.Dir(doc), m[1])); err != nil {
				t.Errorf("%s points at %s: %v", doc, m[1], err)
			}
		}
	}
}
