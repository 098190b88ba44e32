package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"iter"

	"golang.org/x/sys/unix"
)

const (
	nlmsgHeader = 16 // struct nlmsghdr
	genHeader   = 4  // struct nfgenmsg
	attrHeader  = 4  // struct nlattr
	maxAttr     = 0xffff
)

// buffer collects netlink messages. Lengths are filled in when a message or nest ends.
type buffer []byte

// begin starts a message and returns its offset for end.
func (b *buffer) begin(kind, flags uint16, seq uint32, family uint8, resource uint16) int {
	at := len(*b)
	h := append(*b, 0, 0, 0, 0)
	h = binary.NativeEndian.AppendUint16(h, kind)
	h = binary.NativeEndian.AppendUint16(h, flags|unix.NLM_F_REQUEST)
	h = binary.NativeEndian.AppendUint32(h, seq)
	h = append(h, 0, 0, 0, 0, family, unix.NFNETLINK_V0)
	*b = binary.BigEndian.AppendUint16(h, resource)
	return at
}

func (b *buffer) end(at int) { binary.NativeEndian.PutUint32((*b)[at:], uint32(len(*b)-at)) }

func (b *buffer) bytes(kind uint16, data string) {
	at := b.open(kind)
	*b = append(*b, data...)
	b.close(at)
}

func (b *buffer) string(kind uint16, s string) { b.bytes(kind, s+"\x00") }

func (b *buffer) u32(kind uint16, v uint32) {
	at := b.open(kind)
	*b = binary.BigEndian.AppendUint32(*b, v)
	b.close(at)
}

func (b *buffer) u64(kind uint16, v uint64) {
	at := b.open(kind)
	*b = binary.BigEndian.AppendUint64(*b, v)
	b.close(at)
}

func (b *buffer) nest(kind uint16) int { return b.open(kind | unix.NLA_F_NESTED) }

func (b *buffer) open(kind uint16) int {
	at := len(*b)
	h := append(*b, 0, 0)
	*b = binary.NativeEndian.AppendUint16(h, kind)
	return at
}

// close ends an attribute and pads what follows to four bytes. The caller keeps attributes below
// maxAttr: a length that wraps would silently garble the message.
func (b *buffer) close(at int) {
	binary.NativeEndian.PutUint16((*b)[at:], uint16(len(*b)-at))
	for len(*b)%4 != 0 {
		*b = append(*b, 0)
	}
}

var errShort = errors.New("truncated netlink attribute")

// attrs walks the attributes of b: type without its flag bits, payload. A malformed tail ends the
// walk with an error in *err.
func attrs(b []byte, err *error) iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		for len(b) >= attrHeader {
			n := int(binary.NativeEndian.Uint16(b))
			if n < attrHeader || n > len(b) {
				*err = fmt.Errorf("%w: %d bytes announced, %d left", errShort, n, len(b))
				return
			}
			kind := binary.NativeEndian.Uint16(b[2:]) &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)
			if !yield(kind, b[attrHeader:n]) {
				return
			}
			b = b[min((n+3)&^3, len(b)):]
		}
	}
}

// text reads a NUL-terminated string attribute.
func text(b []byte) string {
	for i, c := range b {
		if c == 0 {
			return string(b[:i])
		}
	}
	return string(b)
}

func u32(b []byte) uint32 {
	if len(b) < 4 {
		return 0
	}
	return binary.BigEndian.Uint32(b)
}

// Comments are kept in the user data of objects, as type-length-value triples that the kernel only
// stores. The type of a comment differs by object (libnftnl, include/libnftnl/udata.h).
const (
	commentOfTable   = 0
	commentOfRule    = 0
	commentOfElement = 0
	commentOfSet     = 7
	maxComment       = 127
)

// hostByteOrder is user data of a set: its keys are in the byte order of the machine
// (NFTNL_UDATA_SET_KEYBYTEORDER, BYTEORDER_HOST_ENDIAN).
var hostByteOrder = string(binary.NativeEndian.AppendUint32([]byte{0, 4}, 1))

func udata(kind byte, comment string) string {
	if len(comment) > maxComment {
		comment = comment[:maxComment]
	}
	return string([]byte{kind, byte(len(comment) + 1)}) + comment + "\x00"
}

// comment finds the comment in user data; anything else there is skipped.
func comment(kind byte, data []byte) string {
	for len(data) >= 2 {
		n := int(data[1])
		if n > len(data)-2 {
			return ""
		}
		if data[0] == kind {
			return text(data[2 : 2+n])
		}
		data = data[2+n:]
	}
	return ""
}
