package main

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"
)

// attribute reads security.capability of a file; nil when it has none.
func attribute(t *testing.T, path string) []byte {
	t.Helper()
	buf := make([]byte, 64)
	n, err := unix.Getxattr(path, "security.capability", buf)
	if errors.Is(err, unix.ENODATA) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	return buf[:n]
}
