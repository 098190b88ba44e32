package hostport

import (
	"net/netip"

	"github.com/braidnet/braid/cni/tables"
	"github.com/braidnet/braid/internal/desired"
	"github.com/braidnet/braid/internal/desired/nft"
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

// loopbackIndex is what the kernel numbers the device with.
const loopbackIndex = 1 // LOOPBACK_IFINDEX, in every network namespace

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
	address, service := f.address(f.daddr), []nft.Field{nft.Protocol, nft.DestinationPort}
	reach := []desired.NFTRule{nft.Rule(enter, nft.Jump(ports))}
	fromLoopback := nft.Rule("the kernel takes no reply to ::1 from a pod: refuse at once, and clients try 127.0.0.1",
		nft.Within(f.address(f.saddr), f.loopback), nft.Return())
	source := []desired.NFTRule{nft.Rule("a pod that reaches itself", nft.Key(f.address(f.saddr), address), nft.In(setHairpins), nft.Translated(), masquerade())}
	local := append([]desired.NFTRule{fromLoopback}, reach...)
	if f.nft == desired.NFTIPv4 {
		local = reach
		source = append(source, nft.Rule("from a loopback address of this node", notLoopback(expr.MetaKeyOIF), nft.Within(f.address(f.saddr), f.loopback), nft.Translated(), masquerade()))
	}
	return []desired.NFTChain{
		{Name: ports, Rules: []desired.NFTRule{
			nft.Rule("not an address of this node", nft.ForeignDestination(), nft.Return()),
			nft.Rule("port of this address", nft.Key(append([]nft.Field{address}, service...)...), nft.Mapped(mapAddresses), f.translate()),
			nft.Rule("port of every address", nft.Key(service...), nft.Mapped(mapPorts), f.translate()),
		}},
		// A pod is to be reached at 127.0.0.1 from its node, so the kernel must take replies to that address
		// from the bridge (route_localnet). Nobody may send there of his own (CVE-2020-8558).
		{Name: "loopback", Hook: &desired.NFTHook{Type: "filter", Hook: hookPrerouting, Priority: beforeConntrack}, Rules: []desired.NFTRule{
			nft.Rule("from elsewhere to a loopback address", notLoopback(expr.MetaKeyIIF), nft.Within(f.address(f.daddr), f.loopback), nft.Drop()),
			nft.Rule("from elsewhere with a loopback address", notLoopback(expr.MetaKeyIIF), nft.Within(f.address(f.saddr), f.loopback), nft.Drop()),
		}},
		{Name: "prerouting", Hook: &desired.NFTHook{Type: "nat", Hook: hookPrerouting, Priority: afterServices}, Rules: reach},
		{Name: "output", Hook: &desired.NFTHook{Type: "nat", Hook: hookOutput, Priority: afterServices}, Rules: local},
		{Name: "postrouting", Hook: &desired.NFTHook{Type: "nat", Hook: hookPostrouting, Priority: afterMasquerades}, Rules: source},
	}
}

func (f family) address(offset uint32) nft.Field {
	return nft.Payload(expr.PayloadBaseNetworkHeader, offset, uint32(f.addr.Bytes))
}

// notLoopback matches packets that come in or go out by another link than loopback.
func notLoopback(side expr.MetaKey) nft.Words {
	return append(nft.Key(nft.Meta(side, 4)), nft.NotEqual(nft.Native(loopbackIndex))...)
}

func (f family) translate() nft.Words {
	return nft.Words{&expr.NAT{
		Type: expr.NATTypeDestNAT, Family: uint32(f.nft), RegAddrMin: nft.Register0,
		RegProtoMin: nft.Register0 + uint32(f.addr.Bytes)/4, Specified: true,
	}}
}

func masquerade() nft.Words { return nft.Words{&expr.Masq{FullyRandom: true}} }
