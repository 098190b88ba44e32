package link

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/braidnet/braid/internal/desired"
	"github.com/braidnet/braid/internal/kernel/sysctl"
)

// Route is a route of a pod through an interface. Without a gateway the
// destination is reached directly.
type Route struct {
	Dst netip.Prefix
	Via netip.Addr // zero: on the link
	// Of the route, in bytes, and its preference; 0: the kernel's own.
	MTU, AdvMSS, Metric int
}

func (r Route) String() string {
	text := r.Dst.String() + " on the link"
	if r.Via.IsValid() {
		text = r.Dst.String() + " via " + r.Via.String()
	}
	for _, x := range []struct {
		name  string
		value int
	}{{"mtu", r.MTU}, {"advmss", r.AdvMSS}, {"metric", r.Metric}} {
		if x.value != 0 {
			text += fmt.Sprintf(" %s %d", x.name, x.value)
		}
	}
	return text
}

// metric6 is what the kernel gives a route of IPv6 that has none (IP6_RT_PRIO_USER).
const metric6 = 1024

// Host is a single address as a prefix: /32 or /128.
func Host(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// Pod describes the inside of a pod's namespace.
type Pod struct {
	IfName string
	Addrs  []netip.Addr // added as /32 and /128, so nothing but Routes is reachable
	Routes []Route      // in order: a gateway's own route comes before those through it

	Options PodOptions
}

// PodOptions are what few pods need.
type PodOptions struct {
	DAD          bool // IPv6 addresses wait for duplicate address detection
	Promisc      bool
	AllMulticast bool
	TxQueue      *int        // length, packets; nil: the kernel's
	Sysctls      [][2]string // path below /proc/sys and value; IFNAME stands for the interface
}

// ConfigurePod brings up loopback and the pod's interface with its addresses
// and routes. The calling thread and h must be in the pod's namespace, for the
// sysctls. What an error leaves half done goes with the interface.
func ConfigurePod(h *netlink.Handle, p Pod) (Ref, error) {
	lo, err := h.LinkByName("lo")
	if err != nil {
		return Ref{}, fmt.Errorf("look up loopback in the pod: %w", err)
	}
	if err := h.LinkSetUp(lo); err != nil {
		return Ref{}, fmt.Errorf("bring up loopback in the pod: %w", err)
	}
	l, err := h.LinkByName(p.IfName)
	if err != nil {
		return Ref{}, fmt.Errorf("look up %s in the pod: %w", p.IfName, err)
	}
	if err := podSysctls(p); err != nil {
		return Ref{}, err
	}
	if err := p.Options.apply(h, l); err != nil {
		return Ref{}, err
	}
	for _, a := range p.Addrs {
		if err := putAddr(h, l, Host(a), p.Options.DAD); err != nil {
			return Ref{}, err
		}
	}
	if err := h.LinkSetUp(l); err != nil {
		return Ref{}, fmt.Errorf("bring up %s in the pod: %w", p.IfName, err)
	}
	for _, r := range p.Routes {
		if err := addRoute(h, l, r); err != nil {
			return Ref{}, err
		}
	}
	if p.Options.DAD {
		if err := waitUnique(h, l); err != nil {
			return Ref{}, err
		}
	}
	return refOf(l), WaitLocal(h, p.Addrs...)
}

// apply sets what does not belong to addresses and routes.
func (o PodOptions) apply(h *netlink.Handle, l netlink.Link) error {
	name := l.Attrs().Name
	if o.Promisc {
		if err := h.SetPromiscOn(l); err != nil {
			return fmt.Errorf("make %s promiscuous in the pod: %w", name, err)
		}
	}
	if o.AllMulticast {
		if err := h.LinkSetAllmulticastOn(l); err != nil {
			return fmt.Errorf("have %s take all multicast in the pod: %w", name, err)
		}
	}
	if o.TxQueue != nil {
		if err := h.LinkSetTxQLen(l, *o.TxQueue); err != nil {
			return fmt.Errorf("set the queue length of %s in the pod to %d: %w", name, *o.TxQueue, err)
		}
	}
	for _, s := range o.Sysctls {
		if _, err := sysctl.Set(strings.ReplaceAll(s[0], "IFNAME", name), s[1]); err != nil {
			return err
		}
	}
	return nil
}

// waitUnique waits until duplicate address detection is over.
func waitUnique(h *netlink.Handle, l netlink.Link) error {
	var open []string
	done, err := poll(func() (bool, error) {
		list, err := Dump(func() ([]netlink.Addr, error) { return h.AddrList(l, unix.AF_INET6) })
		open = nil
		for _, a := range list {
			if a.Flags&unix.IFA_F_DADFAILED != 0 {
				return false, fmt.Errorf("somebody else on the link of %s has address %s", l.Attrs().Name, a.IPNet)
			}
			if a.Flags&unix.IFA_F_TENTATIVE != 0 {
				open = append(open, a.IPNet.String())
			}
		}
		return len(open) == 0, err
	})
	if err == nil && !done {
		err = fmt.Errorf("duplicate address detection of %v is not over after %s", open, pollLimit)
	}
	return err
}

// podSysctls keeps routers and redirects on the network from changing the
// pod's routes, and skips duplicate address detection: IPAM has seen to it,
// and it would hold up the first packets by a second or two. Whenever the interface comes up or gets another hardware
// address, the kernel announces its addresses (RFC 5227 §3, RFC 4861 §7.2.6).
func podSysctls(p Pod) error {
	var set []sysctlValue
	for _, a := range p.Addrs {
		if a.Is4() {
			set = append(set,
				// A host takes redirects when either of the two allows it.
				sysctlValue{"net/ipv4/conf/all/accept_redirects", "0"},
				sysctlValue{"net/ipv4/conf/" + p.IfName + "/accept_redirects", "0"},
				sysctlValue{"net/ipv4/conf/" + p.IfName + "/arp_notify", "1"})
			continue
		}
		conf := "net/ipv6/conf/" + p.IfName
		set = append(set,
			// Runtimes make sandboxes with IPv6 off until a plugin brings it.
			sysctlValue{"net/ipv6/conf/lo/disable_ipv6", "0"},
			sysctlValue{conf + "/disable_ipv6", "0"},
			sysctlValue{conf + "/addr_gen_mode", "0"}, // a link-local address that follows from the MAC
			sysctlValue{conf + "/accept_dad", map[bool]string{false: "0", true: "1"}[p.Options.DAD]},
			sysctlValue{conf + "/ndisc_notify", "1"},
			sysctlValue{conf + "/keep_addr_on_down", "1"}, // as IPv4 does, and the reference plugins have it
			sysctlValue{conf + "/accept_ra", "0"},
			sysctlValue{conf + "/accept_redirects", "0"})
	}
	return setSysctls(set)
}

// HasLink tells whether an interface exists in the namespace of h.
func HasLink(h *netlink.Handle, name string) (bool, error) {
	_, err := h.LinkByName(name)
	if isNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look up %s: %w", name, err)
	}
	return true, nil
}

// Seen is an interface with its addresses and routes as the kernel has them.
type Seen struct {
	Ref
	MTU    int
	Up     bool
	Addrs  []netip.Prefix
	Routes []Route // through this interface, main table
}

// Read reads an interface. The error wraps netlink.LinkNotFoundError when
// there is none.
func Read(h *netlink.Handle, name string) (Seen, error) {
	l, err := h.LinkByName(name)
	if err != nil {
		return Seen{}, fmt.Errorf("look up %s: %w", name, err)
	}
	s := Seen{Ref: refOf(l), MTU: l.Attrs().MTU, Up: l.Attrs().Flags&net.FlagUp != 0}
	addrs, err := Dump(func() ([]netlink.Addr, error) { return h.AddrList(l, netlink.FAMILY_ALL) })
	if err != nil {
		return s, fmt.Errorf("read the addresses of %s: %w", name, err)
	}
	for _, a := range addrs {
		s.Addrs = append(s.Addrs, Netip(a.IPNet))
	}
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		routes, err := Dump(func() ([]netlink.Route, error) { return h.RouteList(l, family) })
		if err != nil {
			return s, fmt.Errorf("read the routes through %s: %w", name, err)
		}
		for _, r := range routes {
			seen := Route{Dst: Netip(r.Dst), MTU: r.MTU, AdvMSS: r.AdvMSS, Metric: r.Priority}
			if family == unix.AF_INET6 && r.Priority == metric6 {
				seen.Metric = 0
			}
			if !seen.Dst.IsValid() {
				seen.Dst = defaultOf(family)
			}
			if via, ok := netip.AddrFromSlice(r.Gw); ok {
				seen.Via = via.Unmap()
			}
			s.Routes = append(s.Routes, seen)
		}
	}
	return s, nil
}

// SetNeigh tells the node which hardware address a pod has. The address may
// have been another pod's a moment ago, and the node would send to that one's
// interface until its entry expires.
func SetNeigh(h *netlink.Handle, bridge Ref, a netip.Addr, mac net.HardwareAddr) error {
	err := h.NeighSet(&netlink.Neigh{LinkIndex: bridge.Index, Family: familyOf(a), State: netlink.NUD_REACHABLE,
		IP: a.AsSlice(), HardwareAddr: mac})
	if err != nil {
		return fmt.Errorf("set neighbour %s %s on %s: %w", a, mac, bridge.Name, err)
	}
	return nil
}

// DeleteNeigh forgets a pod that is gone, so that whoever still sends to it is
// told so at once. Neither a missing bridge nor a missing entry is an error.
func DeleteNeigh(h *netlink.Handle, bridge string, a netip.Addr) error {
	l, err := h.LinkByName(bridge)
	if err == nil {
		err = h.NeighDel(&netlink.Neigh{LinkIndex: l.Attrs().Index, Family: familyOf(a), IP: a.AsSlice()})
	}
	if err == nil || isNotFound(err) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	return fmt.Errorf("forget neighbour %s on %s: %w", a, bridge, err)
}

func addAddr(h *netlink.Handle, l netlink.Link, p netip.Prefix) error {
	return putAddr(h, l, p, false)
}

// putAddr adds an address, with dad only when nobody on the link has it.
func putAddr(h *netlink.Handle, l netlink.Link, p netip.Prefix, dad bool) error {
	a := &netlink.Addr{IPNet: IPNet(p)}
	if p.Addr().Is6() && !dad {
		a.Flags = unix.IFA_F_NODAD
	}
	if err := h.AddrAdd(l, a); err != nil {
		return fmt.Errorf("add address %s to %s: %w", p, l.Attrs().Name, err)
	}
	return nil
}

func addRoute(h *netlink.Handle, l netlink.Link, r Route) error {
	route := &netlink.Route{LinkIndex: l.Attrs().Index, Dst: IPNet(r.Dst), Protocol: desired.RouteProtocol, MTU: r.MTU, AdvMSS: r.AdvMSS, Priority: r.Metric}
	if r.Via.IsValid() {
		route.Gw = r.Via.AsSlice()
	} else {
		route.Scope = netlink.SCOPE_LINK
	}
	if err := h.RouteAdd(route); err != nil {
		return fmt.Errorf("add route %s through %s in the pod: %w", r, l.Attrs().Name, err)
	}
	return nil
}

func defaultOf(family int) netip.Prefix {
	if family == unix.AF_INET {
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
}

func isNotFound(err error) bool {
	var missing netlink.LinkNotFoundError
	return errors.As(err, &missing)
}

// IsNotFound tells whether an error of this package says that a link is
// missing.
func IsNotFound(err error) bool { return isNotFound(err) }

// sysctlValue is a path below /proc/sys and what is to be in it.
type sysctlValue struct{ key, value string }

// setSysctls sets values of the namespace the calling thread is in.
func setSysctls(list []sysctlValue) error {
	for _, s := range list {
		_, err := sysctl.Set(s.key, s.value)
		if errors.Is(err, os.ErrNotExist) && strings.HasPrefix(s.key, "net/ipv6/") {
			return fmt.Errorf("%w: is IPv6 off in this kernel? then leave IPv6 ranges out", err)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
