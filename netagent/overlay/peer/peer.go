// Package peer holds what overlay backends are told: this node, the other nodes with the way to
// reach each of their pod CIDRs, and the notes about what cannot be reached. The overlay package
// checks all of it first, so backends only translate.
package peer

import (
	"net/netip"
	"slices"

	"github.com/braidnet/braid/internal/desired"
)

// Underlay is the machine's own network in one address family, the one of Addr.
type Underlay struct {
	Addr   netip.Addr     // this node's
	Dev    string         // the device that holds Addr
	DevMTU int            // of Dev, bytes
	MTU    int            // the largest packet that the ways to other nodes take, bytes
	Why    string         // what MTU comes from
	OnLink []netip.Prefix // what Dev reaches without a gateway
}

// Reaches reports whether addr is on the link.
func (u Underlay) Reaches(addr netip.Addr) bool {
	return slices.ContainsFunc(u.OnLink, func(p netip.Prefix) bool { return p.Contains(addr) })
}

// Self is the node to plan for.
type Self struct {
	Name      string
	Origin    string // the Node object, for people
	MAC       desired.MAC
	CIDRs     []netip.Prefix // own pod CIDRs, at most one per family
	Underlays []Underlay     // at most one per family
	Direct    bool           // reach peers on the link by plain routes, where the backend is a tunnel
	VXLAN     VXLAN
	UDP       UDP
	WireGuard WireGuard
}

// VXLAN holds the settings of the backend of that name.
type VXLAN struct {
	VNI  uint32 // network identifier, 1 … 2^24-1
	Port uint16 // UDP port
	GBP  bool   // carry packets' marks between nodes; all nodes alike
}

// WireGuard holds the settings of the backend of that name.
type WireGuard struct {
	Port  uint16 // UDP port of all nodes; that of detours is the next
	Phase Phase  // of this node
	// Up are the keys of detours with which there is a session.
	Up map[desired.WGKey]bool
}

// Phase says how far a node is with replacing its key of WireGuard. Its packets take a detour meanwhile, in both directions.
type Phase string

// The phases, in their order.
const (
	Steady Phase = ""       // nothing is replaced
	Leave  Phase = "leave"  // others are to send by the detour
	Away   Phase = "away"   // the key is another one: others are to make sessions with it, and send by the detour still
	Return Phase = "return" // others are to send by the new key; what comes by the detour is taken still
)

// Detours reports whether packets are to take the detour.
func (p Phase) Detours() bool { return p == Leave || p == Away }

// Detour is what a node says of its detour. The zero value is a node that has none.
type Detour struct {
	Key   desired.WGKey
	Phase Phase
}

// UDP holds the settings of the backend of that name.
type UDP struct {
	Port uint16 // of all nodes
}

// Underlay returns the underlay of a family, and whether there is one.
func (s Self) Underlay(is4 bool) (Underlay, bool) {
	for _, u := range s.Underlays {
		if u.Addr.Is4() == is4 {
			return u, true
		}
	}
	return Underlay{}, false
}

// Path is one pod CIDR of a peer and the peer's address that packets to it go to. The two may be
// of different families.
type Path struct {
	CIDR netip.Prefix
	Via  netip.Addr
	MTU  int // the largest packet that the way to Via takes, bytes; 0 = not known
}

// Below is the path's MTU where it is known to be smaller than mtu, else 0.
func (p Path) Below(mtu int) int {
	if p.MTU < mtu {
		return p.MTU
	}
	return 0
}

// Inner is the MTU of a route by a tunnel whose packets grow by overhead: 0, which is that of the device, unless the
// way to the peer takes less.
func (p Path) Inner(device, overhead int) int {
	if n := p.MTU - overhead; p.MTU > 0 && n < device {
		return n
	}
	return 0
}

// Peer is another node.
type Peer struct {
	Name   string
	Origin string // the Node object, for people
	MAC    desired.MAC
	Keys   []desired.WGKey // the one in use first, then those that will be; wireguard only
	Detour Detour          // wireguard only
	Paths  []Path
}

// Note says what could not be planned, for people.
type Note struct {
	Node   string // the node it is about
	Text   string
	Blocks bool // nothing was planned at all: what is in the kernel must stay as it is
}

// String prints "node x: text".
func (n Note) String() string { return "node " + n.Node + ": " + n.Text }

// Family names an address family.
func Family(is4 bool) string {
	if is4 {
		return "IPv4"
	}
	return "IPv6"
}
