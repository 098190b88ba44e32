package tables

import (
	"encoding/binary"

	"github.com/braidnet/braid/internal/desired"
	"github.com/google/nftables/expr"
)

// register0 is NFT_REG32_00; a concatenated key fills registers from here on.
const register0 = 8

// Words are a part of a rule.
type Words []expr.Any

// Rule joins words to a rule.
func Rule(comment string, parts ...Words) desired.NFTRule {
	r := desired.NFTRule{Comment: comment}
	for _, p := range parts {
		r.Exprs = append(r.Exprs, p...)
	}
	return r
}

// Field loads something into registers and says how many bytes it has.
type Field func(reg uint32) (expr.Any, uint32)

// Key loads fields side by side into registers from the first on, as keys of sets are laid out.
func Key(fields ...Field) (w Words) {
	reg := uint32(register0)
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

// Protocol is the transport protocol, by its IP number.
var Protocol = Meta(expr.MetaKeyL4PROTO, 1)

// Compare compares the key with a value.
func Compare(op expr.CmpOp, value ...byte) Words {
	return Words{&expr.Cmp{Op: op, Register: register0, Data: value}}
}

// Is matches when a field has a value.
func Is(f Field, value ...byte) Words { return append(Key(f), Compare(expr.CmpOpEq, value...)...) }

// Mask keeps bits of the key.
func Mask(bits ...byte) Words {
	return Words{&expr.Bitwise{SourceRegister: register0, DestRegister: register0, Len: uint32(len(bits)), Mask: bits, Xor: make([]byte, len(bits))}}
}

// In matches when the key is in a set.
func In(set string) Words { return Words{&expr.Lookup{SourceRegister: register0, SetName: set}} }

// NotIn matches when the key is not in a set.
func NotIn(set string) Words {
	return Words{&expr.Lookup{SourceRegister: register0, SetName: set, Invert: true}}
}

// Mapped replaces the key by what a map has for it, and matches when it has something.
func Mapped(set string) Words {
	return Words{&expr.Lookup{SourceRegister: register0, DestRegister: register0, IsDestRegSet: true, SetName: set}}
}

// Verdict ends the chain.
func Verdict(kind expr.VerdictKind) Words { return Words{&expr.Verdict{Kind: kind}} }

// Jump comes back from a chain that reaches no verdict.
func Jump(chain string) Words { return Words{&expr.Verdict{Kind: expr.VerdictJump, Chain: chain}} }

// Goto goes on in a chain and does not come back.
func Goto(chain string) Words { return Words{&expr.Verdict{Kind: expr.VerdictGoto, Chain: chain}} }

// Native is a number in the byte order of the machine.
func Native(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }
