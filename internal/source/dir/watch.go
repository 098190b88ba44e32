package dir

import (
	"io/fs"
	"os"
	"path/filepath"

	"github.com/fsnotify/fsnotify"
)

// watcher follows the folders in which something can change what the manifests say: the folder
// itself, its parent (the folder may be replaced or come back) and the folders that links lead to.
// A nil fsnotify watcher, where the kernel grants none, leaves everything to the rescans.
type watcher struct {
	fs       *fsnotify.Watcher
	path     string // absolute
	dirs     map[string]fs.FileInfo
	parental bool // the parent is followed only for the folder's own name
}

// relevant reports whether an event can concern the manifests.
func (w *watcher) relevant(ev fsnotify.Event) bool {
	return !w.parental || filepath.Dir(ev.Name) != filepath.Dir(w.path) || ev.Name == w.path
}

// follow makes the watched folders those that matter for the given manifests. It returns whether
// a folder was added: what happened in it just before was missed, so the caller must look again.
func (w *watcher) follow(names map[string]bool, folder bool) (added bool) {
	if w.fs == nil {
		return false
	}
	want := map[string]bool{}
	if folder {
		want[w.path] = true
	}
	for name := range names {
		if real, err := filepath.EvalSymlinks(name); err == nil {
			if abs, err := filepath.Abs(filepath.Dir(real)); err == nil {
				want[abs] = true
			}
		}
	}
	parent := filepath.Dir(w.path)
	w.parental = folder && !want[parent]
	want[parent] = true
	for d := range w.dirs {
		if !want[d] {
			w.drop(d)
		}
	}
	for d := range want {
		if w.add(d) {
			added = true
		}
	}
	return added
}

// add follows one folder, again if another one has taken its place.
func (w *watcher) add(d string) bool {
	info, err := os.Stat(d)
	if err != nil {
		w.drop(d)
		return false
	}
	if old := w.dirs[d]; old != nil {
		if os.SameFile(old, info) && w.listed(d) {
			return false
		}
		w.drop(d)
	}
	if err := w.fs.Add(d); err != nil {
		return false
	}
	w.dirs[d] = info
	return true
}

// listed reports whether the watch is still alive: the kernel ends it with its folder.
func (w *watcher) listed(d string) bool {
	for _, have := range w.fs.WatchList() {
		if have == d {
			return true
		}
	}
	return false
}

func (w *watcher) drop(d string) {
	if _, ok := w.dirs[d]; ok {
		// The watch may have ended with its folder already, which is as good.
		_ = w.fs.Remove(d)
		delete(w.dirs, d)
	}
}
