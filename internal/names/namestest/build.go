// Package namestest builds model objects in few words, for tests of DNS answers.
package namestest

import (
	"net/netip"
	"strconv"
	"strings"

	"github.com/braidnet/braid/internal/model"
)

// Store returns a synced store that holds the objects.
func Store(objects ...model.Object) *model.Store {
	s := model.NewStore()
	Apply(s, objects...)
	s.MarkSynced()
	return s
}

// Apply sets the objects in one batch.
func Apply(s *model.Store, objects ...model.Object) {
	updates := make([]model.Update, len(objects))
	for i, o := range objects {
		updates[i] = model.Set(o)
	}
	s.Apply(updates)
}

// Namespace returns a namespace.
func Namespace(name string) *model.Namespace {
	return &model.Namespace{Origin: origin(model.KindNamespace, name)}
}

// Service returns a ClusterIP service: key "namespace/name", addresses "10.0.0.1 fd00::1", ports
// "http/TCP/80 dns/UDP/53"; a port without a name is "/TCP/80".
func Service(key, addrs, ports string) *model.Service {
	s := &model.Service{Origin: origin(model.KindService, key), Type: model.ClusterIP}
	for _, a := range strings.Fields(addrs) {
		s.ClusterIPs = append(s.ClusterIPs, netip.MustParseAddr(a))
	}
	for _, p := range endpointPorts(ports) {
		s.Ports = append(s.Ports, model.ServicePort{Name: p.Name, Protocol: p.Protocol, Port: p.Port})
	}
	return s
}

// Headless returns a service without cluster IPs.
func Headless(key, ports string) *model.Service {
	s := Service(key, "", ports)
	s.Headless = true
	return s
}

// External returns an ExternalName service.
func External(key, target string) *model.Service {
	return &model.Service{Origin: origin(model.KindService, key), Type: model.ExternalName, ExternalName: target}
}

// Slice returns an EndpointSlice of a service of its own namespace, ports as for Service.
func Slice(key, service, ports string, endpoints ...model.Endpoint) *model.EndpointSlice {
	s := &model.EndpointSlice{Origin: origin(model.KindEndpointSlice, key), Ports: endpointPorts(ports), Endpoints: endpoints}
	if service != "" {
		s.Service = model.Key{Namespace: s.Namespace, Name: service}
	}
	if len(endpoints) > 0 {
		s.IPv6 = endpoints[0].Addrs[0].Is6()
	}
	return s
}

// Ready returns a ready endpoint; hostname and pod may be empty.
func Ready(addr, hostname, pod string) model.Endpoint {
	e := model.Endpoint{Addrs: []netip.Addr{netip.MustParseAddr(addr)}, Ready: true, Serving: true, Hostname: hostname}
	if pod != "" {
		e.Target = model.Ref{Kind: model.KindPod, Key: model.Key{Name: pod}}
	}
	return e
}

// NotReady returns an endpoint that is not ready.
func NotReady(addr string) model.Endpoint {
	e := Ready(addr, "", "")
	e.Ready, e.Serving = false, false
	return e
}

// Import returns a ServiceImport with addresses, or a headless one when there are none.
func Import(key, addrs, ports string) *model.ServiceImport {
	s := Service(key, addrs, ports)
	return &model.ServiceImport{Origin: origin(model.KindServiceImport, key), Headless: addrs == "", IPs: s.ClusterIPs, Ports: s.Ports}
}

// Node returns a node with one pod CIDR and one address.
func Node(name, cidr, addr string) *model.Node {
	return &model.Node{Origin: origin(model.KindNode, name), PodCIDRs: []netip.Prefix{netip.MustParsePrefix(cidr)}, InternalIPs: []netip.Addr{netip.MustParseAddr(addr)}}
}

// Pod returns a running pod with addresses "10.244.1.2 fd00::2".
func Pod(key, addrs string) *model.Pod {
	p := &model.Pod{Origin: origin(model.KindPod, key), Phase: model.PhaseRunning, Ready: true}
	for _, a := range strings.Fields(addrs) {
		p.IPs = append(p.IPs, netip.MustParseAddr(a))
	}
	return p
}

func origin(kind model.Kind, key string) model.Origin {
	ns, name, ok := strings.Cut(key, "/")
	if !ok {
		ns, name = "", key
	}
	return model.Origin{Ref: model.Ref{Kind: kind, Key: model.Key{Namespace: ns, Name: name}}}
}

func endpointPorts(text string) (out []model.EndpointPort) {
	protocols := map[string]model.Protocol{"TCP": model.TCP, "UDP": model.UDP, "SCTP": model.SCTP}
	for _, f := range strings.Fields(text) {
		part := strings.Split(f, "/")
		n, err := strconv.ParseUint(part[2], 10, 16)
		if err != nil {
			panic("port " + f + ": " + err.Error())
		}
		out = append(out, model.EndpointPort{Name: part[0], Protocol: protocols[part[1]], Port: uint16(n)})
	}
	return out
}
