package lab

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// manifestFile is a manifest with the name its user knows it by.
type manifestFile struct {
	Name string `json:"name"`
	Data []byte `json:"data"`
}

var manifestSuffixes = []string{".yaml", ".yml", ".json"}

// readManifests reads files, and the YAML and JSON files of folders (not of folders within), in the
// order given. "-" is standard input.
func readManifests(args []string) ([]manifestFile, error) {
	var files []manifestFile
	for _, arg := range args {
		if arg == "-" {
			data, err := io.ReadAll(os.Stdin)
			if err != nil {
				return nil, fmt.Errorf("read standard input: %w", err)
			}
			files = append(files, manifestFile{Name: "stdin.yaml", Data: data})
			continue
		}
		names, err := manifestNames(arg)
		if err != nil {
			return nil, err
		}
		for _, name := range names {
			data, err := os.ReadFile(name)
			if err != nil {
				return nil, fmt.Errorf("read manifests: %w", err)
			}
			files = append(files, manifestFile{Name: name, Data: data})
		}
	}
	return files, nil
}

func manifestNames(arg string) ([]string, error) {
	info, err := os.Stat(arg)
	if err != nil {
		return nil, fmt.Errorf("read manifests: %w", err)
	}
	if !info.IsDir() {
		return []string{arg}, nil
	}
	entries, err := os.ReadDir(arg)
	if err != nil {
		return nil, fmt.Errorf("read manifests: %w", err)
	}
	var names []string
	for _, e := range entries {
		if !e.IsDir() && !strings.HasPrefix(e.Name(), ".") && slices.Contains(manifestSuffixes, filepath.Ext(e.Name())) {
			names = append(names, filepath.Join(arg, e.Name()))
		}
	}
	return names, nil
}

// keepManifests copies the manifests of a starting lab into its folder. The copies are numbered, so
// that two files of one name from different folders stay apart and in order.
func (o *Options) keepManifests(files []manifestFile) error {
	for _, f := range files {
		if err := writeFile(o.keptManifest(len(o.Manifests), f.Name), f.Data); err != nil {
			return err
		}
		o.Manifests = append(o.Manifests, f.Name)
	}
	return nil
}

func (o *Options) keptManifest(i int, name string) string {
	return filepath.Join(o.paths().manifests(), fmt.Sprintf("%02d-%s", i, filepath.Base(name)))
}

// keptManifests reads the copies back, under the names their user gave.
func (o *Options) keptManifests() (files []manifestFile, err error) {
	for i, name := range o.Manifests {
		data, err := os.ReadFile(o.keptManifest(i, name))
		if err != nil {
			return nil, fmt.Errorf("read manifests: %w", err)
		}
		files = append(files, manifestFile{name, data})
	}
	return files, nil
}
