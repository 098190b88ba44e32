// Package ipset makes, fills and reads sets of the kernel's ipset over netlink (linux/netfilter/ipset/ip_set.h).
// Many members go in one message, as the tool's own `restore` sends them, so that filling a set takes no process and
// few system calls. What the sets are for is the caller's business.
package ipset

import (
	"errors"
	"fmt"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/braidnet/braid/internal/desired"
)

// MaxMembers is how many members a set may have: more than a cluster has addresses.
const MaxMembers = 1 << 20

// firstSize is how many chains a set's hash has at first, the least that the kernel takes; it grows with the members.
const firstSize = 64

// Conn is a connection to the sets of one network namespace: that of the thread which called Open. It is for one
// goroutine at a time.
type Conn struct {
	sockets map[int]*nl.SocketHandle
	execute func(r *nl.NetlinkRequest, each func([]byte)) error // the kernel, or what a test puts in its place
}

// Open connects to the sets of the calling thread's network namespace. The error says so where the kernel has none.
func Open() (*Conn, error) {
	s, err := nl.Subscribe(unix.NETLINK_NETFILTER) // to no group: a plain socket
	if err != nil {
		return nil, fmt.Errorf("open ipset netlink socket: %w", err)
	}
	c := &Conn{sockets: map[int]*nl.SocketHandle{unix.NETLINK_NETFILTER: {Socket: s}}}
	c.execute = func(r *nl.NetlinkRequest, each func([]byte)) error {
		r.Sockets = c.sockets
		return r.ExecuteIter(unix.NETLINK_NETFILTER, 0, func(b []byte) bool { each(b); return true })
	}
	if err := c.execute(request(nl.IPSET_CMD_PROTOCOL, 0), func([]byte) {}); err != nil {
		c.Close()
		return nil, fmt.Errorf("the kernel has no ipset (module ip_set): %w", explain(err))
	}
	return c, nil
}

// Close ends the connection.
func (c *Conn) Close() {
	for _, h := range c.sockets {
		h.Close()
	}
}

// Apply carries out changes one after another and stops at the first that fails: the kernel has no transactions for sets.
func (c *Conn) Apply(ops []desired.IPSetOp) error {
	for i := range ops {
		if err := c.apply(&ops[i]); err != nil {
			return &RefusedError{ops[i].Verb, ops[i].Set.Name, explain(err)}
		}
	}
	return nil
}

// RefusedError is a change of a set that failed. What came before it is in force.
type RefusedError struct {
	Verb desired.IPSetVerb
	Set  string
	err  error
}

// Error implements error.
func (e *RefusedError) Error() string { return fmt.Sprintf("%s ipset %s: %v", e.Verb, e.Set, e.err) }

// Unwrap returns what the kernel said.
func (e *RefusedError) Unwrap() error { return e.err }

// Busy reports whether an error says that a set cannot be destroyed, because something refers to it.
func Busy(err error) bool {
	return errors.Is(err, unix.Errno(nl.IPSET_ERR_BUSY)) || errors.Is(err, unix.Errno(nl.IPSET_ERR_REFERENCED))
}

func (c *Conn) apply(op *desired.IPSetOp) error {
	switch op.Verb {
	case desired.IPSetCreate:
		r, err := create(op.Set)
		if err != nil {
			return err
		}
		return c.execute(r, func([]byte) {})
	case desired.IPSetDestroy:
		err := c.execute(named(nl.IPSET_CMD_DESTROY, 0, op.Set.Name), func([]byte) {})
		if errors.Is(err, unix.ENOENT) { // some kernels mind, others do not
			return nil
		}
		return err
	}
	command := nl.IPSET_CMD_ADD
	if op.Verb == desired.IPSetRemove {
		command = nl.IPSET_CMD_DEL
	}
	for members := op.Members; len(members) > 0; {
		r, n, err := change(command, op.Set, members)
		if err == nil {
			err = c.execute(r, func([]byte) {})
		}
		if err != nil {
			return err
		}
		members = members[n:]
	}
	return nil
}

// Check reports why the kernel cannot have sets of a type, or this process may not make them. It changes nothing.
func (c *Conn) Check(s desired.IPSet) error {
	r := request(nl.IPSET_CMD_TYPE, 0)
	r.AddData(nl.NewRtAttr(nl.IPSET_ATTR_TYPENAME, nl.ZeroTerminated(string(s.Type))))
	r.AddData(nl.NewRtAttr(nl.IPSET_ATTR_FAMILY, []byte{family(s.IPv6)}))
	if err := c.execute(r, func([]byte) {}); err != nil {
		return fmt.Errorf("the kernel has no ipset of type %s: %w", s.Type, explain(err))
	}
	return nil
}

// Info is a set as the kernel lists it without its members.
type Info struct {
	desired.IPSet
	Members    int // -1 where the kernel does not say (before Linux 4.10)
	References int // of rules and other sets
}

// List returns the sets whose names begin with prefix.
func (c *Conn) List(prefix string) ([]Info, error) {
	var out []Info
	err := c.dump(func() *nl.NetlinkRequest {
		out = nil
		r := request(nl.IPSET_CMD_LIST, unix.NLM_F_DUMP)
		r.AddData(nl.NewRtAttr(nl.IPSET_ATTR_FLAGS|unix.NLA_F_NET_BYTEORDER, []byte{0, 0, 0, listHeader}))
		return r
	}, func(b []byte) error {
		info, err := parseInfo(b)
		if err == nil && info.Name != "" && strings.HasPrefix(info.Name, prefix) {
			out = append(out, info)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list ipsets: %w", err)
	}
	return out, nil
}

// Read returns the members of a set.
func (c *Conn) Read(s desired.IPSet) (out []desired.IPSetMember, err error) {
	err = c.dump(func() *nl.NetlinkRequest {
		out = nil
		return named(nl.IPSET_CMD_LIST, unix.NLM_F_DUMP, s.Name)
	}, func(b []byte) error {
		return parseMembers(b, func(m desired.IPSetMember) { out = append(out, m) })
	})
	if err != nil {
		return nil, fmt.Errorf("read ipset %s: %w", s.Name, err)
	}
	return out, nil
}

// dumpTries is how often something that changes under the reader is read.
const dumpTries = 3

func (c *Conn) dump(ask func() *nl.NetlinkRequest, each func([]byte) error) error {
	for try := 1; ; try++ {
		var bad error
		err := c.execute(ask(), func(b []byte) {
			if err := each(b); err != nil && bad == nil {
				bad = err
			}
		})
		if (errors.Is(err, netlink.ErrDumpInterrupted) || errors.Is(err, unix.EINTR)) && try < dumpTries {
			continue
		}
		if err != nil {
			return explain(err)
		}
		return bad
	}
}
