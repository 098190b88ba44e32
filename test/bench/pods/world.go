package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"

	"github.com/vishvananda/netlink"

	"github.com/braidnet/braid/internal/kernel/netns"
	"golang.org/x/sys/unix"
)

func other(n int) int      { return 3 - n }
func nodeIP(n int) string  { return fmt.Sprintf("192.168.77.%d", n) }
func cidr(n int) string    { return fmt.Sprintf("10.244.%d.0/24", n) }
func podIP(n int) string   { return fmt.Sprintf("10.244.%d.5", n) }
func gateway(n int) string { return fmt.Sprintf("10.244.%d.1", n) }

// world is two nodes with a pod each, in network namespaces without names: they end with this process.
type world struct {
	nodes, pods [2]*netns.NS
	dir         string
	daemons     []*exec.Cmd
	servers     []interface{ Close() error }
}

func newWorld(s subject, o *options) (w *world, err error) {
	w = &world{}
	if w.dir, err = os.MkdirTemp("", "bench-pods-"); err != nil {
		return w, err
	}
	for i := range w.nodes {
		for _, ns := range []**netns.NS{&w.nodes[i], &w.pods[i]} {
			if *ns, err = netns.New(); err != nil {
				return w, err
			}
			if err := run(*ns, "ip", "link", "set", "lo", "up"); err != nil {
				return w, err
			}
		}
	}
	if err := w.wire(o); err != nil {
		return w, err
	}
	for n := 1; n <= 2; n++ {
		if err := w.pod(n); err != nil {
			return w, err
		}
		if err := s.start(w, n, o); err != nil {
			return w, err
		}
	}
	if err := w.serve(); err != nil {
		return w, err
	}
	if err := w.await(); err != nil {
		return w, err
	}
	return w, w.mtu(s)
}

// wire joins the nodes.
func (w *world) wire(o *options) error {
	err := w.nodes[0].Do(func() error {
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0", MTU: 1500}, PeerName: "eth0", PeerNamespace: netlink.NsFd(w.nodes[1].Fd())})
	})
	for n := 1; n <= 2 && err == nil; n++ {
		ns := w.nodes[n-1]
		err = errors.Join(
			run(ns, "ip", "addr", "add", nodeIP(n)+"/24", "dev", "eth0"), run(ns, "ip", "link", "set", "eth0", "up"),
			run(ns, "sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward"))
		if o.offUDP && err == nil {
			err = ns.Do(func() error { return switchOff("eth0", "tx-udp-segmentation") })
		}
		if o.offTCP && err == nil {
			err = ns.Do(func() error { return switchOff("eth0", "tx-tcp-segmentation") })
		}
	}
	return err
}

// pod makes the pod of node n, reached by a veth pair and a host route.
func (w *world) pod(n int) error {
	node, pod := w.nodes[n-1], w.pods[n-1]
	err := node.Do(func() error {
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "pod0", MTU: 1500}, PeerName: "eth0", PeerNamespace: netlink.NsFd(pod.Fd())})
	})
	for _, argv := range [][]string{
		{"ip", "link", "set", "pod0", "up"}, {"ip", "addr", "add", gateway(n) + "/32", "dev", "pod0"}, {"ip", "route", "add", podIP(n), "dev", "pod0"},
	} {
		err = errors.Join(err, run(node, argv...))
	}
	for _, argv := range [][]string{
		{"ip", "link", "set", "eth0", "up"}, {"ip", "addr", "add", podIP(n) + "/32", "dev", "eth0"},
		{"ip", "route", "add", gateway(n), "dev", "eth0"}, {"ip", "route", "add", "default", "via", gateway(n)},
	} {
		err = errors.Join(err, run(pod, argv...))
	}
	return err
}

// mtu gives the pods the MTU that the subject leaves them, as its CNI plugin would.
func (w *world) mtu(s subject) error {
	bytes := 1500
	switch {
	case s.overlay == "udp" || s.flannel == "udp":
		bytes = 1472
	case s.name != "host-gw by hand" && s.overlay != "host-gw":
		bytes = 1450
	}
	for i := range w.pods {
		if err := errors.Join(run(w.pods[i], "ip", "link", "set", "eth0", "mtu", strconv.Itoa(bytes)),
			run(w.nodes[i], "ip", "link", "set", "pod0", "mtu", strconv.Itoa(bytes))); err != nil {
			return err
		}
	}
	return nil
}

// close ends the programs of this world.
func (w *world) close() {
	for _, s := range w.servers {
		_ = s.Close()
	}
	for _, c := range w.daemons {
		_ = c.Process.Signal(unix.SIGTERM)
		_ = c.Wait()
	}
	for i := range w.nodes {
		for _, ns := range []*netns.NS{w.nodes[i], w.pods[i]} {
			if ns != nil {
				_ = ns.Close()
			}
		}
	}
	_ = os.RemoveAll(w.dir)
}
