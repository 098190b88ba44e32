// Package link makes and repairs network interfaces: VXLAN devices of the overlay, and the bridge
// and veth pairs of pods.
//
// Every function takes a netlink handle, which works in the network namespace it was opened in
// (OpenAt) whatever thread uses it later.
package link

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/braidnet/braid/internal/desired"
)

// Prefix begins the name of every overlay device. The pods' bridge, braid0, has no dot.
const Prefix = "braid."

const dumpTries = 30

// Dump reads a list, again while signals or changes in mid-read cut it short: such a list may lack
// entries, and acting on it would delete or re-add what is right.
func Dump[T any](read func() (T, error)) (list T, err error) {
	for range dumpTries {
		list, err = read()
		if !errors.Is(err, netlink.ErrDumpInterrupted) && !errors.Is(err, unix.EINTR) {
			return list, err
		}
	}
	return list, fmt.Errorf("the list changed during each of %d reads: %w", dumpTries, err)
}

// Table is one reading of a namespace's links.
type Table struct {
	Ours []Device // of the overlay: those of our kinds whose name begins with Prefix

	names map[int]string
	links map[string]netlink.Link
}

// ReadTable lists the links once.
func ReadTable(h *netlink.Handle) (*Table, error) {
	list, err := Dump(h.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list network devices: %w", err)
	}
	t := &Table{names: make(map[int]string, len(list)), links: make(map[string]netlink.Link, len(list))}
	for _, l := range list {
		t.names[l.Attrs().Index] = l.Attrs().Name
		t.links[l.Attrs().Name] = l
	}
	for _, l := range list {
		if d, ok := ReadDevice(l, t.Name); ok {
			t.Ours = append(t.Ours, d)
		}
	}
	slices.SortFunc(t.Ours, func(a, b Device) int { return strings.Compare(a.Name, b.Name) })
	return t, nil
}

// Name returns the name of the link with an index, or "".
func (t *Table) Name(index int) string { return t.names[index] }

// Index returns the index of the link with a name, or 0.
func (t *Table) Index(name string) int {
	if l := t.links[name]; l != nil {
		return l.Attrs().Index
	}
	return 0
}

// MTU returns the MTU of a link in bytes and whether it is up; 0 when there is none.
func (t *Table) MTU(name string) (mtu int, up bool) {
	if l := t.links[name]; l != nil {
		return l.Attrs().MTU, l.Attrs().Flags&net.FlagUp != 0
	}
	return 0, false
}

// HostAddr is an address of the machine.
type HostAddr struct {
	Addr  netip.Addr
	Dev   string
	Spare bool // the kernel would not choose it as a source: deprecated, temporary, tentative
}

// HostAddrs lists the addresses of the namespace, without those on loopback, in the kernel's order.
func HostAddrs(h *netlink.Handle, t *Table) ([]HostAddr, error) {
	list, err := Dump(func() ([]netlink.Addr, error) { return h.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	out := make([]HostAddr, 0, len(list))
	for _, a := range list {
		l := t.links[t.names[a.LinkIndex]]
		if p := Netip(a.IPNet); p.IsValid() && l != nil && l.Attrs().Flags&net.FlagLoopback == 0 {
			spare := a.Flags&(unix.IFA_F_DEPRECATED|unix.IFA_F_TENTATIVE|unix.IFA_F_DADFAILED) != 0
			if p.Addr().Is6() { // of IPv4, the same bit marks the second address of a network
				spare = spare || a.Flags&unix.IFA_F_TEMPORARY != 0
			}
			out = append(out, HostAddr{Addr: p.Addr(), Dev: l.Attrs().Name, Spare: spare})
		}
	}
	return out, nil
}

// Names lists the links without loopback ones, in the kernel's order.
func (t *Table) Names() (list []string) {
	for _, i := range slices.Sorted(maps.Keys(t.names)) {
		if l := t.links[t.names[i]]; l != nil && l.Attrs().Flags&net.FlagLoopback == 0 {
			list = append(list, t.names[i])
		}
	}
	return list
}

// Addrs lists the addresses of a device of ours, without the link-local ones that the kernel makes.
func Addrs(h *netlink.Handle, t *Table, dev string) ([]desired.Addr, error) {
	l := t.links[dev]
	if l == nil {
		return nil, fmt.Errorf("list addresses of %s: there is no such device", dev)
	}
	list, err := Dump(func() ([]netlink.Addr, error) { return h.AddrList(l, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list addresses of %s: %w", dev, err)
	}
	var out []desired.Addr
	for _, a := range list {
		if p := Netip(a.IPNet); p.IsValid() && !p.Addr().IsLinkLocalUnicast() {
			out = append(out, desired.Addr{Dev: dev, Prefix: p})
		}
	}
	return out, nil
}

// ApplyAddr makes one edit. What is gone already when it is to be deleted is no error.
func ApplyAddr(h *netlink.Handle, t *Table, e desired.Edit[desired.Addr]) error {
	if e.New == nil {
		l := t.links[e.Old.Dev]
		if l == nil {
			return nil
		}
		err := h.AddrDel(l, &netlink.Addr{IPNet: IPNet(e.Old.Prefix)})
		if err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("delete %s: %w", e.Old, err)
		}
		return nil
	}
	l := t.links[e.New.Dev]
	if l == nil {
		return fmt.Errorf("add %s: there is no such device", e.New)
	}
	a := &netlink.Addr{IPNet: IPNet(e.New.Prefix)}
	if e.New.Prefix.Addr().Is6() {
		// Nobody else can have an address of this node's pod CIDR, and detection would only delay it.
		a.Flags = unix.IFA_F_NODAD
	}
	if err := h.AddrReplace(l, a); err != nil {
		return fmt.Errorf("add %s: %w", e.New, err)
	}
	return nil
}

// IPNet is p in the type that netlink takes.
func IPNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// Netip is n as a prefix; invalid for nil and for what is no prefix.
func Netip(n *net.IPNet) netip.Prefix {
	if n == nil {
		return netip.Prefix{}
	}
	bits, size := n.Mask.Size()
	a, ok := netip.AddrFromSlice(n.IP)
	if !ok || size == 0 {
		return netip.Prefix{}
	}
	if size == 32 {
		a = a.Unmap()
	}
	return netip.PrefixFrom(a, bits)
}
