// Package nft reads and writes nftables tables over netlink.
//
// It has an encoder of its own for the few messages it needs, since the element lists of a large
// cluster are megabytes long: one answer per transaction instead of one per message, many elements
// per message, transactions cut by size. It knows nothing of what the tables mean.
package nft

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/braidnet/braid/internal/desired"
	"golang.org/x/sys/unix"
)

// transactionLimit is the size in bytes at which Apply starts another transaction. The kernel holds
// its nftables lock for the whole of one (4 MiB are about 30,000 elements, a fraction of a second).
const transactionLimit = 4 << 20

// receiveBuffer holds the answers to a transaction in which every message is refused.
const receiveBuffer = 4 << 20

// Conn is a socket to the nftables of one network namespace: that of the thread which called Open.
// It is for one goroutine at a time.
type Conn struct {
	fd       int
	seq      uint32
	limit    int // transactionLimit; smaller in tests
	sendSize int // what the socket's send buffer was made to hold
	written  uint64
	commits  uint32
	buf      []byte
}

// Open connects to the nftables of the calling thread's network namespace. It needs CAP_NET_ADMIN
// to be of use.
func Open() (*Conn, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("open netfilter netlink socket: %w", err)
	}
	c := &Conn{fd: fd, limit: transactionLimit, buf: make([]byte, 256<<10)}
	if err := c.setup(); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

func (c *Conn) setup() error {
	if err := unix.Bind(c.fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("bind netfilter netlink socket: %w", err)
	}
	// Answers without a copy of the request, with the kernel's own words; older kernels do without.
	_ = unix.SetsockoptInt(c.fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1)
	_ = unix.SetsockoptInt(c.fd, unix.SOL_NETLINK, unix.NETLINK_EXT_ACK, 1)
	if err := force(c.fd, unix.SO_RCVBUFFORCE, unix.SO_RCVBUF, receiveBuffer); err != nil {
		return fmt.Errorf("enlarge netlink receive buffer: %w", err)
	}
	return nil
}

// force sets a buffer size past the administrator's limit, or up to it without the right to.
func force(fd, forced, limited, size int) error {
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, forced, size) == nil {
		return nil
	}
	return unix.SetsockoptInt(fd, unix.SOL_SOCKET, limited, size)
}

// Close ends the connection; what was written stays.
func (c *Conn) Close() { _ = unix.Close(c.fd) }

// Written counts the messages sent to change something since Open.
func (c *Conn) Written() uint64 { return c.written }

// Commits counts the transactions that changed something since Open. Each raises Generation by one.
func (c *Conn) Commits() uint32 { return c.commits }

// Apply carries out ops in order, in one transaction or, when they are very many, in several: never
// cut before an operation with Join set. A transaction that fails changes nothing; the ones before
// it stay.
func (c *Conn) Apply(ops []desired.NFTOp) error {
	for len(ops) > 0 {
		t := newTransaction(c.next(), 0)
		n := 0
		for n < len(ops) && (len(t.buf) < c.limit || ops[n].Join) {
			n += t.add(ops[n:])
		}
		if err := c.send(t, true); err != nil {
			return err
		}
		c.written += uint64(len(t.messages))
		c.commits++
		ops = ops[n:]
	}
	return nil
}

// ErrGeneration says that somebody changed the ruleset since the generation ApplyAt was given.
var ErrGeneration = errors.New("the ruleset changed meanwhile")

// ApplyAt carries out ops in one transaction, provided that nothing in the namespace changed since
// Generation returned generation; else it changes nothing and returns ErrGeneration. So what was
// read in between still holds when ops, which follow from it, take effect.
func (c *Conn) ApplyAt(generation uint32, ops []desired.NFTOp) error {
	if len(ops) == 0 {
		return nil
	}
	t := newTransaction(c.next(), generation)
	for n := 0; n < len(ops); {
		n += t.add(ops[n:])
	}
	switch err := c.send(t, true); {
	case errors.Is(err, unix.ERESTART):
		return ErrGeneration
	case err != nil:
		return err
	}
	c.written += uint64(len(t.messages))
	c.commits++
	return nil
}

// Check asks the kernel whether it would accept ops, and changes nothing.
func (c *Conn) Check(ops []desired.NFTOp) error {
	t := newTransaction(c.next(), 0)
	for n := 0; n < len(ops); {
		n += t.add(ops[n:])
	}
	return c.send(t, false)
}

func (c *Conn) next() uint32 { c.seq += 1 << 16; return c.seq }

// send sends a transaction and collects the answers. The kernel works on it within the system call,
// so that all answers are there when it returns.
func (c *Conn) send(t *transaction, commit bool) error {
	if t.err != nil {
		return t.err
	}
	begin := t.seq - uint32(len(t.messages))
	t.finish(commit)
	if err := c.reserve(len(t.buf)); err != nil {
		return err
	}
	if err := c.drain(func(header, []byte) {}); err != nil {
		return err
	}
	if err := c.transmit(t.buf); err != nil {
		return fmt.Errorf("send nftables transaction of %d bytes: %w", len(t.buf), err)
	}
	var errs []error
	answered := false
	err := c.drain(func(h header, payload []byte) {
		if h.kind != unix.NLMSG_ERROR {
			return
		}
		i := int(h.seq - begin - 1)
		switch err := answer(h, payload); {
		case err == nil:
			answered = true
		case i >= 0 && i < len(t.messages):
			m := &t.messages[i]
			errs = append(errs, &RefusedError{Set: m.set, Chain: m.chain, what: m.String(), err: err})
		default:
			errs = append(errs, fmt.Errorf("nftables transaction: %w", err))
		}
	})
	switch {
	case len(errs) > 0:
		return errors.Join(errs[:min(len(errs), 3)]...) // the first is the cause, later ones mostly follow from it
	case err != nil:
		return err
	case !answered:
		return errors.New("nftables transaction: no answer from the kernel")
	}
	return nil
}

// reserve makes the send buffer hold a message of n bytes, which netlink takes in one piece only.
func (c *Conn) reserve(n int) error {
	n += n/8 + 4096
	if n <= c.sendSize {
		return nil
	}
	if err := force(c.fd, unix.SO_SNDBUFFORCE, unix.SO_SNDBUF, n); err != nil {
		return fmt.Errorf("enlarge netlink send buffer to %d bytes: %w", n, err)
	}
	c.sendSize = n
	return nil
}

func (c *Conn) transmit(b []byte) error {
	for {
		err := unix.Sendto(c.fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
		if err != unix.EINTR {
			return err
		}
	}
}

// drain hands every message that is already waiting to fn.
func (c *Conn) drain(fn func(header, []byte)) error {
	for {
		err := c.receive(unix.MSG_DONTWAIT, fn)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return nil
		case errors.Is(err, unix.ENOBUFS): // answers were lost; the missing last one will tell
		case err != nil:
			return err
		}
	}
}

// header is struct nlmsghdr without its length.
type header struct {
	kind, flags uint16
	seq         uint32
}

// receive reads one datagram and hands its messages to fn.
func (c *Conn) receive(flags int, fn func(header, []byte)) error {
	n, _, err := unix.Recvfrom(c.fd, c.buf, flags)
	for err == unix.EINTR {
		n, _, err = unix.Recvfrom(c.fd, c.buf, flags)
	}
	if err != nil {
		return fmt.Errorf("receive from netfilter: %w", err)
	}
	return split(c.buf[:n], fn)
}

// split walks the netlink messages of a datagram.
func split(b []byte, fn func(header, []byte)) error {
	for len(b) >= nlmsgHeader {
		n := int(binary.NativeEndian.Uint32(b))
		if n < nlmsgHeader || n > len(b) {
			return fmt.Errorf("netlink message of %d bytes in a datagram with %d left", n, len(b))
		}
		h := header{
			kind:  binary.NativeEndian.Uint16(b[4:]),
			flags: binary.NativeEndian.Uint16(b[6:]),
			seq:   binary.NativeEndian.Uint32(b[8:]),
		}
		fn(h, b[nlmsgHeader:n])
		b = b[min((n+3)&^3, len(b)):]
	}
	return nil
}

// answer is the error that an NLMSG_ERROR message carries, with the kernel's explanation if it
// gives one; nil for success.
func answer(h header, payload []byte) error {
	if len(payload) < 4 {
		return errShort
	}
	code := int32(binary.NativeEndian.Uint32(payload))
	if code == 0 {
		return nil
	}
	err := error(unix.Errno(-code))
	if h.flags&unix.NLM_F_ACK_TLVS == 0 || len(payload) < 4+nlmsgHeader {
		return err
	}
	var bad error
	for kind, b := range attrs(payload[4+nlmsgHeader:], &bad) {
		if kind == unix.NLMSGERR_ATTR_MSG {
			return fmt.Errorf("%w (%s)", err, text(b))
		}
	}
	return err
}
