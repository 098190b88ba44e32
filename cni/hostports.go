package main

import (
	"errors"
	"log/slog"
	"net/netip"
	"slices"

	"github.com/braidnet/braid/cni/hostport"
	"github.com/braidnet/braid/cni/ipam"
	"github.com/braidnet/braid/cni/tables"
	"github.com/braidnet/braid/internal/kernel/link"
	"github.com/braidnet/braid/internal/kernel/sysctl"
	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
)

// rawPort is one of runtimeConfig.portMappings (CNI conventions, "Dynamic Plugin specific fields").
type rawPort struct {
	HostPort      int    `json:"hostPort"`
	ContainerPort int    `json:"containerPort"`
	Protocol      string `json:"protocol"`
	HostIP        string `json:"hostIP"`
}

// parsePorts checks the port mappings. Equal ones count once, and one for a family in which the pod gets no address is left
// out, as with portmap: manifests made for another cluster start all the same.
func parsePorts(list []rawPort, sets []ipam.Set, log *slog.Logger) (out []hostport.Mapping, err error) {
	for i, raw := range list {
		m := hostport.Mapping{Host: hostport.Port{Number: uint16(raw.HostPort)}, Container: uint16(raw.ContainerPort)}
		for _, p := range []struct {
			key   string
			value int
		}{{"hostPort", raw.HostPort}, {"containerPort", raw.ContainerPort}} {
			if p.value < 1 || p.value > 65535 {
				return nil, invalid("runtimeConfig.portMappings[%d].%s is %d: expected 1 to 65535", i, p.key, p.value)
			}
		}
		var ok bool
		if m.Host.Protocol, ok = hostport.ParseProtocol(raw.Protocol); !ok {
			return nil, invalid("runtimeConfig.portMappings[%d].protocol is %q: expected tcp, udp or sctp", i, raw.Protocol)
		}
		if raw.HostIP != "" {
			if m.Host.Addr, err = netip.ParseAddr(raw.HostIP); err != nil || m.Host.Addr.Zone() != "" {
				return nil, invalid("runtimeConfig.portMappings[%d].hostIP is %q: expected an address", i, raw.HostIP)
			}
			m.Host.Addr = m.Host.Addr.Unmap()
			if !hasFamily(sets, m.Host.Addr) {
				log.Warn("host port leads nowhere: hostIP is of a family that ipam.ranges does not have", "port", m.Host)
				continue
			}
		}
		if slices.Contains(out, m) {
			continue
		}
		if slices.ContainsFunc(out, func(o hostport.Mapping) bool { return o.Host == m.Host }) {
			return nil, invalid("runtimeConfig.portMappings[%d] is for host port %s: expected each once, since it leads to one port of the pod", i, m.Host)
		}
		out = append(out, m)
	}
	return out, nil
}

// hostPorts is the store of host ports of the node whose network namespace the calling thread is in.
func hostPorts(conf *config, node *link.Handle) *hostport.Store {
	return &hostport.Store{Log: conf.Log, Alive: func(name string) (bool, error) { return link.HasLink(node, name) }}
}

// routeLocalnet is the parameter that lets loopback addresses through on the device that leads to the pod.
func routeLocalnet(conf *config, host string) string {
	if conf.Routed {
		return "net/ipv4/conf/" + host + "/route_localnet"
	}
	return "net/ipv4/conf/" + conf.Bridge + "/route_localnet"
}

// openPorts lets the pod be reached by its host ports.
func openPorts(back *undo, conf *config, node *link.Handle, owner tables.Owner, leases []ipam.Lease) error {
	if len(conf.Ports) == 0 {
		return nil
	}
	ports := hostPorts(conf, node)
	back.push(func() error { _, err := ports.Remove(owner.Link); return err })
	err := ports.Add(owner, conf.Ports, addrsOf(leases))
	var taken *hostport.TakenError
	if errors.As(err, &taken) {
		return types.NewError(types.ErrTryAgainLater, err.Error(), "")
	}
	if err != nil {
		return err
	}
	// Not before the rules that keep others from sending to loopback addresses are in place.
	if needsLocalnet(conf) {
		_, err = sysctl.Set(routeLocalnet(conf, owner.Link), "1")
	}
	return err
}

// needsLocalnet tells whether a loopback address of the node leads to the pod, of which the kernel takes
// replies from that device only when told to.
func needsLocalnet(conf *config) bool {
	return hasFamily(conf.Sets, netip.IPv4Unspecified()) && slices.ContainsFunc(conf.Ports, hostport.Mapping.Loopback)
}

func checkPorts(d *diffs, conf *config, args *skel.CmdArgs, node *link.Handle, leases []ipam.Lease) error {
	if len(conf.Ports) == 0 {
		return nil
	}
	missing, err := hostPorts(conf, node).Missing(ownerOf(args, ""), conf.Ports, addrsOf(leases))
	*d = append(*d, missing...)
	if err != nil || !needsLocalnet(conf) {
		return err
	}
	key := routeLocalnet(conf, ownerOf(args, "").Link)
	if value, err := sysctl.Get(key); err != nil || value == "0" {
		d.addf("sysctl %s is %q, expected 1 (%v)", key, value, err)
	}
	return nil
}

func ownerOf(args *skel.CmdArgs, pod string) tables.Owner {
	return tables.Owner{Link: link.HostVethName(args.ContainerID, args.IfName), Pod: pod}
}

func addrsOf(leases []ipam.Lease) (list []netip.Addr) {
	for _, l := range leases {
		list = append(list, l.Addr)
	}
	return list
}
