package service

import (
	"net/netip"
	"slices"
	"unique"

	"github.com/braidnet/braid/internal/model"
)

// Trim returns an object with only what a node agent needs of it: what it leaves out of Services and
// EndpointSlices has no effect on any frontend, and its changes are no changes. Equal names become one
// string. Objects of other kinds stay as they are; none is changed.
func Trim(o model.Object) model.Object {
	switch o := o.(type) {
	case *model.Service:
		s := *o
		s.Origin = trimOrigin(o.Origin)
		s.Labels = only(o.Labels, labelProxyName)
		s.Ports = slices.Clip(slices.Clone(o.Ports))
		for i := range s.Ports {
			s.Ports[i].Name = one(s.Ports[i].Name)
		}
		return &s
	case *model.EndpointSlice:
		return trimSlice(o)
	}
	return o
}

func trimSlice(o *model.EndpointSlice) model.Object {
	s := *o
	s.Origin = trimOrigin(o.Origin)
	s.Labels = only(o.Labels, labelHeadless)
	s.Service = model.Key{Namespace: one(o.Service.Namespace), Name: one(o.Service.Name)}
	s.Ports, s.Endpoints = nil, nil
	if !balanced(&s) {
		return &s
	}
	s.Ports = slices.Clone(o.Ports)
	for i := range s.Ports {
		s.Ports[i].Name = one(s.Ports[i].Name)
	}
	s.Endpoints = make([]model.Endpoint, len(o.Endpoints))
	addrs := make([]netip.Addr, len(o.Endpoints)) // one block for all
	for i, e := range o.Endpoints {
		if len(e.Addrs) > 0 {
			addrs[i] = e.Addrs[0]
			e.Addrs = addrs[i : i+1 : i+1]
		}
		e.Node, e.Zone = one(e.Node), one(e.Zone)
		e.HintZones, e.HintNodes = ones(e.HintZones), ones(e.HintNodes)
		e.Hostname, e.Target = "", model.Ref{}
		s.Endpoints[i] = e
	}
	return &s
}

// balanced reports whether a slice's endpoints are backends of a Service. Slices of headless services, as
// their controller labels them, are no proxy's business.
func balanced(s *model.EndpointSlice) bool {
	return s.Service.Name != "" && !hasLabel(s.Labels, labelHeadless)
}

func trimOrigin(o model.Origin) model.Origin {
	o.Namespace, o.Name = one(o.Namespace), one(o.Name)
	return o
}

// only keeps one label; nil when it is not there.
func only(labels map[string]string, name string) map[string]string {
	if value, there := labels[name]; there {
		return map[string]string{name: value}
	}
	return nil
}

// one returns a string that all equal ones share.
func one(s string) string { return unique.Make(s).Value() }

func ones(list []string) (out []string) {
	for _, s := range list {
		out = append(out, one(s))
	}
	return out
}
