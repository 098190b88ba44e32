package main

import (
	"archive/tar"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func testOptions(t *testing.T, fam string, nodes int) *options {
	o := &options{Name: "unit", Nodes: nodes, State: t.TempDir(), Cache: t.TempDir()}
	if err := o.setFamilies(fam); err != nil {
		t.Fatal(err)
	}
	return o
}

// TestCredentials verifies every certificate against the authority, as the other side would.
func TestCredentials(t *testing.T) {
	o := testOptions(t, "dual", 2)
	if err := writeCredentials(o); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(o.pki("ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(data) {
		t.Fatal("ca.crt holds no certificate")
	}
	for file, want := range map[string]struct {
		name, group, host string
		use               x509.ExtKeyUsage
	}{
		"apiserver":     {"kube-apiserver", "", "fd00:10:96::1", x509.ExtKeyUsageServerAuth},
		"node2-serving": {"system:node:node2", "system:nodes", "192.168.200.12", x509.ExtKeyUsageServerAuth},
		"node1":         {"system:node:node1", "system:nodes", "", x509.ExtKeyUsageClientAuth},
		"admin":         {"admin", "system:masters", "", x509.ExtKeyUsageClientAuth},
	} {
		pair, err := tls.LoadX509KeyPair(o.pki(file+".crt"), o.pki(file+".key"))
		if err != nil {
			t.Fatal(err)
		}
		c := pair.Leaf
		if _, err := c.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{want.use}}); err != nil {
			t.Errorf("%s: %v", file, err)
		}
		if c.Subject.CommonName != want.name || strings.Join(c.Subject.Organization, ",") != want.group {
			t.Errorf("%s speaks for %s, want %s of %q", file, c.Subject, want.name, want.group)
		}
		if want.host != "" {
			if err := c.VerifyHostname(want.host); err != nil {
				t.Errorf("%s: %v", file, err)
			}
		}
	}
	block, _ := pem.Decode(must(os.ReadFile(o.pki("sa.key"))))
	if _, err := x509.ParseECPrivateKey(block.Bytes); err != nil {
		t.Errorf("the API server cannot read sa.key: %v", err)
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// TestImage reads an archive back: each blob's name is its digest, and the index leads to every layer.
func TestImage(t *testing.T) {
	dir := t.TempDir()
	file, layer, archive := filepath.Join(dir, "hello"), filepath.Join(dir, "a.layer"), filepath.Join(dir, "a.tar")
	if err := errors.Join(os.WriteFile(file, []byte("hello"), 0o644), fileLayer(layer, map[string]string{"hello": file}),
		writeArchive(archive, image{names: []string{"r.io/a:1", "r.io/a:2"}, entry: []string{"/hello"}, layers: []string{layer}},
			image{names: []string{"r.io/b:1"}, entry: []string{"/hi"}, layers: []string{layer}})); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(layer); !os.IsNotExist(err) {
		t.Errorf("the layer is still there: %v", err)
	}
	f := must(os.Open(archive))
	defer f.Close()
	files := map[string][]byte{}
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		files[h.Name] = must(io.ReadAll(r))
		if sum := sha256.Sum256(files[h.Name]); strings.HasPrefix(h.Name, "blobs/") && h.Name != "blobs/sha256/"+hex.EncodeToString(sum[:]) {
			t.Errorf("%s has another digest", h.Name)
		}
	}
	var index, manifest struct {
		Manifests, Layers []descriptor
		Config            descriptor
	}
	if err := json.Unmarshal(files["index.json"], &index); err != nil {
		t.Fatal(err)
	}
	if len(index.Manifests) != 3 || index.Manifests[1].Annotations["io.containerd.image.name"] != "r.io/a:2" {
		t.Fatalf("the index names %v, want three names", index.Manifests)
	}
	if err := json.Unmarshal(files[blobPath(index.Manifests[0])], &manifest); err != nil {
		t.Fatal(err)
	}
	for _, d := range append(manifest.Layers, manifest.Config) {
		if int64(len(files[blobPath(d)])) != d.Size || d.Size == 0 {
			t.Errorf("%s is missing or has another size than %d", d.Digest, d.Size)
		}
	}
}

func TestAwait(t *testing.T) {
	calls := 0
	err := await(t.Context(), "three", time.Minute, func() error {
		if calls++; calls < 3 {
			return errors.New("not yet")
		}
		return nil
	})
	if err != nil || calls != 3 {
		t.Errorf("%d calls, error %v; want three and none", calls, err)
	}
	broken := errors.New("broken")
	if err := await(t.Context(), "never", time.Minute, func() error { return final{broken} }); !errors.Is(err, broken) {
		t.Errorf("a final error came back as %v", err)
	}
	err = await(t.Context(), "rain", time.Millisecond, func() error { return errors.New("no cloud") })
	if err == nil || !strings.Contains(err.Error(), "rain") || !strings.Contains(err.Error(), "no cloud") {
		t.Errorf("error %v, want what was awaited and what was said last", err)
	}
}

func TestLayoutOfFamilies(t *testing.T) {
	o := testOptions(t, "dual", maxNodes)
	for _, f := range o.families() {
		if last := f.node(maxNodes); !f.underlay.Contains(last) || !f.underlay.Contains(f.control) {
			t.Errorf("%s: node %d has %s, outside %s", f.name, maxNodes, last, f.underlay)
		}
		if !f.services.Contains(f.dns) {
			t.Errorf("%s: %s is no service address of %s", f.name, f.dns, f.services)
		}
	}
	if got, want := o.each(func(f family) string { return f.node(2).String() }), "192.168.200.12,fd00:200::12"; got != want {
		t.Errorf("node 2 has %s, want %s", got, want)
	}
	if err := o.setFamilies("v5"); err == nil {
		t.Error("family v5 was taken")
	}
}

func TestWithAgentSetting(t *testing.T) {
	manifest := "kind: ConfigMap\ndata:\n" + agentSettings + "    # how\n    overlay: vxlan\n    log-level: info\n---\nkind: Other\n    overlay: kept\n"
	got := withAgentSetting(withAgentSetting(manifest, "overlay: host-gw"), "external-ips: 203.0.113.0/24")
	want := "kind: ConfigMap\ndata:\n" + agentSettings + "    external-ips: 203.0.113.0/24\n    overlay: host-gw\n    # how\n    log-level: info\n---\nkind: Other\n    overlay: kept\n"
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}
