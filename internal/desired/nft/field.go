package nft

import (
	"github.com/google/nftables/expr"

	"github.com/braidnet/braid/internal/desired"
)

// Field loads something into registers from reg on, and says how many bytes it has.
type Field func(reg uint32) (e expr.Any, bytes uint32)

// Key loads fields side by side into registers from the first on, as keys of sets are laid out.
func Key(fields ...Field) Words { return KeyAt(Register0, fields...) }

// KeyAt does the same from another register on.
func KeyAt(reg uint32, fields ...Field) (w Words) {
	for _, f := range fields {
		e, bytes := f(reg)
		w = append(w, e)
		reg += (bytes + 3) / 4
	}
	return w
}

// Payload is bytes of the packet.
func Payload(base expr.PayloadBase, offset, bytes uint32) Field {
	return func(reg uint32) (expr.Any, uint32) {
		return &expr.Payload{DestRegister: reg, Base: base, Offset: offset, Len: bytes}, bytes
	}
}

// Meta is something that the kernel knows about the packet.
func Meta(key expr.MetaKey, bytes uint32) Field {
	return func(reg uint32) (expr.Any, uint32) { return &expr.Meta{Key: key, Register: reg}, bytes }
}

func ct(key expr.CtKey) Field {
	return func(reg uint32) (expr.Any, uint32) { return &expr.Ct{Key: key, Register: reg}, 4 }
}

// Fields of packets.
var (
	Protocol        = Meta(expr.MetaKeyL4PROTO, 1) // of transport, by its IP number
	Mark            = Meta(expr.MetaKeyMARK, 4)
	DestinationPort = Payload(expr.PayloadBaseTransportHeader, 2, 2) // of TCP, UDP and SCTP
	MessageType     = Payload(expr.PayloadBaseTransportHeader, 0, 1) // of ICMP
)

// Link matches the device that a packet comes in by (IIFNAME) or goes out by (OIFNAME).
func Link(which expr.MetaKey, name string) Words {
	padded := make([]byte, desired.NFTIfName.Bytes)
	copy(padded, name)
	return Is(Meta(which, uint32(desired.NFTIfName.Bytes)), padded...)
}

// LinkPrefix matches devices whose names begin so.
func LinkPrefix(which expr.MetaKey, begin string) Words {
	return Is(Meta(which, uint32(desired.NFTIfName.Bytes)), []byte(begin)...)
}

// State matches packets whose connection is in one of the states, Ct….
func State(bits uint32) Words { return AnyBit(ct(expr.CtKeySTATE), bits) }

// Translated matches connections whose destination was replaced, Untranslated those whose was not.
func Translated() Words   { return AnyBit(ct(expr.CtKeySTATUS), ctDNAT) }
func Untranslated() Words { return NoBit(ct(expr.CtKeySTATUS), ctDNAT) }

// LocalDestination matches packets to an address of this node, ForeignDestination those to any other.
func LocalDestination() Words   { return append(destinationType(), Equal(Native(fibLocal))...) }
func ForeignDestination() Words { return append(destinationType(), NotEqual(Native(fibLocal))...) }

func destinationType() Words {
	return Words{&expr.Fib{Register: Register0, FlagDADDR: true, ResultADDRTYPE: true}}
}

// LocalSource matches packets from an address of this node, ForeignSource those from any other.
func LocalSource() Words   { return append(sourceType(), Equal(Native(fibLocal))...) }
func ForeignSource() Words { return append(sourceType(), NotEqual(Native(fibLocal))...) }

func sourceType() Words {
	return Words{&expr.Fib{Register: Register0, FlagSADDR: true, ResultADDRTYPE: true}}
}
