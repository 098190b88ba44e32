package route

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/braidnet/braid/internal/kernel/link"
)

// Way is how the kernel reaches an address.
type Way struct {
	Dev  string     // of several that share the load, one
	From netip.Addr // the source it takes: the one that was asked for, if any
	MTU  int        // what the route takes whole, or the narrowest of its devices, bytes
}

// Get asks the kernel, with all its tables and rules, how an address is reached, from a source and by a device where these
// are given. The MTU is what somebody set on the route, else the device's; what the kernel has learned of a path is left out,
// since it is forgotten after minutes. An address that is not reached is an error.
func Get(h *netlink.Handle, t *link.Table, to, from netip.Addr, dev string) (Way, error) {
	options := netlink.RouteGetOptions{OifIndex: t.Index(dev)}
	if from.IsValid() {
		options.SrcAddr = from.AsSlice()
	}
	plain, err := ask(h, to, options)
	if err != nil {
		return Way{}, err
	}
	w := Way{Dev: t.Name(plain.LinkIndex), From: from}
	if src, ok := netip.AddrFromSlice(plain.Src); ok {
		w.From = src.Unmap()
	}
	fib, err := FIB(h, t, to, from, dev)
	w.MTU = fib.MTU
	return w, err
}

// FIB is Get without the source.
func FIB(h *netlink.Handle, t *link.Table, to, from netip.Addr, dev string) (Way, error) {
	options := netlink.RouteGetOptions{OifIndex: t.Index(dev), FIBMatch: true}
	if from.IsValid() {
		options.SrcAddr = from.AsSlice()
	}
	r, err := ask(h, to, options)
	if err != nil {
		return Way{}, err
	}
	devs := []int{r.LinkIndex}
	if len(r.MultiPath) > 0 {
		devs = devs[:0]
		for _, hop := range r.MultiPath {
			devs = append(devs, hop.LinkIndex)
		}
	}
	w := Way{Dev: t.Name(devs[0]), MTU: r.MTU}
	for _, index := range devs {
		if n, _ := t.MTU(t.Name(index)); r.MTU == 0 && n > 0 && (w.MTU == 0 || n < w.MTU) {
			w.Dev, w.MTU = t.Name(index), n
		}
	}
	return w, nil
}

func ask(h *netlink.Handle, to netip.Addr, options netlink.RouteGetOptions) (netlink.Route, error) {
	list, err := h.RouteGetWithOptions(to.AsSlice(), &options)
	if err != nil || len(list) == 0 {
		return netlink.Route{}, fmt.Errorf("route to %s: %w", to, err)
	}
	return list[0], nil
}

// Defaults lists the devices of the default routes of a family in the main table, the preferred one first.
func Defaults(h *netlink.Handle, t *link.Table, is4 bool) (devs []string, err error) {
	family := unix.AF_INET6
	if is4 {
		family = unix.AF_INET
	}
	list, err := link.Dump(func() ([]netlink.Route, error) {
		return h.RouteListFiltered(family, &netlink.Route{Dst: nil}, netlink.RT_FILTER_DST)
	})
	if err != nil {
		return nil, fmt.Errorf("list default routes: %w", err)
	}
	slices.SortStableFunc(list, func(a, b netlink.Route) int { return a.Priority - b.Priority })
	for _, r := range list {
		for _, hop := range append([]*netlink.NexthopInfo{{LinkIndex: r.LinkIndex}}, r.MultiPath...) {
			if name := t.Name(hop.LinkIndex); name != "" && !strings.HasPrefix(name, link.Prefix) && !slices.Contains(devs, name) {
				devs = append(devs, name)
			}
		}
	}
	return devs, nil
}
