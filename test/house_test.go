package test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

const (
	maxFile = 400 // lines
	maxFunc = 80
)

// TestHouseRules reads every Go file: short files, short functions, a package comment, nothing left open.
func TestHouseRules(t *testing.T) {
	documented := map[string]bool{}
	open := regexp.MustCompile(`\b(TODO|FIXME|XXX)\b|(?i)not (yet )?implemented`)
	walkGo(t, func(path string, data []byte) {
		set := token.NewFileSet()
		f, err := parser.ParseFile(set, path, data, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			t.Errorf("%s: %v", path, err)
			return
		}
		test := strings.HasSuffix(path, "_test.go")
		dir := filepath.Dir(path)
		if !test {
			documented[dir] = documented[dir] || f.Doc != nil
		}
		if n := strings.Count(string(data), "\n"); n > maxFile && !test {
			t.Errorf("%s has %d lines, more than %d: split it by what a reader looks for", path, n, maxFile)
		}
		for _, d := range f.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok || test {
				continue
			}
			if n := set.Position(fn.End()).Line - set.Position(fn.Pos()).Line + 1; n > maxFunc {
				t.Errorf("%s: %s has %d lines, more than %d", set.Position(fn.Pos()), fn.Name.Name, n, maxFunc)
			}
		}
		if !strings.HasSuffix(path, "house_test.go") {
			for i, line := range strings.Split(string(data), "\n") {
				if open.MatchString(line) {
					t.Errorf("%s:%d: left open: %s", path, i+1, strings.TrimSpace(line))
				}
			}
		}
	})
	for dir, ok := range documented {
		if !ok {
			t.Errorf("%s: no file has a package comment", dir)
		}
	}
	if len(documented) < 10 {
		t.Errorf("only %d packages were read: the walk is broken", len(documented))
	}
}

func walkGo(t *testing.T, visit func(path string, data []byte)) {
	t.Helper()
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == ".git" || d.Name() == "bin" || d.Name() == "testdata"):
			return filepath.SkipDir
		case d.IsDir() || !strings.HasSuffix(path, ".go"):
			return nil
		}
		data, err := os.ReadFile(path)
		if err == nil {
			visit(path, data)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
