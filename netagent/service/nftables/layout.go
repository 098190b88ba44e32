// Package nftables translates service frontends to nftables: static chains and rules, and maps whose
// elements say everything about a service. A change of a service or an endpoint is a change of a few
// elements; no rule is ever written for it, and the cost of a packet does not grow with their number.
//
// A new connection to 10.96.0.10:53/udp looks its address up in the map frontends and finds one of
// few chains, by who is masqueraded and by the number of backends: pick-3, say. That marks the packet
// if its source is no pod of this node and goes on to choose-3, whose rule draws a number below three,
// looks 10.96.0.10:53/udp with that number up in the map slots, and translates to what it finds there.
// Node ports do the same with maps of their own, keyed by port, for the node's own addresses. With
// session affinity the chain is pick-3-for-10800 (seconds), and asks a memory before it draws.
//
// Before that, refused, dropped and filtered connections leave in chains that see the packet first.
//
// The package is pure: it makes lists of kernel changes and never touches the kernel.
package nftables

import (
	"encoding/binary"
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

// Names of sets and maps. Those for node ports have "node-" before them and the address left out of
// their keys.
const (
	setFrontends = "frontends" // address, protocol, port → chain
	setInside    = "inside"    // the same, for pods of this node and the node itself where they have a short-cut
	setSlots     = "slots"     // address, protocol, port, number → backend
	setFiltered  = "filtered"  // address, protocol, port → chain for a list of sources
	setRejected  = "rejected"  // address, protocol, port
	setDropped   = "dropped"   // address, protocol, port
	setSessions  = "sessions"  // address, protocol, port → number for the service port
	setUsable    = "usable"    // address, protocol, port, backend

	setUsableInside  = "inside-usable" // the same for Frontend.Inside
	setAffinity      = "affinity"      // client, session → backend
	setClusterIPs    = "cluster-ips"
	setHairpins      = "hairpins"
	setLocalPods     = "local-pods"
	setPodSources    = "pod-sources"
	setPodLinks      = "pod-links"
	setClusterPods   = "cluster-pods"
	setServiceRanges = "service-ranges"
	setNodeAddresses = "node-addresses"
)

const nodeWord = "node-"

// Names of chains.
const (
	chainFilterPrerouting = "filter-prerouting"
	chainFilterOutput     = "filter-output"
	chainNew              = "new-connections"
	chainInvalid          = "invalid-packets"
	chainNoBackends       = "no-backends"
	chainNodePorts        = "node-ports"
	chainRefuse           = "refuse"
	chainLoopback         = "loopback"
	chainPrerouting       = "nat-prerouting"
	chainOutput           = "nat-output"
	chainPostrouting      = "nat-postrouting"
	chainServices         = "services"
	chainForeign          = "foreign"
	chainMasquerade       = "replace-source"
)

// family holds what differs between IPv4 and IPv6.
type family struct {
	nft            desired.NFTFamily
	addr           desired.NFTType
	saddr, daddr   uint32 // offsets of the addresses in the network header, bytes
	loopback       netip.Prefix
	icmpUnreachNum uint8 // "port unreachable": ICMP type 3 code 3 (RFC 792), ICMPv6 type 1 code 4 (RFC 4443)
}

// Families lists the families that tables are made for.
var Families = []desired.NFTFamily{desired.NFTIPv4, desired.NFTIPv6}

var families = map[desired.NFTFamily]family{
	desired.NFTIPv4: {desired.NFTIPv4, desired.NFTIPv4Addr, 12, 16, netip.MustParsePrefix("127.0.0.0/8"), 3},
	desired.NFTIPv6: {desired.NFTIPv6, desired.NFTIPv6Addr, 8, 24, netip.MustParsePrefix("::1/128"), 4},
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

// insideSlots is the number of the first slot of Frontend.Inside, whose slots stand behind those of
// Frontend.Backends.
const insideSlots = maxBackends

// setFor is the name of a set, or of its twin for node ports.
func setFor(node bool, name string) string {
	if node {
		return nodeWord + name
	}
	return name
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
