package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/braidnet/braid/internal/kernel/netns"
	"github.com/braidnet/braid/test/bench/rig"
)

var errLimit = errors.New("time limit")

// every is the pause between two connections that look for a change.
const every = 500 * time.Microsecond

// await makes connections until one is allowed, or until none is any more, and returns when the first of those began.
// What is dropped, and not refused, counts as denied when nothing came back in a fifth of a second, twice.
func await(from *netns.NS, source, to netip.Addr, allowed bool, limit time.Duration, ended <-chan struct{}) (at time.Time, err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	patience := 200 * time.Millisecond
	if allowed {
		patience = 20 * time.Millisecond
	}
	err = from.Do(func() error {
		silent := 0
		for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(every) {
			select {
			case <-ended:
				return errors.New("the program has ended")
			default:
			}
			begin := time.Now()
			_, err := rig.Connect(source, netip.AddrPortFrom(to, podPort), patience)
			switch {
			case err == nil && allowed, !allowed && refused(err):
				at = begin
				return nil
			case !allowed && errors.Is(err, unix.EINPROGRESS):
				if silent++; silent == 1 {
					at = begin
				}
				if silent == 2 {
					return nil
				}
			case err == nil:
				silent = 0
			case !refused(err) && !errors.Is(err, unix.EINPROGRESS):
				return err
			}
		}
		return errLimit
	})
	return at, err
}

func refused(err error) bool {
	return errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.EHOSTUNREACH) || errors.Is(err, unix.EACCES) || errors.Is(err, unix.ENETUNREACH)
}

// pair is the client and the server of a world, for what a packet and what a connection costs.
type pair struct {
	*world
	fd int // a socket of the client that is connected to the server, for datagrams
}

func newPair(w *world) (p pair, err error) {
	p = pair{w, -1}
	err = w.client.Do(func() error {
		p.fd, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		wait := unix.NsecToTimeval(time.Second.Nanoseconds())
		return errors.Join(unix.SetsockoptTimeval(p.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait),
			unix.Connect(p.fd, &unix.SockaddrInet4{Addr: serverAddr.As4(), Port: podPort}))
	})
	return p, err
}

// packet returns how long a datagram and its answer took. One that is lost is sent again, a few times.
func (p pair) packet() (took time.Duration, err error) {
	var b [64]byte
	for range 3 {
		begin := time.Now()
		if _, err := unix.Write(p.fd, b[:]); err != nil {
			return 0, fmt.Errorf("datagram: %w", err)
		}
		if _, err = unix.Read(p.fd, b[:]); err == nil {
			return time.Since(begin), nil
		}
		fmt.Fprintln(os.Stderr, "answer to a datagram:", err)
	}
	return 0, fmt.Errorf("answer to a datagram: %w", err)
}

// connection returns how long a connection took.
func (p pair) connection() (took time.Duration, err error) {
	err = p.client.Do(func() error {
		took, err = rig.Connect(clientAddr, netip.AddrPortFrom(serverAddr, podPort), time.Second)
		return err
	})
	return took, err
}
