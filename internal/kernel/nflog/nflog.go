// Package nflog receives the packets that rules send to a group of the kernel's log (nfnetlink_log, the
// target NFLOG of iptables and the statement "log group" of nft). The kernel copies a packet for a group only
// while somebody listens to it, and drops copies that nobody takes in time: nothing here can hold up packets.
package nflog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Numbers of include/uapi/linux/netfilter/nfnetlink_log.h.
const (
	messagePacket = unix.NFNL_SUBSYS_ULOG << 8
	messageConfig = unix.NFNL_SUBSYS_ULOG<<8 | 1

	configCommand   = 1 // NFULA_CFG_…
	configMode      = 2
	configTimeout   = 4
	configThreshold = 5
	commandBind     = 1 // NFULNL_CFG_CMD_BIND
	copyPacket      = 2 // NFULNL_COPY_PACKET

	attrPayload = 9 // NFULA_…
	attrPrefix  = 10
)

// Copies are collected for a moment, so that a flood of them does not wake the listener for each.
const (
	timeout   = 10 // hundredths of a second
	threshold = 32 // copies
)

const generic = 4 // bytes of struct nfgenmsg

// Conn listens to one group in one network namespace: that of the thread which called Open.
type Conn struct{ nl *netlink.Conn }

// Open listens to a group, to the first size bytes of each packet. One listener can have a group.
func Open(group uint16, size uint32) (*Conn, error) {
	nl, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, fmt.Errorf("open netfilter netlink socket: %w", err)
	}
	c := &Conn{nl}
	mode := append(binary.BigEndian.AppendUint32(nil, size), copyPacket, 0)
	for _, a := range []netlink.Attribute{
		{Type: configCommand, Data: []byte{commandBind}},
		{Type: configMode, Data: mode},
		{Type: configTimeout, Data: binary.BigEndian.AppendUint32(nil, timeout)},
		{Type: configThreshold, Data: binary.BigEndian.AppendUint32(nil, threshold)},
	} {
		if err := c.configure(group, a); err != nil {
			c.Close()
			if errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EPERM) && a.Type == configCommand {
				return nil, fmt.Errorf("listen to group %d of the kernel's log (does another program have it?): %w", group, err)
			}
			return nil, fmt.Errorf("listen to group %d of the kernel's log: %w", group, err)
		}
	}
	return c, nil
}

func (c *Conn) configure(group uint16, a netlink.Attribute) error {
	data, err := netlink.MarshalAttributes([]netlink.Attribute{a})
	if err != nil {
		return err
	}
	head := binary.BigEndian.AppendUint16([]byte{unix.AF_UNSPEC, unix.NFNETLINK_V0}, group)
	_, err = c.nl.Execute(netlink.Message{
		Header: netlink.Header{Type: messageConfig, Flags: netlink.Request | netlink.Acknowledge},
		Data:   append(head, data...),
	})
	return err
}

// Close ends the connection; a Receive returns then.
func (c *Conn) Close() { _ = c.nl.Close() }

// ErrLost says that the kernel had more copies than it could keep. Those that come next are good.
var ErrLost = errors.New("copies of packets were lost")

// Receive waits for copies and hands each on. What is no copy of an IP packet is passed over.
func (c *Conn) Receive(fn func(Packet)) error {
	list, err := c.nl.Receive()
	if errors.Is(err, unix.ENOBUFS) {
		return ErrLost
	}
	if err != nil {
		return fmt.Errorf("receive from the kernel's log: %w", err)
	}
	for _, m := range list {
		if p, ok := decode(m); ok {
			fn(p)
		}
	}
	return nil
}

func decode(m netlink.Message) (p Packet, ok bool) {
	if m.Header.Type != messagePacket || len(m.Data) < generic {
		return p, false
	}
	list, err := netlink.UnmarshalAttributes(m.Data[generic:])
	if err != nil {
		return p, false
	}
	prefix := ""
	for _, a := range list {
		switch a.Type {
		case attrPrefix:
			prefix = strings.TrimRight(string(a.Data), "\x00")
		case attrPayload:
			p, ok = parse(a.Data)
		}
	}
	p.Prefix = prefix
	return p, ok
}
