package ipam

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// DefaultDir is where host-local keeps its reservations.
const DefaultDir = "/var/lib/cni/networks"

const (
	lockName = "lock"
	lastName = "last_reserved_ip."
	// newName is what a file is called until it is whole. One name is enough:
	// only the holder of the lock writes, and what a killed writer left there
	// is overwritten by the next.
	newName = "reservation.new"
)

// ErrHeld says that an owner already has addresses. As with host-local, a
// second ADD is refused rather than answered with the same addresses: were
// it not, the clean-up of an ADD that fails would take the addresses of the
// one that succeeded. A runtime that wants to try again calls DEL first.
var ErrHeld = errors.New("addresses are already reserved for this interface")

// ErrExhausted says that a set has no free address. It passes when pods go.
var ErrExhausted = errors.New("no free address")

// Store is the folder of one network. Any number of processes may use it.
type Store struct {
	dir string
	log *slog.Logger
	// fault is called before each step that changes the disk; tests fail or
	// end the process there.
	fault   func(step string) error
	boot    string // which this is, once it was asked for
	unsound bool   // the index lacks something, so it must not be said to be complete
	// looked counts the files and folders that were looked at.
	looked int
}

// Open names the folder; nothing is read or made before it is needed.
func Open(dataDir, network string, log *slog.Logger) *Store {
	return &Store{
		dir:   filepath.Join(dataDir, network),
		log:   log,
		fault: func(string) error { return nil },
	}
}

// Allocate reserves one address from each set for owner: all of them or, on
// an error, none. From a set that has one of wanted it gives that one. When it
// returns the reservations have reached the disk.
func (s *Store) Allocate(owner Owner, sets []Set, wanted ...netip.Addr) (leases []Lease, err error) {
	if err := s.make(); err != nil {
		return nil, err
	}
	unlock, err := s.lock()
	if err != nil {
		return nil, err
	}
	defer unlock()

	if err := s.index(); err != nil {
		return nil, err
	}
	defer s.stamp()
	if held := s.holds(owner); len(held) > 0 {
		return nil, fmt.Errorf("%s holds %v: %w; call DEL before ADD", owner, held, ErrHeld)
	}
	gateways, addrs := gatewaysOf(sets), []netip.Addr(nil)
	for i, set := range sets { // which have no address in common
		lease, err := s.choose(i, set, wanted, gateways)
		if err != nil {
			return nil, err
		}
		leases, addrs = append(leases, lease), append(addrs, lease.Addr)
	}
	made, err := s.reserve(owner, addrs)
	if err != nil {
		err = errors.Join(err, s.removeAll(made))
		s.forget(owner)
		return nil, err
	}
	return leases, nil
}

// reserve makes the reservations of an owner, and says which it made also when not all could be.
func (s *Store) reserve(owner Owner, addrs []netip.Addr) (made []netip.Addr, err error) {
	if err := s.note(owner, addrs); err != nil {
		return nil, err
	}
	for i, a := range addrs {
		// They all say the same. So they are one file with as many names, which has to be waited for once only.
		if i == 0 {
			err = s.write(a.String(), owner.encode())
		} else {
			err = s.link(addrs[0].String(), a.String(), owner.encode())
		}
		if err != nil {
			return made, fmt.Errorf("reserve %s for %s: %w", a, owner, err)
		}
		made = append(made, a)
	}
	for i, a := range addrs {
		if err := s.remember(i, a); err != nil {
			return made, fmt.Errorf("remember %s as last address: %w", a, err)
		}
	}
	return made, s.syncDir()
}

// index makes the index anew where it may lack something.
func (s *Store) index() error {
	if s.indexed() {
		return nil
	}
	book, err := s.read()
	if err != nil {
		return err
	}
	s.dropTorn(book)
	return s.rebuild(book)
}

// choose finds the address for set i.
func (s *Store) choose(i int, set Set, wanted []netip.Addr, gateways map[netip.Addr]bool) (Lease, error) {
	taken := s.probe(gateways)
	if lease, ok := set.lease(wanted); ok {
		if taken(lease.Addr) {
			return Lease{}, fmt.Errorf("%w: %s was asked for, and is a gateway or belongs to another pod (%s)", ErrExhausted, lease.Addr, s.ownerOf(lease.Addr))
		}
		return lease, nil
	}
	if lease, ok := set.Pick(s.last(i), taken); ok {
		return lease, nil
	}
	book, err := s.read()
	if err != nil {
		return Lease{}, err
	}
	return Lease{}, fmt.Errorf("%w in %s: %d of %s in use; delete pods or give the node a larger range",
		ErrExhausted, set, book.count(set), set.size(gateways))
}

// Release gives back every address of owner and says which those were. It is
// no error when there are none.
func (s *Store) Release(owner Owner) ([]netip.Addr, error) {
	unlock, err := s.lock()
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil // no folder, no reservation
	}
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := s.dropUnfinished(); err != nil {
		return nil, err
	}
	held, err := s.heldFor(owner)
	if err != nil {
		return nil, err
	}
	defer s.stamp()
	for _, a := range held {
		if err := s.remove(a); err != nil {
			return nil, err
		}
	}
	if len(held) > 0 {
		if err := s.syncDir(); err != nil {
			return nil, err
		}
	}
	s.forget(owner)
	return held, nil
}

// heldFor lists the addresses that an owner is to give back. What makes the index anew may fail on a disk that is full:
// that costs the next call a look at everything, and must not keep a pod from being removed, which may make room.
func (s *Store) heldFor(owner Owner) ([]netip.Addr, error) {
	if s.indexed() {
		return s.holds(owner), nil
	}
	book, err := s.read()
	if err != nil {
		return nil, err
	}
	s.dropTorn(book)
	if err := s.rebuild(book); err != nil {
		s.log.Warn("the index of reservations cannot be made anew", "err", err)
		s.unsound = true
	}
	return book.of(owner), nil
}

// Stale lists the owners of reservations that valid denies, each once. Reservations that name nobody, as a
// power cut leaves them, and unfinished ones are removed.
func (s *Store) Stale(valid func(Owner) bool) (owners []Owner, err error) {
	unlock, err := s.lock()
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := s.dropUnfinished(); err != nil {
		return nil, err
	}
	book, err := s.read()
	if err != nil {
		return nil, err
	}
	s.dropTorn(book)
	for _, o := range book.held {
		if o != (Owner{}) && !valid(o) && !slices.Contains(owners, o) {
			owners = append(owners, o)
		}
	}
	slices.SortFunc(owners, func(a, b Owner) int { return strings.Compare(a.String(), b.String()) })
	return owners, nil
}

// Held lists the addresses of owner, in order.
func (s *Store) Held(owner Owner) ([]netip.Addr, error) {
	unlock, err := s.lock()
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer unlock()
	if s.indexed() {
		return s.holds(owner), nil
	}
	book, err := s.read() // CHECK changes nothing, not even the index
	return book.of(owner), err
}

func gatewaysOf(sets []Set) map[netip.Addr]bool {
	m := map[netip.Addr]bool{}
	for _, set := range sets {
		for _, r := range set {
			m[r.Gateway] = true
		}
	}
	return m
}

// dropUnfinished removes what somebody who was killed while writing has left; it may have been the ADD
// whose DEL this is.
func (s *Store) dropUnfinished() error {
	if err := ignoreMissing(os.Remove(filepath.Join(s.dir, newName))); err != nil {
		return fmt.Errorf("remove an unfinished reservation: %w", err)
	}
	return nil
}

// make makes the folder and sees to it that it survives a power cut, too.
func (s *Store) make() error {
	if _, err := os.Stat(s.dir); err == nil {
		return nil
	}
	if err := os.MkdirAll(s.dir, 0o755); err != nil {
		return fmt.Errorf("make the folder of reservations: %w", err)
	}
	return syncFolder(filepath.Dir(s.dir))
}

// lock waits until no other process or goroutine works on the folder. The
// kernel frees the lock of a process that dies.
func (s *Store) lock() (unlock func(), err error) {
	path := filepath.Join(s.dir, lockName)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the reservations: %w", err)
	}
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if err == nil {
			return func() { _ = f.Close() }, nil
		}
		if err != unix.EINTR {
			_ = f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
	}
}

// last is the address given last from set i, or the zero address when that is
// not known; then the set starts over, which costs only the rest an address
// would have had.
func (s *Store) last(i int) netip.Addr {
	path := filepath.Join(s.dir, lastName+strconv.Itoa(i))
	data, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return netip.Addr{}
	}
	var addr netip.Addr
	if err == nil {
		addr, err = netip.ParseAddr(string(data))
	}
	if err != nil {
		s.log.Warn("last reserved address is not readable: starting over", "file", path, "err", err)
	}
	return addr
}

func (s *Store) remove(a netip.Addr) error {
	err := s.fault("remove " + a.String())
	if err == nil {
		err = ignoreMissing(os.Remove(filepath.Join(s.dir, a.String())))
	}
	if err != nil {
		return fmt.Errorf("release %s: %w", a, err)
	}
	return nil
}

// removeAll undoes the reservations of a failed Allocate. It does not call
// fault: what is tested is that this works after a fault.
func (s *Store) removeAll(made []netip.Addr) error {
	var errs []error
	for _, a := range made {
		errs = append(errs, ignoreMissing(os.Remove(filepath.Join(s.dir, a.String()))))
	}
	if len(made) > 0 {
		errs = append(errs, syncFolder(s.dir))
	}
	return errors.Join(errs...)
}

func (s *Store) syncDir() error {
	if err := s.fault("sync folder"); err != nil {
		return err
	}
	return syncFolder(s.dir)
}

func syncFolder(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync the folder of reservations: %w", err)
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		return fmt.Errorf("sync the folder of reservations: %w", err)
	}
	return nil
}

func ignoreMissing(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}
