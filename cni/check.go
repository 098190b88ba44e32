package main

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/braidnet/braid/cni/antispoof"
	"github.com/braidnet/braid/cni/ipam"
	masq "github.com/braidnet/braid/cni/masquerade"
	"github.com/braidnet/braid/internal/kernel/link"
	"github.com/braidnet/braid/internal/kernel/netns"
	"github.com/braidnet/braid/internal/kernel/sysctl"
	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
)

// errDiffers is our own error code (the specification leaves 100 and up to
// plugins): the attachment is not as ADD made it.
const errDiffers = 100

// diffs collects what CHECK finds.
type diffs []string

func (d *diffs) addf(format string, args ...any) { *d = append(*d, fmt.Sprintf(format, args...)) }

// check compares the attachment with the result of its ADD, changes nothing
// and names every difference.
func check(args *skel.CmdArgs) error {
	conf, err := parseConfig(args.StdinData)
	if err != nil {
		return err
	}
	if conf.Prev == nil {
		return invalid("prevResult is missing: expected the result of ADD")
	}
	mac, leases, found := attachment(conf.Prev, args.IfName)
	if !found {
		return invalid("prevResult.interfaces has no %s with a sandbox: expected the result of ADD", args.IfName)
	}
	conf.Routed = wasRouted(conf.Prev, conf.Bridge)
	pod, err := openPodNS(args)
	if err != nil {
		return err
	}
	defer pod.Close()

	var d diffs
	inside, err := checkPod(&d, pod, conf, args.IfName, mac, leases)
	if err != nil {
		return err
	}
	if err := checkNode(&d, conf, args, inside, leases); err != nil {
		return err
	}
	if err := checkGuard(&d, conf, args, mac, leases); err != nil {
		return err
	}
	if err := checkMasquerade(&d, conf, args, leases); err != nil {
		return err
	}
	if err := checkReservation(&d, conf, args, leases); err != nil {
		return err
	}
	if len(d) > 0 {
		return types.NewError(errDiffers,
			fmt.Sprintf("%s of container %s is not as ADD made it", args.IfName, args.ContainerID), strings.Join(d, "; "))
	}
	return nil
}

// checkPod compares the inside of the pod. The index of its interface is
// returned for checkNode, 0 when there is none.
func checkPod(d *diffs, pod *netns.NS, conf *config, ifname, mac string, leases []ipam.Lease) (index int, err error) {
	h, err := link.OpenAt(pod.Fd())
	if err != nil {
		return 0, err
	}
	defer h.Close()
	seen, err := link.Read(h, ifname)
	if link.IsNotFound(err) {
		d.addf("the pod has no interface %s", ifname)
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	if !seen.Up {
		d.addf("%s is down in the pod", ifname)
	}
	if mac != "" && seen.MAC.String() != mac {
		d.addf("%s has hardware address %s in the pod, expected %s", ifname, seen.MAC, mac)
	}
	checkMTU(d, ifname+" in the pod", seen.MTU, conf.MTU)
	for _, l := range leases {
		if !slices.Contains(seen.Addrs, link.Host(l.Addr)) {
			d.addf("address %s is missing on %s in the pod", link.Host(l.Addr), ifname)
		}
	}
	for _, r := range podRoutes(conf, leases) {
		if !slices.Contains(seen.Routes, r) {
			d.addf("route %s is missing in the pod", r)
		}
	}
	for _, s := range conf.Options.Inside.Sysctls {
		err := pod.Do(func() error {
			name := strings.ReplaceAll(s[0], "IFNAME", ifname)
			value, err := sysctl.Get(name)
			if err == nil && value != strings.TrimSpace(s[1]) {
				d.addf("sysctl %s is %q in the pod, expected %q", name, value, s[1])
			}
			return err
		})
		if err != nil {
			return 0, err
		}
	}
	return seen.Index, nil
}

// checkNode compares the host end, what it is connected to, and the host ports.
func checkNode(d *diffs, conf *config, args *skel.CmdArgs, inside int, leases []ipam.Lease) error {
	h, err := link.OpenAt(-1)
	if err != nil {
		return err
	}
	defer h.Close()
	if err := checkPorts(d, conf, args, h, leases); err != nil {
		return err
	}
	if err := checkShape(d, conf, args, h); err != nil {
		return err
	}
	port, err := link.ReadPort(h, link.HostVethName(args.ContainerID, args.IfName))
	if link.IsNotFound(err) {
		d.addf("the node has no link %s", link.HostVethName(args.ContainerID, args.IfName))
	} else if err != nil {
		return err
	} else {
		if inside != 0 && port.Peer != inside {
			d.addf("the other end of %s is not %s of the pod", port.Name, args.IfName)
		}
		if !port.Up {
			d.addf("%s is down", port.Name)
		}
		checkMTU(d, port.Name, port.MTU, conf.MTU)
	}
	if conf.Routed {
		return checkRouted(d, h, port, leases)
	}
	return checkBridge(d, conf, h, port)
}

// checkRouted compares the node's way to a pod without a bridge.
func checkRouted(d *diffs, h *link.Handle, port link.Port, leases []ipam.Lease) error {
	if port.Index == 0 {
		return nil
	}
	have, err := link.ReadRouted(h)
	if err != nil {
		return err
	}
	for _, found := range have.Missing(link.PodLink{Ref: port.Ref, Master: port.Bridge, Up: true}, routed(leases)) {
		d.addf("%s: %s", port.Name, found)
	}
	return nil
}

// checkGuard compares what the pod may send from.
func checkGuard(d *diffs, conf *config, args *skel.CmdArgs, mac string, leases []ipam.Lease) error {
	hw, err := net.ParseMAC(mac)
	if err != nil || !conf.AntiSpoofing {
		return nil // a result without it says nothing to compare with
	}
	missing, err := antispoof.Missing(antispoof.Pod{Owner: ownerOf(args, ""), MAC: hw, Addrs: addrsOf(leases), Routed: conf.Routed})
	*d = append(*d, missing...)
	return err
}

// checkBridge compares the bridge, and the pod's port of it.
func checkBridge(d *diffs, conf *config, h *link.Handle, port link.Port) error {
	bridge, err := link.Read(h, conf.Bridge)
	if link.IsNotFound(err) {
		d.addf("the node has no bridge %s", conf.Bridge)
	} else if err != nil {
		return err
	} else {
		if !bridge.Up {
			d.addf("bridge %s is down", conf.Bridge)
		}
		for _, p := range gatewayAddrs(conf.Sets) {
			if !slices.Contains(bridge.Addrs, p) {
				d.addf("gateway address %s is missing on bridge %s", p, conf.Bridge)
			}
		}
	}
	switch {
	case port.Index == 0:
	case port.Bridge == 0 || port.Bridge != bridge.Index:
		d.addf("%s is not a port of %s", port.Name, conf.Bridge)
	case conf.Options.Hairpin && !port.Hairpin:
		d.addf("port %s of %s is not in hairpin mode", port.Name, conf.Bridge)
	}
	return nil
}

func checkMTU(d *diffs, name string, have, want int) {
	if want != 0 && have != want {
		d.addf("%s has mtu %d, expected %d", name, have, want)
	}
}

func checkMasquerade(d *diffs, conf *config, args *skel.CmdArgs, leases []ipam.Lease) error {
	if !conf.Options.Masquerade {
		return nil
	}
	owner := ownerOf(args, "")
	missing, err := masq.Tables.Lacks(masq.Want(owner, addrsOf(leases), conf.network()), "what masquerades "+owner.Link)
	*d = append(*d, missing...)
	return err
}

// checkReservation compares what IPAM has on disk.
func checkReservation(d *diffs, conf *config, args *skel.CmdArgs, leases []ipam.Lease) error {
	held, err := ipam.Open(conf.DataDir, conf.Name, conf.Log).
		Held(ipam.Owner{ContainerID: args.ContainerID, IfName: args.IfName})
	if err != nil {
		return err
	}
	var want []netip.Addr
	for _, l := range leases {
		want = append(want, l.Addr)
	}
	slices.SortFunc(want, netip.Addr.Compare)
	if !slices.Equal(held, want) {
		d.addf("reserved addresses are %v, expected %v", held, want)
	}
	return nil
}
