package link

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/braidnet/braid/internal/desired"
)

// Routed is how the host end of a pod without a bridge is connected: the node's end of a link of its own, with the
// gateways' addresses, and the one way to the pod's addresses.
type Routed struct {
	Gateways []netip.Addr // each link has them, so the kernel answers to them as to any address
	Addrs    []netip.Addr // of the pod
}

// lastResort is the metric of routes that stand behind all others.
const lastResort = 1 << 20

// routedSysctls make the node's end take nothing but packets from the pod, and skip duplicate address detection.
func routedSysctls(name string, r Routed) error {
	has := map[int]bool{}
	for _, a := range r.Addrs {
		has[familyOf(a)] = true
	}
	var set []sysctlValue
	if has[unix.AF_INET] {
		conf := "net/ipv4/conf/" + name
		// A pod that reaches itself through a service leaves by the link it came in by.
		set = append(set, sysctlValue{conf + "/send_redirects", "0"}, sysctlValue{conf + "/accept_redirects", "0"},
			sysctlValue{conf + "/accept_source_route", "0"})
	}
	if has[unix.AF_INET6] {
		conf := "net/ipv6/conf/" + name
		set = append(set, sysctlValue{conf + "/disable_ipv6", "0"}, sysctlValue{conf + "/accept_dad", "0"},
			sysctlValue{conf + "/accept_ra", "0"}, sysctlValue{conf + "/accept_redirects", "0"}, sysctlValue{conf + "/accept_source_route", "0"})
	}
	return setSysctls(set)
}

// connectRouted gives a link what Routed says and brings it up. What is there already stays.
func connectRouted(h *netlink.Handle, l netlink.Link, r Routed) error {
	name := l.Attrs().Name
	if err := routedSysctls(name, r); err != nil {
		return err
	}
	for _, gw := range r.Gateways {
		if err := addAddr(h, l, Host(gw)); err != nil && !errors.Is(err, unix.EEXIST) {
			return err
		}
	}
	if err := h.LinkSetUp(l); err != nil {
		return fmt.Errorf("bring up host veth %s: %w", name, err)
	}
	for _, a := range r.Addrs {
		route := &netlink.Route{LinkIndex: l.Attrs().Index, Dst: IPNet(Host(a)), Protocol: desired.RouteProtocol, Scope: netlink.SCOPE_LINK}
		if err := h.RouteReplace(route); err != nil {
			return fmt.Errorf("add the route to %s through %s: %w", a, name, err)
		}
	}
	return nil
}

// EnsureUnreachable sees to it that packets for addresses of these networks which no pod has are refused, instead of
// leaving by the default route, and maybe coming back. It says which were missing.
func EnsureUnreachable(h *netlink.Handle, networks []netip.Prefix) (added []netip.Prefix, err error) {
	for _, n := range networks {
		err := h.RouteAdd(unreachable(n))
		switch {
		case err == nil:
			added = append(added, n)
		case !errors.Is(err, unix.EEXIST):
			return added, fmt.Errorf("add a route of last resort for %s: %w", n, err)
		}
	}
	return added, nil
}

func unreachable(n netip.Prefix) *netlink.Route {
	return &netlink.Route{Dst: IPNet(n.Masked()), Type: unix.RTN_UNREACHABLE, Protocol: desired.RouteProtocol, Priority: lastResort}
}

// RoutedNode is what a node has for its pods at one moment.
type RoutedNode struct {
	addrs       map[int][]netip.Addr
	routes      map[netip.Addr]int // pod address → index of the link
	Unreachable []netip.Prefix
}

// ReadRouted reads addresses and routes once.
func ReadRouted(h *netlink.Handle) (RoutedNode, error) {
	n := RoutedNode{addrs: map[int][]netip.Addr{}, routes: map[netip.Addr]int{}}
	addrs, err := Dump(func() ([]netlink.Addr, error) { return h.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return n, fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range addrs {
		n.addrs[a.LinkIndex] = append(n.addrs[a.LinkIndex], Netip(a.IPNet).Addr())
	}
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		routes, err := Dump(func() ([]netlink.Route, error) {
			return h.RouteListFiltered(family, &netlink.Route{Protocol: desired.RouteProtocol}, netlink.RT_FILTER_PROTOCOL)
		})
		if err != nil {
			return n, fmt.Errorf("list routes: %w", err)
		}
		for _, r := range routes {
			dst := Netip(r.Dst)
			switch {
			case r.Type == unix.RTN_UNREACHABLE && r.Priority == lastResort && dst.IsValid():
				n.Unreachable = append(n.Unreachable, dst)
			case r.Type == unix.RTN_UNICAST && len(r.Gw) == 0 && dst.IsSingleIP():
				n.routes[dst.Addr()] = r.LinkIndex
			}
		}
	}
	return n, nil
}

// Missing says how a link differs from what it has to be.
func (n RoutedNode) Missing(p PodLink, want Routed) (found []string) {
	if p.Master != 0 {
		found = append(found, "it was the port of a bridge")
	}
	if !p.Up {
		found = append(found, "it was down")
	}
	for _, gw := range want.Gateways {
		if !slices.Contains(n.addrs[p.Index], gw) {
			found = append(found, fmt.Sprintf("address %s was missing", gw))
		}
	}
	for _, a := range want.Addrs {
		if n.routes[a] != p.Index {
			found = append(found, fmt.Sprintf("the route to %s was missing", a))
		}
	}
	return found
}

// Repair connects a link as it has to be, and says what was wrong. A link that is gone by then is no error.
func (n RoutedNode) Repair(h *netlink.Handle, p PodLink, want Routed) ([]string, error) {
	found := n.Missing(p, want)
	if len(found) == 0 {
		return nil, nil
	}
	l := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: p.Name, Index: p.Index}}
	var err error
	if p.Master != 0 {
		err = h.LinkSetNoMaster(l)
	}
	if err == nil {
		err = connectRouted(h, l, want)
	}
	if there, herr := HasLink(h, p.Name); herr == nil && !there {
		return nil, nil
	}
	for i, f := range found {
		found[i] = fmt.Sprintf("repaired %s (%s): %s", p.Name, p.Pod, f)
	}
	return found, err
}

// RemoveUnreachable removes the routes of last resort to networks for which keep is false, and says which.
func (n RoutedNode) RemoveUnreachable(h *netlink.Handle, keep func(netip.Prefix) bool) (removed []string, err error) {
	for _, dst := range n.Unreachable {
		if keep(dst) {
			continue
		}
		if err := h.RouteDel(unreachable(dst)); err != nil && !errors.Is(err, unix.ESRCH) {
			return removed, fmt.Errorf("remove the route of last resort for %s: %w", dst, err)
		}
		removed = append(removed, "route unreachable "+dst.String())
	}
	return removed, nil
}
