// Package neigh reads and writes the permanent entries of the overlay's devices: neighbours (who has
// an address) and the forwarding database of VXLAN devices (which tunnel end has a MAC). Entries of
// other devices, and those the kernel makes by itself, it neither lists nor deletes.
package neigh

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/braidnet/braid/internal/desired"
	"github.com/braidnet/braid/internal/kernel/link"
)

// List returns the permanent neighbour entries of our devices.
func List(h *netlink.Handle, t *link.Table) (out []desired.Neigh, err error) {
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		err := each(h, t, family, func(dev string, n *netlink.Neigh) {
			if e, ok := ReadNeigh(n, dev); ok {
				out = append(out, e)
			}
		})
		if err != nil {
			return nil, fmt.Errorf("list neighbours: %w", err)
		}
	}
	return out, nil
}

// ListFDB returns the permanent forwarding entries of our devices.
func ListFDB(h *netlink.Handle, t *link.Table) (out []desired.FDB, err error) {
	err = each(h, t, unix.AF_BRIDGE, func(dev string, n *netlink.Neigh) {
		if e, ok := ReadFDB(n, dev); ok {
			out = append(out, e)
		}
	})
	if err != nil {
		return nil, fmt.Errorf("list forwarding entries: %w", err)
	}
	return out, nil
}

// each reads the table of a family device by device, so that the kernel leaves out the neighbours of
// every pod.
func each(h *netlink.Handle, t *link.Table, family int, do func(dev string, n *netlink.Neigh)) error {
	for _, d := range t.Ours {
		list, err := link.Dump(func() ([]netlink.Neigh, error) { return h.NeighList(d.Index, family) })
		if err != nil {
			return fmt.Errorf("%s: %w", d.Name, err)
		}
		for i := range list {
			do(d.Name, &list[i])
		}
	}
	return nil
}

// ReadNeigh converts an entry of a device and reports whether it is a permanent neighbour.
func ReadNeigh(n *netlink.Neigh, dev string) (desired.Neigh, bool) {
	ip, ok := netip.AddrFromSlice(n.IP)
	out := desired.Neigh{Dev: dev, IP: ip}
	copy(out.MAC[:], n.HardwareAddr)
	return out, ok && n.Family != unix.AF_BRIDGE && n.State&netlink.NUD_PERMANENT != 0
}

// ReadFDB converts an entry of a device and reports whether it is a permanent forwarding entry.
func ReadFDB(n *netlink.Neigh, dev string) (desired.FDB, bool) {
	dst, ok := netip.AddrFromSlice(n.IP)
	out := desired.FDB{Dev: dev, Dst: dst}
	copy(out.MAC[:], n.HardwareAddr)
	return out, ok && n.Family == unix.AF_BRIDGE && n.Flags&netlink.NTF_SELF != 0 && n.State&netlink.NUD_PERMANENT != 0
}

// Apply makes one edit of a neighbour entry.
func Apply(h *netlink.Handle, t *link.Table, e desired.Edit[desired.Neigh]) error {
	return edit(h, e, func(n desired.Neigh) *netlink.Neigh {
		family := unix.AF_INET6
		if n.IP.Is4() {
			family = unix.AF_INET
		}
		return &netlink.Neigh{LinkIndex: t.Index(n.Dev), Family: family, State: netlink.NUD_PERMANENT,
			IP: n.IP.AsSlice(), HardwareAddr: n.MAC[:]}
	})
}

// ApplyFDB makes one edit of a forwarding entry.
func ApplyFDB(h *netlink.Handle, t *link.Table, e desired.Edit[desired.FDB]) error {
	return edit(h, e, func(f desired.FDB) *netlink.Neigh {
		return &netlink.Neigh{LinkIndex: t.Index(f.Dev), Family: unix.AF_BRIDGE, State: netlink.NUD_PERMANENT,
			Flags: netlink.NTF_SELF, IP: f.Dst.AsSlice(), HardwareAddr: f.MAC[:]}
	})
}

// edit sets the new entry, replacing one with its key, or deletes the old one; one that is gone
// already is no error.
func edit[T fmt.Stringer](h *netlink.Handle, e desired.Edit[T], kernel func(T) *netlink.Neigh) error {
	if e.New != nil {
		n := kernel(*e.New)
		if n.LinkIndex == 0 {
			return fmt.Errorf("add %s: there is no such device", *e.New)
		}
		if err := h.NeighSet(n); err != nil {
			return fmt.Errorf("add %s: %w", *e.New, err)
		}
		return nil
	}
	if err := h.NeighDel(kernel(*e.Old)); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete %s: %w", *e.Old, err)
	}
	return nil
}
