package cli

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"
)

var update = flag.Bool("update", false, "write what TestPolicyTest prints into its files")

// TestPolicyTest runs testdata/policy/*.txtar: a file "args" with one call per line, "want" with what all
// of them print, and the files that they name.
func TestPolicyTest(t *testing.T) {
	files, err := filepath.Glob("testdata/policy/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no test data: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			archive, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			folder := t.TempDir()
			var args, want string
			for i := range archive.Files {
				f := &archive.Files[i]
				switch f.Name {
				case "args":
					args = string(f.Data)
				case "want":
					want = string(f.Data)
				default:
					if err := os.WriteFile(filepath.Join(folder, f.Name), f.Data, 0o600); err != nil {
						t.Fatal(err)
					}
				}
			}
			file, err := filepath.Abs(file)
			if err != nil {
				t.Fatal(err)
			}
			t.Chdir(folder)
			var out bytes.Buffer
			for _, line := range strings.Split(strings.TrimSpace(args), "\n") {
				root := newRoot()
				root.SetArgs(append([]string{"policy", "test"}, strings.Fields(line)...))
				root.SetOut(&out)
				root.SetErr(&out)
				fmt.Fprintf(&out, "> %s\n", line)
				if err := root.Execute(); err != nil {
					fmt.Fprintln(&out, "error:", err)
				}
			}
			if *update {
				last := &archive.Files[len(archive.Files)-1]
				last.Data = out.Bytes()
				if err := os.WriteFile(file, txtar.Format(archive), 0o600); err != nil {
					t.Fatal(err)
				}
				return
			}
			if out.String() != want {
				t.Errorf("got\n%s\nwant\n%s", out.String(), want)
			}
		})
	}
}
