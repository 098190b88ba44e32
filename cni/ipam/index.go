package ipam

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// The index spares ADD and DEL a look at every reservation. Folder `owners` has, for each owner, a file with the
// addresses that he may hold: written before the reservation and removed after it, so it lacks none however a call
// ends. Reservations count, not the index: an address in it whose file names somebody else is not held.
//
// It is complete as long as nobody else has changed the folder (host-local, a person) and no power cut may have taken
// half of it. So a stamp beside it says in which boot, and which modification time the folder had then. With another
// one everything is read once, and the index made anew.
const (
	ownersName = "owners"
	stampName  = "stamp" // not a hash, so no owner's
	bootID     = "/proc/sys/kernel/random/boot_id"
)

func (s *Store) ownersFile(o Owner) string {
	sum := sha256.Sum256([]byte(o.encode()))
	return filepath.Join(s.dir, ownersName, hex.EncodeToString(sum[:16]))
}

// now is what the stamp has to say; empty where that cannot be found out.
func (s *Store) now() string {
	if s.boot == "" {
		boot, err := os.ReadFile(bootID)
		if err != nil {
			return ""
		}
		s.boot = strings.TrimSpace(string(boot))
	}
	info, err := os.Stat(s.dir)
	if err != nil {
		return ""
	}
	return fmt.Sprintf("%s %020d\n", s.boot, info.ModTime().UnixNano())
}

// indexed tells whether the index has all reservations.
func (s *Store) indexed() bool {
	s.looked += 3
	data, err := os.ReadFile(filepath.Join(s.dir, ownersName, stampName))
	return err == nil && len(data) > 0 && string(data) == s.now()
}

// stamp says that the index has all reservations now. Without it the next call reads them all.
func (s *Store) stamp() {
	if s.unsound {
		return
	}
	if err := os.WriteFile(filepath.Join(s.dir, ownersName, stampName), []byte(s.now()), 0o600); err != nil {
		s.log.Warn("the index of reservations cannot be kept: every call will read them all", "err", err)
	}
}

// holds lists the addresses of an owner, in order, by the index.
func (s *Store) holds(owner Owner) (list []netip.Addr) {
	for _, o := range []Owner{owner, {ContainerID: owner.ContainerID}} {
		s.looked++
		data, err := os.ReadFile(s.ownersFile(o))
		if err != nil {
			continue
		}
		for text := range strings.FieldsSeq(string(data)) {
			if a, err := netip.ParseAddr(text); err == nil && owner.owns(s.ownerOf(a)) && !slices.Contains(list, a) {
				list = append(list, a)
			}
		}
	}
	slices.SortFunc(list, netip.Addr.Compare)
	return list
}

// ownerOf reads one reservation; the zero Owner for one that is not there or names nobody.
func (s *Store) ownerOf(a netip.Addr) Owner {
	s.looked++
	data, err := os.ReadFile(filepath.Join(s.dir, a.String()))
	if err != nil {
		return Owner{}
	}
	owner, _ := decodeOwner(string(data))
	return owner
}

// note writes down that an owner is about to hold addresses.
func (s *Store) note(owner Owner, addrs []netip.Addr) error {
	if err := s.fault("note " + owner.String()); err != nil {
		return err
	}
	var text strings.Builder
	for _, a := range addrs {
		fmt.Fprintln(&text, a)
	}
	err := os.WriteFile(s.ownersFile(owner), []byte(text.String()), 0o600)
	if errors.Is(err, os.ErrNotExist) {
		if err = os.Mkdir(filepath.Join(s.dir, ownersName), 0o755); err == nil {
			err = os.WriteFile(s.ownersFile(owner), []byte(text.String()), 0o600)
		}
	}
	if err != nil {
		return fmt.Errorf("note addresses of %s: %w", owner, err)
	}
	return nil
}

// forget takes an owner out of the index.
func (s *Store) forget(owner Owner) {
	for _, o := range []Owner{owner, {ContainerID: owner.ContainerID}} {
		if err := ignoreMissing(os.Remove(s.ownersFile(o))); err != nil {
			s.log.Warn("an owner stays in the index of reservations", "owner", o, "err", err)
		}
	}
}

// rebuild makes the index anew of everything that is reserved.
func (s *Store) rebuild(b book) error {
	if err := s.fault("rebuild the index"); err != nil {
		return err
	}
	owners := map[Owner][]netip.Addr{}
	for a, o := range b.held {
		if o == (Owner{}) {
			continue // of a file that cannot be read
		}
		owners[o] = append(owners[o], a)
	}
	if err := os.RemoveAll(filepath.Join(s.dir, ownersName)); err != nil {
		return fmt.Errorf("make the index of reservations anew: %w", err)
	}
	for o, addrs := range owners {
		if err := s.note(o, addrs); err != nil {
			return err
		}
	}
	if len(owners) == 0 {
		if err := os.MkdirAll(filepath.Join(s.dir, ownersName), 0o755); err != nil {
			return fmt.Errorf("make the index of reservations anew: %w", err)
		}
	}
	return nil
}

// mostProbes is how many addresses are asked for one by one. Where more in a row are taken, all names are read once.
const mostProbes = 64

// probe returns a function that tells whether an address is taken.
func (s *Store) probe(gateways map[netip.Addr]bool) func(netip.Addr) bool {
	var names map[string]bool
	asked := 0
	return func(a netip.Addr) bool {
		if gateways[a] {
			return true
		}
		if asked++; asked > mostProbes && names == nil {
			s.looked++
			entries, err := os.ReadDir(s.dir)
			if err == nil {
				names = make(map[string]bool, len(entries))
				for _, e := range entries {
					names[e.Name()] = true
				}
			}
		}
		if names != nil {
			return names[a.String()]
		}
		s.looked++
		_, err := os.Lstat(filepath.Join(s.dir, a.String()))
		return !errors.Is(err, os.ErrNotExist) // giving an address twice is worse than losing one
	}
}
