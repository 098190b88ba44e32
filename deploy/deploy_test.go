package deploy

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

var update = flag.Bool("update", false, "write braid.yaml anew")

func TestBundle(t *testing.T) {
	want, err := Bundle("base")
	if err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile("braid.yaml", want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	have, err := os.ReadFile("braid.yaml")
	if err != nil || !bytes.Equal(have, want) {
		t.Errorf("braid.yaml is not what deploy/base says (%v): run `go generate ./deploy`", err)
	}
}

// Every file of the base is a resource, or `kubectl apply -k` would leave it out.
func TestBaseIsComplete(t *testing.T) {
	files, err := filepath.Glob("base/*")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, f := range files {
		got = append(got, filepath.Base(f))
	}
	if want := []string{"config.yaml", "coredns.yaml", "corefile.yaml", "kustomization.yaml", "netagent.yaml", "rbac.yaml"}; !slices.Equal(got, want) {
		t.Errorf("deploy/base holds %v, want %v", got, want)
	}
	var bundle, parts []string
	for _, o := range read(t, "braid.yaml") {
		bundle = append(bundle, o.String())
	}
	for _, f := range []string{"config.yaml", "corefile.yaml", "rbac.yaml", "netagent.yaml", "coredns.yaml"} {
		for _, o := range read(t, "base/"+f) {
			parts = append(parts, o.String())
		}
	}
	if !slices.Equal(bundle, parts) || len(bundle) != 12 {
		t.Errorf("braid.yaml holds %d objects\n%v\nthe base\n%v", len(bundle), bundle, parts)
	}
}

func TestBundleRefusals(t *testing.T) {
	for name, content := range map[string]string{
		"a field that needs kustomize": "kind: Kustomization\nnamePrefix: x-\n",
		"a file that is not there":     "kind: Kustomization\nresources: [missing.yaml]\n",
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "kustomization.yaml"), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := Bundle(dir); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
}
