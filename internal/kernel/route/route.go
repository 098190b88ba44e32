// Package route reads and writes the overlay's routes: unicast routes through a gateway, in the main
// table, with Braid's protocol number. Other routes it neither lists nor deletes.
package route

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/braidnet/braid/internal/desired"
	"github.com/braidnet/braid/internal/kernel/link"
)

// families in the order in which they are read.
var families = []int{unix.AF_INET, unix.AF_INET6}

// List returns our routes of both families.
func List(h *netlink.Handle, t *link.Table) ([]desired.Route, error) {
	var out []desired.Route
	filter := &netlink.Route{Protocol: desired.RouteProtocol}
	for _, family := range families {
		list, err := link.Dump(func() ([]netlink.Route, error) {
			return h.RouteListFiltered(family, filter, netlink.RT_FILTER_PROTOCOL)
		})
		if err != nil {
			return nil, fmt.Errorf("list routes: %w", err)
		}
		for i := range list {
			if r, ours := Read(&list[i], t.Name); ours {
				out = append(out, r)
			}
		}
	}
	return out, nil
}

// Read converts a route of the kernel and reports whether it is one of ours. Devices are named by name.
func Read(r *netlink.Route, name func(index int) string) (desired.Route, bool) {
	via, ok := netip.AddrFromSlice(r.Gw)
	out := desired.Route{Dst: link.Netip(r.Dst), Via: via, Dev: name(r.LinkIndex), MTU: r.MTU,
		OnLink: r.Flags&int(netlink.FLAG_ONLINK) != 0}
	return out, ok && r.Protocol == desired.RouteProtocol && r.Table == unix.RT_TABLE_MAIN && r.Type == unix.RTN_UNICAST
}

// Apply makes one edit. A route to a wanted destination that somebody else put there is replaced; a
// route that is gone already when it is to be deleted is no error.
func Apply(h *netlink.Handle, t *link.Table, e desired.Edit[desired.Route]) error {
	if e.New == nil {
		err := h.RouteDel(kernel(t, *e.Old))
		if err != nil && !errors.Is(err, unix.ESRCH) && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("delete %s: %w", e.Old, err)
		}
		return nil
	}
	if t.Index(e.New.Dev) == 0 {
		return fmt.Errorf("add %s: there is no such device", e.New)
	}
	err := h.RouteReplace(kernel(t, *e.New))
	if errors.Is(err, unix.EINVAL) && e.New.OnLink {
		// IPv6 takes no gateway that another device's route covers, and the route in the way may be
		// the very one that is to be replaced.
		if err = deleteTo(h, e.New.Dst); err == nil {
			err = h.RouteReplace(kernel(t, *e.New))
		}
	}
	switch {
	case errors.Is(err, unix.ENETUNREACH) || errors.Is(err, unix.EHOSTUNREACH):
		return fmt.Errorf("add %s: %w: the gateway is not on the link of %s", e.New, err, e.New.Dev)
	case errors.Is(err, unix.EINVAL):
		return fmt.Errorf("add %s: %w: does another route cover the gateway? see ip route get %s", e.New, err, e.New.Via)
	case err != nil:
		return fmt.Errorf("add %s: %w", e.New, err)
	}
	return nil
}

// deleteTo deletes every route to exactly dst in the main table, whoever made it.
func deleteTo(h *netlink.Handle, dst netip.Prefix) error {
	family := unix.AF_INET6
	if dst.Addr().Is4() {
		family = unix.AF_INET
	}
	list, err := link.Dump(func() ([]netlink.Route, error) {
		return h.RouteListFiltered(family, &netlink.Route{Dst: link.IPNet(dst)}, netlink.RT_FILTER_DST)
	})
	if err != nil {
		return fmt.Errorf("list routes to %s: %w", dst, err)
	}
	for i := range list {
		if err := h.RouteDel(&list[i]); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("delete the route to %s that is in the way: %w", dst, err)
		}
	}
	return nil
}

func kernel(t *link.Table, r desired.Route) *netlink.Route {
	out := &netlink.Route{Dst: link.IPNet(r.Dst), Gw: r.Via.AsSlice(), LinkIndex: t.Index(r.Dev), MTU: r.MTU,
		Protocol: desired.RouteProtocol, Type: unix.RTN_UNICAST, Table: unix.RT_TABLE_MAIN}
	if r.OnLink {
		out.Flags = int(netlink.FLAG_ONLINK)
	}
	return out
}

// OnLink lists what a device reaches without a gateway in one family, by the main table: the
// prefixes of its addresses and routes of scope link, without defaults, link-local and multicast.
func OnLink(h *netlink.Handle, t *link.Table, dev string, is4 bool) ([]netip.Prefix, error) {
	family := unix.AF_INET6
	if is4 {
		family = unix.AF_INET
	}
	filter := &netlink.Route{LinkIndex: t.Index(dev)}
	list, err := link.Dump(func() ([]netlink.Route, error) {
		return h.RouteListFiltered(family, filter, netlink.RT_FILTER_OIF)
	})
	if err != nil {
		return nil, fmt.Errorf("list routes of %s: %w", dev, err)
	}
	var out []netip.Prefix
	for _, r := range list {
		p := link.Netip(r.Dst)
		plain := r.Type == unix.RTN_UNICAST && len(r.Gw) == 0 && r.Via == nil && len(r.MultiPath) == 0
		if plain && p.Bits() > 0 && !p.Addr().IsLinkLocalUnicast() && !p.Addr().IsMulticast() {
			out = append(out, p)
		}
	}
	slices.SortFunc(out, desired.ComparePrefix)
	return slices.Compact(out), nil
}
