package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

const (
	netnsRoot = "/run/netns" // where `ip netns` looks
	control   = "control"
	bridge    = "br0"
	wire      = "eth0"
)

func nsPath(name string) string { return filepath.Join(netnsRoot, name) }

// buildTopology makes one network namespace per place, and the wires. The underlay's bridge belongs to the
// control plane's namespace, so that nothing shows among the machine's own links. What is made before an
// error stays: `down` finds it by name.
func buildTopology(o *options) error {
	hub, err := newSpace(o.nsName(control))
	if err != nil {
		return err
	}
	defer hub.close()
	off := false // nobody asks for group members here, so snooping could only lose multicast
	if err := hub.nl.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: bridge}, MulticastSnooping: &off}); err != nil {
		return fmt.Errorf("add the underlay's bridge: %w", err)
	}
	for _, f := range o.families() {
		if err := hub.address(bridge, netip.PrefixFrom(f.control, f.underlay.Bits())); err != nil {
			return err
		}
	}
	if err := hub.up(bridge); err != nil {
		return err
	}
	for i := 1; i <= o.Nodes; i++ {
		if err := buildNode(o, i, hub); err != nil {
			return err
		}
	}
	return nil
}

func buildNode(o *options, i int, hub *space) error {
	name := nodeName(i)
	s, err := newSpace(o.nsName(name))
	if err != nil {
		return err
	}
	defer s.close()
	// Made inside the two namespaces, neither end ever exists in the machine's own.
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: wire}, PeerName: name, PeerNamespace: netlink.NsFd(hub.fd)}
	if err := s.nl.LinkAdd(veth); err != nil {
		return fmt.Errorf("add the wire of %s: %w", name, err)
	}
	port, err := hub.nl.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find the underlay's end of %s: %w", name, err)
	}
	master, err := hub.nl.LinkByName(bridge)
	if err != nil {
		return fmt.Errorf("find the underlay's bridge: %w", err)
	}
	if err := hub.nl.LinkSetMaster(port, master); err != nil {
		return fmt.Errorf("attach %s to the underlay: %w", name, err)
	}
	if err := errors.Join(hub.up(name), s.up(wire)); err != nil {
		return err
	}
	for _, f := range o.families() {
		if err := s.address(wire, netip.PrefixFrom(f.node(i), f.underlay.Bits())); err != nil {
			return err
		}
		if err := s.route(netip.PrefixFrom(unspecified(f.control), 0), f.control); err != nil {
			return err
		}
	}
	return nil
}

func unspecified(like netip.Addr) netip.Addr {
	if like.Is4() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

// space is a network namespace with a netlink socket inside it.
type space struct {
	name string
	fd   netns.NsHandle
	nl   *netlink.Handle
}

// shareRoot makes the folder of namespaces a mount of its own, as `ip netns add` does. It would do so at its
// first use, over what is bound there by then, which nobody could unmount any more.
func shareRoot() error {
	if err := os.MkdirAll(netnsRoot, 0o755); err != nil {
		return err
	}
	err := unix.Mount("", netnsRoot, "none", unix.MS_SHARED|unix.MS_REC, "")
	if errors.Is(err, unix.EINVAL) { // no mount
		err = errors.Join(unix.Mount(netnsRoot, netnsRoot, "none", unix.MS_BIND|unix.MS_REC, ""),
			unix.Mount("", netnsRoot, "none", unix.MS_SHARED|unix.MS_REC, ""))
	}
	if err != nil {
		return fmt.Errorf("share %s: %w", netnsRoot, err)
	}
	return nil
}

// newSpace makes a namespace and binds it where `ip netns` finds it.
func newSpace(name string) (*space, error) {
	if err := shareRoot(); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(nsPath(name), os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o444)
	if err != nil {
		return nil, fmt.Errorf("make namespace %s: %w; `down` removes what an earlier run left", name, err)
	}
	f.Close()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread keeps the namespace and ends with this goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			err = unix.Mount("/proc/thread-self/ns/net", nsPath(name), "", unix.MS_BIND, "")
		}
		done <- err
	}()
	if err := <-done; err != nil {
		return nil, errors.Join(fmt.Errorf("make namespace %s: %w", name, err), os.Remove(nsPath(name)))
	}
	s, err := openSpace(name)
	if err != nil {
		return nil, err
	}
	return s, s.up("lo")
}

func openSpace(name string) (*space, error) {
	fd, err := netns.GetFromPath(nsPath(name))
	if err != nil {
		return nil, fmt.Errorf("open namespace %s: %w", name, err)
	}
	nl, err := netlink.NewHandleAt(fd, unix.NETLINK_ROUTE)
	if err != nil {
		fd.Close()
		return nil, fmt.Errorf("open netlink in namespace %s: %w", name, err)
	}
	return &space{name, fd, nl}, nil
}

func (s *space) close() {
	s.nl.Close()
	s.fd.Close()
}

func (s *space) up(link string) error {
	l, err := s.nl.LinkByName(link)
	if err == nil {
		err = s.nl.LinkSetUp(l)
	}
	if err != nil {
		return fmt.Errorf("set %s up in %s: %w", link, s.name, err)
	}
	return nil
}

// address gives a link an address that works at once: duplicate address detection would withhold an IPv6
// one for a second, and there is nobody else on these wires.
func (s *space) address(link string, addr netip.Prefix) error {
	l, err := s.nl.LinkByName(link)
	if err == nil {
		a := &netlink.Addr{IPNet: ipNet(addr)}
		if addr.Addr().Is6() {
			a.Flags = unix.IFA_F_NODAD
		}
		err = s.nl.AddrAdd(l, a)
	}
	if err != nil {
		return fmt.Errorf("add %s to %s in %s: %w", addr, link, s.name, err)
	}
	return nil
}

func (s *space) route(dst netip.Prefix, via netip.Addr) error {
	if err := s.nl.RouteReplace(&netlink.Route{Dst: ipNet(dst), Gw: via.AsSlice()}); err != nil {
		return fmt.Errorf("route %s via %s in %s: %w", dst, via, s.name, err)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// spaces lists the namespaces of a cluster that exist, by the names under which they are bound.
func spaces(cluster string) ([]string, error) {
	entries, err := os.ReadDir(netnsRoot)
	if err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	var out []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), nsPrefix(cluster)) {
			out = append(out, e.Name())
		}
	}
	return out, nil
}

// within runs fn on a thread inside the namespace; processes it starts are born there.
func within(name string, fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked, as in newSpace
		ns, err := netns.GetFromPath(nsPath(name))
		if err == nil {
			defer ns.Close()
			err = netns.Set(ns)
		}
		if err != nil {
			done <- fmt.Errorf("enter namespace %s: %w", name, err)
			return
		}
		done <- fn()
	}()
	return <-done
}
