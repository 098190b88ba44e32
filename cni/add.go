package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/braidnet/braid/cni/antispoof"
	"github.com/braidnet/braid/cni/ipam"
	masq "github.com/braidnet/braid/cni/masquerade"
	"github.com/braidnet/braid/cni/tables"
	"github.com/braidnet/braid/internal/kernel/link"
	"github.com/braidnet/braid/internal/kernel/netns"
	"github.com/braidnet/braid/internal/kernel/sysctl"
	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
)

// undo is the way back: steps are taken in reverse.
type undo []func() error

func (u *undo) push(step func() error) { *u = append(*u, step) }

func (u undo) run() error {
	var errs []error
	for _, step := range slices.Backward(u) {
		errs = append(errs, step())
	}
	return errors.Join(errs...)
}

// add gives the pod its interface. On an error nothing of it is left: no
// address, no link. The bridge stays, since it is not of this pod.
func add(args *skel.CmdArgs) (err error) {
	conf, err := parseConfig(args.StdinData)
	if err != nil {
		return err
	}
	alias, uid, err := podName(args.Args)
	if err != nil {
		return err
	}
	if err := conf.requestArgs(args.Args); err != nil {
		return err
	}
	pod, err := openPodNS(args)
	if err != nil {
		return err
	}
	defer pod.Close()
	node, err := link.OpenAt(-1)
	if err != nil {
		return err
	}
	defer node.Close()

	var back undo
	defer func() {
		if err == nil {
			return
		}
		if uerr := back.run(); uerr != nil {
			conf.Log.Warn("a failed ADD could not be undone; DEL will do it", "container", args.ContainerID, "err", uerr)
		}
	}()

	return plug(&back, conf, args, node, pod, podID{alias, uid})
}

// plug makes the attachment and prints the result, and notes in back how to
// undo each step.
func plug(back *undo, conf *config, args *skel.CmdArgs, node *link.Handle, pod *netns.NS, id podID) error {
	inside, err := link.OpenAt(pod.Fd())
	if err != nil {
		return err
	}
	defer inside.Close()
	if err := refuseExisting(inside, args); err != nil {
		return err
	}
	bridge, err := prepare(conf, node)
	if err != nil {
		return err
	}

	store := ipam.Open(conf.DataDir, conf.Name, conf.Log)
	owner := ipam.Owner{ContainerID: args.ContainerID, IfName: args.IfName}
	leases, err := store.Allocate(owner, conf.Sets, conf.IPs...)
	if errors.Is(err, ipam.ErrExhausted) {
		return types.NewError(types.ErrTryAgainLater, err.Error(), "")
	}
	if err != nil {
		return err
	}
	back.push(func() error { _, err := store.Release(owner); return err })

	name, mac := link.HostVethName(args.ContainerID, args.IfName), podMAC(conf, args)
	back.push(func() error { _, err := tables.Take(name, antispoof.Groups...); return err })
	host, err := link.AddVeth(node, hostEnd(conf, bridge, link.Veth{
		Host: name, Pod: args.IfName, PodMAC: mac, PodNS: pod.Fd(), MTU: conf.MTU, Mark: link.Mark{Pod: id.name},
	}, leases))
	if err != nil {
		return err
	}
	back.push(func() error { _, err := link.DeleteVeth(node, host.Name); return err })
	guarded := antispoof.Pod{Owner: ownerOf(args, id.name), MAC: mac, Addrs: addrsOf(leases), Routed: conf.Routed}
	if err := guard(conf, guarded); err != nil {
		return err
	}

	if err := shape(back, conf, args, node); err != nil {
		return err
	}
	podEnd, err := configure(pod, inside, conf, args.IfName, leases)
	if err != nil {
		return err
	}
	if err := meet(back, conf, node, bridge, host, podEnd, leases); err != nil {
		return err
	}
	if err := forward(conf); err != nil {
		return err
	}
	if err := masquerade(back, conf, ownerOf(args, id.name), leases); err != nil {
		return err
	}
	if err := openPorts(back, conf, node, ownerOf(args, id.name), leases); err != nil {
		return err
	}
	if err := isolate(conf, args, id, host.Name, leases); err != nil {
		return err
	}
	return types.PrintResult(result(conf, args.Netns, []link.Ref{bridge, host, podEnd}, leases), conf.CNIVersion)
}

// prepare makes what all pods of the network share. The bridge it returns is zero where there is none.
func prepare(conf *config, node *link.Handle) (bridge link.Ref, err error) {
	if !conf.Routed {
		return link.EnsureBridge(node, conf.bridgeOf())
	}
	_, err = link.EnsureUnreachable(node, subnets(conf.Sets))
	return link.Ref{}, err
}

// forward has the node route packets of its pods, as the reference plugins do for a gateway. Where an agent says when the node
// is ready, that is its matter.
func forward(conf *config) error {
	if conf.ReadyFile != "" {
		return nil
	}
	for _, set := range conf.Sets {
		if _, err := sysctl.Set(sysctl.Forwarding(set[0].Gateway.Is4()), "1"); err != nil {
			return err
		}
	}
	return nil
}

// hostEnd says how the node's end of the interface is connected.
func hostEnd(conf *config, bridge link.Ref, v link.Veth, leases []ipam.Lease) link.Veth {
	if conf.Routed {
		v.Routed = routed(leases)
		v.Mark.Addrs = v.Routed.Addrs
		return v
	}
	v.Bridge, v.Hairpin, v.Mark.Bridge = bridge.Index, conf.Options.Hairpin, bridge.Name
	return v
}

// routed is what the node's end of a routed pod has.
func routed(leases []ipam.Lease) (r link.Routed) {
	for _, l := range leases {
		if r.Addrs = append(r.Addrs, l.Addr); !slices.Contains(r.Gateways, l.Gateway) {
			r.Gateways = append(r.Gateways, l.Gateway)
		}
	}
	return r
}

// meet sees to it that the first packets between node and pod find their way.
func meet(back *undo, conf *config, node *link.Handle, bridge, host, inside link.Ref, leases []ipam.Lease) error {
	via, links := bridge, []link.At{{Handle: node, Ref: host}, {Handle: node, Ref: bridge}}
	if conf.Routed {
		via, links = host, links[:1]
	}
	for _, l := range leases {
		back.push(func() error { return link.DeleteNeigh(node, via.Name, l.Addr) })
		if err := link.SetNeigh(node, via, l.Addr, inside.MAC); err != nil {
			return err
		}
	}
	if err := link.WaitUp(links...); err != nil {
		return err
	}
	for _, l := range leases { // of the first pod the bridge has just come up with its addresses
		if err := link.WaitLocal(node, l.Gateway); err != nil {
			return err
		}
	}
	return nil
}

// podMAC is the hardware address that the pod gets.
func podMAC(conf *config, args *skel.CmdArgs) net.HardwareAddr {
	if conf.MAC != nil {
		return conf.MAC
	}
	return link.PodMAC(args.ContainerID, args.IfName)
}

// guard keeps the pod to its addresses, before its interface comes up. Where
// the kernel cannot do that the pod is connected all the same, as pods are
// elsewhere.
func guard(conf *config, pod antispoof.Pod) error {
	if !conf.AntiSpoofing {
		return nil
	}
	err := antispoof.Guard(pod)
	if errors.Is(err, antispoof.ErrNone) {
		conf.Log.Warn("the pod is not kept from forging addresses", "link", pod.Owner.Link, "err", err)
		return nil
	}
	return err
}

// masquerade has what the pod sends to elsewhere come from the node.
func masquerade(back *undo, conf *config, owner tables.Owner, leases []ipam.Lease) error {
	if !conf.Options.Masquerade {
		return nil
	}
	back.push(func() error { _, err := tables.Take(owner.Link, masq.Tables); return err })
	if err := masq.Tables.Put(owner.Link, masq.Want(owner, addrsOf(leases), conf.network())); err != nil {
		return fmt.Errorf("ipMasq: %w", err)
	}
	return nil
}

// refuseExisting keeps ADD from touching an interface that somebody else made
// (specification, ADD: "error if an interface with the requested name exists").
func refuseExisting(inside *link.Handle, args *skel.CmdArgs) error {
	exists, err := link.HasLink(inside, args.IfName)
	if exists {
		return types.NewError(types.ErrInvalidEnvironmentVariables,
			fmt.Sprintf("CNI_IFNAME is %s, which exists already in %s: expected a new name", args.IfName, args.Netns), "")
	}
	return err
}

// configure sets up the inside of the pod.
func configure(pod *netns.NS, inside *link.Handle, conf *config, ifname string, leases []ipam.Lease) (end link.Ref, err error) {
	err = pod.Do(func() error { // for the sysctls
		want := link.Pod{IfName: ifname, Routes: podRoutes(conf, leases), Options: conf.Options.Inside}
		for _, l := range leases {
			want.Addrs = append(want.Addrs, l.Addr)
		}
		if end, err = link.ConfigurePod(inside, want); err != nil {
			return err
		}
		return link.WaitUp(link.At{Handle: inside, Ref: end})
	})
	return end, err
}

// podRoutes lists the routes of a pod: its gateways directly, everything else through the first gateway of its family,
// or only its own networks where the default route is somebody else's. Other pods are not on the link, so that all
// traffic passes the node's services and policies.
func podRoutes(conf *config, leases []ipam.Lease) []link.Route {
	var direct, through []link.Route
	add := func(list *[]link.Route, r link.Route) {
		if !slices.Contains(*list, r) {
			*list = append(*list, r)
		}
	}
	first := map[int]netip.Addr{} // gateway by length of address
	for _, l := range leases {
		add(&direct, link.Route{Dst: link.Host(l.Gateway)})
		if conf.Options.NoDefault {
			for _, p := range gatewayAddrs(conf.Sets) {
				if p.Addr() == l.Gateway {
					add(&through, link.Route{Dst: p.Masked(), Via: l.Gateway})
				}
			}
		}
		if _, ok := first[l.Addr.BitLen()]; !ok {
			first[l.Addr.BitLen()] = l.Gateway
			if all := defaultRoute(l.Addr); !conf.Options.NoDefault && !slices.ContainsFunc(conf.Routes, func(r link.Route) bool { return r.Dst == all }) {
				add(&through, link.Route{Dst: all, Via: l.Gateway})
			}
		}
	}
	for _, r := range conf.Routes {
		r.Via = first[r.Dst.Addr().BitLen()]
		add(&through, r)
	}
	return append(direct, through...)
}

func defaultRoute(a netip.Addr) netip.Prefix {
	if a.Is4() {
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
}

// gatewayAddrs lists the addresses of the bridge.
func gatewayAddrs(sets []ipam.Set) []netip.Prefix {
	var list []netip.Prefix
	for _, set := range sets {
		for _, r := range set {
			if p := netip.PrefixFrom(r.Gateway, r.Subnet.Bits()); !slices.Contains(list, p) {
				list = append(list, p)
			}
		}
	}
	return list
}

// subnets lists the networks that pods get addresses of.
func subnets(sets []ipam.Set) []netip.Prefix {
	var list []netip.Prefix
	for _, gw := range gatewayAddrs(sets) {
		if p := gw.Masked(); !slices.Contains(list, p) {
			list = append(list, p)
		}
	}
	return list
}

// openPodNS opens CNI_NETNS and sees to it that it is not the node's own: a
// runtime that mixes them up would have its node reconfigured.
func openPodNS(args *skel.CmdArgs) (*netns.NS, error) {
	wrong := func(err error) error {
		return types.NewError(types.ErrInvalidNetNS, fmt.Sprintf("CNI_NETNS is %s: expected the network namespace of the pod: %v", args.Netns, err), "")
	}
	pod, err := netns.Open(args.Netns)
	if err != nil {
		return nil, wrong(err)
	}
	same, err := isOwn(pod)
	if override := strings.ToUpper(args.NetnsOverride); err == nil && same && override != "1" && override != "TRUE" {
		err = wrong(errors.New("it is the one of the node"))
	}
	if err != nil {
		_ = pod.Close()
		return nil, err
	}
	return pod, nil
}

// isOwn tells whether a namespace is the one this process runs in.
func isOwn(pod *netns.NS) (bool, error) {
	own, err := netns.Current()
	if err != nil {
		return false, err
	}
	defer own.Close()
	return pod.Same(own)
}

// podID is the pod as CNI_ARGS have it; empty where the runtime does not say.
type podID struct{ name, uid string } // namespace/name

// podName reads namespace/name and UID of the pod from CNI_ARGS ("K=V;K=V"), empty
// when the runtime does not say. Arguments that are not known are errors
// unless IgnoreUnknown is set (CNI conventions, CNI_ARGS).
func podName(cniArgs string) (name, uid string, err error) {
	known := map[string]string{
		"IgnoreUnknown": "", "K8S_POD_NAMESPACE": "", "K8S_POD_NAME": "", "K8S_POD_INFRA_CONTAINER_ID": "", "K8S_POD_UID": "",
		"IP": "", "MAC": "", // see requestArgs
	}
	var unknown []string
	for pair := range strings.SplitSeq(cniArgs, ";") {
		key, value, ok := strings.Cut(pair, "=")
		if _, is := known[key]; is && ok {
			known[key] = value
		} else if pair != "" {
			unknown = append(unknown, pair)
		}
	}
	if ignore := strings.ToLower(known["IgnoreUnknown"]); len(unknown) > 0 && ignore != "1" && ignore != "true" {
		return "", "", types.NewError(types.ErrInvalidEnvironmentVariables,
			fmt.Sprintf("CNI_ARGS has %q: expected K8S_POD_NAMESPACE and its like, or IgnoreUnknown=1", unknown), "")
	}
	if known["K8S_POD_NAME"] == "" {
		return "", "", nil
	}
	return known["K8S_POD_NAMESPACE"] + "/" + known["K8S_POD_NAME"], known["K8S_POD_UID"], nil
}
