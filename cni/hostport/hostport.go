// Package hostport makes ports of a node lead to pods: nftables tables of its own, `ip braid-hostports`
// and `ip6 braid-hostports`, whose chains never change and whose maps have one element for each port.
//
// Package tables says how elements are known to be a pod's.
package hostport

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/braidnet/braid/cni/tables"
	"github.com/braidnet/braid/internal/desired"
)

// TableName is the name of the tables, one for each family.
const TableName = "braid-hostports"

// See tables.Seal.
const layout4, layout6 = "260b35049c954749", "fcfe6eb6bd7312ad"

// Tables are the tables.
var Tables = tables.Lazy(func() []desired.NFTTable {
	return []desired.NFTTable{families[desired.NFTIPv4].table(layout4), families[desired.NFTIPv6].table(layout6)}
})

// Protocol is a transport protocol by its IP number.
type Protocol uint8

// The protocols that have ports (IANA's protocol numbers).
const (
	TCP  Protocol = 6
	UDP  Protocol = 17
	SCTP Protocol = 132
)

// ParseProtocol reads a protocol as Kubernetes writes it, in any case; empty means TCP.
func ParseProtocol(s string) (Protocol, bool) {
	switch strings.ToLower(s) {
	case "", "tcp":
		return TCP, true
	case "udp":
		return UDP, true
	case "sctp":
		return SCTP, true
	}
	return 0, false
}

func (p Protocol) String() string {
	switch p {
	case TCP:
		return "tcp"
	case UDP:
		return "udp"
	case SCTP:
		return "sctp"
	}
	return fmt.Sprintf("protocol %d", uint8(p))
}

// Port is a port of the node. Without an Addr it is that of every address of the node, save those for
// which another pod has the same port.
type Port struct {
	Addr     netip.Addr
	Protocol Protocol
	Number   uint16
}

func (p Port) String() string {
	if p.Addr.IsValid() {
		return fmt.Sprintf("%s/%s", netip.AddrPortFrom(p.Addr, p.Number), p.Protocol)
	}
	return fmt.Sprintf("%d/%s", p.Number, p.Protocol)
}

// Mapping leads connections to a port of the node to a port of the pod.
type Mapping struct {
	Host      Port // 0.0.0.0 or :: as Addr: every address of that family
	Container uint16
}

// Loopback tells whether the mapping is for an IPv4 loopback address, too. For connections from there to a
// pod, the device that leads to the pods needs route_localnet; see Add.
func (m Mapping) Loopback() bool {
	a := m.Host.Addr
	return !a.IsValid() || a.Is4() && (a.IsUnspecified() || a.IsLoopback())
}

// rule is one element of a map in a form that can be read: a port, and where it leads.
type rule struct {
	family desired.NFTFamily
	host   Port // Addr is never unspecified
	pod    netip.AddrPort
}

// rules says which elements mappings need: one for each family in which the pod has an address and
// which the mapping allows. The first address of a family counts, and of mappings for one port the first,
// such as one without an address and one of 0.0.0.0.
func rules(mappings []Mapping, pod []netip.Addr) (out []rule, err error) {
	for _, m := range mappings {
		leads := false
		for _, t := range Tables() {
			r, ok := families[t.Family].rule(m, pod)
			if leads = leads || ok; ok && !slices.ContainsFunc(out, func(o rule) bool { return o.family == r.family && o.host == r.host }) {
				out = append(out, r)
			}
		}
		if !leads {
			return nil, fmt.Errorf("host port %s: the pod has no address of that family, only %v", m.Host, pod)
		}
	}
	return out, nil
}

func (f family) rule(m Mapping, pod []netip.Addr) (rule, bool) {
	host := m.Host
	if host.Addr.IsValid() && !f.has(host.Addr) {
		return rule{}, false
	}
	if host.Addr.IsUnspecified() {
		host.Addr = netip.Addr{}
	}
	for _, a := range pod {
		if f.has(a) {
			return rule{f.nft, host, netip.AddrPortFrom(a, m.Container)}, true
		}
	}
	return rule{}, false
}

// element is the rule as an element of one of the maps.
func (r rule) element(owner tables.Owner) desired.NFTElement {
	e := desired.NFTElement{Set: mapPorts, Comment: owner.Comment()}
	if r.host.Addr.IsValid() {
		e.Set, e.Key = mapAddresses, string(r.host.Addr.AsSlice())
	}
	e.Key += string([]byte{byte(r.host.Protocol), 0, 0, 0}) + port(r.host.Number)
	e.Value = string(r.pod.Addr().AsSlice()) + port(r.pod.Port())
	return e
}

// hairpin lets the pod reach itself by a port of its node.
func (r rule) hairpin(owner tables.Owner) desired.NFTElement {
	a := string(r.pod.Addr().AsSlice())
	return desired.NFTElement{Set: setHairpins, Key: a + a, Comment: owner.Comment()}
}

// parse is the inverse of element; false for elements of another set or shape.
func parse(f desired.NFTFamily, e desired.NFTElement) (rule, bool) {
	r, n := rule{family: f}, families[f].addr.Bytes
	key := e.Key
	switch e.Set {
	case mapAddresses:
		if len(key) != n+8 {
			return r, false
		}
		r.host.Addr, _ = netip.AddrFromSlice([]byte(key[:n]))
		key = key[n:]
	case mapPorts:
	default:
		return r, false
	}
	if len(key) != 8 || len(e.Value) != n+4 {
		return r, false
	}
	r.host.Protocol, r.host.Number = Protocol(key[0]), number(key[4:])
	a, _ := netip.AddrFromSlice([]byte(e.Value[:n]))
	r.pod = netip.AddrPortFrom(a, number(e.Value[n:]))
	return r, true
}

// port is a port as registers hold it: big endian, padded to four bytes.
func port(n uint16) string { return string([]byte{byte(n >> 8), byte(n), 0, 0}) }

func number(key string) uint16 { return binary.BigEndian.Uint16([]byte(key)) }
