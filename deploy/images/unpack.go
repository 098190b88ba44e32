package main

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// unpack writes an image's files into a new folder, with their modes, links and capabilities. Only root may
// give a file capabilities.
func unpack(files []byte, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for r := tar.NewReader(bytes.NewReader(files)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		path := filepath.Join(dir, h.Name)
		switch h.Typeflag {
		case tar.TypeDir:
			err = os.Mkdir(path, 0o755)
		case tar.TypeSymlink:
			err = os.Symlink(h.Linkname, path)
		default:
			err = unpackFile(r, h, path)
		}
		if err != nil {
			return err
		}
	}
}

func unpackFile(r io.Reader, h *tar.Header, path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	if err = errors.Join(err, f.Chmod(h.FileInfo().Mode()), f.Close()); err != nil {
		return err
	}
	if caps, ok := h.PAXRecords[capabilityRecord]; ok {
		err = os.NewSyscallError("setxattr", unix.Setxattr(path, "security.capability", []byte(caps), 0))
	}
	return err
}
