package tun

import (
	"errors"
	"net/netip"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	maxReceive = 32 // messages at once
	bigReceive = 4  // the same while they stand for many: more would not stay in the processor's cache
	big        = 8 << 10
	receiveLen = 1 << 16
)

// receiver takes datagrams of other nodes from one socket and hands their packets to the kernel.
type receiver struct {
	path   *Path
	sock   syscall.RawConn
	merger *merger

	buffers  []byte
	msgs     [maxReceive]mmsghdr
	names    [maxReceive]sockaddr
	controls [maxReceive]groupControl
	iov      [maxReceive]unix.Iovec
	batch    int // messages to ask for
	n        int
	followed uint64 // packets not yet counted
	err      error
	read     func(fd uintptr) bool
}

func newReceiver(p *Path, sock, tun *os.File) (r *receiver, err error) {
	r = &receiver{path: p, buffers: make([]byte, maxReceive*receiveLen), batch: bigReceive}
	r.read = r.fill
	if r.sock, err = sock.SyscallConn(); err != nil {
		return nil, err
	}
	w, err := newTunWriter(p, tun)
	if err != nil {
		return nil, err
	}
	f := Features(p.features.Load())
	r.merger = newMerger(f&MergeTCP != 0, f&MergeUDP != 0, w.write)
	return r, nil
}

// run works until the path is closed.
func (r *receiver) run() error {
	for {
		if err := r.sock.Read(r.read); err != nil {
			return err
		}
		if r.err != nil {
			return r.err
		}
		t, bytes := r.path.table.Load(), 0
		for i := range r.n {
			m := &r.msgs[i]
			bytes += int(m.n)
			b := r.buffers[i*receiveLen:][:m.n]
			r.message(t, r.names[i].addrPort(), b, r.controls[i].received(uint64(m.Controllen), len(b)))
		}
		r.merger.flush()
		r.batch = maxReceive
		if bytes > r.n*big {
			r.batch = bigReceive
		}
	}
}

// fill receives what is there, and reports false when nothing is.
func (r *receiver) fill(fd uintptr) bool {
	for i := range r.batch {
		r.iov[i] = iovec(r.buffers[i*receiveLen:][:receiveLen])
		m := &r.msgs[i]
		m.Iov = &r.iov[i]
		m.SetIovlen(1)
		m.Name, m.Namelen = (*byte)(unsafe.Pointer(&r.names[i].raw)), unix.SizeofSockaddrInet6
		r.controls[i] = groupControl{}
		m.Control = (*byte)(unsafe.Pointer(&r.controls[i]))
		m.SetControllen(int(unsafe.Sizeof(r.controls[i])))
	}
	yielded := false
	for {
		r.n, r.err = recvmmsg(int(fd), r.msgs[:r.batch])
		switch {
		case errors.Is(r.err, unix.EAGAIN) && !yielded:
			yielded = true
			yield()
			continue
		case errors.Is(r.err, unix.EAGAIN):
			return false
		case errors.Is(r.err, unix.EINTR):
			continue
		case errors.Is(r.err, unix.ECONNREFUSED) || errors.Is(r.err, unix.EHOSTUNREACH) || errors.Is(r.err, unix.ENETUNREACH):
			continue // about something that was sent, not about the socket
		}
		return true
	}
}

// message takes what came from one address: datagrams of size bytes, but that the last may be shorter.
// Whatever anybody on the network sends ends up here.
func (r *receiver) message(t *table, from netip.AddrPort, b []byte, size int) {
	c := &r.path.counters
	c.receivedBytes.Add(uint64(len(b)))
	node := t.nodes[from.Addr()]
	if node == nil || from.Port() != r.path.relay.Port {
		c.stranger.Add(1)
		return
	}
	r.merger.fresh()
	for len(b) > 0 {
		n := min(size, len(b))
		if r.merger.next(b[:n]) {
			r.followed++
		} else {
			r.packet(t, node, b[:n])
		}
		b = b[n:]
	}
	c.received.Add(r.followed)
	r.followed = 0
}

// packet hands one packet to the merger, when it is one that this node may have sent to us.
func (r *receiver) packet(t *table, node *hop, b []byte) {
	c := &r.path.counters
	if isGreeting(b) {
		node.heard.Store(r.path.now().UnixNano())
		return
	}
	c.received.Add(1)
	p, err := checkIP(b)
	switch {
	case err != nil:
		c.malformed.Add(1)
	case !contains(node.from, source(p)):
		c.spoofed.Add(1)
	case !contains(t.pods, destination(p)):
		c.misdirected.Add(1)
	default:
		r.merger.add(p)
	}
}
