// Package icmp asks another machine for ICMP echoes (RFC 792, RFC 4443) of chosen sizes, none of which may be split on
// the way: what comes back tells which packets a path takes.
package icmp

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/braidnet/braid/internal/kernel/sysctl"
)

const (
	headerLen = 8  // of ICMP
	tokenLen  = 16 // what tells our answers from others', at the begin of the data

	request4, reply4 = 8, 0
	request6, reply6 = 128, 129

	icmpFilter   = 1 // ICMP_FILTER of linux/icmp.h
	icmp6Filter  = 1 // ICMPV6_FILTER of linux/icmpv6.h
	pingGroups   = "net/ipv4/ping_group_range"
	onlyRoot     = "0\t0" // as the kernel prints it
	maxSequences = 1 << 16
)

// MinSize is the smallest packet, in bytes, that Echo can send to an address.
func MinSize(to netip.Addr) int { return ipHeader(to) + headerLen + tokenLen }

func ipHeader(a netip.Addr) int {
	if a.Is4() {
		return 20
	}
	return 40
}

// Echo sends one echo request of each size, in bytes of the whole IP packet, and returns which of them were answered
// within wait, with an answer of the same size. It returns at once when all are. Paths of which the kernel has learned that they
// take less are tried all the same. What this machine itself refuses to send was not answered; the error is of having no
// means to ask. The socket is made in the network namespace of the calling thread.
func Echo(ctx context.Context, to netip.Addr, sizes []int, wait time.Duration) (answered []bool, err error) {
	answered = make([]bool, len(sizes))
	for _, size := range sizes {
		if size < MinSize(to) || size > 65535 || len(sizes) > maxSequences {
			return answered, fmt.Errorf("ask %s for an echo of %d bytes: the size must be %d to 65535", to, size, MinSize(to))
		}
	}
	s, err := open(to)
	if err != nil {
		return answered, fmt.Errorf("ask %s for an echo: %w", to, err)
	}
	defer s.file.Close()
	end := time.Now().Add(wait)
	if d, ok := ctx.Deadline(); ok && d.Before(end) {
		end = d
	}
	_ = s.file.SetReadDeadline(end) // such files have deadlines
	stop := context.AfterFunc(ctx, func() { _ = s.file.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	missing := 0
	for seq, size := range sizes {
		if s.send(uint16(seq), size) == nil {
			missing++
		}
	}
	buf := make([]byte, 65536)
	for missing > 0 {
		seq, size, err := s.receive(buf)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return answered, nil
		case err != nil || seq >= len(sizes) || sizes[seq] != size || answered[seq]:
			continue // an error that ICMP told of, or a stranger's packet
		}
		answered[seq] = true
		missing--
	}
	return answered, nil
}

// socket sends to one address and gets what comes from there.
type socket struct {
	file  *os.File
	to    netip.Addr
	raw   bool // IPv4: what comes has its IP header
	token [tokenLen]byte
}

func open(to netip.Addr) (*socket, error) {
	s := &socket{to: to}
	if _, err := rand.Read(s.token[:]); err != nil {
		return nil, err
	}
	family, protocol := unix.AF_INET6, unix.IPPROTO_ICMPV6
	if to.Is4() {
		family, protocol = unix.AF_INET, unix.IPPROTO_ICMP
	}
	fd, raw, err := socketOf(family, protocol)
	if err != nil {
		return nil, err
	}
	s.raw = raw
	if err := s.prepare(fd); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	s.file = os.NewFile(uintptr(fd), "icmp "+to.String())
	return s, nil
}

// socketOf makes a socket of the kind that needs no right but a group's, else one that needs NET_RAW. Where nobody is in
// the group, as in a new namespace, it lets the group root in, which takes no more than NET_ADMIN.
func socketOf(family, protocol int) (fd int, raw bool, err error) {
	const flags = unix.SOCK_CLOEXEC | unix.SOCK_NONBLOCK
	if fd, err = unix.Socket(family, unix.SOCK_DGRAM|flags, protocol); err == nil {
		return fd, false, nil
	}
	if fd, err = unix.Socket(family, unix.SOCK_RAW|flags, protocol); err == nil {
		return fd, true, nil
	}
	if !errors.Is(err, unix.EPERM) {
		return 0, false, fmt.Errorf("open an ICMP socket: %w", err)
	}
	groups, _ := sysctl.Get(pingGroups)
	var low, high int
	if n, _ := fmt.Sscan(strings.ReplaceAll(groups, "\t", " "), &low, &high); n == 2 && low > high {
		if _, serr := sysctl.Set(pingGroups, onlyRoot); serr == nil {
			if fd, err = unix.Socket(family, unix.SOCK_DGRAM|flags, protocol); err == nil {
				return fd, false, nil
			}
		}
	}
	return 0, false, fmt.Errorf("open an ICMP socket: %w: give the agent NET_RAW, or its group a place in the sysctl net.ipv4.ping_group_range", err)
}

// prepare forbids splitting, looks away from what was learned of paths, and ties the socket to its address.
func (s *socket) prepare(fd int) error {
	if s.to.Is4() {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE); err != nil {
			return err
		}
		if s.raw {
			if err := unix.SetsockoptInt(fd, unix.SOL_RAW, icmpFilter, ^(1 << reply4)); err != nil {
				return err
			}
		}
		return unix.Connect(fd, &unix.SockaddrInet4{Addr: s.to.As4()})
	}
	for option, value := range map[int]int{unix.IPV6_MTU_DISCOVER: unix.IPV6_PMTUDISC_PROBE, unix.IPV6_DONTFRAG: 1} {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, option, value); err != nil {
			return err
		}
	}
	if s.raw {
		var filter unix.ICMPv6Filter
		for i := range filter.Data {
			filter.Data[i] = 1<<32 - 1
		}
		filter.Data[reply6>>5] &^= 1 << (reply6 & 31)
		if err := unix.SetsockoptICMPv6Filter(fd, unix.IPPROTO_ICMPV6, icmp6Filter, &filter); err != nil {
			return err
		}
	}
	return unix.Connect(fd, &unix.SockaddrInet6{Addr: s.to.As16()})
}

// send sends a request; size is of the IP packet.
func (s *socket) send(seq uint16, size int) error {
	p := make([]byte, size-ipHeader(s.to))
	p[0] = request6
	if s.to.Is4() {
		p[0] = request4
	}
	copy(p[4:6], s.token[:2]) // the identifier, which the kernel replaces on sockets of the first kind
	binary.BigEndian.PutUint16(p[6:], seq)
	copy(p[headerLen:], s.token[:])
	if s.to.Is4() {
		binary.BigEndian.PutUint16(p[2:], checksum(p))
	}
	_, err := s.file.Write(p)
	return err
}

// receive waits for an answer to one of our requests; size is of the IP packet.
func (s *socket) receive(buf []byte) (seq, size int, err error) {
	n, err := s.file.Read(buf)
	if err != nil {
		return 0, 0, err
	}
	return parse(buf[:n], s.to, s.raw, s.token)
}

var errStranger = errors.New("not an answer to us")

func parse(p []byte, from netip.Addr, raw bool, token [tokenLen]byte) (seq, size int, err error) {
	want := byte(reply6)
	if from.Is4() {
		want = reply4
		if raw {
			if len(p) < 20 || int(p[0]&15)*4 > len(p) {
				return 0, 0, errStranger
			}
			p = p[int(p[0]&15)*4:]
		}
	}
	if len(p) < headerLen+tokenLen || p[0] != want || p[1] != 0 || [tokenLen]byte(p[headerLen:]) != token {
		return 0, 0, errStranger
	}
	return int(binary.BigEndian.Uint16(p[6:])), len(p) + ipHeader(from), nil
}

// checksum is the internet checksum (RFC 1071) of a message whose own field is zero.
func checksum(p []byte) uint16 {
	sum := uint32(0)
	for ; len(p) > 1; p = p[2:] {
		sum += uint32(binary.BigEndian.Uint16(p))
	}
	if len(p) == 1 {
		sum += uint32(p[0]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
