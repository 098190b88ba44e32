package main

import (
	"net/netip"
	"slices"

	"github.com/braidnet/braid/cni/ipam"
	"github.com/braidnet/braid/internal/kernel/link"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"
	"golang.org/x/sys/unix"
)

// result adds what ADD made to the result of the plugins before it. Of the links the last is the pod's, the one before
// it is its other end, and one without a name is none.
func result(conf *config, sandbox string, links []link.Ref, leases []ipam.Lease) *types100.Result {
	r := conf.Prev
	if r == nil {
		r = &types100.Result{}
	}
	r.CNIVersion = types100.ImplementedSpecVersion
	for _, l := range links {
		if l.Name != "" {
			r.Interfaces = append(r.Interfaces, &types100.Interface{Name: l.Name, Mac: l.MAC.String()})
		}
	}
	pod := len(r.Interfaces) - 1
	r.Interfaces[pod].Sandbox = sandbox
	for _, l := range leases {
		r.IPs = append(r.IPs, &types100.IPConfig{
			Interface: types100.Int(pod),
			Address:   *link.IPNet(link.Host(l.Addr)),
			Gateway:   l.Gateway.AsSlice(),
		})
	}
	full, _ := version.GreaterThanOrEqualTo(conf.CNIVersion, "1.1.0") // that one can tell more
	if full {
		r.Interfaces[pod-1].Mtu, r.Interfaces[pod].Mtu = conf.MTU, conf.MTU
	}
	for _, route := range podRoutes(conf, leases) {
		if route.Via.IsValid() {
			r.Routes = append(r.Routes, asResult(route, full))
		} else if full {
			r.Routes = append(r.Routes, &types.Route{Dst: *link.IPNet(route.Dst), Scope: types100.Int(unix.RT_SCOPE_LINK)})
		}
	}
	if !conf.DNS.IsEmpty() {
		r.DNS = conf.DNS
	}
	return r
}

// wasRouted tells whether the pod of a result has no bridge: what connects it may have been configured otherwise since.
func wasRouted(r *types100.Result, bridge string) bool {
	return !slices.ContainsFunc(r.Interfaces, func(i *types100.Interface) bool { return i.Name == bridge && i.Sandbox == "" })
}

// asResult is a route as the specification has it. Versions before 1.1.0 have no more than destination and gateway.
func asResult(r link.Route, full bool) *types.Route {
	out := &types.Route{Dst: *link.IPNet(r.Dst), GW: r.Via.AsSlice()}
	if full {
		out.MTU, out.AdvMSS, out.Priority = r.MTU, r.AdvMSS, r.Metric
	}
	return out
}

// attachment picks out of a result what is on one interface of the pod: its
// hardware address, and its addresses with their gateways. found is false when
// the result has no such interface.
func attachment(r *types100.Result, ifname string) (mac string, leases []ipam.Lease, found bool) {
	at := -1
	for i, iface := range r.Interfaces {
		if iface.Name == ifname && iface.Sandbox != "" {
			at, mac = i, iface.Mac
		}
	}
	for _, ip := range r.IPs {
		if ip.Interface == nil || *ip.Interface != at {
			continue
		}
		addr, _ := netip.AddrFromSlice(ip.Address.IP)
		gw, _ := netip.AddrFromSlice(ip.Gateway)
		leases = append(leases, ipam.Lease{Addr: addr.Unmap(), Gateway: gw.Unmap()})
	}
	return mac, leases, at >= 0
}
