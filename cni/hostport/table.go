package hostport

import (
	"net/netip"
	"strings"

	"github.com/braidnet/braid/cni/tables"
	"github.com/braidnet/braid/internal/desired"
	"github.com/google/nftables/expr"
)

// Names of the maps and the set.
const (
	mapAddresses = "addresses" // address, protocol, port → pod
	mapPorts     = "ports"     // protocol, port → pod, for every address of the node
	setHairpins  = "hairpins"  // pods that may reach themselves: address twice
)

// Netfilter hooks (include/uapi/linux/netfilter.h), and when our chains have their turn there.
const (
	hookPrerouting  = 0
	hookOutput      = 3
	hookPostrouting = 4

	// beforeConntrack is the priority nft calls raw: packets still have the addresses they came with.
	beforeConntrack = -300
	// Services are translated at -100 and their sources replaced at 100, by us and by others. What one of
	// them has translated is not looked at again, so a host port never takes traffic of a service
	// (CVE-2019-9946).
	afterServices    = -90
	afterMasquerades = 110
)

// Kernel numbers the rules compare with.
const (
	loopbackIndex = 1      // LOOPBACK_IFINDEX, in every network namespace
	ctDNAT        = 1 << 5 // IPS_DST_NAT
	fibLocal      = 2      // RTN_LOCAL
	register0     = 8      // where tables.Key starts
)

// family holds what differs between IPv4 and IPv6.
type family struct {
	nft          desired.NFTFamily
	addr         desired.NFTType
	saddr, daddr uint32 // offsets of the addresses in the network header, bytes
	loopback     netip.Prefix
}

var families = map[desired.NFTFamily]family{
	desired.NFTIPv4: {desired.NFTIPv4, desired.NFTIPv4Addr, 12, 16, netip.MustParsePrefix("127.0.0.0/8")},
	desired.NFTIPv6: {desired.NFTIPv6, desired.NFTIPv6Addr, 8, 24, netip.MustParsePrefix("::1/128")},
}

func (f family) has(a netip.Addr) bool { return a.Is4() == (f.nft == desired.NFTIPv4) }

// table is everything but the elements.
func (f family) table(layout string) desired.NFTTable {
	service := []desired.NFTType{desired.NFTInetProto, desired.NFTInetService}
	pod := []desired.NFTType{f.addr, desired.NFTInetService}
	t := desired.NFTTable{
		Family: f.nft, Name: TableName, Chains: f.chains(),
		Sets: []desired.NFTSet{
			{Name: mapAddresses, Expiring: true, Key: append([]desired.NFTType{f.addr}, service...), Value: pod, Comment: "host ports of one address of the node: pod"},
			{Name: mapPorts, Expiring: true, Key: service, Value: pod, Comment: "host ports of all addresses of the node: pod"},
			{Name: setHairpins, Expiring: true, Key: []desired.NFTType{f.addr, f.addr}, Comment: "pods that may reach themselves by a host port"},
		},
	}
	return tables.Seal(t, "host ports", layout)
}

func (f family) chains() []desired.NFTChain {
	const ports, enter = "host-ports", "new connections to host ports"
	address, service := f.address(f.daddr), []tables.Field{tables.Protocol, destinationPort}
	reach := []desired.NFTRule{tables.Rule(enter, tables.Jump(ports))}
	fromLoopback := tables.Rule("the kernel takes no reply to ::1 from a pod: refuse at once, and clients try 127.0.0.1",
		f.in(f.saddr, f.loopback), tables.Verdict(expr.VerdictReturn))
	source := []desired.NFTRule{tables.Rule("a pod that reaches itself", tables.Key(f.address(f.saddr), address), tables.In(setHairpins), translated(), masquerade())}
	local := append([]desired.NFTRule{fromLoopback}, reach...)
	if f.nft == desired.NFTIPv4 {
		local = reach
		source = append(source, tables.Rule("from a loopback address of this node", notLoopback(expr.MetaKeyOIF), f.in(f.saddr, f.loopback), translated(), masquerade()))
	}
	return []desired.NFTChain{
		{Name: ports, Rules: []desired.NFTRule{
			tables.Rule("not an address of this node", notLocal(), tables.Verdict(expr.VerdictReturn)),
			tables.Rule("port of this address", tables.Key(append([]tables.Field{address}, service...)...), tables.Mapped(mapAddresses), f.translate()),
			tables.Rule("port of every address", tables.Key(service...), tables.Mapped(mapPorts), f.translate()),
		}},
		// A pod is to be reached at 127.0.0.1 from its node, so the kernel must take replies to that address
		// from the bridge (route_localnet). Nobody may send there of his own (CVE-2020-8558).
		{Name: "loopback", Hook: &desired.NFTHook{Type: "filter", Hook: hookPrerouting, Priority: beforeConntrack}, Rules: []desired.NFTRule{
			tables.Rule("from elsewhere to a loopback address", notLoopback(expr.MetaKeyIIF), f.in(f.daddr, f.loopback), tables.Verdict(expr.VerdictDrop)),
			tables.Rule("from elsewhere with a loopback address", notLoopback(expr.MetaKeyIIF), f.in(f.saddr, f.loopback), tables.Verdict(expr.VerdictDrop)),
		}},
		{Name: "prerouting", Hook: &desired.NFTHook{Type: "nat", Hook: hookPrerouting, Priority: afterServices}, Rules: reach},
		{Name: "output", Hook: &desired.NFTHook{Type: "nat", Hook: hookOutput, Priority: afterServices}, Rules: local},
		{Name: "postrouting", Hook: &desired.NFTHook{Type: "nat", Hook: hookPostrouting, Priority: afterMasquerades}, Rules: source},
	}
}

func (f family) address(offset uint32) tables.Field {
	return tables.Payload(expr.PayloadBaseNetworkHeader, offset, uint32(f.addr.Bytes))
}

var destinationPort = tables.Payload(expr.PayloadBaseTransportHeader, 2, 2)

// in matches packets whose address at an offset is of a prefix, which ends at a byte.
func (f family) in(offset uint32, p netip.Prefix) tables.Words {
	w := tables.Key(f.address(offset))
	if p.Bits() < p.Addr().BitLen() {
		mask := make([]byte, p.Addr().BitLen()/8)
		copy(mask, strings.Repeat("\xff", p.Bits()/8))
		w = append(w, tables.Mask(mask...)...)
	}
	return append(w, tables.Compare(expr.CmpOpEq, p.Addr().AsSlice()...)...)
}

// notLoopback matches packets that come in or go out by another link than loopback.
func notLoopback(side expr.MetaKey) tables.Words {
	return append(tables.Key(tables.Meta(side, 4)), tables.Compare(expr.CmpOpNeq, tables.Native(loopbackIndex)...)...)
}

// notLocal matches packets to others than this node.
func notLocal() tables.Words {
	kind := tables.Words{&expr.Fib{Register: register0, FlagDADDR: true, ResultADDRTYPE: true}}
	return append(kind, tables.Compare(expr.CmpOpNeq, tables.Native(fibLocal)...)...)
}

// translated matches connections whose destination has been replaced.
func translated() tables.Words {
	w := append(tables.Words{&expr.Ct{Key: expr.CtKeySTATUS, Register: register0}}, tables.Mask(tables.Native(ctDNAT)...)...)
	return append(w, tables.Compare(expr.CmpOpNeq, tables.Native(0)...)...)
}

func (f family) translate() tables.Words {
	return tables.Words{&expr.NAT{
		Type: expr.NATTypeDestNAT, Family: uint32(f.nft), RegAddrMin: register0,
		RegProtoMin: register0 + uint32(f.addr.Bytes)/4, Specified: true,
	}}
}

func masquerade() tables.Words { return tables.Words{&expr.Masq{FullyRandom: true}} }
