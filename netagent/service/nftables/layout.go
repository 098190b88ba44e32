// Package nftables translates service frontends to nftables: static chains and rules, and maps whose
// elements say everything about a service. A change of a service or an endpoint is a change of a few
// elements; no rule is ever written for it, and the cost of a packet does not grow with their number.
//
// A new connection to 10.96.0.10:53/udp looks its address up in the map frontends and finds one of
// few chains, by the number of backends: pick-3, say, whose rule draws a number below three, looks
// 10.96.0.10:53/udp with that number up in the map slots, and translates to what it finds there.
// Node ports do the same with maps of their own, keyed by port, for the node's own addresses.
//
// The package is pure: it makes lists of kernel changes and never touches the kernel.
package nftables

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/braidnet/braid/internal/desired"
	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/netagent/service"
)

// TableName is the name of our tables, one for each family.
const TableName = "braid"

// MasqueradeMark is the one bit of the packet mark in use: set when a new connection's source is to
// be replaced, cleared when that is done. Other bits are left as they are.
const MasqueradeMark = 0x4000

// Names of sets and maps.
const (
	setFrontends     = "frontends"      // address, protocol, port → chain
	setSlots         = "slots"          // address, protocol, port, number → backend
	setRejected      = "rejected"       // address, protocol, port
	setDropped       = "dropped"        // address, protocol, port
	setNodeFrontends = "node-frontends" // the same without address, for node ports
	setNodeSlots     = "node-slots"
	setNodeRejected  = "node-rejected"
	setNodeDropped   = "node-dropped"
	setHairpins      = "hairpins"
	setLocalPods     = "local-pods"
	setClusterPods   = "cluster-pods"
)

// Names of chains.
const (
	chainFilterPrerouting = "filter-prerouting"
	chainFilterOutput     = "filter-output"
	chainNoBackends       = "no-backends"
	chainNodeNoBackends   = "node-no-backends"
	chainRefuse           = "refuse"
	chainPrerouting       = "nat-prerouting"
	chainOutput           = "nat-output"
	chainPostrouting      = "nat-postrouting"
	chainServices         = "services"
	chainMasquerade       = "replace-source"
)

// Names of the chains for a number of backends are one of these words, "node-" before it for node ports, and the
// number of backends behind it.
const (
	pickWord       = "pick"
	masqueradeWord = "masquerade"
)

// family holds what differs between IPv4 and IPv6.
type family struct {
	nft            desired.NFTFamily
	addr           desired.NFTType
	saddr, daddr   uint32 // offsets of the addresses in the network header, bytes
	loopback       netip.Prefix
	multicast      netip.Prefix
	icmpUnreachNum uint8 // "port unreachable": ICMP type 3 code 3 (RFC 792), ICMPv6 type 1 code 4 (RFC 4443)
}

// Families lists the families that tables are made for.
var Families = []desired.NFTFamily{desired.NFTIPv4, desired.NFTIPv6}

var families = map[desired.NFTFamily]family{
	desired.NFTIPv4: {desired.NFTIPv4, desired.NFTIPv4Addr, 12, 16,
		netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("224.0.0.0/4"), 3},
	desired.NFTIPv6: {desired.NFTIPv6, desired.NFTIPv6Addr, 8, 24,
		netip.MustParsePrefix("::1/128"), netip.MustParsePrefix("ff00::/8"), 4},
}

func familyOf(a netip.Addr) desired.NFTFamily {
	if a.Is4() {
		return desired.NFTIPv4
	}
	return desired.NFTIPv6
}

// maxBackends bounds what is believed of the slots in a kernel that others write to as well, and the
// slots of a frontend; backends beyond get no connections.
const maxBackends = 1 << 16

// Pick names the chains that connections to frontends with the same number of backends pass. There is
// one for each distinct number, however many frontends have it.
type Pick struct {
	Family     desired.NFTFamily
	Node       bool // for node ports
	Masquerade bool // every source, not only foreign ones
	Backends   int  // at least 1
}

// PickOf returns the Pick a frontend needs, false when it has no backends or no ports.
func PickOf(f *service.Frontend) (Pick, bool) {
	n := min(len(f.Backends), maxBackends)
	return Pick{familyOf(f.Addr), f.Kind == service.NodePort, f.Masquerade == service.MasqueradeAll, n}, n > 0 && known(f.Protocol)
}

// chain is the name of the chain a frontend leads to, such as pick-3 or node-masquerade-2.
func (p Pick) chain() string {
	name := pickWord
	if p.Masquerade {
		name = masqueradeWord
	}
	if p.Node {
		name = "node-" + name
	}
	return fmt.Sprintf("%s-%d", name, p.Backends)
}

// set chooses between the sets for service addresses and those for node ports.
func (p Pick) set(service, node string) string {
	if p.Node {
		return node
	}
	return service
}

// number appends v as registers hold numbers, in the byte order of the machine.
func number(b []byte, v uint32) []byte { return binary.NativeEndian.AppendUint32(b, v) }

// port appends a port, padded to a register.
func port(b []byte, p uint16) []byte { return append(binary.BigEndian.AppendUint16(b, p), 0, 0) }

// entry is the key by which packets find a frontend: address (not for node ports), protocol, port.
func entry(k service.Key) []byte {
	b := make([]byte, 0, 32)
	if k.Kind != service.NodePort {
		b = append(b, k.Addr.AsSlice()...)
	}
	return port(append(b, byte(k.Protocol), 0, 0, 0), k.Port)
}

func backend(a netip.AddrPort) string {
	return string(port(a.Addr().AsSlice(), a.Port()))
}

// parseBackend is the inverse of backend.
func parseBackend(s string) netip.AddrPort {
	if len(s) < 8 {
		return netip.AddrPort{}
	}
	a, _ := netip.AddrFromSlice([]byte(s[:len(s)-4]))
	return netip.AddrPortFrom(a, binary.BigEndian.Uint16([]byte(s[len(s)-4:])))
}

// known reports whether packets of the protocol have ports where the rules look for them.
func known(p model.Protocol) bool { return p == model.TCP || p == model.UDP || p == model.SCTP }
