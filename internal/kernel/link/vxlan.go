package link

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/braidnet/braid/internal/desired"
)

// Device is a VXLAN device as the kernel has it.
type Device struct {
	desired.Link
	Index int
	Up    bool
}

// ReadDevice returns the device of a link message, when it is a VXLAN device with a name of ours.
// Underlays are named by name.
func ReadDevice(l netlink.Link, name func(index int) string) (Device, bool) {
	vx, ok := l.(*netlink.Vxlan)
	if !ok || !strings.HasPrefix(vx.Name, Prefix) {
		return Device{}, false
	}
	d := Device{Index: vx.Index, Up: vx.Flags&net.FlagUp != 0, Link: desired.Link{Name: vx.Name, MTU: vx.MTU,
		VXLAN: desired.VXLAN{VNI: uint32(vx.VxlanId), Port: uint16(vx.Port), Underlay: name(vx.VtepDevIndex),
			Local: addr(vx.SrcAddr), Remote: addr(vx.Group), Learning: vx.Learning, GBP: vx.GBP}}}
	copy(d.MAC[:], vx.HardwareAddr)
	return d, true
}

func (t *Table) device(vx *netlink.Vxlan) Device {
	d, _ := ReadDevice(vx, t.Name)
	return d
}

// addr converts an address of a VXLAN attribute, where the unspecified one means none.
func addr(ip net.IP) netip.Addr {
	a, ok := netip.AddrFromSlice(ip)
	if !ok || a.IsUnspecified() {
		return netip.Addr{}
	}
	return a.Unmap()
}

// EnsureVXLAN makes the kernel hold the wanted device, up. What can change on a living device is
// changed (MTU, address, up); when the rest differs the device is made anew, which takes its
// addresses, routes and entries with it. It returns what it did, each with the reason: nothing when
// all was right. After changes the table is stale.
func EnsureVXLAN(h *netlink.Handle, t *Table, want desired.Link) ([]string, error) {
	l := t.links[want.Name]
	if l == nil {
		return create(h, t, want)
	}
	vx, ok := l.(*netlink.Vxlan)
	if !ok {
		return nil, fmt.Errorf("device %s is a %s, which Braid did not make: remove it (ip link delete %s) or rename it", want.Name, l.Type(), want.Name)
	}
	have := t.device(vx)
	if have.VXLAN != want.VXLAN {
		if err := DeleteLink(h, have); err != nil {
			return nil, err
		}
		done := []string{fmt.Sprintf("deleted %s: other attributes are wanted", have)}
		more, err := create(h, t, want)
		return append(done, more...), err
	}
	return adjust(h, vx, have, want)
}

func adjust(h *netlink.Handle, l netlink.Link, have Device, want desired.Link) (done []string, err error) {
	step := func(what string, do error) {
		if do != nil {
			err = errors.Join(err, fmt.Errorf("device %s: set %s: %w", want.Name, what, do))
			return
		}
		done = append(done, fmt.Sprintf("set %s of device %s: %s", what, want.Name, want.Origin))
	}
	if have.MTU != want.MTU {
		step(fmt.Sprintf("mtu %d (was %d)", want.MTU, have.MTU), h.LinkSetMTU(l, want.MTU))
	}
	if have.MAC != want.MAC {
		step(fmt.Sprintf("address %s (was %s)", want.MAC, have.MAC), h.LinkSetHardwareAddr(l, want.MAC[:]))
	}
	if !have.Up {
		step("up (was down)", h.LinkSetUp(l))
	}
	return done, err
}

func create(h *netlink.Handle, t *Table, want desired.Link) ([]string, error) {
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

// DeleteLink removes a device of ours. One that is gone already is no error.
func DeleteLink(h *netlink.Handle, d Device) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.Index = d.Name, d.Index
	if err := h.LinkDel(&netlink.Vxlan{LinkAttrs: attrs}); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete device %s: %w", d.Name, err)
	}
	return nil
}
