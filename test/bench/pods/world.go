package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"

	"github.com/braidnet/braid/internal/kernel/netns"
	"github.com/braidnet/braid/test/bench/rig"
	"golang.org/x/sys/unix"
)

func other(n int) int { return 3 - n }

// addresses are those of one family: nodes and pods have no others.
type addresses struct {
	family  string // as ip(8) wants it
	wide    int    // bits of an address
	node    string // formats of node and pod number n; the last with a prefix
	link    int    // bits of the prefix that both nodes are in
	pod, gw string
	cidr    string
}

var families = map[int]addresses{
	4: {"-4", 32, "192.168.77.%d", 24, "10.244.%d.5", "10.244.%d.1", "10.244.%d.0/24"},
	6: {"-6", 128, "fd77::%d", 64, "fd44:0:0:%d::5", "fd44:0:0:%d::1", "fd44:0:0:%d::/64"},
}

func (a addresses) nodeIP(n int) string  { return fmt.Sprintf(a.node, n) }
func (a addresses) cidrOf(n int) string  { return fmt.Sprintf(a.cidr, n) }
func (a addresses) podIP(n int) string   { return fmt.Sprintf(a.pod, n) }
func (a addresses) gateway(n int) string { return fmt.Sprintf(a.gw, n) }
func (a addresses) host(ip string) string {
	return fmt.Sprintf("%s/%d", ip, a.wide)
}

// world is two nodes with a pod each, in network namespaces without names: they end with this process.
type world struct {
	addresses
	nodes, pods [2]*netns.NS
	dir         string
	daemons     []*exec.Cmd
	servers     []interface{ Close() error }
}

func newWorld(s subject, o *options) (w *world, err error) {
	w = &world{addresses: families[o.underlay]}
	if w.dir, err = os.MkdirTemp("", "bench-pods-"); err != nil {
		return w, err
	}
	for i := range w.nodes {
		if err := rig.Namespaces(&w.nodes[i], &w.pods[i]); err != nil {
			return w, err
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
	err := rig.Join(w.nodes[0], "eth0", w.nodes[1])
	for n := 1; n <= 2 && err == nil; n++ {
		ns := w.nodes[n-1]
		err = errors.Join(
			w.addr(ns, fmt.Sprintf("%s/%d", w.nodeIP(n), w.link), "eth0"), run(ns, "ip", "link", "set", "eth0", "up"),
			ns.Do(rig.Router))
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
	err := rig.Join(node, "pod0", pod)
	err = errors.Join(err,
		run(node, "ip", "link", "set", "pod0", "up"), w.addr(node, w.host(w.gateway(n)), "pod0"), run(node, "ip", w.family, "route", "add", w.podIP(n), "dev", "pod0"),
		run(pod, "ip", "link", "set", "eth0", "up"), w.addr(pod, w.host(w.podIP(n)), "eth0"),
		run(pod, "ip", w.family, "route", "add", w.gateway(n), "dev", "eth0"), run(pod, "ip", w.family, "route", "add", "default", "via", w.gateway(n)))
	return err
}

// addr gives a device an address, for use at once.
func (w *world) addr(ns *netns.NS, prefix, dev string) error {
	argv := []string{"ip", "addr", "add", prefix, "dev", dev}
	if w.wide == 128 {
		argv = append(argv, "nodad")
	}
	return run(ns, argv...)
}

// overhead is what a packet grows by with each kind of subject over IPv4, bytes; over IPv6 it is 20 more.
var overhead = map[string]int{"vxlan": 50, "udp": 28, "wireguard": 60}

// inner is the MTU that a kind of subject leaves pods.
func (w *world) inner(kind string) int {
	n := overhead[kind]
	if n > 0 && w.wide == 128 {
		n += 20
	}
	return 1500 - n
}

// mtu gives the pods the MTU that the subject leaves them, as its CNI plugin would.
func (w *world) mtu(s subject) error {
	bytes := w.inner(s.kind)
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
	rig.Close(append(w.nodes[:], w.pods[:]...)...)
	_ = os.RemoveAll(w.dir)
}
