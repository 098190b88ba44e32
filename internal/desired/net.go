// Package desired describes kernel objects as plain, comparable values: what should be there and,
// when read back, what is. Planners write them without a kernel, internal/kernel realises them, and
// whoever explains the node reads the Origin each one carries.
package desired

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"slices"
)

// RouteProtocol is the protocol number of every route Braid makes (rtnetlink's rtm_protocol): it is
// how leftovers of an earlier run are recognised without a state file.
const RouteProtocol = 66

// MAC is an Ethernet address.
type MAC [6]byte

// String prints 02:00:5e:10:00:01.
func (m MAC) String() string { return net.HardwareAddr(m[:]).String() }

// ParseMAC reads a six-byte Ethernet address that can belong to one interface: not zero, not a
// group address.
func ParseMAC(s string) (MAC, error) {
	hw, err := net.ParseMAC(s)
	switch {
	case err != nil || len(hw) != len(MAC{}):
		return MAC{}, fmt.Errorf("%q is not an Ethernet address: write six hexadecimal bytes such as 02:00:5e:10:00:01", s)
	case hw[0]&1 != 0:
		return MAC{}, fmt.Errorf("%s is a group address: use one whose first byte is even", hw)
	case MAC(hw) == MAC{}:
		return MAC{}, fmt.Errorf("%s belongs to no interface", hw)
	}
	return MAC(hw), nil
}

// Network is everything one overlay backend wants on a node. Order has no meaning; Sort gives equal
// networks equal order.
type Network struct {
	Links  []Link
	Addrs  []Addr
	Neighs []Neigh
	FDB    []FDB
	Routes []Route
	Relay  *Relay // nil unless packets are carried in user space

	WireGuard *WireGuard // nil unless packets are encrypted
	Detour    *Detour    // nil unless a key is being replaced
}

// VXLAN holds the attributes of a VXLAN device that cannot change while it exists (RFC 7348).
type VXLAN struct {
	VNI      uint32     // network identifier, 24 bits
	Port     uint16     // UDP destination port
	Underlay string     // device that carries the encapsulated packets
	Local    netip.Addr // source of encapsulated packets; its family is the underlay's
	Learning bool       // forwarding entries from received packets; planners want it off: entries are ours
	Remote   netip.Addr // where frames for unknown addresses are flooded; planners leave it invalid
	GBP      bool       // carry the low 16 bits of packets' marks along (Group Based Policy extension)
}

// LinkKind is what makes and serves a device.
type LinkKind uint8

const (
	KindVXLAN     LinkKind = iota
	KindTUN                // made by whoever serves it in user space; it has no address of its own (MAC)
	KindIPIP               // IPv4 in IPv4 to each route's gateway; none of these has an address (MAC)
	KindSIT                // IPv6 in IPv4, to the IPv4-compatible gateway
	KindWireGuard          // by the kernel
)

// Link is a device of the overlay, which is always wanted up.
type Link struct {
	Name   string
	Kind   LinkKind
	MTU    int
	MAC    MAC
	VXLAN  VXLAN
	IPIP   IPIP
	Origin string
}

// IPIP holds the attributes of an IP in IP device over IPv4 that cannot change while it exists.
type IPIP struct {
	Underlay string
	Local    netip.Addr // source of encapsulated packets
	Remote   netip.Addr // the only other end; planners leave it invalid, routes say where to
}

// Addr is an address on a device of ours.
type Addr struct {
	Dev    string
	Prefix netip.Prefix
	Origin string
}

// Route is a unicast route through a gateway in the main table, with RouteProtocol.
type Route struct {
	Dst    netip.Prefix
	Via    netip.Addr // same family as Dst
	Dev    string
	OnLink bool // Via is reachable on Dev whatever the other routes say
	MTU    int  // 0 = the device's
	Origin string
}

// Neigh is a permanent neighbour entry: who has IP on Dev.
type Neigh struct {
	Dev    string
	IP     netip.Addr
	MAC    MAC
	Origin string
}

// FDB is a permanent forwarding entry of a VXLAN device: frames for MAC go to the tunnel end Dst.
type FDB struct {
	Dev    string
	MAC    MAC
	Dst    netip.Addr
	Origin string
}

// String prints the device as a person would ask for it.
func (l Link) String() string {
	switch l.Kind {
	case KindTUN:
		return fmt.Sprintf("device %s (tun mtu %d)", l.Name, l.MTU)
	case KindIPIP:
		return fmt.Sprintf("device %s (ipip local %s dev %s mtu %d)", l.Name, l.IPIP.Local, l.IPIP.Underlay, l.MTU)
	case KindSIT:
		return fmt.Sprintf("device %s (sit local %s dev %s mtu %d)", l.Name, l.IPIP.Local, l.IPIP.Underlay, l.MTU)
	case KindWireGuard:
		return fmt.Sprintf("device %s (wireguard mtu %d)", l.Name, l.MTU)
	}
	gbp := ""
	if l.VXLAN.GBP {
		gbp = " gbp"
	}
	return fmt.Sprintf("device %s (vxlan id %d port %d local %s dev %s%s mtu %d address %s)",
		l.Name, l.VXLAN.VNI, l.VXLAN.Port, l.VXLAN.Local, l.VXLAN.Underlay, gbp, l.MTU, l.MAC)
}

func (a Addr) String() string { return fmt.Sprintf("address %s dev %s", a.Prefix, a.Dev) }

func (r Route) String() string {
	s := fmt.Sprintf("route %s via %s dev %s", r.Dst, r.Via, r.Dev)
	if r.OnLink {
		s += " onlink"
	}
	if r.MTU != 0 {
		s += fmt.Sprintf(" mtu %d", r.MTU)
	}
	return s
}

func (n Neigh) String() string { return fmt.Sprintf("neighbour %s is %s dev %s", n.IP, n.MAC, n.Dev) }

func (f FDB) String() string {
	return fmt.Sprintf("forwarding entry %s to %s dev %s", f.MAC, f.Dst, f.Dev)
}

// AddrKey, NeighKey and FDBKey tell objects of one kind apart; a Link's key is its name, a
// Route's its destination.
type (
	AddrKey struct {
		Dev    string
		Prefix netip.Prefix
	}
	NeighKey struct {
		Dev string
		IP  netip.Addr
	}
	FDBKey struct {
		Dev string
		MAC MAC
	}
)

// Key tells the object apart from others of its kind.
func (l Link) Key() string        { return l.Name }
func (a Addr) Key() AddrKey       { return AddrKey{a.Dev, a.Prefix} }
func (r Route) Key() netip.Prefix { return r.Dst }
func (n Neigh) Key() NeighKey     { return NeighKey{n.Dev, n.IP} }
func (f FDB) Key() FDBKey         { return FDBKey{f.Dev, f.MAC} }

// bare is the object without its reason, for comparing.
func (l Link) bare() Link   { l.Origin = ""; return l }
func (a Addr) bare() Addr   { a.Origin = ""; return a }
func (r Route) bare() Route { r.Origin = ""; return r }
func (n Neigh) bare() Neigh { n.Origin = ""; return n }
func (f FDB) bare() FDB     { f.Origin = ""; return f }

// Why says what asked for the object; empty for what was read from the kernel.
func (l Link) Why() string  { return l.Origin }
func (a Addr) Why() string  { return a.Origin }
func (r Route) Why() string { return r.Origin }
func (n Neigh) Why() string { return n.Origin }
func (f FDB) Why() string   { return f.Origin }

// Sort puts every list into one order that depends on its content only.
func (n *Network) Sort() {
	slices.SortFunc(n.Links, func(a, b Link) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(n.Addrs, func(a, b Addr) int {
		return cmp.Or(cmp.Compare(a.Dev, b.Dev), ComparePrefix(a.Prefix, b.Prefix))
	})
	slices.SortFunc(n.Neighs, func(a, b Neigh) int { return cmp.Or(cmp.Compare(a.Dev, b.Dev), a.IP.Compare(b.IP)) })
	slices.SortFunc(n.FDB, func(a, b FDB) int {
		return cmp.Or(cmp.Compare(a.Dev, b.Dev), slices.Compare(a.MAC[:], b.MAC[:]))
	})
	slices.SortFunc(n.Routes, func(a, b Route) int { return ComparePrefix(a.Dst, b.Dst) })
	if n.Relay != nil {
		n.Relay.sort()
	}
	if n.WireGuard != nil {
		n.WireGuard.sort()
	}
	if n.Detour != nil {
		n.Detour.sort()
		slices.SortFunc(n.Detour.Steer.Prefixes, ComparePrefix)
	}
}

// ComparePrefix orders prefixes by family, address, then length, so that a prefix comes right before
// those it contains.
func ComparePrefix(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}
