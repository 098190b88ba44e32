package nftables

import (
	"encoding/binary"

	"github.com/google/nftables/expr"

	"github.com/braidnet/braid/internal/desired"
	"github.com/braidnet/braid/internal/desired/nft"
)

// maxComment is how many bytes of comment the kernel keeps for us.
const maxComment = 127

func clip(s string) string { return s[:min(len(s), maxComment)] }

func rule(comment string, parts ...nft.Words) desired.NFTRule {
	return nft.Rule(clip(comment), parts...)
}

func (f family) source() nft.Field      { return f.address(f.saddr) }
func (f family) destination() nft.Field { return f.address(f.daddr) }

func (f family) address(offset uint32) nft.Field {
	return nft.Payload(expr.PayloadBaseNetworkHeader, offset, uint32(f.addr.Bytes))
}

// between matches when the destination port is in a range, both ends included.
func between(from, to uint16) nft.Words {
	if from == to {
		return nft.Is(nft.DestinationPort, binary.BigEndian.AppendUint16(nil, from)...)
	}
	return append(nft.Key(nft.DestinationPort), &expr.Range{Op: expr.CmpOpEq, Register: nft.Register0,
		FromData: binary.BigEndian.AppendUint16(nil, from), ToData: binary.BigEndian.AppendUint16(nil, to)})
}
