package egress

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"github.com/braidnet/braid/internal/desired"
	"github.com/braidnet/braid/internal/desired/nft"
	"github.com/google/nftables/expr"
)

// TableName is the name of our nftables tables, one for each family. They are apart from those of services: pods need
// their masquerading whoever provides services, and while these are made anew.
const TableName = "braid-egress"

// Families lists the families that tables are made for.
var Families = []desired.NFTFamily{desired.NFTIPv4, desired.NFTIPv6}

// Names of sets.
const (
	setPods    = "pods"
	setOwn     = "see-own-addresses"
	setCluster = "cluster-pods"
	setNodes   = "nodes"
)

// Netfilter hooks (include/uapi/linux/netfilter.h) and priorities. Masquerading comes after that of services, at nft's srcnat
// (100), and of host ports (110); the guard before policy, at nft's filter (0).
const (
	hookInput, hookForward, hookPostrouting = 1, 2, 4
	priorityGuard                           = -10
	priorityMasquerade                      = 120
)

const udp = 17 // IANA

// family holds what differs between IPv4 and IPv6.
type family struct {
	nft          desired.NFTFamily
	addr         desired.NFTType
	saddr, daddr uint32 // offsets of the addresses in the network header, bytes
	multicast    netip.Prefix
}

var families = map[desired.NFTFamily]family{
	desired.NFTIPv4: {desired.NFTIPv4, desired.NFTIPv4Addr, 12, 16, netip.MustParsePrefix("224.0.0.0/4")},
	desired.NFTIPv6: {desired.NFTIPv6, desired.NFTIPv6Addr, 8, 24, netip.MustParsePrefix("ff00::/8")},
}

// protocols are the IP protocols by which the overlay comes in a family: all have IPv4 around them.
func (f family) protocols(o Overlay) []uint8 {
	if f.nft == desired.NFTIPv4 {
		return o.Protocols
	}
	return nil
}

// Table is the static part of a family's table, and its elements. Its comment ends in a digest of the static part, so that
// the table of another version of Braid, or of other settings, is recognised.
func Table(nf desired.NFTFamily, r *Rules) (desired.NFTTable, []desired.NFTElement) {
	f := families[nf]
	one := []desired.NFTType{f.addr}
	set := func(name, about string) desired.NFTSet {
		return desired.NFTSet{Name: name, Key: one, Interval: true, Comment: about}
	}
	t := desired.NFTTable{Family: nf, Name: TableName, Sets: []desired.NFTSet{
		set(setPods, "pod addresses of this node"),
		set(setOwn, "destinations that see pods' own addresses"),
		set(setCluster, "pod addresses of all nodes"),
		set(setNodes, "addresses of nodes"),
	}}
	if rules := f.masquerading(r); len(rules) > 0 {
		t.Chains = append(t.Chains, desired.NFTChain{Name: "postrouting", Hook: &desired.NFTHook{Type: "nat", Hook: hookPostrouting, Priority: priorityMasquerade}, Rules: rules})
	}
	if r.Guarded() {
		guard := func(hook uint32) *desired.NFTHook {
			return &desired.NFTHook{Type: "filter", Hook: hook, Priority: priorityGuard}
		}
		t.Chains = append(t.Chains,
			desired.NFTChain{Name: "input", Hook: guard(hookInput), Rules: f.guard(r, hookInput)},
			desired.NFTChain{Name: "forward", Hook: guard(hookForward), Rules: f.guard(r, hookForward)})
	}
	t.Comment = layout(&t)
	return t, slices.Concat(desired.NFTRanges(nf, setPods, r.Pods), desired.NFTRanges(nf, setOwn, r.Own),
		desired.NFTRanges(nf, setCluster, r.Cluster), desired.NFTRanges(nf, setNodes, r.Nodes))
}

func (f family) masquerading(r *Rules) (rules []desired.NFTRule) {
	masquerade := nft.Words{&expr.Masq{FullyRandom: !r.SamePorts}}
	marked := nft.Rule("whoever marked it replaces the source", nft.AnyBit(nft.Mark, Mark), nft.Return())
	if r.Masquerade {
		rules = append(rules, nft.Rule("pods to the world outside", f.source(setPods, true), f.destination(setOwn, false), f.unicast(), masquerade))
	}
	if r.Overlay.Links != "" {
		rules = append(rules, nft.Rule("by a tunnel: only pods by their own addresses", nft.LinkPrefix(expr.MetaKeyOIFNAME, r.Overlay.Links),
			f.source(setCluster, false), f.destination(setCluster, true), masquerade))
	}
	if len(rules) > 0 {
		rules = append([]desired.NFTRule{marked}, rules...)
	}
	return rules
}

// guard keeps out what would be taken for the overlay's. A pod's packet to a port of the overlay is dropped on its way to a node
// and, unless to a pod, to anywhere, since nodes have more addresses than the cluster knows: masqueraded, it would look as if this node
// had sent it. So are those that a service has translated, since whoever may write endpoints chooses where they go,
// and those that come out of the overlay itself.
func (f family) guard(r *Rules, hook uint32) (rules []desired.NFTRule) {
	drop := nft.Drop()
	var kinds []nft.Words
	for _, port := range r.Overlay.UDPPorts {
		kinds = append(kinds, slices.Concat(nft.Is(nft.Protocol, udp), nft.Is(nft.DestinationPort, binary.BigEndian.AppendUint16(nil, port)...)))
	}
	for _, p := range f.protocols(r.Overlay) {
		kinds = append(kinds, nft.Is(nft.Protocol, p))
	}
	for _, kind := range kinds {
		for _, to := range f.forbidden(r, hook) {
			rules = append(rules, nft.Rule("a pod makes no packets of the overlay", kind, f.source(setPods, true), to, drop))
			if r.Overlay.Tracked {
				rules = append(rules, nft.Rule("no service leads to the overlay", kind, nft.Translated(), to, drop))
			}
		}
		if hook == hookInput && r.Overlay.Links != "" {
			rules = append(rules, nft.Rule("the overlay carries none of its own", kind, nft.LinkPrefix(expr.MetaKeyIIFNAME, r.Overlay.Links), drop))
		}
	}
	return rules
}

// forbidden matches the destinations that nobody but nodes sends packets of the overlay to. What a pod says cannot be taken for a
// node's where contents tell: then it may still be a burden to nodes, but is its own business elsewhere.
func (f family) forbidden(r *Rules, hook uint32) []nft.Words {
	switch {
	case hook == hookInput:
		return []nft.Words{nil}
	case r.Overlay.Authentic:
		return []nft.Words{f.destination(setNodes, true)}
	}
	return []nft.Words{f.destination(setNodes, true), f.destination(setCluster, false)}
}

func layout(t *desired.NFTTable) string {
	h := sha256.New()
	fmt.Fprintf(h, "%v %+v\n", t.Family, t.Sets)
	for _, c := range t.Chains {
		fmt.Fprintf(h, "chain %s %+v\n", c.Name, c.Hook)
		for _, r := range c.Rules {
			for _, e := range r.Exprs {
				fmt.Fprintf(h, "%T%+v ", e, e)
			}
			fmt.Fprintf(h, "# %s\n", r.Comment)
		}
	}
	return fmt.Sprintf("Braid egress, layout %x", h.Sum(nil)[:8])
}

func (f family) source(set string, in bool) nft.Words      { return f.address(f.saddr, set, in) }
func (f family) destination(set string, in bool) nft.Words { return f.address(f.daddr, set, in) }

func (f family) address(offset uint32, set string, in bool) nft.Words {
	w := nft.Key(nft.Payload(expr.PayloadBaseNetworkHeader, offset, uint32(f.addr.Bytes)))
	if in {
		return append(w, nft.In(set)...)
	}
	return append(w, nft.NotIn(set)...)
}

// unicast matches destinations that are no multicast group.
func (f family) unicast() nft.Words {
	group := f.multicast
	return nft.Outside(nft.Payload(expr.PayloadBaseNetworkHeader, f.daddr, uint32(group.Addr().BitLen()/8)), group)
}
