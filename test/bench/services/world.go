package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"

	"github.com/braidnet/braid/internal/kernel/netns"
	"github.com/braidnet/braid/test/bench/bulkapi"
	"github.com/braidnet/braid/test/bench/rig"
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
	if err := rig.Namespaces(&w.node, &w.client, &w.pods); err != nil {
		return w, err
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
	w.api, err = rig.API(w.node)
	return w, err
}

// wire joins a namespace to the node, which is its way to everywhere.
func (w *world) wire(ns *netns.NS, name string, here, there netip.Addr) error {
	err := rig.Join(w.node, name, ns)
	if err != nil {
		return err
	}
	err = w.node.Do(func() error {
		return errors.Join(rig.Address(name, netip.PrefixFrom(here, 24)), rig.Up(name))
	})
	if err != nil {
		return err
	}
	return ns.Do(func() error {
		if err := errors.Join(rig.Address("eth0", netip.PrefixFrom(there, 24)), rig.Up("eth0")); err != nil {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{Gw: here.AsSlice()})
	})
}

func (w *world) prepareNode() error {
	if err := rig.Router(); err != nil {
		return err
	}
	return netlink.RouteAdd(&netlink.Route{Dst: rig.IPNet(podRange), Gw: wirePods.AsSlice()})
}

// servePods makes every address of podRange a pod: it tells who connects which one was reached.
func (w *world) servePods() (err error) {
	if err := rig.AnswerFor(podRange); err != nil {
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
	rig.Close(w.node, w.client, w.pods)
}
