package rig

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// Connect returns how long one IPv4 connection took from an address of this thread's namespace (0.0.0.0: any). It is
// reset at once, so that nothing of it is left on either side. Without an answer the error is EINPROGRESS, after patience.
func Connect(from netip.Addr, to netip.AddrPort, patience time.Duration) (time.Duration, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	wait := unix.NsecToTimeval(patience.Nanoseconds())
	err = errors.Join(unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &wait),
		unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1),
		unix.Bind(fd, &unix.SockaddrInet4{Addr: from.As4()}))
	if err != nil {
		return 0, err
	}
	begin := time.Now()
	for {
		err = unix.Connect(fd, &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())})
		if err != unix.EINTR && err != unix.EALREADY {
			break
		}
	}
	took := time.Since(begin)
	if err != nil && err != unix.EISCONN {
		return 0, fmt.Errorf("connect %s to %s: %w", from, to, err)
	}
	return took, nil
}
