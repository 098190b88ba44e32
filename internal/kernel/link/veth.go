package link

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// VethPrefix begins the names of the host ends of pod interfaces.
const VethPrefix = "brd"

// hashDigits is how many digits of a hash follow it.
const hashDigits = 11

// HostVethName is the name of the host end of a pod interface: `brd` and 11
// hex digits of a hash, 14 of the 15 bytes a name may have. It follows from
// what every CNI call carries, so that DEL finds the link when the pod's
// namespace and every record are gone.
func HostVethName(containerID, ifname string) string {
	// Neither part may hold a slash, so no two pairs give the same text.
	sum := sha256.Sum256([]byte(containerID + "/" + ifname))
	return VethPrefix + hex.EncodeToString(sum[:])[:hashDigits]
}

// PodMAC is the hardware address of a pod interface, from the same as HostVethName: unicast and locally
// administered, and another one for each container.
func PodMAC(containerID, ifname string) net.HardwareAddr {
	sum := sha256.Sum256([]byte(containerID + "/" + ifname))
	mac := net.HardwareAddr(sum[26:])
	mac[0] = mac[0]&^1 | 2
	return mac
}

// hostMAC is the hardware address of a host end, from its name. One that is given is left alone by programs of the
// machine that replace random ones, at a time when the pod may remember it already.
func hostMAC(host string) net.HardwareAddr {
	sum := sha256.Sum256([]byte(host))
	mac := net.HardwareAddr(sum[:6])
	mac[0] = mac[0]&^1 | 2
	return mac
}

// Handle is a netlink socket in one namespace.
type Handle = netlink.Handle

// OpenAt opens a netlink socket in the namespace of a descriptor, or in that
// of the calling thread when fd is negative.
func OpenAt(fd int) (*netlink.Handle, error) {
	ns := netns.None()
	if fd >= 0 {
		ns = netns.NsHandle(fd)
	}
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	return h, nil
}

// Veth describes a pair of interfaces between the node and a pod.
type Veth struct {
	Host    string // name of the node's end
	Pod     string // name of the end in the pod
	PodMAC  net.HardwareAddr
	PodNS   int    // descriptor of the pod's namespace
	Hairpin bool   // as a port of the bridge
	Bridge  int    // index of the bridge; 0: none, the pod is routed
	Routed  Routed // how, then
	MTU     int    // of both ends, bytes; 0 leaves it to the kernel
	Mark    Mark   // shown by `ip link` at the host end
}

// AddVeth makes the pair with the pod's end directly in the pod's namespace,
// where it is still down, and the host end connected, up. The calling thread and h must be in the same namespace. On an
// error nothing is left.
func AddVeth(h *netlink.Handle, v Veth) (host Ref, err error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.MasterIndex, attrs.HardwareAddr = v.Host, v.MTU, v.Bridge, hostMAC(v.Host)
	add := &netlink.Veth{LinkAttrs: attrs, PeerName: v.Pod, PeerHardwareAddr: v.PodMAC, PeerNamespace: netlink.NsFd(v.PodNS)}
	if err := h.LinkAdd(add); err != nil {
		if errors.Is(err, unix.EEXIST) {
			return Ref{}, fmt.Errorf("make veth pair: host end %s or pod end %s exists already, left by an ADD that was cut short: call DEL before ADD: %w",
				v.Host, v.Pod, err)
		}
		return Ref{}, fmt.Errorf("make veth pair %s, %s in the pod: %w", v.Host, v.Pod, err)
	}
	defer func() {
		if err != nil {
			_, derr := DeleteVeth(h, v.Host)
			err = errors.Join(err, derr)
		}
	}()
	l, err := h.LinkByName(v.Host)
	if err != nil {
		return Ref{}, fmt.Errorf("look up host veth %s: %w", v.Host, err)
	}
	if v.Bridge == 0 {
		err = connectRouted(h, l, v.Routed)
	} else {
		err = connectPort(h, l, v.Hairpin)
	}
	if err != nil {
		return Ref{}, err
	}
	if err := h.LinkSetAlias(l, v.Mark.String()); err != nil {
		return Ref{}, fmt.Errorf("set alias %q on host veth %s: %w", v.Mark, v.Host, err)
	}
	return refOf(l), nil
}

// connectPort brings up a bridge port. A pod may reach itself through its own service: with br_netfilter at work the
// address is translated while the bridge holds the packet, which then has to leave by the port it came in.
func connectPort(h *netlink.Handle, l netlink.Link, hairpin bool) error {
	if hairpin {
		if err := h.LinkSetHairpin(l, true); err != nil {
			return fmt.Errorf("set hairpin mode on bridge port %s: %w", l.Attrs().Name, err)
		}
	}
	if err := h.LinkSetUp(l); err != nil {
		return fmt.Errorf("bring up host veth %s: %w", l.Attrs().Name, err)
	}
	return nil
}

// DeleteVeth removes the host end, and with it the pod's end, wherever that
// is. It says whether there was one; a link that vanishes at the same time, as
// when the kernel tears down the pod's namespace, is no error.
func DeleteVeth(h *netlink.Handle, host string) (found bool, err error) {
	l, err := h.LinkByName(host)
	if isNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look up host veth %s: %w", host, err)
	}
	if l.Type() != "veth" {
		return false, fmt.Errorf("interface %s is a %s, not the veth of a pod: not removed", host, l.Type())
	}
	if err := h.LinkDel(l); err != nil && !errors.Is(err, unix.ENODEV) {
		return true, fmt.Errorf("remove host veth %s: %w", host, err)
	}
	return true, nil
}

// Port is what CHECK wants to know of the host end of a pod's interface.
type Port struct {
	Ref
	Bridge  int // index, 0 when it is no port
	Peer    int // index of the pod's end
	MTU     int
	Up      bool
	Hairpin bool
}

// ReadPort reads a bridge port. The error wraps netlink.LinkNotFoundError when
// there is no such link.
func ReadPort(h *netlink.Handle, name string) (Port, error) {
	l, err := h.LinkByName(name)
	if err != nil {
		return Port{}, fmt.Errorf("look up host veth %s: %w", name, err)
	}
	a := l.Attrs()
	p := Port{Ref: refOf(l), Bridge: a.MasterIndex, Peer: a.ParentIndex, MTU: a.MTU, Up: a.Flags&net.FlagUp != 0}
	if p.Bridge != 0 {
		info, err := Dump(func() (netlink.Protinfo, error) { return h.LinkGetProtinfo(l) })
		if err != nil {
			return p, fmt.Errorf("read bridge port %s: %w", name, err)
		}
		p.Hairpin = info.Hairpin
	}
	return p, nil
}

// At is an interface seen through the handle of its namespace.
type At struct {
	Handle *netlink.Handle
	Ref
}

// WaitUp waits until the interfaces carry traffic. The kernel announces a
// carrier from a work queue: for some milliseconds after both ends of a pair
// are up, the bridge port is still closed and packets are dropped.
func WaitUp(list ...At) error {
	for _, at := range list {
		var state netlink.LinkOperState
		done, err := poll(func() (bool, error) {
			l, err := at.Handle.LinkByIndex(at.Index)
			if err != nil {
				return false, fmt.Errorf("wait for interface %s: %w", at.Name, err)
			}
			state = l.Attrs().OperState
			return state == netlink.OperUp, nil
		})
		if err != nil {
			return err
		}
		if !done {
			return fmt.Errorf("interface %s is still %s after %s: expected up; is its other end up?", at.Name, state, pollLimit)
		}
	}
	return nil
}

// WaitLocal waits until the IPv6 ones of the addresses are answered to. The kernel makes the local
// route of an IPv6 address from a work queue, even without duplicate address detection; until then
// packets to it are unreachable.
func WaitLocal(h *netlink.Handle, addrs ...netip.Addr) error {
	for _, a := range addrs {
		if a.Is4() {
			continue
		}
		done, err := poll(func() (bool, error) {
			routes, err := h.RouteGet(a.AsSlice())
			return err == nil && len(routes) > 0 && routes[0].Type == unix.RTN_LOCAL, nil
		})
		if err != nil {
			return err
		}
		if !done {
			return fmt.Errorf("address %s has no local route after %s: is the interface it is on up?", a, pollLimit)
		}
	}
	return nil
}

const pollLimit = 5 * time.Second

// poll asks until the answer is yes, an error, or pollLimit is over. The kernel does what it is used
// for within milliseconds and tells nobody of the last step.
func poll(ask func() (bool, error)) (done bool, err error) {
	start := time.Now()
	for pause := 200 * time.Microsecond; ; pause = min(2*pause, 10*time.Millisecond) {
		if done, err = ask(); done || err != nil || time.Since(start) > pollLimit {
			return done, err
		}
		time.Sleep(pause)
	}
}
