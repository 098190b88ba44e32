package dir

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// maxFile is the size, in bytes, above which a file is taken for something else than manifests.
const maxFile = 256 << 20

// settled is the age from which a file's modification time can be trusted: a younger file may be
// written again within the clock tick of its last change, and look the same.
const settled = 2 * time.Second

// stamp is how a file looked when it was last read.
type stamp struct {
	info  fs.FileInfo
	hash  [sha256.Size]byte
	fresh bool // too young, when read, to trust its modification time
}

// scanner finds the manifests of a folder (or the one file) and which of them changed.
type scanner struct {
	path   string
	stamps map[string]stamp
}

// scan is what one look at the folder found.
type scan struct {
	present map[string]bool   // every manifest that is there, by name: path joined with the file's name
	changed map[string][]byte // content of those that are new or changed
	failed  map[string]error  // those that are there but cannot be read
	folder  bool              // path is a folder
}

// maxPasses bounds how often one scan looks again at files that keep changing.
const maxPasses = 5

// scan looks at the folder until two looks find the same, so that neither a half of an atomic swap
// nor a half written file is taken for the whole. An error means that the folder cannot be read.
func (s *scanner) scan() (*scan, error) {
	found, err := s.pass()
	for n := 1; err == nil && len(found.changed) > 0 && n < maxPasses; n++ {
		var again *scan
		if again, err = s.pass(); err != nil {
			break
		}
		same := len(again.changed) == 0 && maps.Equal(again.present, found.present)
		for name, data := range found.changed {
			if again.present[name] && again.changed[name] == nil && again.failed[name] == nil {
				again.changed[name] = data
			}
		}
		if found = again; same {
			break
		}
	}
	if err != nil {
		// What this scan read was not used: it must be read again.
		clear(s.stamps)
		return nil, err
	}
	return found, nil
}

// pass looks at every file once.
func (s *scanner) pass() (*scan, error) {
	names, folder, err := s.names()
	if err != nil {
		return nil, err
	}
	out := &scan{present: map[string]bool{}, changed: map[string][]byte{}, failed: map[string]error{}, folder: folder}
	for _, name := range names {
		err := s.look(name, out)
		switch {
		case errors.Is(err, fs.ErrNotExist) && folder:
			// It went after it was listed, or is a link to nothing, as while a ConfigMap volume drops a key.
		case errors.Is(err, fs.ErrNotExist):
			return nil, err
		case err != nil:
			out.present[name] = true
			out.failed[name] = err
			delete(s.stamps, name)
		}
	}
	for name := range s.stamps {
		if !out.present[name] {
			delete(s.stamps, name)
		}
	}
	return out, nil
}

// names lists the manifests in order: the path itself when it is a file.
func (s *scanner) names() (names []string, folder bool, err error) {
	info, err := os.Stat(s.path)
	if err != nil {
		return nil, false, err
	}
	if !info.IsDir() {
		return []string{s.path}, false, nil
	}
	entries, err := os.ReadDir(s.path)
	if err != nil {
		return nil, true, err
	}
	for _, e := range entries {
		if isManifest(e.Name()) {
			names = append(names, filepath.Join(s.path, e.Name()))
		}
	}
	return names, true, nil
}

// isManifest reports whether a folder's file is one of ours by its name. Hidden files are editors'
// and volumes' own.
func isManifest(name string) bool {
	if strings.HasPrefix(name, ".") {
		return false
	}
	switch filepath.Ext(name) {
	case ".yaml", ".yml", ".json":
		return true
	}
	return false
}

// look reads a file unless it looks as it did when it was last read.
func (s *scanner) look(name string, out *scan) error {
	info, err := os.Stat(name)
	if err != nil {
		return err
	}
	switch {
	case info.IsDir():
		return nil
	case !info.Mode().IsRegular():
		return fmt.Errorf("is a %s, expected an ordinary file", info.Mode().Type())
	case info.Size() > maxFile:
		return fmt.Errorf("is %d MiB large, expected at most %d MiB of manifests in one file", info.Size()>>20, maxFile>>20)
	}
	old, seen := s.stamps[name]
	if seen && !old.fresh && os.SameFile(old.info, info) && old.info.ModTime().Equal(info.ModTime()) && old.info.Size() == info.Size() {
		out.present[name] = true
		return nil
	}
	now := time.Now()
	data, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	out.present[name] = true
	hash := sha256.Sum256(data)
	s.stamps[name] = stamp{info: info, hash: hash, fresh: now.Sub(info.ModTime()) < settled}
	if !seen || hash != old.hash {
		out.changed[name] = data
	}
	return nil
}

// explain turns an error about the folder or a file into one that says what to do.
func explain(path string, err error) error {
	todo := "check the path"
	switch {
	case errors.Is(err, fs.ErrNotExist):
		todo = "create it or correct the path"
	case errors.Is(err, fs.ErrPermission):
		todo = "let this process read it"
	}
	var pe *fs.PathError
	if errors.As(err, &pe) {
		err = pe.Err
	}
	return fmt.Errorf("read manifests at %s: %w; %s", path, err, todo)
}
