package overlay

import (
	"fmt"
	"net/netip"

	"github.com/braidnet/braid/internal/desired"
)

// Probe says how to find out whether what pods send reaches a peer whole.
type Probe struct {
	Node  string     // the peer
	To    netip.Addr // what answers there: its own address inside the tunnel, or its node's where there is none
	Dev   string     // by which it is reached
	Size  int        // of the largest packet that pods may send there, bytes
	Over  int        // what it grows by outside of the tunnel, bytes
	Local netip.Addr // this node's end of the path
	Via   netip.Addr // the peer's
}

// Probes returns one probe for each path that the routes of a plan take: not for each pod CIDR, since two may go
// the same way.
func Probes(in Input, net desired.Network) (list []Probe) {
	b, self, peers, notes := prepare(in)
	if blocked(notes) {
		return nil
	}
	routes, tunnels := map[netip.Prefix]desired.Route{}, map[string]desired.Link{}
	for _, r := range net.Routes {
		routes[r.Dst] = r
	}
	for _, l := range net.Links {
		tunnels[l.Name] = l
	}
	for _, p := range peers {
		type way struct {
			dev string
			via netip.Addr
		}
		done := map[way]bool{}
		for _, path := range p.Paths {
			r, ok := routes[path.CIDR]
			u, local := self.Underlay(path.Via.Is4())
			w := way{r.Dev, path.Via}
			if in.Backend == "wireguard" { // one tunnel for both families
				w.via = netip.Addr{}
			}
			if !ok || !local || done[w] {
				continue
			}
			done[w] = true
			out := Probe{Node: p.Name, To: path.Via, Dev: r.Dev, Size: u.DevMTU, Local: u.Addr, Via: path.Via}
			if tunnel, ok := tunnels[r.Dev]; ok {
				out.To, out.Size, out.Over = path.CIDR.Addr(), tunnel.MTU, b.over(path.Via.Is4())
			}
			if r.MTU > 0 {
				out.Size = r.MTU
			}
			list = append(list, out)
		}
	}
	return list
}

// Means names what the network has to let through for a probe to be answered.
func Means(in Input, p Probe) string {
	switch {
	case p.To == p.Via:
		return "ICMP echo"
	case in.Backend == "vxlan":
		return fmt.Sprintf("UDP port %d", in.VXLAN.Port)
	case in.Backend == "udp":
		return fmt.Sprintf("UDP port %d", in.UDP.Port)
	case in.Backend == "wireguard":
		return fmt.Sprintf("UDP port %d", in.WireGuard.Port)
	}
	return "IP in IP (protocols 4 and 41)"
}
