package source

import (
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"

	"github.com/braidnet/braid/internal/model"
)

func (c *converter) service(o *corev1.Service, origin model.Origin) *model.Service {
	spec := &o.Spec
	s := &model.Service{
		Origin: origin,
		Labels: o.Labels,
		Type: model.ServiceType(choice(c, "spec.type", spec.Type, corev1.ServiceTypeClusterIP,
			corev1.ServiceTypeNodePort, corev1.ServiceTypeLoadBalancer, corev1.ServiceTypeExternalName)),
		ExternalName: spec.ExternalName,
		ExternalIPs:  c.addrs("spec.externalIPs", spec.ExternalIPs),
		Affinity:     c.affinity(spec),
		ExternalLocal: choice(c, "spec.externalTrafficPolicy", spec.ExternalTrafficPolicy,
			corev1.ServiceExternalTrafficPolicyCluster, corev1.ServiceExternalTrafficPolicyLocal) == corev1.ServiceExternalTrafficPolicyLocal,
		InternalLocal: choice(c, "spec.internalTrafficPolicy", value(spec.InternalTrafficPolicy, ""),
			corev1.ServiceInternalTrafficPolicyCluster, corev1.ServiceInternalTrafficPolicyLocal) == corev1.ServiceInternalTrafficPolicyLocal,
		TrafficDistribution: value(spec.TrafficDistribution, ""),
		HealthCheckNodePort: c.port("spec.healthCheckNodePort", spec.HealthCheckNodePort, true),
		PublishNotReady:     spec.PublishNotReadyAddresses,
	}
	c.clusterIPs(s, spec)
	for i, p := range spec.Ports {
		path := fmt.Sprintf("spec.ports[%d]", i)
		port := model.ServicePort{
			Name:     p.Name,
			Protocol: c.protocol(path+".protocol", p.Protocol),
			Port:     c.port(path+".port", p.Port, false),
			NodePort: c.port(path+".nodePort", p.NodePort, true),
		}
		if port.NodePort != 0 && (s.Type == model.ClusterIP || s.Type == model.ExternalName) {
			c.fail(path+".nodePort", fmt.Sprintf("is %d in a service of type %s", port.NodePort, s.Type),
				"none, or spec.type NodePort or LoadBalancer")
		}
		s.Ports = append(s.Ports, port)
	}
	for i, r := range spec.LoadBalancerSourceRanges {
		// The API server keeps blanks around ranges, and every proxy has always trimmed them.
		if p, ok := c.prefix(fmt.Sprintf("spec.loadBalancerSourceRanges[%d]", i), strings.TrimSpace(r)); ok {
			s.SourceRanges = append(s.SourceRanges, p)
		}
	}
	for i, in := range o.Status.LoadBalancer.Ingress {
		ing := model.Ingress{Hostname: in.Hostname, Proxy: value(in.IPMode, "") == corev1.LoadBalancerIPModeProxy}
		if in.IP != "" {
			ing.Addr, _ = c.addr(fmt.Sprintf("status.loadBalancer.ingress[%d].ip", i), in.IP)
		}
		s.Ingress = append(s.Ingress, ing)
	}
	return s
}

// clusterIPs reads spec.clusterIPs, or spec.clusterIP where a manifest gives only that.
func (c *converter) clusterIPs(s *model.Service, spec *corev1.ServiceSpec) {
	list, path := spec.ClusterIPs, "spec.clusterIPs"
	if len(list) == 0 && spec.ClusterIP != "" {
		list, path = []string{spec.ClusterIP}, ""
	}
	for i, ip := range list {
		at := "spec.clusterIP"
		if path != "" {
			at = fmt.Sprintf("%s[%d]", path, i)
		}
		switch {
		case ip == corev1.ClusterIPNone:
			s.Headless = true
		case s.Type == model.ExternalName:
			// The API server may leave an old address behind when the type changes; it means nothing.
		case ip != "":
			if a, ok := c.addr(at, ip); ok {
				s.ClusterIPs = append(s.ClusterIPs, a)
			}
		}
	}
	if s.Headless && len(s.ClusterIPs) > 0 {
		c.fail("spec.clusterIPs", "has both None and an address", "either")
	}
	if s.Type == model.ExternalName && s.ExternalName == "" {
		c.fail("spec.externalName", "is missing", "a DNS name, because spec.type is ExternalName")
	}
}

// maxAffinity is the longest session affinity that the API allows, in seconds.
const maxAffinity = 86400

func (c *converter) affinity(spec *corev1.ServiceSpec) time.Duration {
	if choice(c, "spec.sessionAffinity", spec.SessionAffinity, corev1.ServiceAffinityNone, corev1.ServiceAffinityClientIP) == corev1.ServiceAffinityNone {
		return 0
	}
	seconds := corev1.DefaultClientIPServiceAffinitySeconds
	if cfg := spec.SessionAffinityConfig; cfg != nil && cfg.ClientIP != nil {
		seconds = value(cfg.ClientIP.TimeoutSeconds, seconds)
	}
	if seconds < 1 || seconds > maxAffinity {
		c.fail("spec.sessionAffinityConfig.clientIP.timeoutSeconds", fmt.Sprintf("is %d", seconds), fmt.Sprintf("1 to %d seconds", maxAffinity))
	}
	return time.Duration(seconds) * time.Second
}

func (c *converter) slice(o *discoveryv1.EndpointSlice, origin model.Origin) *model.EndpointSlice {
	s := &model.EndpointSlice{
		Origin: origin,
		Labels: o.Labels,
		IPv6:   o.AddressType == discoveryv1.AddressTypeIPv6,
	}
	if o.AddressType != discoveryv1.AddressTypeIPv4 && o.AddressType != discoveryv1.AddressTypeIPv6 {
		c.fail("addressType", fmt.Sprintf("is %q", o.AddressType), "IPv4, IPv6 or FQDN")
		return s
	}
	if name := o.Labels[discoveryv1.LabelServiceName]; name != "" {
		s.Service = model.Key{Namespace: origin.Namespace, Name: name}
	}
	if name := o.Labels[labelImport]; name != "" {
		s.Import, s.Cluster = model.Key{Namespace: origin.Namespace, Name: name}, o.Labels[labelSourceCluster]
	}
	// The time only feeds a metric: one that cannot be read is as good as none.
	if t, err := time.Parse(time.RFC3339Nano, o.Annotations[corev1.EndpointsLastChangeTriggerTime]); err == nil {
		s.LastChange = t
	}
	for i, p := range o.Ports {
		path := fmt.Sprintf("ports[%d]", i)
		port := model.EndpointPort{Name: value(p.Name, ""), Protocol: c.protocol(path+".protocol", value(p.Protocol, ""))}
		if p.Port != nil {
			port.Port = c.port(path+".port", *p.Port, false)
		}
		s.Ports = append(s.Ports, port)
	}
	for i := range o.Endpoints {
		s.Endpoints = append(s.Endpoints, c.endpoint(fmt.Sprintf("endpoints[%d]", i), &o.Endpoints[i], s))
	}
	return s
}

func (c *converter) endpoint(path string, o *discoveryv1.Endpoint, s *model.EndpointSlice) model.Endpoint {
	e := model.Endpoint{
		Addrs:       c.addrs(path+".addresses", o.Addresses),
		Ready:       value(o.Conditions.Ready, true),
		Serving:     value(o.Conditions.Serving, true),
		Terminating: value(o.Conditions.Terminating, false),
		Hostname:    value(o.Hostname, ""),
		Node:        value(o.NodeName, ""),
		Zone:        value(o.Zone, ""),
	}
	if len(o.Addresses) == 0 {
		c.fail(path+".addresses", "is empty", "at least one address")
	}
	for i, a := range e.Addrs {
		if a.Is4() == s.IPv6 {
			c.fail(fmt.Sprintf("%s.addresses[%d]", path, i), "is "+a.String(), "an address of the slice's addressType")
		}
		if a.IsUnspecified() || a.IsLoopback() || a.IsLinkLocalUnicast() || a.IsLinkLocalMulticast() {
			// The API server refuses these too: they would lead to whatever the node keeps to itself.
			c.fail(fmt.Sprintf("%s.addresses[%d]", path, i), "is "+a.String(), "an address that others can reach: neither unspecified, nor loopback, nor link-local")
		}
	}
	if t := o.TargetRef; t != nil {
		e.Target = model.Ref{Kind: model.Kind(t.Kind), Key: model.Key{Namespace: t.Namespace, Name: t.Name}}
		if t.Kind == string(model.KindPod) && t.Namespace == "" {
			e.Target.Namespace = s.Namespace
		}
	}
	if o.Hints != nil {
		for _, z := range o.Hints.ForZones {
			e.HintZones = append(e.HintZones, z.Name)
		}
		for _, n := range o.Hints.ForNodes {
			e.HintNodes = append(e.HintNodes, n.Name)
		}
	}
	return e
}

func (c *converter) serviceCIDR(o *networkingv1.ServiceCIDR, origin model.Origin) *model.ServiceCIDR {
	out := &model.ServiceCIDR{Origin: origin}
	for i, text := range o.Spec.CIDRs {
		if p, ok := c.prefix(fmt.Sprintf("spec.cidrs[%d]", i), text); ok {
			out.CIDRs = append(out.CIDRs, p)
		}
	}
	return out
}
