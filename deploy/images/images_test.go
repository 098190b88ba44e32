package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

// program writes a minimal ELF file for a machine; with loader, one that is linked dynamically.
func program(t *testing.T, path string, machine elf.Machine, loader bool) {
	t.Helper()
	var b bytes.Buffer
	// ELF header (64 bytes) of a little-endian 64-bit executable with one program header of 56 bytes.
	b.Write([]byte{0x7f, 'E', 'L', 'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, byte(machine), 0, 1, 0, 0, 0})
	b.Write(make([]byte, 8))            // entry
	b.Write([]byte{64, 7: 0})           // program headers follow the ELF header
	b.Write(make([]byte, 8))            // no sections
	b.Write(make([]byte, 4))            // flags
	b.Write([]byte{64, 0, 56, 0, 1, 0}) // header sizes, one program header
	b.Write([]byte{64, 0, 0, 0, 0, 0})
	kind := elf.PT_LOAD
	if loader {
		kind = elf.PT_INTERP
	}
	b.Write([]byte{byte(kind), 0, 0, 0})
	b.Write(make([]byte, 52))
	b.WriteString(filepath.Base(path))
	if err := os.WriteFile(path, b.Bytes(), 0o755); err != nil {
		t.Fatal(err)
	}
}

// programs returns options for a folder with stand-ins for the three programs.
func programs(t *testing.T) options {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"coredns", "netagent", "braid"} {
		program(t, filepath.Join(dir, name), elf.EM_X86_64, false)
	}
	roots := filepath.Join(dir, "roots.pem")
	if err := os.WriteFile(roots, []byte("certificates"), 0o600); err != nil {
		t.Fatal(err)
	}
	return options{bin: dir, out: filepath.Join(dir, "images"), tag: "dev", roots: roots}
}

// untar writes an archive into a folder.
func untar(t *testing.T, data []byte) string {
	t.Helper()
	dir := t.TempDir()
	for r := tar.NewReader(bytes.NewReader(data)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return dir
		}
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, h.Name)
		content, err := io.ReadAll(r)
		if err := errors.Join(err, os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, content, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
}

// make returns an image as pack writes it.
func (s spec) make(tag string) ([]byte, error) {
	files, arch, err := files(s.files, time.Unix(0, 0))
	if err != nil {
		return nil, err
	}
	return build(s, files, arch, tag, time.Unix(0, 0))
}

// describe says what a layer holds, one line per entry.
func describe(t *testing.T, l v1.Layer) (out []string) {
	t.Helper()
	eachEntry(t, l, func(h *tar.Header, _ []byte) {
		line := fmt.Sprintf("%s %s %d:%d %s", h.FileInfo().Mode(), h.Name, h.Uid, h.Gid, h.ModTime.UTC().Format(time.DateOnly))
		if caps, ok := h.PAXRecords[capabilityRecord]; ok {
			line += " caps " + hex.EncodeToString([]byte(caps))
		}
		out = append(out, line)
	})
	return out
}

// layerFiles describes the files of a layer by their names.
func layerFiles(t *testing.T, l v1.Layer) map[string]string {
	t.Helper()
	out := map[string]string{}
	eachEntry(t, l, func(h *tar.Header, content []byte) {
		name := strings.TrimSuffix(h.Name, "/")
		switch h.Typeflag {
		case tar.TypeDir:
			out[name] = h.FileInfo().Mode().String()
		case tar.TypeSymlink:
			out[name] = "-> " + h.Linkname
		default:
			out[name] = describeFile(h.FileInfo().Mode(), content, []byte(h.PAXRecords[capabilityRecord]))
		}
	})
	return out
}

func describeFile(mode fs.FileMode, content, caps []byte) string {
	return fmt.Sprintf("%s %x caps %x", mode, sha256.Sum256(content), caps)
}

func eachEntry(t *testing.T, l v1.Layer, fn func(*tar.Header, []byte)) {
	t.Helper()
	rc, err := l.Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	for r := tar.NewReader(rc); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		fn(h, content)
	}
}

func TestImages(t *testing.T) {
	o := programs(t)
	want := map[string]struct {
		config string
		layer  []string
	}{
		"coredns": {
			config: `{"Entrypoint":["/coredns"],"Env":["PATH=` + searchPath + `"],"Labels":{"org.opencontainers.image.licenses":"Apache-2.0","org.opencontainers.image.title":"CoreDNS with Braid's plugin for services and pods"},"User":"65532:65532","WorkingDir":"/","ExposedPorts":{"53/tcp":{},"53/udp":{}}}`,
			layer: []string{
				"-rwxr-xr-x coredns 0:0 1970-01-01 caps 0100000200040000000000000000000000000000",
				"drwxr-xr-x etc/ 0:0 1970-01-01", "drwxr-xr-x etc/ssl/ 0:0 1970-01-01", "drwxr-xr-x etc/ssl/certs/ 0:0 1970-01-01",
				"-rw-r--r-- etc/ssl/certs/ca-certificates.crt 0:0 1970-01-01"},
		},
		"netagent": {
			config: `{"Entrypoint":["/usr/local/bin/netagent"],"Env":["PATH=` + searchPath + `","BRAID_IMAGE=nftables"],"Labels":{"org.opencontainers.image.licenses":"Apache-2.0","org.opencontainers.image.title":"Braid's node agent and CNI plugin"},"User":"0:0","WorkingDir":"/"}`,
			layer: []string{
				"drwxr-xr-x usr/ 0:0 1970-01-01", "drwxr-xr-x usr/local/ 0:0 1970-01-01", "drwxr-xr-x usr/local/bin/ 0:0 1970-01-01",
				"-rwxr-xr-x usr/local/bin/netagent 0:0 1970-01-01", "-rwxr-xr-x usr/local/bin/braid 0:0 1970-01-01"},
		},
	}
	for _, s := range specs(o) {
		t.Run(s.name, func(t *testing.T) {
			data, err := s.make(o.tag)
			if err != nil {
				t.Fatal(err)
			}
			again, err := s.make(o.tag)
			if err != nil || !bytes.Equal(data, again) {
				t.Errorf("a second build differs (%v)", err)
			}
			img := readBack(t, data, s.reference(o.tag))
			cfg, err := img.ConfigFile()
			if err != nil {
				t.Fatal(err)
			}
			if cfg.OS != "linux" || cfg.Architecture != "amd64" || !cfg.Created.Equal(time.Unix(0, 0)) {
				t.Errorf("made for %s/%s at %s", cfg.OS, cfg.Architecture, cfg.Created)
			}
			if got, _ := json.Marshal(cfg.Config); string(got) != want[s.name].config {
				t.Errorf("config\n%s\nwant\n%s", got, want[s.name].config)
			}
			layers, err := img.Layers()
			if err != nil || len(layers) != 1 {
				t.Fatalf("%d layers, %v", len(layers), err)
			}
			if got := describe(t, layers[0]); !slices.Equal(got, want[s.name].layer) {
				t.Errorf("layer\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want[s.name].layer, "\n"))
			}
		})
	}
}

// readBack opens an archive with the library, which checks every digest and size, and returns its image.
func readBack(t *testing.T, data []byte, reference string) v1.Image {
	t.Helper()
	index, err := layout.ImageIndexFromPath(untar(t, data))
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Index(index); err != nil {
		t.Fatal(err)
	}
	m, err := index.IndexManifest()
	if err != nil || len(m.Manifests) != 1 {
		t.Fatalf("%+v, %v", m, err)
	}
	d := m.Manifests[0]
	if d.Annotations["io.containerd.image.name"] != reference || d.Platform.String() != "linux/amd64" {
		t.Errorf("named %v for %v", d.Annotations, d.Platform)
	}
	img, err := index.Image(d.Digest)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// The names of the images are those that the manifests ask for.
func TestManifestsNameTheImages(t *testing.T) {
	data, err := os.ReadFile("../braid.yaml")
	if err != nil {
		t.Fatal(err)
	}
	asked := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^ +image: (.+)$`).FindAllStringSubmatch(string(data), -1) {
		asked[m[1]] = true
	}
	for _, s := range specs(options{}) {
		if !asked[s.reference("dev")] {
			t.Errorf("braid.yaml does not ask for %s, but for %v", s.reference("dev"), asked)
		}
		delete(asked, s.reference("dev"))
	}
	if len(asked) > 0 {
		t.Errorf("braid.yaml asks for what is not made: %v", asked)
	}
}

func TestRunWritesArchives(t *testing.T) {
	o := programs(t)
	if err := run(o); err != nil {
		t.Fatal(err)
	}
	for _, s := range specs(o) {
		data, err := os.ReadFile(filepath.Join(o.out, s.name+".tar"))
		if err != nil {
			t.Fatal(err)
		}
		readBack(t, data, s.reference("dev"))
	}
	o.roots = ""
	if n := len(specs(o)[0].files); n != 1 {
		t.Errorf("without certificates the image of coredns has %d files", n)
	}
}

// What `setcap` writes and what we write are the same bytes.
func TestFileCapabilityIsSetcaps(t *testing.T) {
	setcap, err := exec.LookPath("setcap")
	if err != nil {
		setcap = "/usr/sbin/setcap"
	}
	file := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(file, []byte("x"), 0o755); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(setcap, "cap_net_bind_service=+ep", file).CombinedOutput(); err != nil {
		t.Skipf("skipped: setcap (package libcap2-bin, root) is needed to compare with: %v %s", err, out)
	}
	if got := attribute(t, file); !bytes.Equal(got, fileCapability(capNetBindService)) {
		t.Errorf("setcap wrote %x, we %x", got, fileCapability(capNetBindService))
	}
}

func TestRefusals(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	program(t, at("dynamic"), elf.EM_X86_64, true)
	program(t, at("mips"), elf.EM_MIPS, false)
	program(t, at("arm"), elf.EM_AARCH64, false)
	program(t, at("amd"), elf.EM_X86_64, false)
	if err := os.WriteFile(at("script"), []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		files []string
		want  string
	}{
		{[]string{"dynamic"}, "CGO_ENABLED=0"},
		{[]string{"mips"}, "amd64 and arm64"},
		{[]string{"script"}, "no Linux program"},
		{[]string{"amd", "arm"}, "built for arm64"},
		{[]string{"missing"}, "no such file"},
	} {
		s := spec{name: "x"}
		for _, f := range c.files {
			s.files = append(s.files, file{from: at(f), to: "/" + f, program: true})
		}
		if _, err := s.make("dev"); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v: %v, want an error with %q", c.files, err, c.want)
		}
	}
	if _, err := architecture(at("missing")); err == nil || !strings.Contains(err.Error(), "make build") {
		t.Errorf("missing program: %v", err)
	}
}

func TestCreated(t *testing.T) {
	for in, want := range map[string]string{"": "1970-01-01", "1000000000": "2001-09-09"} {
		if got, err := created(in); err != nil || got.Format(time.DateOnly) != want {
			t.Errorf("%q: %s, %v", in, got, err)
		}
	}
	for _, in := range []string{"yesterday", "-1"} {
		if _, err := created(in); err == nil {
			t.Errorf("%q was taken", in)
		}
	}
}

// The Dockerfile makes the same images: it copies the folders that TestFoldersAreTheImages compares, and says
// the same of user, environment and program.
func TestDockerfileMakesTheSame(t *testing.T) {
	data, err := os.ReadFile("Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	stages := map[string][]string{}
	stage := ""
	for _, line := range strings.Split(string(data), "\n") {
		if m := regexp.MustCompile(`^FROM \S+ AS (\S+)$`).FindStringSubmatch(line); m != nil {
			stage = m[1]
		} else if line != "" && !strings.HasPrefix(line, "#") {
			stages[stage] = append(stages[stage], line)
		}
	}
	if len(stages) != 3 {
		t.Fatalf("stages: %v", stages)
	}
	if !slices.Contains(stages["build"], "RUN make build && go run ./deploy/images -folders /out") {
		t.Errorf("the files are not laid out by this program: %q", stages["build"])
	}
	for _, s := range specs(options{tools: []file{{}}}) {
		want := []string{"USER " + s.user, "WORKDIR /", "COPY --from=build /out/" + s.name + "/ /"}
		for _, e := range s.env {
			want = append(want, "ENV "+e)
		}
		for _, p := range s.ports {
			want = append(want, "EXPOSE "+p)
		}
		want = append(want, fmt.Sprintf("ENTRYPOINT [%q]", s.entrypoint[0]))
		got := slices.Sorted(slices.Values(stages[s.name]))
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("stage %s\n%s\nwant\n%s", s.name, strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	}
}
