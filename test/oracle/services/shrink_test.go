package services

import (
	"fmt"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// history is a row of clusters, each applied after the one before, the first on nodes without services.
type history []*cluster

// maxTrials bounds how often a shorter history is tried.
const maxTrials = 500

// shrink makes a history as small as it can get with the packet still treated in different ways.
func (r *run) shrink(before *cluster, d *difference) string {
	var h history
	var small *difference
	for _, h = range []history{{r.now}, {before, r.now}} {
		if small = r.differs(h, d); small != nil {
			break
		}
	}
	if small == nil {
		return fmt.Sprintf("%s\nIt does not come again from the last two clusters, which were:\n%s\n%s", d, before.yaml(), r.now.yaml())
	}
	trials := 0
	for again := true; again && trials < maxTrials; {
		again = false
		for i := range h {
			for _, c := range h[i].smaller() {
				if trials++; trials > maxTrials {
					break
				}
				try := slices.Clone(h)
				try[i] = c
				if next := r.differs(try, d); next != nil {
					h, small, again = try, next, true
					break
				}
			}
		}
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s\nsettings: %+v\n", small, r.settings)
	for i, c := range h {
		fmt.Fprintf(&b, "# cluster %d\n%s", i+1, c.yaml())
	}
	return b.String()
}

// differs applies a history and returns the difference that is then between the two planes for the probe, if there is one.
func (r *run) differs(h history, d *difference) *difference {
	r.apply(r.empty)
	for _, c := range h {
		r.apply(c)
	}
	p := *d.probe
	p.resolve(r.now)
	for _, found := range r.compare([]*probe{&p}) {
		if found.a == d.a && found.b == d.b && intendedName(found) == "" {
			return found
		}
	}
	return nil
}

// smaller returns clusters that have one thing less each, the large things first.
func (c *cluster) smaller() (out []*cluster) {
	for i, s := range c.services {
		n := c.without(i, -1)
		n.slices = slices.DeleteFunc(n.slices, func(e *discoveryv1.EndpointSlice) bool {
			return slices.Contains(slicesOf(c, s), e)
		})
		out = append(out, n)
	}
	for i := range c.slices {
		out = append(out, c.without(-1, i))
	}
	if c.restart {
		n := *c
		n.restart = false
		out = append(out, &n)
	}
	if c.zone != "" {
		n := *c
		n.zone = ""
		out = append(out, &n)
	}
	for i, s := range c.services {
		for _, edit := range serviceEdits(s) {
			n := c.without(-1, -1)
			n.services[i] = s.DeepCopy()
			edit(n.services[i])
			out = append(out, n)
		}
	}
	for i, e := range c.slices {
		for _, edit := range sliceEdits(e) {
			n := c.without(-1, -1)
			n.slices[i] = e.DeepCopy()
			edit(n.slices[i])
			out = append(out, n)
		}
	}
	return out
}

// without copies the cluster and leaves out a service and a slice; -1 leaves out none.
func (c *cluster) without(service, slice int) *cluster {
	n := &cluster{zone: c.zone, restart: c.restart}
	for i, s := range c.services {
		if i != service {
			n.services = append(n.services, s)
		}
	}
	for i, e := range c.slices {
		if i != slice {
			n.slices = append(n.slices, e)
		}
	}
	return n
}

func serviceEdits(s *v1.Service) (out []func(*v1.Service)) {
	when := func(is bool, edit func(*v1.Service)) {
		if is {
			out = append(out, edit)
		}
	}
	for i := range s.Spec.Ports {
		when(len(s.Spec.Ports) > 1, func(s *v1.Service) { s.Spec.Ports = slices.Delete(s.Spec.Ports, i, i+1) })
	}
	for i := range s.Spec.ClusterIPs {
		when(len(s.Spec.ClusterIPs) > 1, func(s *v1.Service) {
			s.Spec.ClusterIPs, s.Spec.IPFamilies = slices.Delete(s.Spec.ClusterIPs, i, i+1), slices.Delete(s.Spec.IPFamilies, i, i+1)
			s.Spec.ClusterIP = s.Spec.ClusterIPs[0]
		})
	}
	for i := range s.Spec.ExternalIPs {
		when(true, func(s *v1.Service) { s.Spec.ExternalIPs = slices.Delete(s.Spec.ExternalIPs, i, i+1) })
	}
	for i := range s.Status.LoadBalancer.Ingress {
		when(true, func(s *v1.Service) {
			s.Status.LoadBalancer.Ingress = slices.Delete(s.Status.LoadBalancer.Ingress, i, i+1)
		})
	}
	for i := range s.Spec.LoadBalancerSourceRanges {
		when(true, func(s *v1.Service) {
			s.Spec.LoadBalancerSourceRanges = slices.Delete(s.Spec.LoadBalancerSourceRanges, i, i+1)
		})
	}
	when(s.Spec.SessionAffinity == v1.ServiceAffinityClientIP, func(s *v1.Service) {
		s.Spec.SessionAffinity, s.Spec.SessionAffinityConfig = v1.ServiceAffinityNone, nil
	})
	when(s.Spec.InternalTrafficPolicy != nil && *s.Spec.InternalTrafficPolicy == v1.ServiceInternalTrafficPolicyLocal, func(s *v1.Service) {
		*s.Spec.InternalTrafficPolicy = v1.ServiceInternalTrafficPolicyCluster
	})
	when(s.Spec.ExternalTrafficPolicy == v1.ServiceExternalTrafficPolicyLocal, func(s *v1.Service) {
		s.Spec.ExternalTrafficPolicy = v1.ServiceExternalTrafficPolicyCluster
	})
	when(s.Spec.TrafficDistribution != nil, func(s *v1.Service) { s.Spec.TrafficDistribution = nil })
	when(s.Spec.PublishNotReadyAddresses, func(s *v1.Service) { s.Spec.PublishNotReadyAddresses = false })
	when(s.Labels != nil, func(s *v1.Service) { s.Labels = nil })
	return out
}

func sliceEdits(e *discoveryv1.EndpointSlice) (out []func(*discoveryv1.EndpointSlice)) {
	when := func(is bool, edit func(*discoveryv1.EndpointSlice)) {
		if is {
			out = append(out, edit)
		}
	}
	for i := range e.Endpoints {
		when(true, func(e *discoveryv1.EndpointSlice) { e.Endpoints = slices.Delete(e.Endpoints, i, i+1) })
	}
	for i := range e.Ports {
		when(true, func(e *discoveryv1.EndpointSlice) { e.Ports = slices.Delete(e.Ports, i, i+1) })
	}
	for i, x := range e.Endpoints {
		when(x.Hints != nil, func(e *discoveryv1.EndpointSlice) { e.Endpoints[i].Hints = nil })
		when(x.Conditions.Ready != nil, func(e *discoveryv1.EndpointSlice) { e.Endpoints[i].Conditions.Ready = nil })
		when(x.Conditions.Serving != nil, func(e *discoveryv1.EndpointSlice) { e.Endpoints[i].Conditions.Serving = nil })
		when(x.Conditions.Terminating != nil, func(e *discoveryv1.EndpointSlice) { e.Endpoints[i].Conditions.Terminating = nil })
		when(len(x.Addresses) > 1, func(e *discoveryv1.EndpointSlice) { e.Endpoints[i].Addresses = x.Addresses[:1] })
	}
	return out
}
