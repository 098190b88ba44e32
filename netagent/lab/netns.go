package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/braidnet/braid/internal/kernel/netns"
)

// createNS makes a network namespace with its loopback link still down and binds it to
// /run/netns/name, where `ip netns` finds it too.
func createNS(name string) (err error) {
	if err := shareNames(); err != nil {
		return fmt.Errorf("create namespace %s: %w", name, err)
	}
	path := nsPath(name)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o444)
	if err != nil {
		return fmt.Errorf("create namespace %s: %w", name, err)
	}
	f.Close()
	defer func() {
		if err != nil {
			os.Remove(path)
		}
	}()
	done := make(chan error, 1)
	go func() {
		// The thread keeps the new namespace and ends with this goroutine: it is never unlocked.
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("create namespace %s: unshare: %w (needs root and CONFIG_NET_NS)", name, err)
			return
		}
		if err := unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, ""); err != nil {
			done <- fmt.Errorf("create namespace %s: bind its handle: %w", name, err)
			return
		}
		done <- nil
	}()
	return <-done
}

// shareNames makes /run/netns a mount point that mount namespaces share, as `ip netns add` does before its
// first name. Were it left to that, its mount would hide the handles that are there already, and they could
// not be removed any more.
func shareNames() error {
	if err := os.MkdirAll(netnsRoot, 0o755); err != nil {
		return err
	}
	dir, err := os.Open(netnsRoot)
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX); err != nil { // iproute2 takes the same lock
		return fmt.Errorf("lock %s: %w", netnsRoot, err)
	}
	err = unix.Mount("", netnsRoot, "", unix.MS_SHARED|unix.MS_REC, "")
	if errors.Is(err, unix.EINVAL) { // no mount point yet
		if err = unix.Mount(netnsRoot, netnsRoot, "", unix.MS_BIND|unix.MS_REC, ""); err == nil {
			err = unix.Mount("", netnsRoot, "", unix.MS_SHARED|unix.MS_REC, "")
		}
	}
	if err != nil {
		return fmt.Errorf("share %s among mount namespaces: %w", netnsRoot, err)
	}
	return nil
}

// deleteNS removes a namespace's handle. The kernel destroys the namespace with all its links once
// no process lives in it. A handle that is not there is fine.
func deleteNS(name string) error {
	path := nsPath(name)
	for {
		err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			break // not (or no longer) a mount; a handle may have been mounted more than once
		}
		if err != nil {
			return fmt.Errorf("unmount namespace %s: %w", name, err)
		}
	}
	if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
		return fmt.Errorf("remove namespace %s: %w", name, err)
	}
	return nil
}

// inNS runs fn inside the namespace behind a handle; sockets it opens and processes it starts belong
// to that namespace. fn must not leave its goroutine.
func inNS(path string, fn func() error) error {
	ns, err := netns.Open(path)
	if err != nil {
		return err
	}
	defer ns.Close()
	return ns.Do(fn)
}

// dialNS connects from inside a namespace. addr is numeric, so that no resolver runs elsewhere.
func dialNS(ctx context.Context, path, network, addr string) (conn net.Conn, err error) {
	err = inNS(path, func() (err error) {
		// With one numeric address the dialer makes its socket on the calling goroutine.
		conn, err = (&net.Dialer{FallbackDelay: -1}).DialContext(ctx, network, addr)
		return err
	})
	return conn, err
}

func listenNS(path, network, addr string) (l net.Listener, err error) {
	err = inNS(path, func() (err error) {
		l, err = net.Listen(network, addr)
		return err
	})
	return l, err
}

func listenPacketNS(path, network, addr string) (c net.PacketConn, err error) {
	err = inNS(path, func() (err error) {
		c, err = net.ListenPacket(network, addr)
		return err
	})
	return c, err
}

// nsID identifies a network namespace whatever path leads to it.
type nsID struct{ dev, ino uint64 }

// nsIDOf returns the namespace behind a handle; ok is false when path is not one.
func nsIDOf(path string) (id nsID, ok bool) {
	var fs unix.Statfs_t
	var st unix.Stat_t
	if unix.Statfs(path, &fs) != nil || fs.Type != unix.NSFS_MAGIC || unix.Stat(path, &st) != nil {
		return nsID{}, false
	}
	return nsID{uint64(st.Dev), st.Ino}, true
}
