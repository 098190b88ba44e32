// Package netns enters Linux network namespaces.
//
// A namespace belongs to a thread, not to a goroutine, so everything here
// locks the calling goroutine to its thread for as long as it is away from
// home. Functions run by Do must not hand their work to other goroutines:
// those run on threads that never left.
package netns

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// threadSelf is the namespace of the calling thread. /proc/self would be the
// one of the main thread, which is another one inside Do.
const threadSelf = "/proc/thread-self/ns/net"

// ErrNotNamespace says that a path exists, yet is no network namespace, such
// as the plain file that is left when a bind mount is gone.
var ErrNotNamespace = errors.New("not a network namespace")

// NS is an open network namespace. The namespace lives at least as long as
// the NS is open.
type NS struct {
	file *os.File
}

// Open opens the namespace a path names: a bind mount such as
// /run/netns/<name>, /proc/<pid>/ns/net, or /proc/<pid>/fd/<n>. A path that is
// not there gives an error for which errors.Is(err, os.ErrNotExist) holds.
func Open(path string) (*NS, error) {
	// Through the raw call: os.Open would add the descriptor to the runtime's
	// poller, which namespaces have no part in.
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open network namespace: %w", &os.PathError{Op: "open", Path: path, Err: err})
	}
	if kind, err := unix.IoctlRetInt(fd, unix.NS_GET_NSTYPE); err != nil || kind != unix.CLONE_NEWNET {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("open network namespace %s: %w", path, ErrNotNamespace)
	}
	return &NS{file: os.NewFile(uintptr(fd), path)}, nil
}

// Current opens the namespace the calling thread is in.
func Current() (*NS, error) { return Open(threadSelf) }

// New makes a namespace without a name: the kernel removes it when the last
// descriptor and the last process in it are gone, so even a killed caller
// leaves nothing behind. Its loopback interface is down.
func New() (ns *NS, err error) {
	err = away(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make a network namespace: %w", err)
		}
		var err error
		ns, err = Current()
		return err
	})
	return ns, err
}

// Do runs fn on the calling goroutine with its thread inside the namespace
// and comes back, also when fn panics.
func (n *NS) Do(fn func() error) error {
	return away(func() error {
		if err := unix.Setns(n.Fd(), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace %s: %w", n.file.Name(), err)
		}
		return fn()
	})
}

// away runs fn, which may change the namespace of the thread, and returns the
// thread to the namespace it was in. When that fails the goroutine stays
// locked to its thread, so that the runtime never hands a strayed thread to
// anybody else.
func away(fn func() error) (err error) {
	runtime.LockOSThread()
	home, err := Current()
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer func() {
		back := unix.Setns(home.Fd(), unix.CLONE_NEWNET)
		_ = home.Close()
		if back != nil {
			err = errors.Join(err, fmt.Errorf("return to the network namespace the thread came from: %w", back))
			return
		}
		runtime.UnlockOSThread()
	}()
	return fn()
}

// Here tells whether the calling thread is in the namespace. A socket made there needs no way in:
// entering a namespace takes CAP_SYS_ADMIN, even one's own.
func (n *NS) Here() bool {
	var own, other unix.Stat_t
	return unix.Stat(threadSelf, &own) == nil && unix.Fstat(n.Fd(), &other) == nil && own.Dev == other.Dev && own.Ino == other.Ino
}

// Fd is the open descriptor, for netlink attributes and sockets. It is valid
// until Close.
func (n *NS) Fd() int { return int(n.file.Fd()) }

// Path names the namespace for other processes as long as n is open.
func (n *NS) Path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.Fd()) }

// Same tells whether two descriptors are of one namespace.
func (n *NS) Same(other *NS) (bool, error) {
	var a, b unix.Stat_t
	if err := unix.Fstat(n.Fd(), &a); err != nil {
		return false, fmt.Errorf("stat network namespace %s: %w", n.file.Name(), err)
	}
	if err := unix.Fstat(other.Fd(), &b); err != nil {
		return false, fmt.Errorf("stat network namespace %s: %w", other.file.Name(), err)
	}
	return a.Dev == b.Dev && a.Ino == b.Ino, nil
}

// Close gives the namespace up; the kernel removes it once nobody else holds
// it.
func (n *NS) Close() error { return n.file.Close() }
