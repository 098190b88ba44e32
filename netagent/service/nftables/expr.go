package nftables

import (
	"net/netip"

	"github.com/braidnet/braid/internal/desired"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
)

// Kernel numbers the rules compare with.
const (
	ctInvalid   = 1 << 0 // NF_CT_STATE_INVALID_BIT
	ctNew       = 1 << 3 // NF_CT_STATE_BIT(IP_CT_NEW)
	ctDNAT      = 1 << 5 // IPS_DST_NAT
	fibLocal    = 2      // RTN_LOCAL
	rejectICMP  = 0      // NFT_REJECT_ICMP_UNREACH
	rejectReset = 1      // NFT_REJECT_TCP_RST
	ngRandom    = 1      // NFT_NG_RANDOM

	dynsetAdd    = 0 // NFT_DYNSET_OP_ADD
	dynsetUpdate = 1 // NFT_DYNSET_OP_UPDATE
	dynsetDelete = 2 // NFT_DYNSET_OP_DELETE
)

// register0 is the first of sixteen registers of four bytes; a concatenated key fills consecutive ones.
const register0 = 8

// tokens is a rule's expressions; its methods read like the words of an nft rule.
type tokens []expr.Any

func rule(comment string, parts ...tokens) desired.NFTRule {
	r := desired.NFTRule{Comment: comment}
	for _, p := range parts {
		r.Exprs = append(r.Exprs, p...)
	}
	return r
}

// key loads fields side by side into registers from the first on.
func key(fields ...field) tokens { return keyAt(register0, fields...) }

func keyAt(reg uint32, fields ...field) (t tokens) {
	for _, f := range fields {
		e, bytes := f(reg)
		t = append(t, e)
		reg += (bytes + 3) / 4
	}
	return t
}

type field = func(reg uint32) (expr.Any, uint32)

func (f family) source() field      { return f.address(f.saddr) }
func (f family) destination() field { return f.address(f.daddr) }

func (f family) address(offset uint32) field {
	return func(reg uint32) (expr.Any, uint32) {
		n := uint32(f.addr.Bytes)
		return &expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: n}, n
	}
}

func protocol(reg uint32) (expr.Any, uint32) {
	return &expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg}, 1
}

func destinationPort(reg uint32) (expr.Any, uint32) {
	return &expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2}, 2
}

// draw is a number of n from the first on, at random.
func draw(n int, first uint32) field {
	return func(reg uint32) (expr.Any, uint32) {
		return &expr.Numgen{Register: reg, Modulus: uint32(n), Type: ngRandom, Offset: first}, 4
	}
}

// inputLink is the name of the device that the packet came in by, all zeros for the node's own.
func inputLink(reg uint32) (expr.Any, uint32) {
	return &expr.Meta{Key: expr.MetaKeyIIFNAME, Register: reg}, uint32(desired.NFTIfName.Bytes)
}

func mark(reg uint32) (expr.Any, uint32) {
	return &expr.Meta{Key: expr.MetaKeyMARK, Register: reg}, 4
}

func in(set string) tokens {
	return tokens{&expr.Lookup{SourceRegister: register0, SetName: set}}
}

// mapped replaces the key by what a data map holds for it.
func mapped(set string) tokens {
	return tokens{&expr.Lookup{SourceRegister: register0, DestRegister: register0, IsDestRegSet: true, SetName: set}}
}

// verdict goes where a verdict map leads.
func verdict(set string) tokens {
	return tokens{&expr.Lookup{SourceRegister: register0, DestRegister: 0, IsDestRegSet: true, SetName: set}}
}

func equal(value []byte) tokens {
	return tokens{&expr.Cmp{Op: expr.CmpOpEq, Register: register0, Data: value}}
}

func notEqual(value []byte) tokens {
	return tokens{&expr.Cmp{Op: expr.CmpOpNeq, Register: register0, Data: value}}
}

// masked keeps the bits of the key that mask has, then flips those of xor.
func masked(mask, xor []byte) tokens {
	return tokens{&expr.Bitwise{SourceRegister: register0, DestRegister: register0, Len: uint32(len(mask)), Mask: mask, Xor: xor}}
}

func native(v uint32) []byte { return binaryutil.NativeEndian.PutUint32(v) }

// anyBit matches when the four-byte key has one of bits.
func anyBit(bits uint32) tokens {
	return append(masked(native(bits), native(0)), notEqual(native(0))...)
}

// noBit matches when the four-byte key has none of bits.
func noBit(bits uint32) tokens {
	return append(masked(native(bits), native(0)), equal(native(0))...)
}

func state(bits uint32) tokens {
	return append(tokens{&expr.Ct{Key: expr.CtKeySTATE, Register: register0}}, anyBit(bits)...)
}

func destinationTranslated() tokens {
	return append(tokens{&expr.Ct{Key: expr.CtKeySTATUS, Register: register0}}, anyBit(ctDNAT)...)
}

// untranslated matches packets of connections whose destination has not been.
func untranslated() tokens {
	return append(tokens{&expr.Ct{Key: expr.CtKeySTATUS, Register: register0}}, noBit(ctDNAT)...)
}

// towards matches destinations in a prefix.
func (f family) towards(p netip.Prefix) tokens { return within(key(f.destination()), p) }

// within matches when the address that t loads is in a prefix.
func within(t tokens, p netip.Prefix) tokens {
	addr := p.Addr().AsSlice()
	if p.Bits() < p.Addr().BitLen() {
		mask := make([]byte, len(addr))
		for i := range p.Bits() {
			mask[i/8] |= 0x80 >> (i % 8)
		}
		t = append(t, masked(mask, make([]byte, len(addr)))...)
	}
	return append(t, equal(addr)...)
}

// localDestination matches packets to an address of this node.
func localDestination() tokens {
	return append(tokens{&expr.Fib{Register: register0, FlagDADDR: true, ResultADDRTYPE: true}}, equal(native(fibLocal))...)
}

// localSource matches packets from an address of this node.
func localSource() tokens { return append(sourceType(), equal(native(fibLocal))...) }

// foreignSource matches packets from an address that is none of this node's.
func foreignSource() tokens { return append(sourceType(), notEqual(native(fibLocal))...) }

func sourceType() tokens {
	return tokens{&expr.Fib{Register: register0, FlagSADDR: true, ResultADDRTYPE: true}}
}

func isTCP() tokens { return append(key(protocol), equal([]byte{6})...) }

// setMark sets the masquerade bit of the packet's mark, or clears it, and leaves the others alone.
func setMark(on bool) tokens {
	xor := native(0)
	if on {
		xor = native(MasqueradeMark)
	}
	m := ^uint32(MasqueradeMark)
	t := append(key(mark), masked(native(m), xor)...)
	return append(t, &expr.Meta{Key: expr.MetaKeyMARK, Register: register0, SourceRegister: true})
}

func jump(chain string) tokens { return tokens{&expr.Verdict{Kind: expr.VerdictJump, Chain: chain}} }
func goTo(chain string) tokens { return tokens{&expr.Verdict{Kind: expr.VerdictGoto, Chain: chain}} }
func drop() tokens             { return tokens{&expr.Verdict{Kind: expr.VerdictDrop}} }
func leave() tokens            { return tokens{&expr.Verdict{Kind: expr.VerdictReturn}} }

// translate sends the connection to the address and port that a map put into registers from reg on.
func (f family) translate(reg uint32) tokens {
	return tokens{&expr.NAT{
		Type: expr.NATTypeDestNAT, Family: uint32(f.nft), RegAddrMin: reg,
		RegProtoMin: reg + uint32(f.addr.Bytes)/4, Specified: true,
	}}
}

func masquerade() tokens { return tokens{&expr.Masq{FullyRandom: true}} }

func reset() tokens { return tokens{&expr.Reject{Type: rejectReset}} }

func (f family) unreachable() tokens {
	return tokens{&expr.Reject{Type: rejectICMP, Code: f.icmpUnreachNum}}
}
