package conntrack

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Attributes of linux/netfilter/nfnetlink_conntrack.h that the netlink package does not name.
const (
	ctaFilter          = 25
	ctaFilterOrigFlags = 1
	ctaTupleZone       = 3

	filterAddrDst = 1 << 1 // CTA_FILTER_FLAG_CTA_IP_DST and so on (net/netfilter/nf_internals.h)
	filterProto   = 1 << 3
	filterPortDst = 1 << 5

	seenReply = 1 << 1 // IPS_SEEN_REPLY of linux/netfilter/nf_conntrack_common.h
)

type request struct{ *nl.NetlinkRequest }

// request asks for entries. The zone and the filter are the kernel's work to compare.
func (c *Conn) request(kind, flags int, f Filter) request {
	r := request{nl.NewNetlinkRequest(kind, flags)}
	r.AddData(&nl.Nfgenmsg{NfgenFamily: f.family(), Version: nl.NFNETLINK_V0})
	tuple := nl.NewRtAttr(unix.NLA_F_NESTED|nl.CTA_TUPLE_ORIG, nil)
	compare := uint32(filterProto)
	if f.Addr.Is4() { // with IPv6 addresses the kernel leaves out those that are equal (seen with 6.18)
		compare |= filterAddrDst
		tuple.AddRtAttr(unix.NLA_F_NESTED|nl.CTA_TUPLE_IP, nil).AddRtAttr(nl.CTA_IP_V4_DST, f.Addr.AsSlice())
	}
	proto := tuple.AddRtAttr(unix.NLA_F_NESTED|nl.CTA_TUPLE_PROTO, nil)
	proto.AddRtAttr(nl.CTA_PROTO_NUM, []byte{f.Protocol})
	if f.Port != 0 {
		compare |= filterPortDst
		proto.AddRtAttr(nl.CTA_PROTO_DST_PORT, binary.BigEndian.AppendUint16(nil, f.Port))
	}
	r.AddData(tuple)
	r.AddData(nl.NewRtAttr(nl.CTA_ZONE, []byte{0, 0}))
	filter := nl.NewRtAttr(unix.NLA_F_NESTED|ctaFilter, nil)
	filter.AddRtAttr(ctaFilterOrigFlags, binary.NativeEndian.AppendUint32(nil, compare))
	r.AddData(filter)
	return r
}

// execute sends the request and hands each message of the answer to do, which must not keep it.
func (r request) execute(c *Conn, do func([]byte)) error {
	r.Sockets = c.sockets
	return r.ExecuteIter(unix.NETLINK_NETFILTER, 0, func(b []byte) bool { do(b); return true })
}

// entry is a Flow with what names it to the kernel.
type entry struct {
	Flow
	zoned     bool   // in a zone of its own: somebody else's
	tuple, id []byte // CTA_TUPLE_ORIG and CTA_ID as the kernel wrote them, in the message
}

// clone returns the entry without its message.
func (e entry) clone() entry {
	e.tuple, e.id = bytes.Clone(e.tuple), bytes.Clone(e.id)
	return e
}

var errShort = errors.New("truncated conntrack entry")

const genHeader = 4 // struct nfgenmsg

// parse reads one entry, which keeps parts of the message.
func parse(b []byte) (e entry, err error) {
	if len(b) < genHeader {
		return e, errShort
	}
	err = attrs(b[genHeader:], func(kind uint16, v []byte) (err error) {
		switch kind {
		case nl.CTA_TUPLE_ORIG:
			e.tuple = v
			e.Src, e.Dst, err = e.parseTuple(v)
		case nl.CTA_TUPLE_REPLY:
			e.Answers, _, err = e.parseTuple(v)
		case nl.CTA_STATUS:
			e.Answered = len(v) == 4 && binary.BigEndian.Uint32(v)&seenReply != 0
		case nl.CTA_ID:
			e.id = v
		case nl.CTA_ZONE:
			e.zoned = e.zoned || len(v) != 2 || v[0] != 0 || v[1] != 0
		}
		return err
	})
	if err == nil && (e.tuple == nil || len(e.id) != 4) {
		err = fmt.Errorf("%w: no tuple or no id", errShort)
	}
	return e, err
}

// parseTuple reads source and destination of one direction. Protocols without ports have port 0.
func (e *entry) parseTuple(b []byte) (src, dst netip.AddrPort, err error) {
	var from, to netip.Addr
	var sport, dport uint16
	err = attrs(b, func(kind uint16, v []byte) error {
		switch kind {
		case nl.CTA_TUPLE_IP:
			return attrs(v, func(kind uint16, v []byte) error {
				a, ok := netip.AddrFromSlice(v)
				switch {
				case !ok:
					return fmt.Errorf("%w: address of %d bytes", errShort, len(v))
				case kind == nl.CTA_IP_V4_SRC, kind == nl.CTA_IP_V6_SRC:
					from = a
				case kind == nl.CTA_IP_V4_DST, kind == nl.CTA_IP_V6_DST:
					to = a
				}
				return nil
			})
		case nl.CTA_TUPLE_PROTO:
			return attrs(v, func(kind uint16, v []byte) error {
				switch {
				case kind == nl.CTA_PROTO_NUM && len(v) >= 1:
					e.Protocol = v[0]
				case kind == nl.CTA_PROTO_SRC_PORT && len(v) >= 2:
					sport = binary.BigEndian.Uint16(v)
				case kind == nl.CTA_PROTO_DST_PORT && len(v) >= 2:
					dport = binary.BigEndian.Uint16(v)
				}
				return nil
			})
		case ctaTupleZone:
			e.zoned = true
		}
		return nil
	})
	return netip.AddrPortFrom(from, sport), netip.AddrPortFrom(to, dport), err
}

const attrHeader = 4 // struct nlattr

// attrs walks netlink attributes until one is bad or do returns an error.
func attrs(b []byte, do func(kind uint16, v []byte) error) error {
	for len(b) >= attrHeader {
		n := int(binary.NativeEndian.Uint16(b))
		if n < attrHeader || n > len(b) {
			return fmt.Errorf("%w: attribute of %d bytes, %d left", errShort, n, len(b))
		}
		kind := binary.NativeEndian.Uint16(b[2:]) &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)
		if err := do(kind, b[attrHeader:n]); err != nil {
			return err
		}
		b = b[min((n+3)&^3, len(b)):]
	}
	return nil
}
