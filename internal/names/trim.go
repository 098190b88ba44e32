package names

import (
	"github.com/braidnet/braid/internal/model"
)

// Trim returns an object with only what answers need of it, or nil for one that no answer needs. What
// it leaves out has no effect on an index, and its changes are no changes. The object is not changed.
func Trim(o model.Object) model.Object {
	switch o := o.(type) {
	case *model.Namespace:
		return &model.Namespace{Origin: o.Origin}
	case *model.Service:
		return trimService(o)
	case *model.ServiceImport:
		s := *o
		s.Labels = nil
		return &s
	case *model.EndpointSlice:
		if o.Service.Name == "" && o.Import.Name == "" {
			return nil
		}
		return compact(o)
	case *model.Pod:
		if o.Finished() || o.Phase == model.PhaseUnknown || len(o.IPs) == 0 {
			return nil
		}
		return &model.Pod{Origin: o.Origin, Labels: o.Labels, Node: o.Node, IPs: o.IPs, Phase: model.PhaseRunning}
	case *model.Node:
		n := &model.Node{Origin: o.Origin, PodCIDRs: o.PodCIDRs, InternalIPs: o.InternalIPs}
		if zone := o.Labels[labelZone]; zone != "" {
			n.Labels = map[string]string{labelZone: zone}
		}
		return n
	}
	return o
}

func trimService(o *model.Service) model.Object {
	s := &model.Service{Origin: o.Origin, Type: model.ClusterIP, Headless: o.Headless, ClusterIPs: o.ClusterIPs, ExternalName: o.ExternalName, ExternalIPs: o.ExternalIPs}
	if o.Type == model.ExternalName {
		s.Type = o.Type
	}
	for _, p := range o.Ports {
		p.NodePort = 0
		s.Ports = append(s.Ports, p)
	}
	for _, in := range o.Ingress {
		in.Proxy = false
		s.Ingress = append(s.Ingress, in)
	}
	return s
}
