package source

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/braidnet/braid/internal/model"
)

// annotationPrefix begins the node annotations that the model keeps.
const annotationPrefix = "braid.network/"

func (c *converter) node(o *corev1.Node, origin model.Origin) *model.Node {
	n := &model.Node{Origin: origin, Labels: o.Labels, Terminating: o.DeletionTimestamp != nil}
	for _, t := range o.Spec.Taints {
		n.Taints = append(n.Taints, t.Key)
	}
	slices.Sort(n.Taints)
	for k, v := range o.Annotations {
		if strings.HasPrefix(k, annotationPrefix) {
			if n.Annotations == nil {
				n.Annotations = map[string]string{}
			}
			n.Annotations[k] = v
		}
	}
	cidrs, single := o.Spec.PodCIDRs, false
	if len(cidrs) == 0 && o.Spec.PodCIDR != "" {
		cidrs, single = []string{o.Spec.PodCIDR}, true
	}
	have := map[bool]bool{}
	for i, s := range cidrs {
		path := fmt.Sprintf("spec.podCIDRs[%d]", i)
		if single {
			path = "spec.podCIDR"
		}
		p, ok := c.prefix(path, s)
		switch {
		case !ok:
		case have[p.Addr().Is4()]:
			c.fail(path, "is "+s+", a second one of its family", "at most one per address family")
		default:
			have[p.Addr().Is4()] = true
			n.PodCIDRs = append(n.PodCIDRs, p)
		}
	}
	for i, a := range o.Status.Addresses {
		if a.Type != corev1.NodeInternalIP {
			continue
		}
		if ip, ok := c.addr(fmt.Sprintf("status.addresses[%d].address", i), a.Address); ok {
			n.InternalIPs = append(n.InternalIPs, ip)
		}
	}
	return n
}

func (c *converter) pod(o *corev1.Pod, origin model.Origin) *model.Pod {
	p := &model.Pod{
		Origin:      origin,
		UID:         string(o.UID),
		Labels:      o.Labels,
		Node:        o.Spec.NodeName,
		HostNetwork: o.Spec.HostNetwork,
		Phase:       model.Phase(o.Status.Phase),
		Terminating: o.DeletionTimestamp != nil,
	}
	if static := o.Annotations[corev1.MirrorPodAnnotationKey]; static != "" {
		p.UID = static // the object stands for a pod of the kubelet's own, which the runtime knows by that
	}
	if p.Phase == "" {
		p.Phase = model.PhasePending // what the API server gives a pod that has no status yet
	}
	for i, ip := range o.Status.PodIPs {
		if ip.IP == "" {
			continue
		}
		if a, ok := c.addr(fmt.Sprintf("status.podIPs[%d].ip", i), ip.IP); ok {
			p.IPs = append(p.IPs, a)
		}
	}
	if len(o.Status.PodIPs) == 0 && o.Status.PodIP != "" {
		if a, ok := c.addr("status.podIP", o.Status.PodIP); ok {
			p.IPs = append(p.IPs, a)
		}
	}
	for _, cond := range o.Status.Conditions {
		if cond.Type == corev1.PodReady {
			p.Ready = cond.Status == corev1.ConditionTrue
		}
	}
	for i := range o.Spec.InitContainers {
		// An init container that is always restarted is a sidecar: it lives, and serves, as long as the pod (KEP-753).
		ic := &o.Spec.InitContainers[i]
		if value(ic.RestartPolicy, "") == corev1.ContainerRestartPolicyAlways {
			c.containerPorts(p, fmt.Sprintf("spec.initContainers[%d]", i), ic)
		}
	}
	for i := range o.Spec.Containers {
		c.containerPorts(p, fmt.Sprintf("spec.containers[%d]", i), &o.Spec.Containers[i])
	}
	return p
}

func (c *converter) containerPorts(p *model.Pod, path string, o *corev1.Container) {
	for i, port := range o.Ports {
		at := fmt.Sprintf("%s.ports[%d]", path, i)
		p.Ports = append(p.Ports, model.ContainerPort{
			Name:     port.Name,
			Protocol: c.protocol(at+".protocol", port.Protocol),
			Port:     c.port(at+".containerPort", port.ContainerPort, false),
		})
	}
}
