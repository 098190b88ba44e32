package antispoof

import (
	"github.com/braidnet/braid/cni/tables"
	"github.com/braidnet/braid/internal/desired"
	"github.com/braidnet/braid/internal/desired/nft"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// RoutedTables are for pods without a bridge: `ip braid-antispoof` and `ip6 braid-antispoof`. What comes in by a link
// has to be from an address that the node reaches by this link, and by no other: the pod's own. So there is nothing to
// be known of a pod but its link. Addresses of the link layer mean nothing to anybody else there.
var RoutedTables = tables.Lazy(func() []desired.NFTTable {
	return []desired.NFTTable{routedTable(desired.NFTIPv4, routedLayout4), routedTable(desired.NFTIPv6, routedLayout6)}
})

func routedTable(family desired.NFTFamily, layout string) desired.NFTTable {
	icmp := func(protocol, kind byte) nft.Words {
		return append(nft.Is(nft.Protocol, protocol), nft.Is(nft.Payload(expr.PayloadBaseTransportHeader, 0, 1), kind)...)
	}
	accept, drop := nft.Verdict(expr.VerdictAccept), nft.Verdict(expr.VerdictDrop)
	router := []desired.NFTRule{nft.Rule("a pod is no router", icmp(unix.IPPROTO_ICMP, icmpRedirect), drop)}
	if family == desired.NFTIPv6 {
		const report, reports = 131, 143 // of multicast listeners, RFC 2710 and RFC 3810
		router = []desired.NFTRule{
			nft.Rule("a pod is no router", icmp(unix.IPPROTO_ICMPV6, routerAdvert), drop),
			nft.Rule("a pod is no router", icmp(unix.IPPROTO_ICMPV6, redirect6), drop),
		}
		nobody := nft.Is(nft.Payload(expr.PayloadBaseNetworkHeader, source6, 16), make([]byte, 16)...)
		for _, kind := range []byte{report, neighborSolicit, reports} {
			router = append(router, nft.Rule("from no address yet", nobody, icmp(unix.IPPROTO_ICMPV6, kind), accept))
		}
	}
	return tables.Seal(desired.NFTTable{
		Family: family, Name: TableName,
		Sets: []desired.NFTSet{{Name: setLinks, Expiring: true, Key: []desired.NFTType{desired.NFTIfName}, Comment: "host ends of routed pods' interfaces"}},
		Chains: []desired.NFTChain{
			{Name: "prerouting", Hook: &desired.NFTHook{Type: "filter", Hook: hookPrerouting, Priority: beforeEverybody}, Rules: []desired.NFTRule{
				nft.Rule("packets of pods", nft.Key(nft.Meta(expr.MetaKeyIIFNAME, 16)), nft.In(setLinks), nft.Goto("from-pod")),
			}},
			{Name: "from-pod", Rules: append(router,
				nft.Rule("from an address that is reached by the same link", wayBack(), accept),
				nft.Rule("all else is not for a pod to send", drop))},
		},
	}, "anti-spoofing of routed pods", layout)
}

// wayBack matches packets whose source is reached by the link they came in by.
func wayBack() nft.Words {
	const register = 8
	w := nft.Words{&expr.Fib{Register: register, FlagSADDR: true, FlagIIF: true, ResultOIF: true}}
	return append(w, nft.Compare(expr.CmpOpNeq, nft.Native(0)...)...)
}
