package lab

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/braidnet/braid/internal/kernel/sysctl"
)

const nodeIf = "eth0"

// bridgeName names the switch of one of the underlay's links.
func bridgeName(link int) string { return fmt.Sprintf("br%d", link) }

// buildTopology makes the underlay and the nodes' namespaces with their wires, addresses and
// default routes. A failure leaves what was made: `down` removes it by name.
func buildTopology(o *Options) error {
	p := o.paths()
	outside, err := newNS(p.outsideNS())
	if err != nil {
		return err
	}
	defer outside.close()
	if err := outside.underlay(o); err != nil {
		return fmt.Errorf("underlay: %w", err)
	}
	for _, n := range o.nodes() {
		if err := buildNode(o, &n, outside); err != nil {
			return fmt.Errorf("node %s: %w", n.name, err)
		}
	}
	if err := outside.balance(o); err != nil {
		return fmt.Errorf("underlay: %w", err)
	}
	if o.Backend == "none" {
		if err := outside.carryPods(o); err != nil {
			return fmt.Errorf("underlay: %w", err)
		}
	}
	return nil
}

// carryPods plays the router of a cloud, which knows the nodes' pod CIDRs and is the nodes' default gateway.
func (s *space) carryPods(o *Options) error {
	for _, n := range o.nodes() {
		for i, pods := range n.pods {
			r := &netlink.Route{Dst: ipNet(pods), Gw: n.ips[i].AsSlice()}
			if err := s.nl.RouteAdd(r); err != nil {
				return fmt.Errorf("add route of pod CIDR %s of node %s: %w", pods, n.name, err)
			}
		}
	}
	return nil
}

// forwarding makes the namespace route packets of the lab's families.
func (s *space) forwarding(o *Options) error {
	return inNS(nsPath(s.name), func() error {
		for _, f := range o.families() {
			if _, err := sysctl.Set(sysctl.Forwarding(f.outside.Is4()), "1"); err != nil {
				return err
			}
		}
		return nil
	})
}

// space is a network namespace with a netlink socket inside it.
type space struct {
	name string
	fd   netns.NsHandle
	nl   *netlink.Handle
}

func newNS(name string) (*space, error) {
	if err := createNS(name); err != nil {
		return nil, err
	}
	s, err := openNS(name)
	if err != nil {
		return nil, err
	}
	if err := s.up("lo"); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func openNS(name string) (*space, error) {
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

// address gives a link an address that is usable at once: duplicate address detection would keep
// an IPv6 address unusable for a second, and there is nobody else on these wires.
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

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// underlay makes the switches the nodes hang on. The namespace routes between these, and it plays the
// outside too, so it also has addresses which the nodes reach only over their default route.
func (s *space) underlay(o *Options) error {
	for link := range o.Links {
		if err := s.bridge(o, link); err != nil {
			return err
		}
	}
	for _, f := range o.families() {
		if err := s.address("lo", netip.PrefixFrom(f.outside, f.outside.BitLen())); err != nil {
			return err
		}
	}
	if o.Links == 1 && o.Backend != "none" {
		return nil
	}
	return s.forwarding(o)
}

func (s *space) bridge(o *Options, link int) error {
	snooping := false // nobody asks for group members here, so snooping could only lose multicast
	br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: bridgeName(link)}, MulticastSnooping: &snooping}
	if err := s.nl.LinkAdd(br); err != nil {
		return hint(fmt.Errorf("add bridge: %w", err), "bridge")
	}
	if err := s.up(br.Name); err != nil {
		return err
	}
	for _, f := range o.families() {
		if err := s.address(br.Name, netip.PrefixFrom(f.gateway(link), f.underlay(link).Bits())); err != nil {
			return err
		}
	}
	return nil
}

// balance plays the load balancer of a cloud: what the outside sends to a load-balancer address goes
// to one of the nodes, chosen per connection.
func (s *space) balance(o *Options) error {
	for i, f := range o.families() {
		r := &netlink.Route{Dst: ipNet(f.balancers)}
		for _, n := range o.nodes() {
			bridge, err := s.nl.LinkByName(bridgeName(n.link))
			if err != nil {
				return fmt.Errorf("find the switch of node %s: %w", n.name, err)
			}
			r.MultiPath = append(r.MultiPath, &netlink.NexthopInfo{LinkIndex: bridge.Attrs().Index, Gw: n.ips[i].AsSlice()})
		}
		if err := s.nl.RouteAdd(r); err != nil {
			return fmt.Errorf("add route of load-balancer addresses %s: %w", f.balancers, err)
		}
	}
	// By addresses and ports. Left to itself IPv4 sends all connections of a client to one node, and IPv6 goes by the
	// flow label, which changes when a segment is sent again: the connection would move to another node and end.
	return inNS(nsPath(s.name), func() error {
		for _, name := range []string{"net/ipv4/fib_multipath_hash_policy", "net/ipv6/fib_multipath_hash_policy"} {
			if _, err := sysctl.Set(name, "1"); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
		}
		return nil
	})
}

// buildNode makes one node's namespace. Its veth pair is created inside the namespaces, so that no
// end of it ever shows among the machine's own links.
func buildNode(o *Options, n *node, outside *space) error {
	s, err := newNS(o.paths().nodeNS(n.name))
	if err != nil {
		return err
	}
	defer s.close()
	veth := &netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: nodeIf, HardwareAddr: n.mac()}, PeerName: n.name, PeerNamespace: netlink.NsFd(outside.fd),
	}
	if err := s.nl.LinkAdd(veth); err != nil {
		return hint(fmt.Errorf("add veth: %w", err), "veth")
	}
	port, err := outside.nl.LinkByName(n.name)
	if err != nil {
		return fmt.Errorf("find the underlay end of its veth: %w", err)
	}
	if err := outside.nl.LinkSetMaster(port, &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: bridgeName(n.link)}}); err != nil {
		return fmt.Errorf("attach its veth to the bridge: %w", err)
	}
	if err := outside.up(n.name); err != nil {
		return err
	}
	if err := s.up(nodeIf); err != nil {
		return err
	}
	if o.Backend == "none" { // whoever connects the nodes sees to it; the agent does otherwise
		if err := s.forwarding(o); err != nil {
			return err
		}
	}
	for i, f := range o.families() {
		if err := s.address(nodeIf, netip.PrefixFrom(n.ips[i], f.underlay(n.link).Bits())); err != nil {
			return err
		}
		if err := s.defaultRoute(f.gateway(n.link)); err != nil {
			return err
		}
	}
	return nil
}

// mac is the address of the node's card: the same after it was lost.
func (n *node) mac() net.HardwareAddr {
	sum := sha256.Sum256([]byte("card of " + n.name))
	return append(net.HardwareAddr{2}, sum[:5]...) // locally administered, unicast
}

func (s *space) defaultRoute(gw netip.Addr) error {
	l, err := s.nl.LinkByName(nodeIf)
	if err == nil {
		all := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		if gw.Is6() {
			all = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		}
		err = s.nl.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: ipNet(all), Gw: gw.AsSlice()})
	}
	if err != nil {
		return fmt.Errorf("add default route via %s in %s: %w", gw, s.name, err)
	}
	return nil
}

// hint adds what to do when the kernel does not know a kind of link.
func hint(err error, module string) error {
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("%w (the kernel has no %s: try `modprobe %s`)", err, module, module)
	}
	if errors.Is(err, os.ErrPermission) {
		return fmt.Errorf("%w (needs root)", err)
	}
	return err
}
