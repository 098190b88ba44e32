package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/braidnet/braid/internal/kernel/netns"
	"github.com/braidnet/braid/test/bench/bulkapi"
)

// How a world is laid out. Pods live anywhere in podRange, which one namespace answers for.
var (
	clusterCIDR  = netip.MustParsePrefix("10.0.0.0/8")
	podRange     = netip.MustParsePrefix("10.0.0.0/9")
	serviceCIDR  = netip.MustParsePrefix("172.16.0.0/12")
	clientCIDR   = netip.MustParsePrefix("10.255.0.0/24") // the node's pod addresses; the client is one of them
	nodeAddr     = netip.MustParseAddr("10.255.0.1")
	clientAddr   = netip.MustParseAddr("10.255.0.2")
	wireNode     = netip.MustParseAddr("10.254.0.1")
	wirePods     = netip.MustParseAddr("10.254.0.2")
	directTarget = netip.MustParseAddr("10.127.255.254") // a pod that no service leads to
)

const (
	nodeName    = "bench-node"
	servicePort = 80
	podPort     = 8080
)

// world is a node in a network namespace of its own, between one with a client and one with all pods
// of the cluster, and the API server that the node's proxy watches. The namespaces have no names: they
// end with this process, even a killed one.
type world struct {
	node, client, pods *netns.NS
	api                *bulkapi.Server
	listener           net.Listener
}

func newWorld() (w *world, err error) {
	w = &world{}
	defer func() {
		if err != nil {
			w.close()
		}
	}()
	for _, ns := range []**netns.NS{&w.node, &w.client, &w.pods} {
		if *ns, err = netns.New(); err != nil {
			return w, err
		}
		if err := (*ns).Do(func() error { return up("lo") }); err != nil {
			return w, err
		}
	}
	if err := w.wire(w.client, "client0", nodeAddr, clientAddr); err != nil {
		return w, fmt.Errorf("wire of the client: %w", err)
	}
	if err := w.wire(w.pods, "pods0", wireNode, wirePods); err != nil {
		return w, fmt.Errorf("wire of the pods: %w", err)
	}
	if err := w.node.Do(w.prepareNode); err != nil {
		return w, fmt.Errorf("node: %w", err)
	}
	if err := w.pods.Do(w.servePods); err != nil {
		return w, fmt.Errorf("pods: %w", err)
	}
	err = w.node.Do(func() error {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err == nil {
			w.api = bulkapi.New(l)
		}
		return err
	})
	return w, err
}

// wire joins a namespace to the node, which is its way to everywhere.
func (w *world) wire(ns *netns.NS, name string, here, there netip.Addr) error {
	err := w.node.Do(func() error {
		link := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: "eth0", PeerNamespace: netlink.NsFd(ns.Fd())}
		if err := netlink.LinkAdd(link); err != nil {
			return err
		}
		return errors.Join(address(name, here), up(name))
	})
	if err != nil {
		return err
	}
	return ns.Do(func() error {
		if err := errors.Join(address("eth0", there), up("eth0")); err != nil {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{Gw: here.AsSlice()})
	})
}

func address(link string, a netip.Addr) error {
	l, err := netlink.LinkByName(link)
	if err != nil {
		return err
	}
	return netlink.AddrAdd(l, &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(a, 24))})
}

func up(link string) error {
	l, err := netlink.LinkByName(link)
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(l)
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func (w *world) prepareNode() error {
	for key, value := range map[string]string{
		"net/ipv4/ip_forward": "1", "net/ipv4/conf/all/rp_filter": "0",
	} {
		if err := os.WriteFile(filepath.Join("/proc/sys", key), []byte(value), 0); err != nil {
			return err
		}
	}
	return netlink.RouteAdd(&netlink.Route{Dst: ipNet(podRange), Gw: wirePods.AsSlice()})
}

// servePods makes every address of podRange a pod: it tells who connects which one was reached.
func (w *world) servePods() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.RouteAdd(&netlink.Route{Dst: ipNet(podRange), LinkIndex: lo.Attrs().Index, Type: unix.RTN_LOCAL,
		Scope: netlink.SCOPE_HOST, Table: unix.RT_TABLE_LOCAL}); err != nil {
		return err
	}
	if w.listener, err = net.Listen("tcp4", fmt.Sprintf("0.0.0.0:%d", podPort)); err != nil {
		return err
	}
	go func() {
		for {
			c, err := w.listener.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				go tell(c)
			}
		}
	}()
	return nil
}

// tell answers with the address that was reached, and waits for the client to go.
func tell(c net.Conn) {
	defer c.Close()
	reached := c.LocalAddr().(*net.TCPAddr).AddrPort().Addr().Unmap().As4()
	if _, err := c.Write(reached[:]); err != nil {
		return
	}
	_, _ = c.Read(make([]byte, 1)) // ends with the client's reset
}

func (w *world) close() {
	if w.api != nil {
		w.api.Close()
	}
	if w.listener != nil {
		w.listener.Close()
	}
	for _, ns := range []*netns.NS{w.node, w.client, w.pods} {
		if ns != nil {
			ns.Close()
		}
	}
}

// offset returns the address n behind the first of a range.
func offset(p netip.Prefix, n int) netip.Addr {
	b := p.Addr().As4()
	binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(b[:])+uint32(n))
	return netip.AddrFrom4(b)
}
