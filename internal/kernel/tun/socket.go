package tun

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// maxDatagram is the most that one message of a socket can carry: 65,535 bytes less the headers.
const (
	maxDatagram4 = 65535 - ipv4Len - udpLen
	maxDatagram6 = 65535 - udpLen
)

// buffer is what sockets may queue: bursts of superpackets, bytes.
const buffer = 7 << 20

// sockaddr is an address in the kernel's form.
type sockaddr struct {
	raw unix.RawSockaddrInet6 // room for both families
	len uint32
}

func newSockaddr(a netip.AddrPort) (s sockaddr) {
	if a.Addr().Is4() {
		in := (*unix.RawSockaddrInet4)(unsafe.Pointer(&s.raw))
		in.Family, in.Addr = unix.AF_INET, a.Addr().As4()
		binary.BigEndian.PutUint16((*[2]byte)(unsafe.Pointer(&in.Port))[:], a.Port())
		s.len = unix.SizeofSockaddrInet4
		return s
	}
	s.raw.Family, s.raw.Addr = unix.AF_INET6, a.Addr().As16()
	binary.BigEndian.PutUint16((*[2]byte)(unsafe.Pointer(&s.raw.Port))[:], a.Port())
	s.len = unix.SizeofSockaddrInet6
	return s
}

// addrPort is the address in Go's form; invalid when there is none.
func (s *sockaddr) addrPort() netip.AddrPort {
	port := binary.BigEndian.Uint16((*[2]byte)(unsafe.Pointer(&s.raw.Port))[:]) // both families have it in one place
	switch s.raw.Family {
	case unix.AF_INET:
		return netip.AddrPortFrom(netip.AddrFrom4((*unix.RawSockaddrInet4)(unsafe.Pointer(&s.raw)).Addr), port)
	case unix.AF_INET6:
		return netip.AddrPortFrom(netip.AddrFrom16(s.raw.Addr), port)
	}
	return netip.AddrPort{}
}

// listen opens a socket in the network namespace of the calling thread. Several share one address; the
// kernel gives each peer to one of them. What the kernel lacks of the features is taken from f.
func listen(local netip.AddrPort, f *Features) (*os.File, error) {
	family := unix.AF_INET6
	if local.Addr().Is4() {
		family = unix.AF_INET
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_UDP)
	if err != nil {
		return nil, fmt.Errorf("open a UDP socket: %w", err)
	}
	if err = prepare(fd, family, local, f); err != nil {
		_ = unix.Close(fd)
		if errors.Is(err, unix.EADDRINUSE) {
			err = fmt.Errorf("%w: another program has this port: stop it (flannel, when this node is being migrated), or set another udp-port on all nodes", err)
		}
		return nil, fmt.Errorf("listen on UDP %s: %w", local, err)
	}
	return os.NewFile(uintptr(fd), "udp "+local.String()), nil
}

func prepare(fd, family int, local netip.AddrPort, f *Features) error {
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1); err != nil {
		return err
	}
	// The address may not be there for a moment: a new IPv6 one, or a device that is being set up again.
	var sa unix.Sockaddr
	if family == unix.AF_INET {
		sa = &unix.SockaddrInet4{Port: int(local.Port()), Addr: local.Addr().As4()}
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_FREEBIND, 1); err != nil {
			return err
		}
	} else {
		sa = &unix.SockaddrInet6{Port: int(local.Port()), Addr: local.Addr().As16()}
		for _, option := range []int{unix.IPV6_V6ONLY, unix.IPV6_FREEBIND} {
			if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, option, 1); err != nil {
				return err
			}
		}
	}
	for force, plain := range map[int]int{unix.SO_RCVBUFFORCE: unix.SO_RCVBUF, unix.SO_SNDBUFFORCE: unix.SO_SNDBUF} {
		if unix.SetsockoptInt(fd, unix.SOL_SOCKET, force, buffer) != nil { // without NET_ADMIN: what the system allows
			if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, plain, buffer); err != nil {
				return err
			}
		}
	}
	if _, err := unix.GetsockoptInt(fd, unix.SOL_UDP, unix.UDP_SEGMENT); err != nil {
		*f &^= SendGroups
	}
	if *f&RecvGroups != 0 && unix.SetsockoptInt(fd, unix.SOL_UDP, unix.UDP_GRO, 1) != nil {
		*f &^= RecvGroups
	}
	return unix.Bind(fd, sa)
}

// mmsghdr is struct mmsghdr of sendmmsg(2) and recvmmsg(2).
type mmsghdr struct {
	unix.Msghdr
	n uint32
	_ [4]byte
}

// groupControl is the control message UDP_SEGMENT or UDP_GRO, with the size of each datagram.
type groupControl struct {
	unix.Cmsghdr
	size uint16
	_    [6]byte
	room [32]byte // the kernel's value is an int; and it may have more to say
}

const controlSegment = unix.SizeofCmsghdr + 8 // CMSG_SPACE of two bytes

func (c *groupControl) segment(size int) {
	c.Level, c.Type = unix.SOL_UDP, unix.UDP_SEGMENT
	c.SetLen(unix.SizeofCmsghdr + 2)
	c.size = uint16(size)
}

// received returns the size of each datagram in a message of n bytes.
func (c *groupControl) received(used uint64, n int) int {
	if used >= unix.SizeofCmsghdr+4 && c.Level == unix.SOL_UDP && c.Type == unix.UDP_GRO {
		if size := int(*(*int32)(unsafe.Pointer(&c.size))); size > 0 {
			return size
		}
	}
	return n
}

// pathMTU asks the kernel for the MTU of the way to a node, in bytes of the outer packet. The socket is
// of the node's family and serves nothing else.
func pathMTU(fd int, to netip.AddrPort) (int, error) {
	if to.Addr().Is4() {
		if err := unix.Connect(fd, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}); err != nil {
			return 0, err
		}
		return unix.GetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU)
	}
	if err := unix.Connect(fd, &unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()}); err != nil {
		return 0, err
	}
	return unix.GetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MTU)
}
