package main

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

const (
	e2eRegistry = "registry.k8s.io/e2e-test-images/"
	pauseImage  = "registry.k8s.io/pause:3.10.2"
	testImage   = e2eRegistry + "agnhost:2.63.0"
)

// debianLayer makes the file system in a mount namespace of its own, so that what debootstrap mounts goes
// with it. BusyBox stands in for what specs written for Alpine call and Debian lacks, such as wget.
func debianLayer(ctx context.Context, dir, layer string) error {
	root, err := os.MkdirTemp(dir, "debian-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(root)
	script := `mount --make-rprivate /
debootstrap --variant=minbase --include="$4" "$5" "$1" >"$2" 2>&1
for applet in $(chroot "$1" busybox --list); do
	chroot "$1" sh -c 'command -v "$1" >/dev/null || ln -s /bin/busybox "/usr/local/bin/$1"' sh "$applet"
done
rm -rf "$1"/var/cache/apt/archives/*.deb "$1"/var/lib/apt/lists/* "$1"/usr/share/doc "$1"/usr/share/locale "$1"/usr/share/man
tar --numeric-owner --one-file-system -C "$1" -cf "$3" .`
	log := filepath.Join(dir, "debootstrap.log")
	cmd := exec.CommandContext(ctx, "sh", "-euc", script, "sh", root, log, layer, strings.Join(debianTools, ","), debianSuite)
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
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if err := addFile(w, name, files[name], 0o755); err != nil {
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

// image is one of an archive's images. Images share layers.
type image struct {
	names  []string
	entry  []string
	cmd    []string // what the entry point gets when a pod gives nothing
	layers []string // files, the lowest first
}

// writeArchive makes an OCI archive of images, and removes the files of their layers.
func writeArchive(archive string, images ...image) error {
	out, err := os.Create(archive + ".new")
	if err != nil {
		return err
	}
	defer out.Close()
	w := tar.NewWriter(out)
	known := map[string]descriptor{}
	var index []descriptor
	for _, i := range images {
		manifest, err := i.write(w, known)
		if err != nil {
			return fmt.Errorf("make image %s: %w", i.names[0], err)
		}
		for _, n := range i.names {
			manifest.Annotations = map[string]string{"io.containerd.image.name": n}
			index = append(index, manifest)
		}
	}
	data, err := json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": ociIndex, "manifests": index})
	if err != nil {
		return err
	}
	err = errors.Join(addBytes(w, "index.json", data), addBytes(w, "oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`)), w.Close())
	for layer := range known {
		err = errors.Join(err, os.Remove(layer))
	}
	if err != nil {
		return err
	}
	return os.Rename(archive+".new", archive)
}

// write adds an image's manifest, its configuration, and those of its layers that the archive lacks.
func (i image) write(w *tar.Writer, known map[string]descriptor) (descriptor, error) {
	var blobs []descriptor
	var diffs []string
	for _, l := range i.layers {
		d, ok := known[l]
		if !ok {
			var err error
			if d, err = describeFile(l); err != nil {
				return d, err
			}
			if err := addFile(w, blobPath(d), l, 0o644); err != nil {
				return d, err
			}
			known[l] = d
		}
		blobs, diffs = append(blobs, d), append(diffs, d.Digest)
	}
	config, err := addJSON(w, ociConfig, map[string]any{
		"architecture": "amd64", "os": "linux", "rootfs": map[string]any{"type": "layers", "diff_ids": diffs},
		"config": map[string]any{"Entrypoint": i.entry, "Cmd": i.cmd, "Env": []string{"PATH=" + systemPath}, "WorkingDir": "/"},
	})
	if err != nil {
		return config, err
	}
	return addJSON(w, ociManifest, map[string]any{"schemaVersion": 2, "mediaType": ociManifest, "config": config, "layers": blobs})
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
