package cluster

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"
)

// folder keeps one YAML file per object and touches only what changed. Files appear and change in
// one step: whoever watches the folder never reads half of one.
type folder struct {
	dir   string
	files map[string]file
}

type file struct {
	object runtime.Object
	data   []byte
}

const (
	fileSuffix = ".yaml"
	tempSuffix = ".tmp" // no reader of manifests takes such a file
)

// openFolder makes the folder and removes the objects of an earlier run.
func openFolder(dir string) (*folder, error) {
	if dir == "" {
		return nil, errors.New("no state folder")
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("make state folder: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("empty state folder: %w", err)
	}
	for _, e := range entries {
		if s := filepath.Ext(e.Name()); s != fileSuffix && s != tempSuffix {
			return nil, fmt.Errorf("state folder %s holds %s, which is not of the playground: use a folder of its own", dir, e.Name())
		}
	}
	for _, e := range entries {
		if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
			return nil, fmt.Errorf("empty state folder: %w", err)
		}
	}
	return &folder{dir: dir, files: map[string]file{}}, nil
}

// entry is one object of the folder and the name of its file.
type entry struct {
	name   string
	object runtime.Object
}

// fileName is "kind.namespace.name.yaml", or "kind.name.yaml" for cluster-wide objects. Namespaces
// have no dot, so it is unambiguous.
func fileName(kind, namespace, name string) string {
	parts := []string{strings.ToLower(kind), namespace, name}
	if namespace == "" {
		parts = []string{parts[0], name}
	}
	return strings.Join(parts, ".") + fileSuffix
}

// write makes the folder hold exactly these objects: new and changed ones are written in the order
// given, then those that are gone are removed. Objects must never change after they were written.
func (f *folder) write(entries []entry) error {
	var errs []error
	keep := make(map[string]bool, len(entries))
	for _, e := range entries {
		keep[e.name] = true
		old, exists := f.files[e.name]
		if exists && old.object == e.object {
			continue
		}
		data, err := encode(e.object)
		if err == nil && (!exists || !bytes.Equal(data, old.data)) {
			err = f.replace(e.name, data)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("write %s: %w", e.name, err))
			continue
		}
		f.files[e.name] = file{e.object, data}
	}
	for _, name := range f.gone(keep) {
		if err := os.Remove(filepath.Join(f.dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("remove object: %w", err))
			continue
		}
		delete(f.files, name)
	}
	return errors.Join(errs...)
}

func (f *folder) gone(keep map[string]bool) (out []string) {
	for name := range f.files {
		if !keep[name] {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

func (f *folder) replace(name string, data []byte) error {
	path := filepath.Join(f.dir, name)
	if err := os.WriteFile(path+tempSuffix, data, 0o644); err != nil {
		return err
	}
	return os.Rename(path+tempSuffix, path)
}

// encode spells an object as YAML with sorted keys.
func encode(o runtime.Object) ([]byte, error) {
	o = o.DeepCopyObject()
	gvk, err := gvkOf(o)
	if err != nil {
		return nil, err
	}
	o.GetObjectKind().SetGroupVersionKind(gvk)
	return yaml.Marshal(o)
}
