// Package conntrack deletes chosen entries of the kernel's connection tracking over netlink
// (nf_conntrack_netlink). The kernel compares what it can before it hands an entry out, entries are
// looked at one by one as they come, and each is deleted by its own tuple and id: a table of a million
// flows is never held in memory, and nothing but what was looked at goes.
package conntrack

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/braidnet/braid/internal/kernel/link"
)

// Flow is one entry of the table.
type Flow struct {
	Protocol uint8
	Src      netip.AddrPort // the client, as it sent its first packet
	Dst      netip.AddrPort // where the client sent its first packet
	Answers  netip.AddrPort // where replies come from; other than Dst when that was translated
	Answered bool           // a reply came
}

// Filter names the entries that the kernel hands out: of the default zone, of one family and protocol,
// and when they are set with this original destination. It hands out more where it cannot compare
// (before Linux 5.8, and by an IPv6 address); Delete leaves the rest alone all the same.
type Filter struct {
	IPv6     bool
	Protocol uint8
	Addr     netip.Addr // invalid: any
	Port     uint16     // 0: any
}

// Conn is a connection to the table of one network namespace: that of the thread which called Open. It
// is for one goroutine at a time.
type Conn struct {
	sockets map[int]*nl.SocketHandle
	routes  *netlink.Handle
}

// Open connects to the table of the calling thread's network namespace, and asks it for nothing yet.
func Open() (*Conn, error) {
	s, err := nl.Subscribe(unix.NETLINK_NETFILTER) // to no group: a plain socket
	if err != nil {
		return nil, fmt.Errorf("open conntrack netlink socket: %w", err)
	}
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		s.Close()
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	return &Conn{map[int]*nl.SocketHandle{unix.NETLINK_NETFILTER: {Socket: s}}, h}, nil
}

// Close ends the connection.
func (c *Conn) Close() {
	for _, h := range c.sockets {
		h.Close()
	}
	c.routes.Close()
}

// LocalAddrs returns the addresses of the namespace.
func (c *Conn) LocalAddrs() (map[netip.Addr]struct{}, error) {
	list, err := link.Dump(func() ([]netlink.Addr, error) { return c.routes.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	out := make(map[netip.Addr]struct{}, len(list))
	for i := range list {
		if a, ok := netip.AddrFromSlice(list[i].IP); ok {
			out[a.Unmap()] = struct{}{}
		}
	}
	return out, nil
}

// Unsupported reports whether an error of Delete says that this kernel has no netlink interface to its
// connection tracking.
func Unsupported(err error) bool {
	return errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPROTONOSUPPORT)
}

const (
	typeGet    = unix.NFNL_SUBSYS_CTNETLINK<<8 | nl.IPCTNL_MSG_CT_GET
	typeDelete = unix.NFNL_SUBSYS_CTNETLINK<<8 | nl.IPCTNL_MSG_CT_DELETE
)

// dumpTries is how often a table that changes under the reader is read.
const dumpTries = 3

// Delete deletes the entries within a filter that stale says yes to, and returns how many it deleted.
// An entry that ends meanwhile is no error. The table is read while it changes: an entry that is made
// during the call may be missed, as one made after it would be.
func (c *Conn) Delete(f Filter, stale func(Flow) bool) (deleted int, err error) {
	for try := 1; ; try++ {
		var list []entry
		var bad error
		err := c.request(typeGet, unix.NLM_F_DUMP, f).execute(c, func(b []byte) {
			e, err := parse(b)
			switch {
			case err != nil:
				bad = err
			case f.match(e) && stale(e.Flow):
				list = append(list, e.clone())
			}
		})
		interrupted := errors.Is(err, netlink.ErrDumpInterrupted) || errors.Is(err, unix.EINTR)
		if err != nil && !interrupted {
			return deleted, fmt.Errorf("read conntrack entries of %s: %w", f, err)
		}
		n, err := c.deleteAll(f, list)
		deleted += n
		switch {
		case err != nil:
			return deleted, err
		case bad != nil:
			return deleted, fmt.Errorf("read conntrack entries of %s: %w", f, bad)
		case !interrupted:
			return deleted, nil
		case try == dumpTries:
			return deleted, fmt.Errorf("conntrack entries of %s changed during each of %d reads", f, dumpTries)
		}
	}
}

// String names a filter for errors.
func (f Filter) String() string {
	family := "IPv4"
	if f.IPv6 {
		family = "IPv6"
	}
	return fmt.Sprintf("%s protocol %d", family, f.Protocol)
}

func (f Filter) family() uint8 {
	if f.IPv6 {
		return unix.AF_INET6
	}
	return unix.AF_INET
}

// match repeats what the kernel may have left out.
func (f Filter) match(e entry) bool {
	return !e.zoned && e.Protocol == f.Protocol && e.Dst.Addr().Is6() == f.IPv6 &&
		(!f.Addr.IsValid() || f.Addr == e.Dst.Addr()) && (f.Port == 0 || f.Port == e.Dst.Port())
}

func (c *Conn) deleteAll(f Filter, list []entry) (deleted int, err error) {
	for _, e := range list {
		r := request{nl.NewNetlinkRequest(typeDelete, unix.NLM_F_ACK)}
		r.AddData(&nl.Nfgenmsg{NfgenFamily: f.family(), Version: nl.NFNETLINK_V0})
		r.AddData(nl.NewRtAttr(unix.NLA_F_NESTED|nl.CTA_TUPLE_ORIG, e.tuple))
		r.AddData(nl.NewRtAttr(nl.CTA_ID, e.id))
		switch err := r.execute(c, func([]byte) {}); {
		case err == nil:
			deleted++
		case errors.Is(err, unix.ENOENT): // it ended by itself, or is another one by now
		default:
			return deleted, fmt.Errorf("delete a conntrack entry to %s: %w", e.Dst, err)
		}
	}
	return deleted, nil
}
