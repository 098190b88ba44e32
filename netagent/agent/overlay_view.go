package agent

import (
	"maps"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/braidnet/braid/internal/desired"
	"github.com/braidnet/braid/internal/kernel/link"
	"github.com/braidnet/braid/internal/kernel/neigh"
	"github.com/braidnet/braid/internal/kernel/route"
	"github.com/braidnet/braid/internal/kernel/sysctl"
	"github.com/braidnet/braid/netagent/overlay"
)

// view is what the newest Sync wants and what it saw of the machine. Each of its methods tells
// whether one kernel event contradicts it. Our own writes do not (but for a device made anew, which
// the kernel announces before it is up), nor does the traffic of the machine: only the rest is worth
// a Sync.
type view struct {
	table  *link.Table
	ips    map[netip.Addr]string // addresses of this node as the cluster knows it, and the device each was on, "" = none
	choose bool                  // every address and default route of the machine matters
	ways   []netip.Addr          // addresses that routes are followed to, sorted
	under  map[string]underlayState
	links  map[string]desired.Link
	addrs  map[desired.AddrKey]desired.Addr
	neighs map[desired.NeighKey]desired.Neigh
	fdb    map[desired.FDBKey]desired.FDB
	routes map[netip.Prefix]desired.Route

	forwarding []string // sysctls that have to be 1
}

type underlayState struct {
	index, mtu int
	up         bool
}

func newView(in overlay.Input, want desired.Network, t *link.Table) view {
	v := view{table: t, ips: map[netip.Addr]string{}, under: map[string]underlayState{}, links: map[string]desired.Link{},
		addrs: byKey(want.Addrs), neighs: byKey(want.Neighs), fdb: byKey(want.FDB), routes: byKey(want.Routes)}
	if in.Self != nil {
		for _, a := range in.Self.InternalIPs {
			v.ips[a] = ""
		}
		for _, c := range in.Self.PodCIDRs {
			if name := sysctl.Forwarding(c.Addr().Is4()); !slices.Contains(v.forwarding, name) {
				v.forwarding = append(v.forwarding, name)
			}
		}
	}
	for _, u := range in.Underlays {
		v.under[u.Dev], v.ips[u.Addr] = stateOfLink(t, u.Dev), u.Dev
	}
	for dev := range in.Ways {
		v.under[dev] = stateOfLink(t, dev)
	}
	v.ways = slices.SortedFunc(maps.Keys(in.PathMTU), netip.Addr.Compare)
	for _, l := range want.Links {
		v.links[l.Name] = l
	}
	return v
}

func stateOfLink(t *link.Table, dev string) underlayState {
	s := underlayState{index: t.Index(dev)}
	s.mtu, s.up = t.MTU(dev)
	return s
}

func byKey[T desired.Object[T, K], K comparable](list []T) map[K]T {
	m := make(map[K]T, len(list))
	for _, o := range list {
		m[o.Key()] = o
	}
	return m
}

func (o *podNetwork) remember(v view) {
	v.choose = v.table != nil && o.cfg.Select.Given()
	o.mu.Lock()
	defer o.mu.Unlock()
	o.view = v
}

func (o *podNetwork) current() view {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.view
}

// ours returns the name of our device with an index, or "".
func (v view) ours(index int) string {
	if v.table == nil {
		return ""
	}
	if name := v.table.Name(index); v.links[name].Name != "" {
		return name
	}
	return ""
}

func (v view) name(index int) string {
	if v.table == nil {
		return ""
	}
	return v.table.Name(index)
}

// hitLink: a device of ours or the underlay is gone, down, renamed or has other attributes.
func (v view) hitLink(u netlink.LinkUpdate) bool {
	if u.Link == nil || u.Family == unix.AF_BRIDGE {
		return false
	}
	a, gone := u.Attrs(), u.Header.Type == unix.RTM_DELLINK
	if want, ok := v.links[a.Name]; ok {
		have, ours := link.ReadDevice(u.Link, v.name)
		return gone || !ours || !have.Up || !desired.Same(have.Link, want)
	}
	if _, ours := link.ReadDevice(u.Link, v.name); ours {
		return !gone && len(v.ips) > 0
	}
	for name, s := range v.under {
		if s.index == a.Index || name == a.Name {
			return gone || s != underlayState{a.Index, a.MTU, a.Flags&net.FlagUp != 0} || name != a.Name
		}
	}
	return false
}

// hitAddr: one of this node's addresses comes, goes or moves, or an address of our devices changes; and any other, where
// settings choose among them.
func (v view) hitAddr(u netlink.AddrUpdate) bool {
	p := link.Netip(&u.LinkAddress)
	if !p.IsValid() {
		return false
	}
	if on, own := v.ips[p.Addr()]; own {
		return !u.NewAddr || on == "" || on != v.name(u.LinkIndex)
	}
	if v.choose && !isPodLink(v.name(u.LinkIndex)) && !p.Addr().IsLinkLocalUnicast() {
		return true
	}
	dev := v.ours(u.LinkIndex)
	if dev == "" || p.Addr().IsLinkLocalUnicast() {
		return false
	}
	_, wanted := v.addrs[desired.AddrKey{Dev: dev, Prefix: p}]
	return wanted != u.NewAddr
}

// hitRoute: a wanted route is gone or replaced, or a route of ours appears that is not wanted.
func (v view) hitRoute(u netlink.RouteUpdate) bool {
	if u.Table != unix.RT_TABLE_MAIN || u.Flags&unix.RTM_F_CLONED != 0 {
		return false
	}
	have, ours := route.Read(&u.Route, v.name)
	if !ours && u.Protocol != desired.RouteProtocol && v.leads(link.Netip(u.Dst)) {
		return true
	}
	want, wanted := v.routes[have.Dst]
	if u.Type == unix.RTM_DELROUTE {
		return wanted && ours && desired.Same(have, want)
	}
	if !wanted {
		return ours && len(v.ips) > 0
	}
	return !ours || !desired.Same(have, want)
}

// leads reports whether a route to dst may be on the way to another node, or choose this node's address.
func (v view) leads(dst netip.Prefix) bool {
	if !dst.IsValid() || dst.Bits() == 0 { // a default route
		return v.choose || len(v.ways) > 0
	}
	i, _ := slices.BinarySearchFunc(v.ways, dst.Masked().Addr(), netip.Addr.Compare)
	return i < len(v.ways) && dst.Contains(v.ways[i])
}

// hitNeigh: a neighbour or forwarding entry of our devices is gone, changed, or not wanted.
func (v view) hitNeigh(u netlink.NeighUpdate) bool {
	dev := v.ours(u.LinkIndex)
	if dev == "" {
		return false
	}
	gone := u.Type == unix.RTM_DELNEIGH
	if u.Family == unix.AF_BRIDGE {
		have, permanent := neigh.ReadFDB(&u.Neigh, dev)
		want, wanted := v.fdb[have.Key()]
		return hitEntry(gone, permanent, wanted, desired.Same(have, want))
	}
	have, permanent := neigh.ReadNeigh(&u.Neigh, dev)
	want, wanted := v.neighs[have.Key()]
	return hitEntry(gone, permanent, wanted, desired.Same(have, want))
}

func hitEntry(gone, permanent, wanted, same bool) bool {
	if !wanted {
		return permanent && !gone
	}
	return gone || !permanent || !same
}
