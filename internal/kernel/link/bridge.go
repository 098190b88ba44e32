package link

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Bridge is the switch that the pods of a node are plugged into. Pods know no
// neighbour but the gateway, so it has nothing to switch between them, save what
// br_netfilter translates: it is the pods' gateway and gives the node one
// interface for all of them.
type Bridge struct {
	Name  string
	MTU   int            // bytes; 0 leaves it to the kernel
	Addrs []netip.Prefix // gateway addresses with the length of the subnet
	// MAC that an existing bridge is given, too; nil: one that is there is left, and a new one gets one that
	// follows from the name and Addrs.
	MAC     net.HardwareAddr
	Force   bool // other addresses of the families of Addrs go
	Promisc bool
}

// Ref is what is known of an interface once it exists.
type Ref struct {
	Name  string
	Index int
	MAC   net.HardwareAddr
}

func refOf(l netlink.Link) Ref {
	a := l.Attrs()
	return Ref{Name: a.Name, Index: a.Index, MAC: a.HardwareAddr}
}

// EnsureBridge makes the bridge or puts right what differs on the one that is
// there. It may run many times at once: whoever comes second finds the work
// done. The calling thread and h must be in the same namespace.
func EnsureBridge(h *netlink.Handle, want Bridge) (Ref, error) {
	l, err := findOrMakeBridge(h, want)
	if err != nil {
		return Ref{}, err
	}
	if want.MAC != nil && !bytes.Equal(want.MAC, l.Attrs().HardwareAddr) {
		if err := h.LinkSetHardwareAddr(l, want.MAC); err != nil {
			return Ref{}, fmt.Errorf("set hardware address %s on bridge %s: %w", want.MAC, want.Name, err)
		}
		l.Attrs().HardwareAddr = want.MAC
	}
	// Set by a message of its own: given at creation the kernel takes it for a
	// guess, and goes by the ports as they come and go.
	if want.MTU != 0 && l.Attrs().MTU != want.MTU {
		if err := h.LinkSetMTU(l, want.MTU); err != nil {
			return Ref{}, fmt.Errorf("set mtu %d on bridge %s: %w", want.MTU, want.Name, err)
		}
	}
	if err := bridgeSysctls(want); err != nil {
		return Ref{}, err
	}
	for _, p := range want.Addrs {
		if err := addAddr(h, l, p); err != nil && !errors.Is(err, unix.EEXIST) {
			return Ref{}, err
		}
	}
	if want.Force {
		if err := dropAddrs(h, l, want.Addrs); err != nil {
			return Ref{}, err
		}
	}
	if want.Promisc && l.Attrs().Promisc == 0 {
		if err := h.SetPromiscOn(l); err != nil {
			return Ref{}, fmt.Errorf("make bridge %s promiscuous: %w", want.Name, err)
		}
	}
	if l.Attrs().Flags&net.FlagUp == 0 {
		if err := h.LinkSetUp(l); err != nil {
			return Ref{}, fmt.Errorf("bring up bridge %s: %w", want.Name, err)
		}
	}
	return refOf(l), nil
}

// dropAddrs removes the addresses of the families of keep that are not in it, save link-local ones.
func dropAddrs(h *netlink.Handle, l netlink.Link, keep []netip.Prefix) error {
	has := families(keep)
	list, err := Dump(func() ([]netlink.Addr, error) { return h.AddrList(l, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("list addresses of bridge %s: %w", l.Attrs().Name, err)
	}
	for _, a := range list {
		p := Netip(a.IPNet)
		if !has[familyOf(p.Addr())] || slices.Contains(keep, p) || p.Addr().IsLinkLocalUnicast() {
			continue
		}
		if err := h.AddrDel(l, &a); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return fmt.Errorf("remove address %s from bridge %s: %w", p, l.Attrs().Name, err)
		}
	}
	return nil
}

// RepairBridge is EnsureBridge for a bridge that somebody may have changed by hand: it also says what it did, each
// with what was found, and puts back the routes that come with addresses.
func RepairBridge(h *netlink.Handle, want Bridge) (Ref, []string, error) {
	have, err := Read(h, want.Name)
	switch {
	case isNotFound(err):
		ref, err := EnsureBridge(h, want)
		return ref, []string{fmt.Sprintf("made bridge %s anew: it was gone", want.Name)}, err
	case err != nil:
		return Ref{}, nil, err
	}
	var found []string
	if !have.Up {
		found = append(found, "it was down")
	}
	if want.MTU != 0 && have.MTU != want.MTU {
		found = append(found, fmt.Sprintf("its MTU was %d", have.MTU))
	}
	if want.MAC != nil && !bytes.Equal(have.MAC, want.MAC) {
		found = append(found, fmt.Sprintf("its hardware address was %s", have.MAC))
	}
	for _, p := range want.Addrs {
		if !slices.Contains(have.Addrs, p) {
			found = append(found, fmt.Sprintf("address %s was missing", p))
		} else if have.Up && !slices.ContainsFunc(have.Routes, func(r Route) bool { return r.Dst == p.Masked() && !r.Via.IsValid() }) {
			found = append(found, fmt.Sprintf("the route to %s was missing", p.Masked()))
		}
	}
	if len(found) == 0 {
		return have.Ref, nil, nil
	}
	ref, err := EnsureBridge(h, want)
	for _, p := range want.Addrs {
		if err == nil {
			err = connect(h, ref, p)
		}
	}
	for i, f := range found {
		found[i] = fmt.Sprintf("repaired bridge %s: %s", want.Name, f)
	}
	return ref, found, err
}

// connect puts the route there that the kernel makes for an address: it makes it only once.
func connect(h *netlink.Handle, on Ref, p netip.Prefix) error {
	r := &netlink.Route{LinkIndex: on.Index, Dst: IPNet(p.Masked()), Protocol: unix.RTPROT_KERNEL, Scope: netlink.SCOPE_LINK, Src: p.Addr().AsSlice()}
	if p.Addr().Is6() {
		const metric = 256 // IP6_RT_PRIO_ADDRCONF
		r.Scope, r.Src, r.Priority = netlink.SCOPE_UNIVERSE, nil, metric
	}
	if err := h.RouteReplace(r); err != nil {
		return fmt.Errorf("put the route to %s on %s back: %w", p.Masked(), on.Name, err)
	}
	return nil
}

// CheckBridge is no error when there is a bridge of that name, or nothing yet.
func CheckBridge(h *netlink.Handle, name string) error {
	l, err := h.LinkByName(name)
	if isNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look up bridge %s: %w", name, err)
	}
	return mustBeBridge(l)
}

func mustBeBridge(l netlink.Link) error {
	if l.Type() != "bridge" {
		return fmt.Errorf("interface %s is a %s, not a bridge: rename it or choose another bridge name", l.Attrs().Name, l.Type())
	}
	return nil
}

func findOrMakeBridge(h *netlink.Handle, want Bridge) (netlink.Link, error) {
	l, err := h.LinkByName(want.Name)
	if isNotFound(err) {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.HardwareAddr = want.Name, bridgeMAC(want)
		// Snooping would keep neighbour solicitations from pods whose group
		// membership has not been seen yet; there is no multicast to save.
		snooping := false
		err = h.LinkAdd(&netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &snooping})
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return nil, fmt.Errorf("make bridge %s: %w", want.Name, err)
		}
		l, err = h.LinkByName(want.Name)
	}
	if err != nil {
		return nil, fmt.Errorf("look up bridge %s: %w", want.Name, err)
	}
	return l, mustBeBridge(l)
}

// bridgeMAC gives the bridge an address of its own, derived from its name and
// subnets. Without one the bridge takes the lowest of its ports and changes it
// as pods come and go, while the other pods still send to the old one.
func bridgeMAC(b Bridge) net.HardwareAddr {
	if b.MAC != nil {
		return b.MAC
	}
	sum := sha256.Sum256(fmt.Append(nil, b.Name, b.Addrs))
	mac := net.HardwareAddr(sum[:6])
	mac[0] = mac[0]&^1 | 2 // unicast, locally administered
	return mac
}

// bridgeSysctls turns off redirects, which would tell a pod to send to its
// neighbour directly, past the node (the kernel also wants conf/all off for
// that, which is a matter of the whole node and so not done here), and
// duplicate address detection, which would hold up the first pod by a second.
// The node takes neither redirects nor router advertisements from pods, and no routes in their packets. (IPv4 redirects are taken
// where either conf/all or the device says so and the machine is no router; a node is one.)
func bridgeSysctls(b Bridge) error {
	has := families(b.Addrs)
	var set []sysctlValue
	if has[unix.AF_INET] {
		set = append(set,
			sysctlValue{"net/ipv4/conf/" + b.Name + "/send_redirects", "0"},
			sysctlValue{"net/ipv4/conf/" + b.Name + "/accept_redirects", "0"},
			sysctlValue{"net/ipv4/conf/" + b.Name + "/accept_source_route", "0"})
	}
	if has[unix.AF_INET6] {
		set = append(set,
			sysctlValue{"net/ipv6/conf/" + b.Name + "/disable_ipv6", "0"},
			sysctlValue{"net/ipv6/conf/" + b.Name + "/accept_dad", "0"},
			sysctlValue{"net/ipv6/conf/" + b.Name + "/accept_ra", "0"},
			sysctlValue{"net/ipv6/conf/" + b.Name + "/accept_redirects", "0"},
			sysctlValue{"net/ipv6/conf/" + b.Name + "/accept_source_route", "0"})
	}
	return setSysctls(set)
}

func families(list []netip.Prefix) map[int]bool {
	m := map[int]bool{}
	for _, p := range list {
		m[familyOf(p.Addr())] = true
	}
	return m
}

func familyOf(a netip.Addr) int {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}
