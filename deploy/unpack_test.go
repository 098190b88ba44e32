package deploy

import (
	"archive/tar"
	"cmp"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"golang.org/x/sys/unix"
)

// image is an unpacked image.
type image struct {
	root   string
	config v1.Config
}

var images = map[string]image{}
var imagesOnce sync.Once

// imageOf returns the image of a reference, packed from the built programs by the program images.
func imageOf(t *testing.T, reference string) image {
	t.Helper()
	imagesOnce.Do(func() {
		bin, err := filepath.Abs(cmp.Or(os.Getenv("BRAID_BIN"), "../bin"))
		if err != nil {
			t.Fatal(err)
		}
		out, err := os.MkdirTemp("", "braid-images-")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(out)
		if text, err := exec.Command("go", "run", "./images", "-bin", bin, "-out", out).CombinedOutput(); err != nil {
			t.Fatalf("pack the images: %v\n%s", err, text)
		}
		for _, name := range []string{"netagent", "coredns"} {
			unpackImage(t, filepath.Join(out, name+".tar"))
		}
	})
	img, ok := images[reference]
	if !ok {
		t.Fatalf("there is no image %s", reference)
	}
	// Each container a copy: mount points are made in it.
	root := t.TempDir()
	if out, err := exec.Command("cp", "-a", "--reflink=auto", img.root+"/.", root).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := os.Chmod(root, 0o755); err != nil {
		t.Fatal(err)
	}
	return image{root: root, config: img.config}
}

func unpackImage(t *testing.T, archive string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "braid-image-")
	if err != nil {
		t.Fatal(err)
	}
	unpacked = append(unpacked, dir)
	oci, root := filepath.Join(dir, "oci"), filepath.Join(dir, "root")
	f, err := os.Open(archive)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	extract(t, f, oci)
	index, err := layout.ImageIndexFromPath(oci)
	if err != nil {
		t.Fatal(err)
	}
	m, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	img, err := index.Image(m.Manifests[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	r, err := layers[0].Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	extract(t, r, root)
	images[m.Manifests[0].Annotations["io.containerd.image.name"]] = image{root: root, config: cfg.Config}
}

var unpacked []string // folders to remove when the last test that uses images ends

// extract unpacks a tar as a runtime does, with modes and the capabilities of files.
func extract(t *testing.T, r io.Reader, dir string) {
	t.Helper()
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, h.Name)
		switch h.Typeflag {
		case tar.TypeDir:
			err = os.MkdirAll(path, 0o755)
		case tar.TypeSymlink:
			err = os.Symlink(h.Linkname, path)
		default:
			content, readErr := io.ReadAll(tr)
			err = errors.Join(readErr, os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, content, h.FileInfo().Mode()))
			if caps, ok := h.PAXRecords["SCHILY.xattr.security.capability"]; ok && err == nil {
				err = unix.Setxattr(path, "security.capability", []byte(caps), 0)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}
