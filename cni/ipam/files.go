package ipam

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
)

// remember writes down which address set i has given. Only the order of later ones hangs on that, so it waits for no
// disk, and a kill may leave the end of another address there.
func (s *Store) remember(i int, a netip.Addr) error {
	name := lastName + strconv.Itoa(i)
	if err := s.fault("write " + name); err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(s.dir, name), os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.WriteString(a.String()); err != nil {
		return err
	}
	return f.Truncate(int64(len(a.String())))
}

// link gives a file that is whole another name. A file system that cannot do that gets another file.
func (s *Store) link(from, name, content string) error {
	if err := s.fault("link " + name); err != nil {
		return err
	}
	err := os.Link(filepath.Join(s.dir, from), filepath.Join(s.dir, name))
	if err != nil && !errors.Is(err, os.ErrExist) {
		return s.write(name, content)
	}
	return err
}

// write makes a file appear whole or not at all: the content reaches the disk
// under another name first.
func (s *Store) write(name, content string) (err error) {
	tmp := filepath.Join(s.dir, newName)
	if err := s.fault("create " + name); err != nil {
		return err
	}
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, ignoreMissing(os.Remove(tmp)))
		}
	}()
	if err := s.fill(f, name, content); err != nil {
		return errors.Join(err, f.Close())
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := s.fault("rename " + name); err != nil {
		return err
	}
	return os.Rename(tmp, filepath.Join(s.dir, name))
}

func (s *Store) fill(f *os.File, name, content string) error {
	if err := s.fault("write " + name); err != nil {
		return err
	}
	if _, err := f.WriteString(content); err != nil {
		return err
	}
	if err := s.fault("sync " + name); err != nil {
		return err
	}
	return f.Sync()
}
