package main

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/braidnet/braid/internal/kernel/netns"
)

// probe connects from the client's namespace to a service again and again, without waiting for one
// attempt before the next, until one has the outcome that is waited for. It is for one goroutine.
type probe struct {
	client *netns.NS
	every  time.Duration // between attempts; it grows with the time waited, to a hundredth
	spread int           // how many pods answer for a service, one of which is waited for: that many times as often
	port   int
	ended  <-chan struct{} // closed when there is nothing to wait for any more
}

// openMax bounds the attempts without an answer yet; the oldest are given up.
const openMax = 128

// outcome is what came of an attempt: the pod that answered, or a refusal.
type outcome struct {
	pod     netip.Addr
	refused bool
}

var (
	errLimit = errors.New("time limit")
	errEnded = errors.New("the program has ended")
)

// await returns when the first wanted outcome came. It fails with errLimit when that takes too long, with errEnded
// when the program behind it ends.
func (p *probe) await(to netip.Addr, limit time.Duration, wanted func(outcome) bool) (came time.Time, err error) {
	err = p.client.Do(func() error {
		came, err = p.loop(to, limit, wanted)
		return err
	})
	return came, err
}

func (p *probe) loop(to netip.Addr, limit time.Duration, wanted func(outcome) bool) (time.Time, error) {
	begin := time.Now()
	var open []unix.PollFd
	defer func() {
		for _, f := range open {
			unix.Close(int(f.Fd))
		}
	}()
	for next := begin; ; {
		now := time.Now()
		if now.Sub(begin) > limit {
			return now, errLimit
		}
		select {
		case <-p.ended:
			return now, errEnded
		default:
		}
		if !now.Before(next) {
			fd, err := dial(to, p.port)
			if err != nil {
				return now, err
			}
			open = append(open, unix.PollFd{Fd: int32(fd), Events: unix.POLLIN})
			if len(open) > openMax {
				unix.Close(int(open[0].Fd))
				open = open[1:]
			}
			next = now.Add(p.pause(now.Sub(begin)))
		}
		wait := unix.NsecToTimespec(max(0, time.Until(next)).Nanoseconds())
		if _, err := unix.Ppoll(open, &wait, nil); err != nil && err != unix.EINTR {
			return now, fmt.Errorf("wait for an answer: %w", err)
		}
		came, left := time.Now(), open[:0]
		for i, f := range open {
			if f.Revents == 0 {
				left = append(left, f)
				continue
			}
			got, ok := result(int(f.Fd))
			unix.Close(int(f.Fd))
			if ok && wanted(got) {
				open = append(left, open[i+1:]...)
				return came, nil
			}
		}
		open = left
	}
}

// pause is how long to wait before the next attempt.
func (p *probe) pause(waited time.Duration) time.Duration {
	const mostSpread = 5 // a processor's worth of attempts would be in the way of what is measured
	return max(p.every/time.Duration(min(max(p.spread, 1), mostSpread)), waited/time.Duration(100*max(p.spread, 1)))
}

// dial begins a connection. Closing it resets it, so that nothing of it is left on either side.
func dial(to netip.Addr, port int) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("make a socket: %w", err)
	}
	err = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	if err == nil {
		err = unix.Connect(fd, &unix.SockaddrInet4{Addr: to.As4(), Port: port})
	}
	if err != nil && err != unix.EINPROGRESS {
		unix.Close(fd)
		return 0, fmt.Errorf("connect to %s: %w", to, err)
	}
	return fd, nil
}

// result is the outcome of an attempt that has one; ok is false for others, such as no route.
func result(fd int) (o outcome, ok bool) {
	var b [4]byte
	n, err := unix.Read(fd, b[:])
	switch {
	case err == unix.ECONNREFUSED:
		return outcome{refused: true}, true
	case err != nil || n != len(b):
		return outcome{}, false
	}
	return outcome{pod: netip.AddrFrom4(b)}, true
}

// by wants an answer of one pod.
func by(pod netip.Addr) func(outcome) bool { return func(o outcome) bool { return o.pod == pod } }

// byAny wants an answer of any pod.
func byAny(o outcome) bool { return !o.refused }
