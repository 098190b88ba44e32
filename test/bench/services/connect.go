package main

import (
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// connects is how many connections to each target are timed, in turn.
const connects = 1000

// latencies times how long connections take to be established: to a pod in a world without any rules, and
// through the first, the middle and the last service. A pod of the subject's own world is no measure: packets to it pass
// the same rules. They are made in turn, so that what else the machine does meets all alike.
func (r *run) latencies() (bare []time.Duration, through [3][]time.Duration, err error) {
	free, err := newWorld()
	if err != nil {
		return nil, through, err
	}
	defer free.close()
	n := r.cluster.services
	targets := []struct {
		in   *world
		to   netip.Addr
		port int
		into *[]time.Duration
	}{
		{free, directTarget, podPort, &bare},
		{r.world, vip(0), servicePort, &through[0]}, {r.world, vip(n / 2), servicePort, &through[1]}, {r.world, vip(n - 1), servicePort, &through[2]},
	}
	const warm = 20
	for i := range connects + warm {
		for _, t := range targets {
			var took time.Duration
			err := t.in.client.Do(func() (err error) {
				took, err = connect(t.to, t.port)
				return err
			})
			if err != nil {
				return nil, through, err
			}
			if i >= warm {
				*t.into = append(*t.into, took)
			}
		}
	}
	return bare, through, nil
}

// connect returns how long one connection took; it is reset at once.
func connect(to netip.Addr, port int) (time.Duration, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
		return 0, err
	}
	begin := time.Now()
	for {
		err = unix.Connect(fd, &unix.SockaddrInet4{Addr: to.As4(), Port: port})
		if err != unix.EINTR && err != unix.EALREADY {
			break
		}
	}
	took := time.Since(begin)
	if err != nil && err != unix.EISCONN {
		return 0, fmt.Errorf("connect to %s:%d: %w", to, port, err)
	}
	return took, nil
}
