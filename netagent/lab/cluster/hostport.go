package cluster

import (
	"cmp"
	"fmt"
	"net"
	"slices"
	"strconv"

	corev1 "k8s.io/api/core/v1"
)

// HostPort is a port of a pod's node that leads to the pod.
type HostPort struct {
	Addr            string // of the node; empty = all
	Host, Container uint16
	Protocol        corev1.Protocol
}

func (h HostPort) String() string {
	return fmt.Sprintf("%s/%s", net.JoinHostPort(h.Addr, strconv.Itoa(int(h.Host))), h.Protocol)
}

// hostPorts lists what the containers of a pod ask for. Pods on the node's own network have them without
// anybody's help.
func hostPorts(spec *corev1.PodSpec) (out []HostPort) {
	if spec.HostNetwork {
		return nil
	}
	for _, c := range longRunning(spec) {
		for _, p := range c.Ports {
			if p.HostPort != 0 {
				out = append(out, HostPort{p.HostIP, uint16(p.HostPort), uint16(p.ContainerPort), cmp.Or(p.Protocol, corev1.ProtocolTCP)})
			}
		}
	}
	return out
}

// clash is the scheduler's rule: the same port and protocol, and an address that both are for.
func (h HostPort) clash(o HostPort) bool {
	every := func(addr string) bool { return addr == "" || addr == "0.0.0.0" }
	return h.Host == o.Host && h.Protocol == o.Protocol && (h.Addr == o.Addr || every(h.Addr) || every(o.Addr))
}

// portsTaken tells which nodes have another pod with a host port of p.
func (c *Controller) portsTaken(p *pod) func(node string) bool {
	want, taken := hostPorts(&p.base.Spec), map[string]bool{}
	for _, o := range c.pods {
		if o == p || len(want) == 0 {
			continue
		}
		for _, h := range hostPorts(&o.base.Spec) {
			if slices.ContainsFunc(want, h.clash) {
				taken[o.base.Spec.NodeName] = true
			}
		}
	}
	return func(node string) bool { return taken[node] }
}
