// Package nft has the language of nftables: the words that rules are made of, so that a rule here reads as `nft list`
// prints it. It knows no kernel and no table.
package nft

import (
	"encoding/binary"
	"net/netip"

	"github.com/google/nftables/expr"

	"github.com/braidnet/braid/internal/desired"
)

// Register0 is NFT_REG32_00, the first of sixteen registers of four bytes; a key of several fields fills consecutive ones.
const Register0 = 8

// Numbers of the kernel that rules compare with (linux/netfilter/nf_conntrack_common.h, nf_tables.h, rtnetlink.h).
const (
	CtInvalid     = 1 << 0 // NF_CT_STATE_INVALID_BIT
	CtEstablished = 1 << 1 // NF_CT_STATE_BIT(IP_CT_ESTABLISHED)
	CtRelated     = 1 << 2 // NF_CT_STATE_BIT(IP_CT_RELATED)
	CtNew         = 1 << 3 // NF_CT_STATE_BIT(IP_CT_NEW)
	ctDNAT        = 1 << 5 // IPS_DST_NAT

	RejectICMP  = 0 // NFT_REJECT_ICMP_UNREACH
	RejectReset = 1 // NFT_REJECT_TCP_RST

	fibLocal = 2 // RTN_LOCAL
)

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

// Native is a number in the byte order of the machine.
func Native(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }

// In matches when the key is in a set.
func In(set string) Words { return Words{&expr.Lookup{SourceRegister: Register0, SetName: set}} }

// NotIn matches when the key is not in a set.
func NotIn(set string) Words {
	return Words{&expr.Lookup{SourceRegister: Register0, SetName: set, Invert: true}}
}

// Mapped replaces the key by what a map has for it, and matches when it has something.
func Mapped(set string) Words {
	return Words{&expr.Lookup{SourceRegister: Register0, DestRegister: Register0, IsDestRegSet: true, SetName: set}}
}

// VerdictOf goes where a verdict map leads.
func VerdictOf(set string) Words {
	return Words{&expr.Lookup{SourceRegister: Register0, IsDestRegSet: true, SetName: set}}
}

// Compare compares the key with a value.
func Compare(op expr.CmpOp, value ...byte) Words {
	return Words{&expr.Cmp{Op: op, Register: Register0, Data: value}}
}

// Equal matches when the key has a value.
func Equal(value []byte) Words { return Compare(expr.CmpOpEq, value...) }

// NotEqual matches when the key has another one.
func NotEqual(value []byte) Words { return Compare(expr.CmpOpNeq, value...) }

// Is matches when a field has a value.
func Is(f Field, value ...byte) Words { return append(Key(f), Equal(value)...) }

// Mask keeps bits of the key.
func Mask(bits ...byte) Words { return Masked(bits, make([]byte, len(bits))) }

// Masked keeps the bits of the key that mask has, then flips those of xor.
func Masked(mask, xor []byte) Words {
	return Words{&expr.Bitwise{SourceRegister: Register0, DestRegister: Register0, Len: uint32(len(mask)), Mask: mask, Xor: xor}}
}

// AnyBit matches when a field of four bytes has one of bits.
func AnyBit(f Field, bits uint32) Words {
	return append(Key(f), append(Mask(Native(bits)...), NotEqual(Native(0))...)...)
}

// NoBit matches when a field of four bytes has none of bits.
func NoBit(f Field, bits uint32) Words {
	return append(Key(f), append(Mask(Native(bits)...), Equal(Native(0))...)...)
}

// Within matches when the address that f loads is in a prefix, Outside when it is not.
func Within(f Field, p netip.Prefix) Words  { return within(f, p, expr.CmpOpEq) }
func Outside(f Field, p netip.Prefix) Words { return within(f, p, expr.CmpOpNeq) }

func within(f Field, p netip.Prefix, op expr.CmpOp) Words {
	w, addr := Key(f), p.Addr().AsSlice()
	if p.Bits() < p.Addr().BitLen() {
		mask := make([]byte, len(addr))
		for i := range p.Bits() {
			mask[i/8] |= 0x80 >> (i % 8)
		}
		w = append(w, Mask(mask...)...)
	}
	return append(w, Compare(op, addr...)...)
}

// Verdict ends the chain.
func Verdict(kind expr.VerdictKind) Words { return Words{&expr.Verdict{Kind: kind}} }

// Accept, Drop and Return are the verdicts of these names.
func Accept() Words { return Verdict(expr.VerdictAccept) }
func Drop() Words   { return Verdict(expr.VerdictDrop) }
func Return() Words { return Verdict(expr.VerdictReturn) }

// Jump comes back from a chain that reaches no verdict.
func Jump(chain string) Words { return Words{&expr.Verdict{Kind: expr.VerdictJump, Chain: chain}} }

// Goto goes on in a chain and does not come back.
func Goto(chain string) Words { return Words{&expr.Verdict{Kind: expr.VerdictGoto, Chain: chain}} }
