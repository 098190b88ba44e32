package link

import (
	"errors"
	"fmt"
	"net"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/braidnet/braid/internal/desired"
)

// Device is a device of the overlay as the kernel has it.
type Device struct {
	desired.Link
	Index int
	Up    bool
}

// ReadDevice returns the device of a link message, when it is of a kind and has a name of ours.
// Underlays are named by name.
func ReadDevice(l netlink.Link, name func(index int) string) (Device, bool) {
	a := l.Attrs()
	if !strings.HasPrefix(a.Name, Prefix) {
		return Device{}, false
	}
	d := Device{Index: a.Index, Up: a.Flags&net.FlagUp != 0, Link: desired.Link{Name: a.Name, MTU: a.MTU}}
	switch l := l.(type) {
	case *netlink.Vxlan:
		d.Kind = desired.KindVXLAN
		d.VXLAN = desired.VXLAN{VNI: uint32(l.VxlanId), Port: uint16(l.Port), Underlay: name(l.VtepDevIndex),
			Local: addr(l.SrcAddr), Remote: addr(l.Group), Learning: l.Learning, GBP: l.GBP}
	case *netlink.Iptun:
		d.Kind, d.IPIP = desired.KindIPIP, desired.IPIP{Underlay: name(a.ParentIndex), Local: addr(l.Local), Remote: addr(l.Remote)}
		return d, true
	case *netlink.Sittun:
		d.Kind, d.IPIP = desired.KindSIT, desired.IPIP{Underlay: name(a.ParentIndex), Local: addr(l.Local), Remote: addr(l.Remote)}
		return d, true
	case *netlink.Wireguard:
		d.Kind = desired.KindWireGuard
		return d, true
	case *netlink.Tuntap:
		if l.Mode != netlink.TUNTAP_MODE_TUN {
			return Device{}, false
		}
		d.Kind = desired.KindTUN
	default:
		return Device{}, false
	}
	copy(d.MAC[:], a.HardwareAddr)
	return d, true
}

// Ensure makes the kernel hold the wanted device, up. What can change on a living device is changed
// (MTU, address, up); when the rest differs the device is made anew, which takes its addresses, routes
// and entries with it. A TUN or WireGuard device has to be there: who serves it has made it. Ensure returns what it did,
// each with the reason: nothing when all was right. The calling thread and h must be in the same namespace. After changes the table is stale.
func Ensure(h *netlink.Handle, t *Table, want desired.Link) ([]string, error) {
	done, err := ensure(h, t, want)
	if err != nil || want.Kind != desired.KindVXLAN {
		return done, err
	}
	more, err := makeChecksums(want.Name)
	return append(done, more...), err
}

func ensure(h *netlink.Handle, t *Table, want desired.Link) ([]string, error) {
	l := t.links[want.Name]
	switch {
	case l == nil && (want.Kind == desired.KindTUN || want.Kind == desired.KindWireGuard):
		return nil, fmt.Errorf("%s: there is no such device", want)
	case l == nil:
		return create(h, t, want)
	}
	have, ours := ReadDevice(l, t.Name)
	if !ours || have.Kind != want.Kind {
		return nil, fmt.Errorf("device %s is a %s, which Braid did not make: remove it (ip link delete %s) or rename it", want.Name, l.Type(), want.Name)
	}
	if have.VXLAN != want.VXLAN || have.IPIP != want.IPIP {
		if err := DeleteLink(h, have); err != nil {
			return nil, err
		}
		done := []string{fmt.Sprintf("deleted %s: other attributes are wanted", have)}
		more, err := create(h, t, want)
		return append(done, more...), err
	}
	return adjust(h, l, have, want)
}

// create makes a device that the kernel serves.
func create(h *netlink.Handle, t *Table, want desired.Link) ([]string, error) {
	if want.Kind == desired.KindVXLAN {
		return createVXLAN(h, t, want)
	}
	return createIPIP(h, t, want)
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

// DeleteLink removes a device of ours. One that is gone already is no error.
func DeleteLink(h *netlink.Handle, d Device) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.Index = d.Name, d.Index
	if err := h.LinkDel(&netlink.Device{LinkAttrs: attrs}); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete device %s: %w", d.Name, err)
	}
	return nil
}
