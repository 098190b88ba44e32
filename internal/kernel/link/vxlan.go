package link

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/braidnet/braid/internal/desired"
)

// addr converts an address of a VXLAN attribute, where the unspecified one means none.
func addr(ip net.IP) netip.Addr {
	a, ok := netip.AddrFromSlice(ip)
	if !ok || a.IsUnspecified() {
		return netip.Addr{}
	}
	return a.Unmap()
}

// createVXLAN makes a device.
func createVXLAN(h *netlink.Handle, t *Table, want desired.Link) ([]string, error) {
	under := t.Index(want.VXLAN.Underlay)
	if under == 0 {
		return nil, fmt.Errorf("make %s: there is no device %s to carry it", want, want.VXLAN.Underlay)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr, attrs.Flags = want.Name, want.MTU, want.MAC[:], net.FlagUp
	vx := &netlink.Vxlan{LinkAttrs: attrs, VxlanId: int(want.VXLAN.VNI), Port: int(want.VXLAN.Port),
		VtepDevIndex: under, SrcAddr: want.VXLAN.Local.AsSlice(), Learning: want.VXLAN.Learning, GBP: want.VXLAN.GBP}
	if want.VXLAN.Remote.IsValid() {
		vx.Group = want.VXLAN.Remote.AsSlice()
	}
	err := h.LinkAdd(vx)
	switch {
	case errors.Is(err, unix.EEXIST):
		return nil, fmt.Errorf("make %s: another VXLAN device uses this id and port: remove what is left of another pod network (ip -d link show type vxlan), or choose another --vni or --vxlan-port: %w", want, err)
	case errors.Is(err, unix.EOPNOTSUPP):
		return nil, fmt.Errorf("make %s: the kernel has no VXLAN: load the module (modprobe vxlan) or use --overlay host-gw: %w", want, err)
	case err != nil:
		return nil, fmt.Errorf("make %s: %w", want, err)
	}
	return []string{fmt.Sprintf("added %s: %s", want, want.Origin)}, nil
}
