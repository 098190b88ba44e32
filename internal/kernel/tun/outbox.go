package tun

import (
	"errors"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	maxSegments = 512       // in one outbox
	maxMessages = 128       // the same
	headRoom    = 64 * 1024 // bytes for their headers
)

// outbox gathers datagrams for one socket. Those of one size to one node that follow each other become
// one message, which the kernel takes for one packet until the device, or somebody on the way, splits it.
type outbox struct {
	sock    syscall.RawConn
	group   bool // the kernel has UDP_SEGMENT
	largest int  // bytes in one message
	failed  func(b *outbox, g *group, err error)

	groups   [maxMessages]group
	msgs     [maxMessages]mmsghdr
	controls [maxMessages]groupControl
	iov      [2 * maxSegments]unix.Iovec // head and body of each segment
	n        int                         // groups in use
	segments int
	heads    []byte
	used     int // of heads

	from, sent int // for trySend
	err        error
	write      func(fd uintptr) bool
}

// group is one message: datagrams of the same size, but that the last may be shorter.
type group struct {
	to           *hop
	first, count int // segments
	size, bytes  int
	closed       bool
}

func newOutbox(file *os.File, is4, groups bool, failed func(*outbox, *group, error)) (*outbox, error) {
	rc, err := file.SyscallConn()
	if err != nil {
		return nil, err
	}
	b := &outbox{sock: rc, group: groups, largest: maxDatagram6, failed: failed, heads: make([]byte, headRoom)}
	if is4 {
		b.largest = maxDatagram4
	}
	b.write = b.trySend
	return b, nil
}

// room returns space for the headers of one more segment; what is in the box goes when there is none.
func (b *outbox) room() []byte {
	if b.segments == maxSegments || b.n == maxMessages || len(b.heads)-b.used < maxHeaders {
		b.flush()
	}
	return b.heads[b.used:][:maxHeaders]
}

// add puts a datagram into the box: head, which may be in what room returned, and body. Both have to stay
// as they are until flush. There was a room before it.
func (b *outbox) add(to *hop, head, body []byte) {
	if &head[0] == &b.heads[b.used : b.used+1][0] {
		b.used += len(head)
	}
	size := len(head) + len(body)
	b.iov[2*b.segments], b.iov[2*b.segments+1] = iovec(head), iovec(body)
	if b.n > 0 {
		if g := &b.groups[b.n-1]; b.group && g.to == to && !g.closed && g.count < maxRun && size <= g.size && g.bytes+size <= b.largest {
			g.count++
			g.bytes += size
			g.closed = size < g.size
			b.segments++
			return
		}
	}
	b.groups[b.n] = group{to: to, first: b.segments, count: 1, size: size, bytes: size}
	b.n++
	b.segments++
}

// flush sends what is in the box.
func (b *outbox) flush() {
	for i := range b.n {
		b.message(i)
	}
	for b.from = 0; b.from < b.n; {
		b.err = nil
		if err := b.sock.Write(b.write); err != nil {
			break // the socket is closed
		}
		b.from += b.sent
		if b.err != nil {
			b.failed(b, &b.groups[b.from], b.err)
			b.from++
		}
	}
	b.n, b.segments, b.used = 0, 0, 0
}

// trySend sends as much as goes at once, and reports false when the socket is to be waited for.
func (b *outbox) trySend(fd uintptr) bool {
	for {
		b.sent, b.err = sendmmsg(int(fd), b.msgs[b.from:b.n])
		if !errors.Is(b.err, unix.EINTR) {
			return !errors.Is(b.err, unix.EAGAIN)
		}
	}
}

// message fills in message i from its group.
func (b *outbox) message(i int) {
	g, m := &b.groups[i], &b.msgs[i]
	m.Name, m.Namelen = (*byte)(unsafe.Pointer(&g.to.name.raw)), g.to.name.len
	m.Iov = &b.iov[2*g.first]
	m.SetIovlen(2 * g.count)
	m.Control = nil
	m.SetControllen(0)
	if g.count > 1 {
		b.controls[i].segment(g.size)
		m.Control = (*byte)(unsafe.Pointer(&b.controls[i]))
		m.SetControllen(controlSegment)
	}
}

// head returns segment k of a group as far as its headers go.
func (b *outbox) head(g *group, k int) []byte {
	v := b.iov[2*(g.first+k)]
	return unsafe.Slice(v.Base, v.Len)
}

// single sends segment k of a group on its own.
func (b *outbox) single(g *group, k int) (err error) {
	var msg [1]mmsghdr
	msg[0].Name, msg[0].Namelen = (*byte)(unsafe.Pointer(&g.to.name.raw)), g.to.name.len
	msg[0].Iov = &b.iov[2*(g.first+k)]
	msg[0].SetIovlen(2)
	werr := b.sock.Write(func(fd uintptr) bool {
		_, err = sendmmsg(int(fd), msg[:])
		return !errors.Is(err, unix.EAGAIN)
	})
	return errors.Join(werr, err)
}
