package fastpath

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"
	"unsafe"

	"github.com/coredns/coredns/plugin/pkg/reuseport"
	"golang.org/x/sys/unix"
)

// Sizes of a batch. 32 packets hide the cost of a system call; 512 octets are the most that CoreDNS
// reads of a query over UDP.
const (
	batchLen   = 32
	requestLen = 512
	controlLen = 64
)

// receiveBuffer is what every process may ask for, and twice what sockets have otherwise: some 500 packets.
// A reader that is late by a few milliseconds loses none, and to answer them all takes less than ten.
const receiveBuffer = 212992

// message is the kernel's struct mmsghdr.
type message struct {
	header unix.Msghdr
	length uint32
	_      [4]byte
}

// socket is a UDP socket that reads and writes packets by the batch. Its buffers are those of one
// reader; who sends from elsewhere uses send.
type socket struct {
	conn *net.UDPConn
	raw  syscall.RawConn
	any  bool // bound to no address: replies have to be sent from the one that was asked
	v6   bool

	in, out  [batchLen]message
	inVec    [batchLen]unix.Iovec
	outVec   [batchLen]unix.Iovec
	peers    [batchLen]unix.RawSockaddrInet6 // the larger of both families
	controls [batchLen][controlLen]byte
	requests [batchLen][requestLen]byte
	replies  [batchLen][maxReply]byte
	queued   int // replies to write

	got        int
	sent       int
	failed     syscall.Errno
	readReady  func(uintptr) bool // made once, so that calls allocate nothing
	writeReady func(uintptr) bool
}

// listen opens one more socket on the address of a server's own.
func listen(addr string) (*socket, error) {
	p, err := reuseport.ListenPacket("udp", addr)
	if err != nil {
		return nil, err
	}
	conn, ok := p.(*net.UDPConn)
	if !ok {
		return nil, errors.Join(fmt.Errorf("listening on %s gave a %T, not a UDP socket", addr, p), p.Close())
	}
	s := &socket{conn: conn}
	if err := s.init(); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return s, nil
}

func (s *socket) init() (err error) {
	if s.raw, err = s.conn.SyscallConn(); err != nil {
		return err
	}
	s.readReady, s.writeReady = s.receive, s.transmit
	s.any = s.conn.LocalAddr().(*net.UDPAddr).IP.IsUnspecified()
	if cerr := s.raw.Control(func(fd uintptr) {
		var family int
		if family, err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_DOMAIN); err != nil {
			return
		}
		s.v6 = family == unix.AF_INET6
		if err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer); err != nil {
			return
		}
		switch {
		case s.any && s.v6:
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1)
		case s.any:
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
		}
	}); cerr != nil {
		return cerr
	}
	for i := range batchLen {
		s.inVec[i].Base = &s.requests[i][0]
		s.inVec[i].SetLen(requestLen)
		s.outVec[i].Base = &s.replies[i][0]
		s.in[i].header.Iov, s.out[i].header.Iov = &s.inVec[i], &s.outVec[i]
		s.in[i].header.SetIovlen(1)
		s.out[i].header.SetIovlen(1)
		s.in[i].header.Name = (*byte)(unsafe.Pointer(&s.peers[i]))
	}
	return err
}

// read waits for packets, or with wait false only looks for them, and returns how many came. They stay
// valid until the next read. After wake it returns os.ErrDeadlineExceeded in place of waiting.
func (s *socket) read(wait bool) (int, error) {
	for i := range batchLen {
		h := &s.in[i].header
		h.Namelen, h.Control, h.Flags = unix.SizeofSockaddrInet6, nil, 0
		if h.SetControllen(0); s.any {
			h.Control = &s.controls[i][0]
			h.SetControllen(controlLen)
		}
	}
	s.got, s.failed = 0, 0
	var err error
	if wait {
		err = s.raw.Read(s.readReady)
	} else {
		err = s.raw.Control(func(fd uintptr) { s.receive(fd) })
	}
	if err == nil && s.failed != 0 {
		err = s.failed
	}
	return s.got, err
}

// receive takes what there is, and reports false when that is nothing. The call cannot block, so the
// scheduler need not hear of it.
func (s *socket) receive(fd uintptr) bool {
	n, _, errno := syscall.RawSyscall6(unix.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(&s.in[0])), batchLen, unix.MSG_DONTWAIT, 0, 0)
	switch errno {
	case 0:
		s.got = int(n)
	case unix.EAGAIN:
		return false
	case unix.EINTR, unix.ECONNREFUSED: // the latter is news of an earlier reply, not of this socket
	default:
		s.failed = errno
	}
	return true
}

// wake ends the reader's wait, now and later.
func (s *socket) wake() { s.conn.SetReadDeadline(time.Unix(1, 0)) }

func (s *socket) close() error { return s.conn.Close() }

func (s *socket) local() net.Addr { return s.conn.LocalAddr() }

func (s *socket) request(i int) []byte { return s.requests[i][:s.in[i].length] }

// peer returns who sent packet i.
func (s *socket) peer(i int) netip.AddrPort {
	r := &s.peers[i]
	port := r.Port<<8 | r.Port>>8
	if r.Family == unix.AF_INET {
		r4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(r))
		return netip.AddrPortFrom(netip.AddrFrom4(r4.Addr), port)
	}
	a := netip.AddrFrom16(r.Addr)
	if r.Scope_id != 0 {
		a = a.WithZone(zoneName(r.Scope_id))
	}
	return netip.AddrPortFrom(a, port)
}

// isIPv4 reports whether packet i came over IPv4.
func (s *socket) isIPv4(i int) bool {
	r := &s.peers[i]
	return r.Family == unix.AF_INET || [12]byte(r.Addr[:12]) == [12]byte{10: 0xff, 11: 0xff}
}

// control returns what makes the kernel send a reply to packet i from the address that was asked: the
// same that it told about the packet, but by any link.
func (s *socket) control(i int) []byte {
	n := int(s.in[i].header.Controllen)
	if !s.any || n < unix.SizeofCmsghdr {
		return nil
	}
	c := s.controls[i][:n]
	h := (*unix.Cmsghdr)(unsafe.Pointer(&c[0]))
	data := unix.CmsgLen(0)
	switch {
	case h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_PKTINFO && n >= unix.CmsgSpace(unix.SizeofInet6Pktinfo):
		(*unix.Inet6Pktinfo)(unsafe.Pointer(&c[data])).Ifindex = 0
		return c[:unix.CmsgSpace(unix.SizeofInet6Pktinfo)]
	case h.Level == unix.IPPROTO_IP && h.Type == unix.IP_PKTINFO && n >= unix.CmsgSpace(unix.SizeofInet4Pktinfo):
		(*unix.Inet4Pktinfo)(unsafe.Pointer(&c[data])).Ifindex = 0
		return c[:unix.CmsgSpace(unix.SizeofInet4Pktinfo)]
	}
	return nil
}

// reply is where the reply that is queued next is to be written.
func (s *socket) reply() []byte { return s.replies[s.queued][:0] }

// queue queues the n octets in reply as the one to packet i.
func (s *socket) queue(i, n int) {
	h, in := &s.out[s.queued].header, &s.in[i].header
	s.outVec[s.queued].SetLen(n)
	h.Name, h.Namelen, h.Control = in.Name, in.Namelen, nil
	h.SetControllen(0)
	if c := s.control(i); len(c) > 0 {
		h.Control = &c[0]
		h.SetControllen(len(c))
	}
	s.queued++
}

// flush sends what is queued. A reply that cannot be sent is lost, like one that the network loses.
func (s *socket) flush() error {
	s.sent = 0
	err := error(nil)
	for s.sent < s.queued && err == nil {
		err = s.raw.Write(s.writeReady)
	}
	s.queued = 0
	return err
}

// transmit sends on from s.sent, and reports false when the socket takes no more for now.
func (s *socket) transmit(fd uintptr) bool {
	for s.sent < s.queued {
		n, _, errno := syscall.RawSyscall6(unix.SYS_SENDMMSG, fd, uintptr(unsafe.Pointer(&s.out[s.sent])), uintptr(s.queued-s.sent), unix.MSG_DONTWAIT, 0, 0)
		switch {
		case errno == unix.EAGAIN:
			return false
		case errno != 0 && errno != unix.EINTR:
			s.sent++ // the first of the rest is what failed
		case errno == 0:
			s.sent += int(n)
		}
	}
	return true
}

// send sends one reply, from any goroutine.
func (s *socket) send(b, control []byte, to netip.AddrPort) error {
	_, _, err := s.conn.WriteMsgUDPAddrPort(b, control, to)
	return err
}

// steer makes the kernel give packets for the sockets' address to n of them, which are those after the
// first base that were opened; each packet's flow and ID decide which. Where the kernel finds no such
// socket, it chooses among all: that costs speed, nothing else.
func (s *socket) steer(base, n int) (err error) {
	prog := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: rxHash},
		{Code: unix.BPF_MISC | unix.BPF_TAX},
		{Code: unix.BPF_LD | unix.BPF_H | unix.BPF_ABS, K: 0}, // the query's ID; a packet without one is nobody's loss
		{Code: unix.BPF_ALU | unix.BPF_ADD | unix.BPF_X},
		{Code: unix.BPF_ALU | unix.BPF_MOD | unix.BPF_K, K: uint32(n)},
		{Code: unix.BPF_ALU | unix.BPF_ADD | unix.BPF_K, K: uint32(base)},
		{Code: unix.BPF_RET | unix.BPF_A},
	}
	cerr := s.raw.Control(func(fd uintptr) {
		err = unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_REUSEPORT_CBPF, &unix.SockFprog{Len: uint16(len(prog)), Filter: &prog[0]})
	})
	return errors.Join(err, cerr)
}

// rxHash is where a classic BPF program finds the hash of a packet's flow: SKF_AD_OFF + SKF_AD_RXHASH.
const rxHash = 0xfffff000 + 32

func zoneName(index uint32) string {
	if i, err := net.InterfaceByIndex(int(index)); err == nil {
		return i.Name
	}
	return fmt.Sprint(index)
}
