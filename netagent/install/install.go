// Package install puts the CNI plugin where container runtimes look for plugins, and takes it away.
//
// A runtime may start the plugin at any moment, and a node may lose power at any moment: the file
// under the plugin's name is always absent or whole, and a plugin that runs keeps the file it runs from.
package install

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Name is the plugin's file name: what "type" says in a CNI configuration.
const Name = "braid"

// temporary matches the files that an interrupted Plugin leaves. Runtimes start plugins by their exact
// names, so they never look at one.
const temporary = "." + Name + "-*.tmp"

// Plugin copies the executable src into the folder dir, under Name, and reports whether it had to: the
// same content is left alone. The folder is made when it is missing. What an interrupted earlier
// run left is removed. Several at a time wait for one another.
func Plugin(src, dir string) (changed bool, err error) {
	data, err := read(src)
	if err != nil {
		return false, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return false, explain(dir, fmt.Errorf("make the folder of CNI plugins: %w", err))
	}
	unlock, err := lock(dir)
	if err != nil {
		return false, err
	}
	defer unlock()
	if err := sweep(dir); err != nil {
		return false, err
	}
	dst := filepath.Join(dir, Name)
	if same(dst, data) {
		return false, nil
	}
	if err := Replace(dst, data, mode); err != nil {
		return false, explain(dir, fmt.Errorf("install CNI plugin %s: %w", dst, err))
	}
	return true, nil
}

// Remove deletes the plugin from dir, with what interrupted runs left, and reports whether there was one.
func Remove(dir string) (removed bool, err error) {
	unlock, err := lock(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer unlock()
	if err := sweep(dir); err != nil {
		return false, err
	}
	err = os.Remove(filepath.Join(dir, Name))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, explain(dir, fmt.Errorf("remove CNI plugin: %w", err))
	}
	return true, nil
}

// read returns the content of the executable to install. A file that could not be run is refused: it
// would be found out only when the next pod starts.
func read(src string) ([]byte, error) {
	info, err := os.Stat(src)
	if err != nil {
		return nil, fmt.Errorf("read the CNI plugin to install: %w", err)
	}
	if !info.Mode().IsRegular() || info.Mode()&0o111 == 0 || info.Size() == 0 {
		return nil, fmt.Errorf("read the CNI plugin to install: %s (%s, %d bytes) is no executable file", src, info.Mode(), info.Size())
	}
	data, err := os.ReadFile(src)
	if err != nil {
		return nil, fmt.Errorf("read the CNI plugin to install: %w", err)
	}
	return data, nil
}

// lock makes runs on one folder wait for each other. The lock ends with the process, however that ends.
func lock(dir string) (unlock func(), err error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	for {
		err = unix.Flock(int(d.Fd()), unix.LOCK_EX)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", dir, err), d.Close())
	}
	return func() { _ = d.Close() }, nil
}

// sweep removes temporary files. Under the lock, nobody is writing one.
func sweep(dir string) error {
	left, err := filepath.Glob(filepath.Join(dir, temporary))
	if err != nil {
		return err
	}
	for _, path := range left {
		if err := os.Remove(path); err != nil {
			return explain(dir, fmt.Errorf("remove what an interrupted run left: %w", err))
		}
	}
	return nil
}

// same reports whether the installed file is right already, its mode too.
func same(dst string, want []byte) bool {
	info, err := os.Lstat(dst)
	if err != nil || info.Mode() != mode || info.Size() != int64(len(want)) {
		return false
	}
	have, err := os.ReadFile(dst)
	return err == nil && bytes.Equal(have, want)
}

// mode is that of an installed plugin.
const mode fs.FileMode = 0o755

// Replace writes a file so that a reader or a power cut sees the old or the new content, never half
// of it: temporary file beside it, fsync, rename, fsync of the folder. Writing into dst
// instead would fail while a plugin runs (ETXTBSY). The temporary name begins with a dot and has no
// ending that a CNI runtime would read.
func Replace(dst string, data []byte, mode fs.FileMode) (err error) {
	f, err := os.CreateTemp(filepath.Dir(dst), temporary)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = f.Close()
			_ = os.Remove(f.Name())
		}
	}()
	if _, err = f.Write(data); err != nil {
		return err
	}
	if err = f.Chmod(mode); err != nil { // of the file, so that no umask takes a bit away
		return err
	}
	if err = f.Sync(); err != nil {
		return err
	}
	if err = f.Close(); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), dst); err != nil {
		return err
	}
	return syncDir(filepath.Dir(dst))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// explain adds what to do about a refusal. The installer runs as root without the right to override
// permissions, so a folder that belongs to somebody else is closed to it.
func explain(dir string, err error) error {
	switch {
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w: %s must belong to root and be writable by its owner (chown root on the node), and SELinux, if on, must allow it", err, dir)
	case errors.Is(err, unix.EROFS):
		return fmt.Errorf("%w: %s is read-only on this node: give the folder that its container runtime is set to (containerd: bin_dirs, CRI-O: plugin_dirs)", err, dir)
	}
	return err
}
