package nftables

import (
	"net/netip"

	"github.com/google/nftables/expr"

	"github.com/braidnet/braid/internal/desired"
	"github.com/braidnet/braid/internal/desired/nft"
)

// Kernel numbers the rules use.
const (
	ngRandom = 1 // NFT_NG_RANDOM

	dynsetAdd    = 0 // NFT_DYNSET_OP_ADD
	dynsetUpdate = 1 // NFT_DYNSET_OP_UPDATE
	dynsetDelete = 2 // NFT_DYNSET_OP_DELETE
)

func (f family) source() nft.Field      { return f.address(f.saddr) }
func (f family) destination() nft.Field { return f.address(f.daddr) }

func (f family) address(offset uint32) nft.Field {
	return nft.Payload(expr.PayloadBaseNetworkHeader, offset, uint32(f.addr.Bytes))
}

// draw is a number of n from the first on, at random.
func draw(n int, first uint32) nft.Field {
	return func(reg uint32) (expr.Any, uint32) {
		return &expr.Numgen{Register: reg, Modulus: uint32(n), Type: ngRandom, Offset: first}, 4
	}
}

// inputLink is the name of the device that the packet came in by, all zeros for the node's own.
var inputLink = nft.Meta(expr.MetaKeyIIFNAME, uint32(desired.NFTIfName.Bytes))

// towards matches destinations in a prefix.
func (f family) towards(p netip.Prefix) nft.Words { return nft.Within(f.destination(), p) }

func isTCP() nft.Words { return nft.Is(nft.Protocol, 6) }

// setMark sets the masquerade bit of the packet's mark, or clears it, and leaves the others alone.
func setMark(on bool) nft.Words {
	xor := nft.Native(0)
	if on {
		xor = nft.Native(MasqueradeMark)
	}
	m := ^uint32(MasqueradeMark)
	w := append(nft.Key(nft.Mark), nft.Masked(nft.Native(m), xor)...)
	return append(w, &expr.Meta{Key: expr.MetaKeyMARK, Register: nft.Register0, SourceRegister: true})
}

// translate sends the connection to the address and port that a map put into registers from reg on.
func (f family) translate(reg uint32) nft.Words {
	return nft.Words{&expr.NAT{
		Type: expr.NATTypeDestNAT, Family: uint32(f.nft), RegAddrMin: reg,
		RegProtoMin: reg + uint32(f.addr.Bytes)/4, Specified: true,
	}}
}

func masquerade() nft.Words { return nft.Words{&expr.Masq{FullyRandom: true}} }

func reset() nft.Words { return nft.Words{&expr.Reject{Type: nft.RejectReset}} }

func (f family) unreachable() nft.Words {
	return nft.Words{&expr.Reject{Type: nft.RejectICMP, Code: f.icmpUnreachNum}}
}
