// Package masquerade is option `ipMasq`, for nodes without an agent, which does it otherwise: what a pod sends to
// elsewhere has an address of the node there. Tables `ip braid-masquerade` and `ip6 braid-masquerade`, see package tables.
package masquerade

import (
	"net/netip"

	"github.com/braidnet/braid/cni/tables"
	"github.com/braidnet/braid/internal/desired"
	"github.com/braidnet/braid/internal/desired/nft"
	"github.com/braidnet/braid/internal/kernel/link"
	"github.com/google/nftables/expr"
)

// TableName is the name of the tables, one for each family.
const TableName = "braid-masquerade"

// See tables.Seal.
const layout4, layout6 = "0d536908b33254d7", "07c066dbdc4f9bb8"

const (
	setPods = "pods"
	setNear = "near"

	hookPostrouting = 4   // NF_INET_POST_ROUTING
	prioritySource  = 100 // NF_IP_PRI_NAT_SRC
)

// Tables are the tables.
var Tables = tables.Lazy(func() []desired.NFTTable {
	return []desired.NFTTable{table(desired.NFTIPv4, desired.NFTIPv4Addr, 12, 16, layout4), table(desired.NFTIPv6, desired.NFTIPv6Addr, 8, 24, layout6)}
})

func table(family desired.NFTFamily, addr desired.NFTType, source, destination uint32, layout string) desired.NFTTable {
	from := nft.Payload(expr.PayloadBaseNetworkHeader, source, uint32(addr.Bytes))
	out := nft.Meta(expr.MetaKeyOIFNAME, 16)
	accept := nft.Verdict(expr.VerdictAccept)
	group, bits := nft.Mask(0xf0, 0, 0, 0), []byte{0xe0, 0, 0, 0} // 224.0.0.0/4
	if family == desired.NFTIPv6 {
		group, bits = nft.Mask(0xff, 0, 0, 0), []byte{0xff, 0, 0, 0} // ff00::/8
	}
	multicast := append(nft.Key(nft.Payload(expr.PayloadBaseNetworkHeader, destination, 4)), group...)
	multicast = append(multicast, nft.Compare(expr.CmpOpEq, bits...)...)
	return tables.Seal(desired.NFTTable{
		Family: family, Name: TableName,
		Sets: []desired.NFTSet{
			{Name: setPods, Expiring: true, Key: []desired.NFTType{addr}, Comment: "who is masqueraded"},
			{Name: setNear, Expiring: true, Key: []desired.NFTType{addr, desired.NFTIfName}, Comment: "and not where it leaves by this link, that of its own network"},
		},
		Chains: []desired.NFTChain{{Name: "postrouting", Hook: &desired.NFTHook{Type: "nat", Hook: hookPostrouting, Priority: prioritySource}, Rules: []desired.NFTRule{
			nft.Rule("to another pod", nft.Is(nft.Meta(expr.MetaKeyOIFNAME, 16), []byte(link.VethPrefix)...), accept),
			nft.Rule("within its network", nft.Key(from, out), nft.In(setNear), accept),
			nft.Rule("to many", multicast, accept),
			nft.Rule("a pod, to elsewhere", nft.Key(from), nft.In(setPods), nft.Words{&expr.Masq{FullyRandom: true}}),
		}}},
	}, "masquerading of pods", layout)
}

// Want lists a pod's elements. The link is that of its network: the bridge, or empty for a routed pod.
func Want(owner tables.Owner, addrs []netip.Addr, network string) tables.Want {
	return func(f desired.NFTFamily) (out []desired.NFTElement) {
		for _, a := range addrs {
			if a.Is4() != (f == desired.NFTIPv4) {
				continue
			}
			key := string(a.AsSlice())
			out = append(out, desired.NFTElement{Set: setPods, Key: key, Comment: owner.Comment()})
			if network != "" {
				out = append(out, desired.NFTElement{Set: setNear, Key: key + string(append([]byte(network), make([]byte, 16-len(network))...)), Comment: owner.Comment()})
			}
		}
		return out
	}
}
