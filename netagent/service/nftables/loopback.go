package nftables

import (
	"net/netip"

	"github.com/google/nftables/expr"

	"github.com/braidnet/braid/internal/desired"
	"github.com/braidnet/braid/internal/desired/nft"
	"github.com/braidnet/braid/netagent/service"
)

// loopbackIndex is the number of the device lo in every network namespace.
const loopbackIndex = 1

// loopbackServed reports whether node ports are served on the family's loopback addresses.
func loopbackServed(f desired.NFTFamily, net service.Net) bool {
	return net.Loopback && f == desired.NFTIPv4
}

// loopbackChain keeps everybody but the node itself from its loopback addresses. It comes before connection tracking,
// so nobody's translation comes before it, and replies, which are not translated back yet, pass.
func loopbackChain(nf desired.NFTFamily) desired.NFTChain {
	f := families[nf]
	elsewhere := append(nft.Key(nft.Meta(expr.MetaKeyIIF, 4)), nft.NotEqual(nft.Native(loopbackIndex))...)
	return desired.NFTChain{Name: chainLoopback, Hook: &desired.NFTHook{Type: "filter", Hook: hookPrerouting, Priority: priorityRaw}, Rules: []desired.NFTRule{
		nft.Rule("from elsewhere to a loopback address", elsewhere, f.towards(f.loopback), nft.Drop()),
		nft.Rule("from elsewhere with a loopback address", elsewhere, nft.Within(f.source(), f.loopback), nft.Drop()),
	}}
}

// nodeAddresses are the ranges in which the node's addresses serve node ports. Loopback addresses are cut out
// unless they do.
func nodeAddresses(f desired.NFTFamily, net service.Net) (out []desired.NFTElement) {
	loop := desired.NFTRanges(f, setNodeAddresses, []netip.Prefix{families[f].loopback})[0]
	for _, e := range desired.NFTRanges(f, setNodeAddresses, net.NodePorts) {
		if loopbackServed(f, net) || e.End != "" && e.End <= loop.Key || e.Key >= loop.End {
			out = append(out, e)
			continue
		}
		if e.Key < loop.Key {
			out = append(out, desired.NFTElement{Set: e.Set, Key: e.Key, End: loop.Key})
		}
		if e.End == "" || e.End > loop.End {
			out = append(out, desired.NFTElement{Set: e.Set, Key: loop.End, End: e.End})
		}
	}
	return out
}
