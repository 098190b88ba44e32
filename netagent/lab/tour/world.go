package tour

import (
	"net/netip"
	"slices"
	"sort"

	"github.com/braidnet/braid/internal/model"
)

// world is the cluster as the checks need it.
type world struct {
	outside  Outside
	services []*model.Service
	slices   map[model.Key][]*model.EndpointSlice
	pods     map[model.Key]*model.Pod
	nodes    []*model.Node
	clients  []*model.Pod // pods with a network of their own that run, sorted
	next     int          // round robin over clients
}

func newWorld(s *model.Store, outside Outside) *world {
	w := &world{outside: outside, slices: map[model.Key][]*model.EndpointSlice{}, pods: map[model.Key]*model.Pod{}}
	for _, o := range s.List(model.KindService) {
		w.services = append(w.services, o.(*model.Service))
	}
	for _, o := range s.List(model.KindEndpointSlice) {
		e := o.(*model.EndpointSlice)
		w.slices[e.Service] = append(w.slices[e.Service], e)
	}
	for _, o := range s.List(model.KindNode) {
		w.nodes = append(w.nodes, o.(*model.Node))
	}
	for _, o := range s.List(model.KindPod) {
		p := o.(*model.Pod)
		w.pods[p.Key] = p
		if !p.HostNetwork && p.Phase == model.PhaseRunning && !p.Terminating && len(p.IPs) > 0 {
			w.clients = append(w.clients, p)
		}
	}
	return w
}

// client returns the next pod to ask from, so that every pod and node is asked from in turn.
func (w *world) client() *model.Pod {
	w.next++
	return w.clients[(w.next-1)%len(w.clients)]
}

// clientOf returns a pod that has addresses of every one of the families given (true = IPv4).
func (w *world) clientOf(is4 bool) *model.Pod {
	for range w.clients {
		if p := w.client(); podIP(p, is4).IsValid() {
			return p
		}
	}
	return nil
}

func podIP(p *model.Pod, is4 bool) netip.Addr {
	for _, a := range p.IPs {
		if a.Is4() == is4 {
			return a
		}
	}
	return netip.Addr{}
}

// endpoint is one ready backend of a service port.
type endpoint struct {
	addr netip.Addr
	port uint16
	host string     // hostname of the endpoint's own DNS name, "" = dashed address
	pod  *model.Pod // nil when the endpoint is no pod of this cluster
}

// ready lists the distinct ready endpoints of a service port in one family, sorted by address.
func (w *world) ready(s *model.Service, port string, proto model.Protocol, is4 bool) (out []endpoint) {
	for _, slice := range w.slices[s.Key] {
		if slice.IPv6 == is4 {
			continue
		}
		number, has := slicePort(slice, port, proto)
		if !has {
			continue
		}
		for _, e := range slice.Endpoints {
			if !e.Ready || len(e.Addrs) == 0 {
				continue
			}
			ep := endpoint{addr: e.Addrs[0], port: number, host: e.Hostname}
			if e.Target.Kind == model.KindPod {
				ep.pod = w.pods[e.Target.Key]
			}
			if !slices.ContainsFunc(out, func(o endpoint) bool { return o.addr == ep.addr && o.port == ep.port }) {
				out = append(out, ep)
			}
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i].addr.Less(out[j].addr) })
	return out
}

func slicePort(s *model.EndpointSlice, name string, proto model.Protocol) (uint16, bool) {
	for _, p := range s.Ports {
		if p.Name == name && p.Protocol == proto {
			return p.Port, true
		}
	}
	return 0, false
}

// anyReady lists the ready addresses of a service in one family, whatever the port.
func (w *world) anyReady(s *model.Service, is4 bool) (out []netip.Addr) {
	for _, slice := range w.slices[s.Key] {
		for _, e := range slice.Endpoints {
			if slice.IPv6 != is4 && e.Ready && len(e.Addrs) > 0 && !slices.Contains(out, e.Addrs[0]) {
				out = append(out, e.Addrs[0])
			}
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return out
}
