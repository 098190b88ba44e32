package desired

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
)

// Relay is the data path of a TUN device in user space: it sends each packet that the kernel routes to
// the device to another node as one UDP datagram, and hands what comes from other nodes to the kernel.
type Relay struct {
	Dev     string
	Port    uint16         // UDP port, of all nodes
	Local   []netip.Addr   // addresses of this node to send from and listen on, at most one per family
	Pods    []netip.Prefix // pod CIDRs of this node: what other nodes send has to be for them
	Tunnels []Tunnel
	Origin  string
}

// Tunnel says which node has a pod CIDR. CIDRs of one relay do not overlap.
type Tunnel struct {
	Dst    netip.Prefix
	Via    netip.Addr // of the underlay; its family need not be that of Dst
	Origin string
}

// String prints the relay without its tunnels.
func (r Relay) String() string {
	return fmt.Sprintf("relay of device %s (UDP port %d on %v)", r.Dev, r.Port, r.Local)
}

func (t Tunnel) String() string { return fmt.Sprintf("tunnel of %s to %s", t.Dst, t.Via) }

// SameEnds reports whether two relays use the same device, port and addresses, so that one can become
// the other without a packet lost.
func (r Relay) SameEnds(o Relay) bool {
	return r.Dev == o.Dev && r.Port == o.Port && slices.Equal(r.Local, o.Local)
}

// sort puts the lists into one order.
func (r *Relay) sort() {
	slices.SortFunc(r.Local, netip.Addr.Compare)
	slices.SortFunc(r.Pods, ComparePrefix)
	slices.SortFunc(r.Tunnels, func(a, b Tunnel) int { return cmp.Or(ComparePrefix(a.Dst, b.Dst), a.Via.Compare(b.Via)) })
}
