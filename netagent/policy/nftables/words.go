package nftables

import (
	"encoding/binary"

	"github.com/braidnet/braid/internal/desired"
	"github.com/google/nftables/expr"
)

// register0 is NFT_REG32_00, the first of sixteen registers of four bytes; a concatenated key fills consecutive ones.
const register0 = 8

// words are a part of a rule.
type words []expr.Any

// maxComment is how many bytes of comment the kernel keeps for us.
const maxComment = 127

func clip(s string) string { return s[:min(len(s), maxComment)] }

func rule(comment string, parts ...words) desired.NFTRule {
	r := desired.NFTRule{Comment: clip(comment)}
	for _, p := range parts {
		r.Exprs = append(r.Exprs, p...)
	}
	return r
}

// field loads something into registers from reg on, and says how many bytes it has.
type field func(reg uint32) (expr.Any, uint32)

func key(fields ...field) (w words) {
	reg := uint32(register0)
	for _, f := range fields {
		e, bytes := f(reg)
		w = append(w, e)
		reg += (bytes + 3) / 4
	}
	return w
}

func payload(base expr.PayloadBase, offset, bytes uint32) field {
	return func(reg uint32) (expr.Any, uint32) {
		return &expr.Payload{DestRegister: reg, Base: base, Offset: offset, Len: bytes}, bytes
	}
}

func (f family) source() field {
	return payload(expr.PayloadBaseNetworkHeader, f.saddr, uint32(f.addr.Bytes))
}

func (f family) destination() field {
	return payload(expr.PayloadBaseNetworkHeader, f.daddr, uint32(f.addr.Bytes))
}

// messageType is the type of an ICMP message; destinationPort that of TCP, UDP and SCTP.
var (
	messageType     = payload(expr.PayloadBaseTransportHeader, 0, 1)
	destinationPort = payload(expr.PayloadBaseTransportHeader, 2, 2)
)

func protocol(reg uint32) (expr.Any, uint32) {
	return &expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg}, 1
}

// is matches when a field has a value.
func is(f field, value ...byte) words {
	return append(key(f), &expr.Cmp{Op: expr.CmpOpEq, Register: register0, Data: value})
}

// link matches the interface a packet comes in or goes out by.
func link(which expr.MetaKey, name string) words {
	padded := make([]byte, desired.NFTIfName.Bytes)
	copy(padded, name)
	return is(func(reg uint32) (expr.Any, uint32) {
		return &expr.Meta{Key: which, Register: reg}, uint32(desired.NFTIfName.Bytes)
	}, padded...)
}

func state(bits uint32) words { return anyBit(expr.CtKeySTATE, bits) }

// translated matches connections whose destination was replaced.
func translated() words { return anyBit(expr.CtKeySTATUS, ctDNAT) }

func anyBit(what expr.CtKey, bits uint32) words {
	mask, zero := binary.NativeEndian.AppendUint32(nil, bits), make([]byte, 4)
	return words{
		&expr.Ct{Key: what, Register: register0},
		&expr.Bitwise{SourceRegister: register0, DestRegister: register0, Len: 4, Mask: mask, Xor: zero},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: register0, Data: zero},
	}
}

// in matches when the key is in a set.
func in(set string) words { return words{&expr.Lookup{SourceRegister: register0, SetName: set}} }

// verdictOf goes where a verdict map leads.
func verdictOf(set string) words {
	return words{&expr.Lookup{SourceRegister: register0, DestRegister: 0, IsDestRegSet: true, SetName: set}}
}

// between matches when the destination port is in a range, both ends included.
func between(from, to uint16) words {
	if from == to {
		return is(destinationPort, binary.BigEndian.AppendUint16(nil, from)...)
	}
	return append(key(destinationPort), &expr.Range{Op: expr.CmpOpEq, Register: register0,
		FromData: binary.BigEndian.AppendUint16(nil, from), ToData: binary.BigEndian.AppendUint16(nil, to)})
}

func accept() words           { return words{&expr.Verdict{Kind: expr.VerdictAccept}} }
func drop() words             { return words{&expr.Verdict{Kind: expr.VerdictDrop}} }
func jump(chain string) words { return words{&expr.Verdict{Kind: expr.VerdictJump, Chain: chain}} }
func goTo(chain string) words { return words{&expr.Verdict{Kind: expr.VerdictGoto, Chain: chain}} }
