package ipam

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
)

// Owner is what an address is reserved for: one interface of one container.
type Owner struct {
	ContainerID string
	IfName      string // empty in files of an old host-local: any interface
}

func (o Owner) String() string { return o.ContainerID + "/" + o.IfName }

func (o Owner) encode() string { return o.ContainerID + "\r\n" + o.IfName }

// owns tells whether a reservation found on disk belongs to o.
func (o Owner) owns(found Owner) bool {
	return o.ContainerID == found.ContainerID && (found.IfName == o.IfName || found.IfName == "")
}

// Both are made when they are needed: STATUS, which runtimes call every few seconds, does without.
var (
	// containerID is the alphabet the CNI specification allows.
	containerID = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]*$`) })
	// wholeID is what runtimes call a container. A file that holds one and
	// nothing more is of an old host-local; anything shorter has been cut.
	wholeID = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[0-9a-f]{64}$`) })
)

// decodeOwner reads a reservation; ok is false for a torn one: empty, filled
// with zeros by the file system's recovery, or cut short.
func decodeOwner(content string) (o Owner, ok bool) {
	content = strings.TrimSpace(content)
	id, ifname, both := strings.Cut(content, "\r\n")
	if !both {
		return Owner{ContainerID: id}, wholeID().MatchString(id)
	}
	if !containerID().MatchString(id) || ifname == "" || strings.ContainsAny(ifname, "\x00/: \t\r\n") {
		return Owner{}, false
	}
	return Owner{ContainerID: id, IfName: ifname}, true
}

// book is what the folder said at one moment under the lock.
type book struct {
	held map[netip.Addr]Owner
	torn []netip.Addr
}

// of lists the addresses of an owner, in order.
func (b book) of(owner Owner) []netip.Addr {
	var list []netip.Addr
	for a, found := range b.held {
		if owner.owns(found) {
			list = append(list, a)
		}
	}
	slices.SortFunc(list, netip.Addr.Compare)
	return list
}

// count is the number of addresses of a set that are held.
func (b book) count(set Set) int {
	n := 0
	for a := range b.held {
		if set.Contains(a) {
			n++
		}
	}
	return n
}

// read reads all reservations. Names that are no addresses are not ours to
// judge. A file that cannot be read counts as held by nobody we know: giving
// an address twice is worse than losing one.
func (s *Store) read() (book, error) {
	b := book{held: map[netip.Addr]Owner{}}
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return b, fmt.Errorf("read the reservations: %w", err)
	}
	s.looked += len(entries)
	for _, e := range entries {
		addr, err := netip.ParseAddr(e.Name())
		if err != nil || addr.Zone() != "" {
			continue
		}
		path := filepath.Join(s.dir, e.Name())
		data, err := os.ReadFile(path)
		if err != nil {
			s.log.Warn("reservation is not readable: its address stays in use", "file", path, "err", err)
			b.held[addr] = Owner{}
			continue
		}
		if owner, ok := decodeOwner(string(data)); ok {
			b.held[addr] = owner
		} else {
			b.torn = append(b.torn, addr)
		}
	}
	return b, nil
}

// dropTorn removes reservations that a power cut left without an owner. Under
// the lock nobody can be in the middle of writing one.
func (s *Store) dropTorn(b book) {
	for _, a := range b.torn {
		s.log.Warn("reservation names no owner, as after a power cut: its address is free again",
			"file", filepath.Join(s.dir, a.String()))
		if err := s.remove(a); err != nil {
			s.log.Warn("torn reservation stays", "err", err)
		}
	}
}
