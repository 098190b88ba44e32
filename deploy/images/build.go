package main

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"path"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// build returns an image as an OCI archive: a tar of an OCI image layout. files is the tar of the image's
// files, for programs of one architecture.
func build(s spec, files []byte, arch, tag string, created time.Time) ([]byte, error) {
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(files)), nil },
		tarball.WithMediaType(types.OCILayer), tarball.WithCompressedCaching)
	if err != nil {
		return nil, err
	}
	img, err := image(s, layer, arch, created)
	if err != nil {
		return nil, err
	}
	return archive(img, s.reference(tag), arch, created)
}

// image returns the image of one layer.
func image(s spec, layer v1.Layer, arch string, created time.Time) (v1.Image, error) {
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	img, err := mutate.Append(img, mutate.Addendum{
		Layer:   layer,
		History: v1.History{Created: v1.Time{Time: created}, CreatedBy: "make images"},
	})
	if err != nil {
		return nil, err
	}
	cfg, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	cfg = cfg.DeepCopy()
	cfg.OS, cfg.Architecture, cfg.Created = "linux", arch, v1.Time{Time: created}
	cfg.Config = v1.Config{
		User: s.user, Entrypoint: s.entrypoint, Env: s.env, WorkingDir: "/",
		Labels: map[string]string{"org.opencontainers.image.title": s.title, "org.opencontainers.image.licenses": "Apache-2.0"},
	}
	for _, p := range s.ports {
		if cfg.Config.ExposedPorts == nil {
			cfg.Config.ExposedPorts = map[string]struct{}{}
		}
		cfg.Config.ExposedPorts[p] = struct{}{}
	}
	return mutate.ConfigFile(img, cfg)
}

// capabilityRecord is how a tar carries the attribute security.capability of a file.
const capabilityRecord = "SCHILY.xattr.security.capability"

// files returns an image's files as a tar, with the folders they stand in, and the architecture of the programs.
func files(list []file, created time.Time) (data []byte, arch string, err error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	made := map[string]bool{}
	for _, f := range list {
		content, err := f.content()
		if err != nil {
			return nil, "", err
		}
		if f.program {
			a, err := architecture(f.from)
			if err != nil {
				return nil, "", err
			}
			if arch != "" && arch != a {
				return nil, "", fmt.Errorf("%s is built for %s, the programs before it for %s", f.from, a, arch)
			}
			arch = a
		}
		if err := folders(w, made, f.to, created); err != nil {
			return nil, "", err
		}
		h := &tar.Header{Typeflag: tar.TypeReg, Name: strings.TrimPrefix(f.to, "/"), Mode: f.permissions(), Size: int64(len(content)),
			ModTime: created, Format: tar.FormatPAX}
		if f.link != "" {
			h.Typeflag, h.Linkname = tar.TypeSymlink, f.link
		}
		if f.caps != nil {
			h.PAXRecords = map[string]string{capabilityRecord: string(f.caps)}
		}
		if err := put(w, h, content); err != nil {
			return nil, "", err
		}
	}
	if err := w.Close(); err != nil { // writes the end of the tar
		return nil, "", err
	}
	return buf.Bytes(), arch, nil
}

// folders writes those that a file stands in, once each, outermost first.
func folders(w *tar.Writer, made map[string]bool, name string, created time.Time) error {
	dir := path.Dir(name)
	if dir == "/" || made[dir] {
		return nil
	}
	if err := folders(w, made, dir, created); err != nil {
		return err
	}
	made[dir] = true
	return put(w, &tar.Header{Typeflag: tar.TypeDir, Name: strings.TrimPrefix(dir, "/") + "/", Mode: 0o755, ModTime: created}, nil)
}

// archive writes an image layout (image-spec, image-layout.md) of one image as a tar.
func archive(img v1.Image, reference, arch string, created time.Time) ([]byte, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	add := func(name string, content []byte) error {
		return put(w, &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(content)), ModTime: created}, content)
	}
	index, err := index(img, reference, arch)
	if err != nil {
		return nil, err
	}
	if err := add("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`)); err != nil {
		return nil, err
	}
	if err := add("index.json", index); err != nil {
		return nil, err
	}
	layers, err := img.Layers()
	if err != nil {
		return nil, err
	}
	for _, blob := range []struct {
		read   func() ([]byte, error)
		digest func() (v1.Hash, error)
	}{
		{img.RawManifest, img.Digest},
		{img.RawConfigFile, img.ConfigName},
		{func() ([]byte, error) { return content(layers[0]) }, layers[0].Digest},
	} {
		data, err := blob.read()
		if err != nil {
			return nil, err
		}
		digest, err := blob.digest()
		if err != nil {
			return nil, err
		}
		if err := add("blobs/"+digest.Algorithm+"/"+digest.Hex, data); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}

// index returns the layout's index.json, which names the image.
func index(img v1.Image, reference, arch string) ([]byte, error) {
	digest, err := img.Digest()
	if err != nil {
		return nil, err
	}
	size, err := img.Size()
	if err != nil {
		return nil, err
	}
	return json.Marshal(v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: []v1.Descriptor{{
		MediaType: types.OCIManifestSchema1, Digest: digest, Size: size,
		Platform: &v1.Platform{OS: "linux", Architecture: arch},
		// containerd takes the name from the first; podman and docker from the second.
		Annotations: map[string]string{"io.containerd.image.name": reference, "org.opencontainers.image.ref.name": reference},
	}}})
}

func content(l v1.Layer) ([]byte, error) {
	r, err := l.Compressed()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

func put(w *tar.Writer, h *tar.Header, content []byte) error {
	if err := w.WriteHeader(h); err != nil {
		return err
	}
	_, err := w.Write(content)
	return err
}
