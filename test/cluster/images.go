package main

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

const (
	e2eRegistry = "registry.k8s.io/e2e-test-images/"
	pauseImage  = "registry.k8s.io/pause:3.10.2"
	// testImage is Debian with the tools of a network's user, and upstream's agnhost.
	testImage = e2eRegistry + "agnhost:2.63.0"
)

// debianTools are what upstream's specs and our checks run inside pods, beyond agnhost.
const debianTools = "dnsutils,curl,netcat-openbsd,iproute2,iptables,iputils-ping"

// testImages are the archives that every node gets.
func (o *options) testImages() []string {
	return []string{filepath.Join(o.Cache, "images", "pause.tar"), filepath.Join(o.Cache, "images", "agnhost.tar")}
}

// buildImages makes the two test images that the cache lacks, from our programs and Debian's packages.
func buildImages(ctx context.Context, o *options) error {
	dir := filepath.Join(o.Cache, "images")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	pause, agnhost := filepath.Join(dir, "pause.tar"), filepath.Join(dir, "agnhost.tar")
	if _, err := os.Stat(pause); err != nil {
		layer := filepath.Join(dir, "pause.layer")
		if err := fileLayer(layer, map[string]string{"pause": o.bin("pause")}); err != nil {
			return err
		}
		tags := []string{pauseImage, "registry.k8s.io/pause:3.10", "registry.k8s.io/pause:3.10.1"}
		if err := writeImage(pause, tags, "/pause", layer); err != nil {
			return err
		}
	}
	if _, err := os.Stat(agnhost); err == nil {
		return nil
	}
	start := time.Now()
	fmt.Println("building the test image")
	debian, program := filepath.Join(dir, "debian.layer"), filepath.Join(dir, "agnhost.layer")
	if err := debianLayer(ctx, dir, debian); err != nil {
		return err
	}
	files, err := o.agnhostFiles(ctx)
	if err != nil {
		return err
	}
	if err := fileLayer(program, files); err != nil {
		return err
	}
	tags := []string{testImage, e2eRegistry + "agnhost:2.55", e2eRegistry + "busybox:1.37.0-1", e2eRegistry + "glibc-dns-testing:2.0.0"}
	if err := writeImage(agnhost, tags, "/agnhost", debian, program); err != nil {
		return err
	}
	fmt.Printf("built the test image in %s\n", time.Since(start).Round(time.Second))
	return nil
}

// agnhostFiles are the program and the key pair with which its porter serves TLS.
func (o *options) agnhostFiles(ctx context.Context) (map[string]string, error) {
	cmd := exec.CommandContext(ctx, "go", "list", "-mod=readonly", "-f", "{{.Dir}}", "k8s.io/kubernetes/test/images/agnhost")
	cmd.Dir, cmd.Env = filepath.Join(o.Root, "test/cluster/build/kubernetes"), append(os.Environ(), "GOWORK=off")
	out, err := run(cmd)
	if err != nil {
		return nil, fmt.Errorf("find agnhost's sources: %w", err)
	}
	src := filepath.Join(strings.TrimSpace(out), "porter")
	return map[string]string{
		"agnhost":       o.bin("agnhost"),
		"localhost.crt": filepath.Join(src, "localhost.crt"), "localhost.key": filepath.Join(src, "localhost.key"),
	}, nil
}

// debianLayer makes the file system in a mount namespace of its own, so that what debootstrap mounts goes
// with it.
func debianLayer(ctx context.Context, dir, layer string) error {
	root, err := os.MkdirTemp(dir, "debian-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(root)
	script := `mount --make-rprivate /
debootstrap --variant=minbase --include=` + debianTools + ` bookworm "$1" >"$2" 2>&1
rm -rf "$1"/var/cache/apt/archives/*.deb "$1"/var/lib/apt/lists/* "$1"/usr/share/doc "$1"/usr/share/locale "$1"/usr/share/man
tar --numeric-owner --one-file-system -C "$1" -cf "$3" .`
	log := filepath.Join(dir, "debootstrap.log")
	cmd := exec.CommandContext(ctx, "sh", "-euc", script, "sh", root, log, layer)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	cmd.Env = append(os.Environ(), "PATH="+systemPath)
	if _, err := run(cmd); err != nil {
		return fmt.Errorf("make a Debian file system (needs the package debootstrap): %w\n%s", err, tail(log))
	}
	return nil
}

// fileLayer writes a layer of executable files at the root.
func fileLayer(layer string, files map[string]string) error {
	out, err := os.Create(layer)
	if err != nil {
		return err
	}
	defer out.Close()
	w := tar.NewWriter(out)
	for name, from := range files {
		if err := addFile(w, name, from, 0o755); err != nil {
			return fmt.Errorf("make layer %s: %w", layer, err)
		}
	}
	if err := w.Close(); err != nil {
		return err
	}
	return out.Close()
}

func addFile(w *tar.Writer, name, from string, mode int64) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	if err := w.WriteHeader(&tar.Header{Name: name, Mode: mode, Size: info.Size(), Typeflag: tar.TypeReg}); err != nil {
		return err
	}
	_, err = io.Copy(w, in)
	return err
}

func addBytes(w *tar.Writer, name string, data []byte) error {
	if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(data)), Typeflag: tar.TypeReg}); err != nil {
		return err
	}
	_, err := w.Write(data)
	return err
}

// descriptor points to a blob, as the OCI image specification has it.
type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int64             `json:"size"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

const (
	ociIndex    = "application/vnd.oci.image.index.v1+json"
	ociManifest = "application/vnd.oci.image.manifest.v1+json"
	ociConfig   = "application/vnd.oci.image.config.v1+json"
	ociLayer    = "application/vnd.oci.image.layer.v1.tar"
)

// writeImage makes an OCI archive of layers, which it removes, under several names.
func writeImage(archive string, names []string, entry string, layers ...string) error {
	out, err := os.Create(archive + ".new")
	if err != nil {
		return err
	}
	defer out.Close()
	w := tar.NewWriter(out)
	var blobs []descriptor
	var diffs []string
	for _, l := range layers {
		d, err := describeFile(l)
		if err != nil {
			return err
		}
		blobs, diffs = append(blobs, d), append(diffs, d.Digest)
		if err := addFile(w, blobPath(d), l, 0o644); err != nil {
			return err
		}
	}
	config, err := addJSON(w, ociConfig, map[string]any{
		"architecture": "amd64", "os": "linux", "rootfs": map[string]any{"type": "layers", "diff_ids": diffs},
		"config": map[string]any{"Entrypoint": []string{entry}, "Env": []string{"PATH=" + systemPath}, "WorkingDir": "/"},
	})
	if err != nil {
		return err
	}
	manifest, err := addJSON(w, ociManifest, map[string]any{"schemaVersion": 2, "mediaType": ociManifest, "config": config, "layers": blobs})
	if err != nil {
		return err
	}
	var index []descriptor
	for _, n := range names {
		manifest.Annotations = map[string]string{"io.containerd.image.name": n}
		index = append(index, manifest)
	}
	data, err := json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": ociIndex, "manifests": index})
	if err != nil {
		return err
	}
	if err := addBytes(w, "index.json", data); err != nil {
		return err
	}
	if err := addBytes(w, "oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`)); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	for _, l := range layers {
		if err := os.Remove(l); err != nil {
			return err
		}
	}
	return os.Rename(archive+".new", archive)
}

func blobPath(d descriptor) string { return "blobs/sha256/" + strings.TrimPrefix(d.Digest, "sha256:") }

func describeFile(path string) (descriptor, error) {
	f, err := os.Open(path)
	if err != nil {
		return descriptor{}, err
	}
	defer f.Close()
	h := sha256.New()
	n, err := io.Copy(h, f)
	return descriptor{MediaType: ociLayer, Digest: "sha256:" + hex.EncodeToString(h.Sum(nil)), Size: n}, err
}

func addJSON(w *tar.Writer, mediaType string, v any) (descriptor, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return descriptor{}, err
	}
	sum := sha256.Sum256(data)
	d := descriptor{MediaType: mediaType, Digest: "sha256:" + hex.EncodeToString(sum[:]), Size: int64(len(data))}
	return d, addBytes(w, blobPath(d), data)
}
