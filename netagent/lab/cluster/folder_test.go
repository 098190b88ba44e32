package cluster

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/internal/source/dir"
)

// readBack loads the folder the way agents and name servers do and wants every file to give its object.
func readBack(t *testing.T, p *playground) *model.Store {
	t.Helper()
	store := model.NewStore()
	ctx, cancel := context.WithCancel(bound(t))
	ended := make(chan error, 1)
	go func() {
		ended <- dir.Run(ctx, p.dir, store, dir.Options{Problems: func(problems []dir.Problem) {
			for _, x := range problems {
				t.Errorf("the folder cannot be read: %v", x)
			}
		}})
	}()
	select {
	case <-store.Synced():
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	case err := <-ended:
		t.Fatalf("read the folder: %v", err)
	}
	cancel()
	for _, k := range model.Kinds {
		if files := p.files(t, strings.ToLower(string(k))); store.Len(k) != len(files) {
			t.Errorf("the source sees %d of kind %s, the files are %v", store.Len(k), k, files)
		}
	}
	return store
}

func TestFolderIsItsOwn(t *testing.T) {
	dir := t.TempDir()
	cfg := Config{StateDir: dir, Nodes: testNodes(1), ServiceCIDRs: newAllocator(nil, nil).cidrs, Runtime: newFake()}
	if _, err := New(cfg); err == nil {
		t.Error("no service CIDR was accepted")
	}
	cfg.ServiceCIDRs = append(cfg.ServiceCIDRs, cidr4)
	if err := os.WriteFile(filepath.Join(dir, "pod.default.old.yaml"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := New(cfg); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "pod.default.old.yaml")); err == nil {
		t.Error("an object of an earlier run is still there")
	}
	precious := filepath.Join(dir, "notes.txt")
	if err := os.WriteFile(precious, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), "notes.txt") {
		t.Errorf("a folder with a foreign file: %v", err)
	}
	if _, err := os.Stat(precious); err != nil {
		t.Errorf("the foreign file: %v", err)
	}
}
