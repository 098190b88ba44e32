package ipam

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// TestAddressesOfAPodAreOneFile: the disk is waited for once. Nobody else's reservation is taken by giving the file
// another name, and one address can go without the other, as host-local does it.
func TestAddressesOfAPodAreOneFile(t *testing.T) {
	dir := t.TempDir()
	s := open(dir)
	leases, err := s.Allocate(pod1, dual(t))
	if err != nil {
		t.Fatal(err)
	}
	inode := func(name string) uint64 {
		info, err := os.Stat(filepath.Join(s.dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return info.Sys().(*syscall.Stat_t).Ino
	}
	first, second := leases[0].Addr.String(), leases[1].Addr.String()
	if inode(first) != inode(second) {
		t.Errorf("%s and %s are different files", first, second)
	}
	put(t, dir, "10.9.9.9", pod2.encode())
	if err := s.link(first, "10.9.9.9", pod1.encode()); !errors.Is(err, os.ErrExist) {
		t.Errorf("a link in place of another's reservation: %v", err)
	}
	if err := os.Remove(filepath.Join(s.dir, first)); err != nil {
		t.Fatal(err)
	}
	if freed, err := open(dir).Release(pod1); err != nil || len(freed) != 1 || freed[0] != leases[1].Addr {
		t.Errorf("released %v, %v, want %s", freed, err, second)
	}
	// Without a first file there is nothing to link to, as on a file system that cannot do it.
	if err := s.link("10.1.1.1", "10.1.1.2", pod1.encode()); err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(filepath.Join(s.dir, "10.1.1.2")); err != nil || string(data) != pod1.encode() {
		t.Errorf("without links the reservation says %q, %v", data, err)
	}
}
