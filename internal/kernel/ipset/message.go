package ipset

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"syscall"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/braidnet/braid/internal/desired"
)

// listHeader is IPSET_FLAG_LIST_HEADER: sets are listed without their members.
const listHeader = 1 << 2

// messageMax bounds the members of one message, in bytes: the kernel repeats the message when it refuses it, and
// that has to fit the receiver's buffer.
const messageMax = 16 << 10

// revisions of the set types: the first that has what we use. The kernel goes on to take it, whatever came later.
var revisions = map[desired.IPSetType]uint8{desired.IPSetAddr: 1, desired.IPSetNet: 1, desired.IPSetAddrPort: 1}

func family(ipv6 bool) uint8 {
	if ipv6 {
		return unix.AF_INET6
	}
	return unix.AF_INET
}

// request begins a message. Without NLM_F_EXCL the kernel does not mind what is there or gone already.
func request(command, flags int) *nl.NetlinkRequest {
	r := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_IPSET<<8|command, flags|unix.NLM_F_ACK)
	if flags&unix.NLM_F_DUMP != 0 {
		r.Flags &^= unix.NLM_F_ACK
	}
	r.AddData(&nl.Nfgenmsg{NfgenFamily: unix.AF_INET, Version: nl.NFNETLINK_V0})
	r.AddData(nl.NewRtAttr(nl.IPSET_ATTR_PROTOCOL, []byte{nl.IPSET_PROTOCOL}))
	return r
}

func named(command, flags int, set string) *nl.NetlinkRequest {
	r := request(command, flags)
	r.AddData(nl.NewRtAttr(nl.IPSET_ATTR_SETNAME, nl.ZeroTerminated(set)))
	return r
}

func create(s desired.IPSet) (*nl.NetlinkRequest, error) {
	revision, ok := revisions[s.Type]
	if !ok || s.Name == "" || len(s.Name) >= nl.IPSET_MAXNAMELEN {
		return nil, fmt.Errorf("a set has a known type and a name of up to %d bytes, not %q of type %q", nl.IPSET_MAXNAMELEN-1, s.Name, s.Type)
	}
	r := named(nl.IPSET_CMD_CREATE, 0, s.Name)
	r.AddData(nl.NewRtAttr(nl.IPSET_ATTR_TYPENAME, nl.ZeroTerminated(string(s.Type))))
	r.AddData(nl.NewRtAttr(nl.IPSET_ATTR_REVISION, []byte{revision}))
	r.AddData(nl.NewRtAttr(nl.IPSET_ATTR_FAMILY, []byte{family(s.IPv6)}))
	data := nl.NewRtAttr(nl.IPSET_ATTR_DATA|unix.NLA_F_NESTED, nil)
	data.AddRtAttr(nl.IPSET_ATTR_HASHSIZE|unix.NLA_F_NET_BYTEORDER, binary.BigEndian.AppendUint32(nil, firstSize))
	data.AddRtAttr(nl.IPSET_ATTR_MAXELEM|unix.NLA_F_NET_BYTEORDER, binary.BigEndian.AppendUint32(nil, MaxMembers))
	r.AddData(data)
	return r, nil
}

// change is a message that adds or removes the first members of a list, and says how many.
func change(command int, s desired.IPSet, members []desired.IPSetMember) (*nl.NetlinkRequest, int, error) {
	var list []byte
	n := 0
	for n < len(members) && len(list) < messageMax {
		m, err := member(s, members[n], uint32(n+1))
		if err != nil {
			return nil, 0, err
		}
		list = append(list, m...)
		n++
	}
	r := named(command, 0, s.Name)
	r.AddData(nl.NewRtAttr(nl.IPSET_ATTR_LINENO|unix.NLA_F_NET_BYTEORDER, make([]byte, 4))) // the kernel writes into it which member it refuses
	r.AddData(nl.NewRtAttr(nl.IPSET_ATTR_ADT|unix.NLA_F_NESTED, list))
	return r, n, nil
}

// member is one member inside a message.
func member(s desired.IPSet, m desired.IPSetMember, number uint32) ([]byte, error) {
	a := m.Prefix.Addr()
	switch {
	case !m.Prefix.IsValid() || a.Is4() == s.IPv6 || m.Prefix != m.Prefix.Masked():
		return nil, fmt.Errorf("%s is no masked prefix of the set's family", m.Prefix)
	case s.Type == desired.IPSetNet && m.Prefix.Bits() == 0, s.Type != desired.IPSetNet && !m.Prefix.IsSingleIP():
		return nil, fmt.Errorf("a set of type %s cannot have %s", s.Type, m.Prefix)
	case (s.Type == desired.IPSetAddrPort) != (m.Protocol != 0):
		return nil, fmt.Errorf("a set of type %s cannot have %s", s.Type, m)
	}
	kind := nl.IPSET_ATTR_IPADDR_IPV4
	if s.IPv6 {
		kind = nl.IPSET_ATTR_IPADDR_IPV6
	}
	data := nl.NewRtAttr(nl.IPSET_ATTR_DATA|unix.NLA_F_NESTED, nil)
	data.AddRtAttr(nl.IPSET_ATTR_IP|unix.NLA_F_NESTED, nil).AddRtAttr(kind|unix.NLA_F_NET_BYTEORDER, a.AsSlice())
	switch s.Type {
	case desired.IPSetNet:
		data.AddRtAttr(nl.IPSET_ATTR_CIDR, []byte{uint8(m.Prefix.Bits())})
	case desired.IPSetAddrPort:
		data.AddRtAttr(nl.IPSET_ATTR_PORT|unix.NLA_F_NET_BYTEORDER, binary.BigEndian.AppendUint16(nil, m.Port))
		data.AddRtAttr(nl.IPSET_ATTR_PROTO, []byte{m.Protocol})
	}
	data.AddRtAttr(nl.IPSET_ATTR_LINENO|unix.NLA_F_NET_BYTEORDER, binary.BigEndian.AppendUint32(nil, number))
	return data.Serialize(), nil
}

var errShort = errors.New("truncated ipset message")

const (
	genHeader  = 4 // struct nfgenmsg
	attrHeader = 4 // struct nlattr
)

// attrs walks netlink attributes until one is bad or do returns an error.
func attrs(b []byte, do func(kind int, v []byte) error) error {
	for len(b) >= attrHeader {
		n := int(binary.NativeEndian.Uint16(b))
		if n < attrHeader || n > len(b) {
			return fmt.Errorf("%w: attribute of %d bytes, %d left", errShort, n, len(b))
		}
		kind := int(binary.NativeEndian.Uint16(b[2:]) &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER))
		if err := do(kind, b[attrHeader:n]); err != nil {
			return err
		}
		b = b[min((n+3)&^3, len(b)):]
	}
	return nil
}

func content(b []byte) []byte { return b[min(genHeader, len(b)):] }

func text(v []byte) string { return unix.ByteSliceToString(v) }

// parseInfo reads what a list says of a set. A set's further messages bear its name and no type.
func parseInfo(b []byte) (info Info, err error) {
	info.Members = -1
	err = attrs(content(b), func(kind int, v []byte) error {
		switch kind {
		case nl.IPSET_ATTR_SETNAME:
			info.Name = text(v)
		case nl.IPSET_ATTR_TYPENAME:
			info.Type = desired.IPSetType(text(v))
		case nl.IPSET_ATTR_FAMILY:
			info.IPv6 = len(v) == 1 && v[0] == unix.AF_INET6
		case nl.IPSET_ATTR_DATA:
			return attrs(v, func(kind int, v []byte) error {
				switch {
				case kind == nl.IPSET_ATTR_ELEMENTS && len(v) == 4:
					info.Members = int(binary.BigEndian.Uint32(v))
				case kind == nl.IPSET_ATTR_REFERENCES && len(v) == 4:
					info.References = int(binary.BigEndian.Uint32(v))
				}
				return nil
			})
		}
		return nil
	})
	return info, err
}

// parseMembers reads the members in one message of a list.
func parseMembers(b []byte, each func(desired.IPSetMember)) error {
	return attrs(content(b), func(kind int, v []byte) error {
		if kind != nl.IPSET_ATTR_ADT {
			return nil
		}
		return attrs(v, func(kind int, v []byte) error {
			if kind != nl.IPSET_ATTR_DATA {
				return nil
			}
			m, err := parseMember(v)
			if err == nil {
				each(m)
			}
			return err
		})
	})
}

func parseMember(b []byte) (m desired.IPSetMember, err error) {
	var addr netip.Addr
	bits := -1
	err = attrs(b, func(kind int, v []byte) error {
		switch {
		case kind == nl.IPSET_ATTR_IP:
			return attrs(v, func(_ int, v []byte) error {
				addr, _ = netip.AddrFromSlice(v)
				return nil
			})
		case kind == nl.IPSET_ATTR_CIDR && len(v) == 1:
			bits = int(v[0])
		case kind == nl.IPSET_ATTR_PORT && len(v) == 2:
			m.Port = binary.BigEndian.Uint16(v)
		case kind == nl.IPSET_ATTR_PROTO && len(v) == 1:
			m.Protocol = v[0]
		}
		return nil
	})
	if err != nil {
		return m, err
	}
	if bits < 0 {
		bits = addr.BitLen()
	}
	if m.Prefix = netip.PrefixFrom(addr, bits); !m.Prefix.IsValid() {
		return m, fmt.Errorf("%w: a member without an address", errShort)
	}
	return m, nil
}

// errorTexts are the kernel's own error numbers (IPSET_ERR_…), as people can use them.
var errorTexts = map[syscall.Errno]string{
	nl.IPSET_ERR_FIND_TYPE:         "the kernel does not have this type of set",
	nl.IPSET_ERR_MAX_SETS:          "the kernel has as many sets as it can",
	nl.IPSET_ERR_BUSY:              "a rule or another set refers to it",
	nl.IPSET_ERR_TYPE_MISMATCH:     "it is there, and of another type",
	nl.IPSET_ERR_REFERENCED:        "a rule or another set refers to it",
	nl.IPSET_ERR_TYPE_SPECIFIC:     "it is full",
	nl.IPSET_ERR_TYPE_SPECIFIC + 1: "it cannot have this member",
	syscall.ENOENT:                 "it is not there",
	syscall.EEXIST:                 "it is there, and not as it has to be: destroy it",
	syscall.EPERM:                  "the capability NET_ADMIN is needed",
}

// explain says what an error number of ipset means.
func explain(err error) error {
	var number syscall.Errno
	if !errors.As(err, &number) {
		return err
	}
	if s := errorTexts[number]; s != "" {
		return fmt.Errorf("%s (%w)", s, number)
	}
	if number >= nl.IPSET_ERR_PRIVATE {
		return fmt.Errorf("refused with ipset error %d (%w)", int(number)-nl.IPSET_ERR_PRIVATE, number)
	}
	return err
}
