package tun

import (
	"errors"
	"io"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	arenaLen  = 192 * 1024 // of a sender: packets that were read and not yet sent
	slot      = headerLen + maxPacket
	maxReads  = 64 // packets at once: more would only wait for each other
	alignment = 64
)

// sender takes packets from one queue of the device and sends them to other nodes.
type sender struct {
	path  *Path
	tun   syscall.RawConn
	back  *tunWriter
	boxes [2]*outbox // over IPv6, over IPv4; nil where the node has no address

	arena   []byte
	packets [][]byte
	at      time.Time // of this batch
	partial bool      // greet, and believe greetings
	err     error
	read    func(fd uintptr) bool
}

func newSender(p *Path, tun *os.File, socks [2]*os.File) (s *sender, err error) {
	s = &sender{path: p, arena: make([]byte, arenaLen), packets: make([][]byte, 0, maxReads)}
	s.read = s.fill
	if s.tun, err = tun.SyscallConn(); err != nil {
		return nil, err
	}
	if s.back, err = newTunWriter(p, tun); err != nil {
		return nil, err
	}
	for i, sock := range socks {
		if sock == nil {
			continue
		}
		if s.boxes[i], err = newOutbox(sock, i == 1, p.features.Load()&uint32(SendGroups) != 0, s.failed); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// run works until the device or the path is gone.
func (s *sender) run() error {
	for {
		if err := s.tun.Read(s.read); err != nil {
			return err
		}
		t, f := s.path.table.Load(), s.path.Features()
		s.at = s.path.now()
		s.partial = f&PartialSums != 0
		for _, raw := range s.packets {
			s.forward(t, raw)
		}
		for _, b := range s.boxes {
			if b != nil && b.n > 0 {
				b.flush()
			}
		}
		if s.err != nil {
			return s.err
		}
	}
}

// fill reads packets until there are no more, or no more room, and reports false when there was none.
func (s *sender) fill(fd uintptr) bool {
	s.packets, s.err = s.packets[:0], nil
	yielded := false
	for at := 0; len(s.arena)-at >= slot && len(s.packets) < maxReads; {
		n, err := read(int(fd), s.arena[at:at+slot])
		switch {
		case errors.Is(err, unix.EAGAIN) && len(s.packets) == 0 && !yielded:
			yielded = true
			yield()
			continue
		case errors.Is(err, unix.EAGAIN):
			return len(s.packets) > 0
		case errors.Is(err, unix.EINTR):
			continue
		case err == nil && n == 0:
			err = io.EOF
			fallthrough
		case err != nil:
			s.err = err
			return true
		}
		s.packets = append(s.packets, s.arena[at:at+n])
		at += (n + alignment - 1) &^ (alignment - 1)
	}
	return true
}

// forward puts one packet of the kernel, with its virtio header, into the box of its destination.
func (s *sender) forward(t *table, raw []byte) {
	c := &s.path.counters
	if len(raw) < headerLen+ipv4Len {
		c.malformed.Add(1)
		return
	}
	p, err := checkIP(raw[headerLen:])
	if err != nil {
		c.malformed.Add(1)
		return
	}
	dst := destination(p)
	if dst.IsMulticast() || dst.IsLinkLocalUnicast() {
		return // the kernel's own, such as reports of group membership: for the link, which ends here
	}
	to := t.lookup(dst)
	if to == nil || s.boxes[family(to.addr.Is4())] == nil {
		c.noRoute.Add(1)
		s.tellBack(p, noRoute, 0)
		return
	}
	packet, err := newSuper(readVirtio(raw), p)
	if err != nil {
		c.malformed.Add(1)
		return
	}
	box := s.boxes[family(to.addr.Is4())]
	if s.partial && to.due(s.at) {
		box.room()
		box.add(to, greeting, nil)
	}
	n, partial := packet.count(), s.partial && to.trusted(s.at)
	for i := range n {
		head, body := packet.segment(i, box.room(), partial)
		box.add(to, head, body)
	}
	c.sent.Add(uint64(n))
	c.sentBytes.Add(uint64(len(p)))
}

// tellBack sends a message about a packet to its sender.
func (s *sender) tellBack(p []byte, why reason, mtu int) {
	if isGreeting(p) || !s.path.icmp.allow(s.at) {
		return
	}
	if msg := icmpError(p, why, mtu); msg != nil {
		var plain [headerLen]byte
		s.back.write([]unix.Iovec{iovec(plain[:]), iovec(msg)})
	}
}

// failed deals with a message that the kernel did not take.
func (s *sender) failed(b *outbox, g *group, err error) {
	if g.count > 1 && (errors.Is(err, unix.EIO) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EMSGSIZE)) {
		s.apart(b, g, err)
		return
	}
	s.lost(b.head(g, 0), g, err)
	s.path.counters.unsent.Add(uint64(g.count))
}

// apart sends the datagrams of a group one by one. The kernel refuses groups whose datagrams it would
// have to fragment, and (EIO) any where the device cannot compute checksums, or IPsec is in the way.
func (s *sender) apart(b *outbox, g *group, err error) {
	mtu := 0
	if errors.Is(err, unix.EIO) {
		b.group = false
		s.path.drop(SendGroups)
	} else {
		mtu = s.path.room(g.to)
	}
	for k := range g.count {
		head := b.head(g, k)
		v := b.iov[2*(g.first+k)+1]
		if size := len(head) + int(v.Len); mtu > 0 && size > mtu && !fragmentable(head) {
			s.path.counters.tooBig.Add(1)
			s.tellBack(head, tooBig, mtu)
			continue
		}
		if err := b.single(g, k); err != nil {
			s.lost(head, g, err)
			s.path.counters.unsent.Add(1)
		}
	}
}

// lost tells the sender of a packet that it was not sent, where that says something about the way.
func (s *sender) lost(p []byte, g *group, err error) {
	switch {
	case errors.Is(err, unix.EMSGSIZE):
		s.tellBack(p, tooBig, s.path.room(g.to))
	case errors.Is(err, unix.EHOSTUNREACH) || errors.Is(err, unix.ENETUNREACH):
		s.tellBack(p, unreachable, 0)
	}
}

// fragmentable reports whether routers may cut a packet up.
func fragmentable(p []byte) bool { return isIPv4(p) && p[6]&dontFragment == 0 }

// family gives an address family its place in arrays of this package: [0] IPv6, [1] IPv4.
func family(is4 bool) int {
	if is4 {
		return 1
	}
	return 0
}

// tunWriter hands packets to the kernel.
type tunWriter struct {
	path *Path
	rc   syscall.RawConn
	iov  []unix.Iovec
	fn   func(fd uintptr) bool
}

func newTunWriter(p *Path, tun *os.File) (*tunWriter, error) {
	rc, err := tun.SyscallConn()
	w := &tunWriter{path: p, rc: rc}
	w.fn = w.try
	return w, err
}

// write hands over one packet with its virtio header. What the kernel refuses is lost, as a packet may be.
func (w *tunWriter) write(iov []unix.Iovec) {
	w.iov = iov
	_ = w.rc.Write(w.fn) // fails when the path was closed, which the readers see too
}

func (w *tunWriter) try(fd uintptr) bool {
	for {
		switch err := writev(int(fd), w.iov); {
		case err == nil:
			return true
		case errors.Is(err, unix.EAGAIN):
			return false
		case !errors.Is(err, unix.EINTR):
			w.path.counters.refused.Add(1)
			return true
		}
	}
}
