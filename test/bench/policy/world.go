package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"

	"github.com/braidnet/braid/internal/kernel/netns"
	"github.com/braidnet/braid/test/bench/bulkapi"
	"github.com/braidnet/braid/test/bench/rig"
)

// How a world is laid out. Two pods of the node are real, the client and the server; the others of it have no
// interface. Pods elsewhere live anywhere in farRange, which one namespace answers for.
var (
	farRange    = netip.MustParsePrefix("10.0.0.0/9")
	serviceCIDR = netip.MustParsePrefix("172.16.0.0/12") // of which there are none
	podCIDR     = netip.MustParsePrefix("10.200.0.0/24")
	bridgeAddr  = netip.MustParseAddr("10.200.0.1")
	clientAddr  = netip.MustParseAddr("10.200.0.2")
	serverAddr  = netip.MustParseAddr("10.200.0.3")
	wireNode    = netip.MustParseAddr("10.254.0.1")
	wireFar     = netip.MustParseAddr("10.254.0.2")
)

const (
	nodeName = "bench-node"
	podPort  = 8080
	bridge   = "braid0"
)

// world is a node in a network namespace of its own with two pods, a namespace that is all pods of other nodes, and
// the API server that is watched. The namespaces have no names: they end with this process, even a killed one.
type world struct {
	node, client, server, far *netns.NS
	api                       *bulkapi.Server
	closers                   []io.Closer
}

func newWorld() (w *world, err error) {
	w = &world{}
	defer func() {
		if err != nil {
			w.close()
		}
	}()
	if err := rig.Namespaces(&w.node, &w.client, &w.server, &w.far); err != nil {
		return w, err
	}
	if err := w.node.Do(prepareNode); err != nil {
		return w, fmt.Errorf("node: %w", err)
	}
	if err := errors.Join(w.pod(w.client, "brdclient", clientAddr), w.pod(w.server, "brdserver", serverAddr), w.wireFar()); err != nil {
		return w, err
	}
	if err := w.server.Do(w.serve); err != nil {
		return w, fmt.Errorf("server: %w", err)
	}
	w.api, err = rig.API(w.node)
	return w, err
}

func prepareNode() error {
	if err := rig.Router(); err != nil {
		return err
	}
	if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: bridge, HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 1}}}); err != nil {
		return err
	}
	return errors.Join(rig.Address(bridge, netip.PrefixFrom(bridgeAddr, podCIDR.Bits())), rig.Up(bridge))
}

// pod joins a namespace to the node's bridge as the CNI plugin does: its only neighbour is the gateway.
func (w *world) pod(ns *netns.NS, name string, a netip.Addr) error {
	err := w.join(ns, name, func() error {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		br, err := netlink.LinkByName(bridge)
		if err != nil {
			return err
		}
		return errors.Join(netlink.LinkSetMaster(l, br), rig.Up(name))
	})
	if err != nil {
		return fmt.Errorf("pod %s: %w", a, err)
	}
	return ns.Do(func() error {
		for _, dev := range []string{"all", "eth0"} { // no way past the node, as in the plugin's pods
			if err := os.WriteFile("/proc/sys/net/ipv4/conf/"+dev+"/accept_redirects", []byte("0"), 0); err != nil {
				return err
			}
		}
		if err := errors.Join(rig.Address("eth0", netip.PrefixFrom(a, 32)), rig.Up("eth0")); err != nil {
			return err
		}
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		toGateway := &netlink.Route{LinkIndex: l.Attrs().Index, Dst: rig.IPNet(netip.PrefixFrom(bridgeAddr, 32)), Scope: netlink.SCOPE_LINK}
		return errors.Join(netlink.RouteAdd(toGateway), netlink.RouteAdd(&netlink.Route{Gw: bridgeAddr.AsSlice()}))
	})
}

// join makes a veth pair, and does something about the node's end of it.
func (w *world) join(ns *netns.NS, name string, then func() error) error {
	if err := rig.Join(w.node, name, ns); err != nil {
		return err
	}
	return w.node.Do(then)
}

// wireFar makes every address of farRange a pod of another node.
func (w *world) wireFar() error {
	err := w.join(w.far, "far0", func() error {
		return errors.Join(rig.Address("far0", netip.PrefixFrom(wireNode, 24)), rig.Up("far0"))
	})
	if err != nil {
		return fmt.Errorf("other nodes: %w", err)
	}
	err = w.far.Do(func() error {
		if err := errors.Join(rig.Address("eth0", netip.PrefixFrom(wireFar, 24)), rig.Up("eth0"), netlink.RouteAdd(&netlink.Route{Gw: wireNode.AsSlice()})); err != nil {
			return err
		}
		return rig.AnswerFor(farRange)
	})
	if err != nil {
		return fmt.Errorf("other nodes: %w", err)
	}
	return w.node.Do(func() error {
		return netlink.RouteAdd(&netlink.Route{Dst: rig.IPNet(farRange), Gw: wireFar.AsSlice()})
	})
}

// serve accepts connections and answers datagrams, in the server's namespace.
func (w *world) serve() error {
	l, err := net.Listen("tcp4", fmt.Sprintf(":%d", podPort))
	if err != nil {
		return err
	}
	w.closers = append(w.closers, l)
	go func() {
		for {
			c, err := l.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				c.Close()
			}
		}
	}()
	u, err := net.ListenPacket("udp4", fmt.Sprintf(":%d", podPort))
	if err != nil {
		return err
	}
	w.closers = append(w.closers, u)
	go func() {
		for buf := make([]byte, 2000); ; {
			n, from, err := u.ReadFrom(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				_, _ = u.WriteTo(buf[:n], from)
			}
		}
	}()
	return nil
}

func (w *world) close() {
	if w.api != nil {
		w.api.Close()
	}
	for i := len(w.closers) - 1; i >= 0; i-- {
		w.closers[i].Close()
	}
	rig.Close(w.node, w.client, w.server, w.far)
}
