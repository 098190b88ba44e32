package service

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/braidnet/braid/internal/model"
)

const testNode = "n1"

func ref(kind model.Kind, name string) model.Origin {
	return model.Origin{Ref: model.Ref{Kind: kind, Key: model.Key{Namespace: "default", Name: name}}}
}

func addrs(list ...string) (out []netip.Addr) {
	for _, a := range list {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

func testService(name string, ips ...string) *model.Service {
	return &model.Service{Origin: ref(model.KindService, name), Type: model.ClusterIP, ClusterIPs: addrs(ips...),
		Ports: []model.ServicePort{{Name: "http", Protocol: model.TCP, Port: 80}}}
}

func testSlice(name, svc string, eps ...model.Endpoint) *model.EndpointSlice {
	s := &model.EndpointSlice{Origin: ref(model.KindEndpointSlice, name), Endpoints: eps,
		Ports: []model.EndpointPort{{Name: "http", Protocol: model.TCP, Port: 8080}}}
	if svc != "" {
		s.Service = model.Key{Namespace: "default", Name: svc}
	}
	return s
}

// ep describes an endpoint: flags r(eady), s(erving), t(erminating); node; hints "n:name", "z:zone".
func ep(addr, flags, node string, hints ...string) model.Endpoint {
	e := model.Endpoint{Addrs: addrs(addr), Node: node, Ready: strings.Contains(flags, "r"),
		Serving: strings.ContainsAny(flags, "rs"), Terminating: strings.Contains(flags, "t")}
	for _, h := range hints {
		if kind, name, _ := strings.Cut(h, ":"); kind == "n" {
			e.HintNodes = append(e.HintNodes, name)
		} else {
			e.HintZones = append(e.HintZones, name)
		}
	}
	return e
}

func testNodeObject(name, zone string, cidrs ...string) *model.Node {
	n := &model.Node{Origin: model.Origin{Ref: model.Ref{Kind: model.KindNode, Key: model.Key{Name: name}}}, Labels: map[string]string{}}
	if zone != "" {
		n.Labels[labelZone] = zone
	}
	for _, c := range cidrs {
		n.PodCIDRs = append(n.PodCIDRs, netip.MustParsePrefix(c))
	}
	return n
}

// lab is a planner behind a real store.
type lab struct {
	*Planner
	store *model.Store
}

func newLab(objects ...model.Object) lab {
	l := lab{NewPlanner(Config{Node: testNode, ExternalIPs: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}}), model.NewStore()}
	l.store.Subscribe(l.Apply)
	l.set(objects...)
	return l
}

func (l lab) set(objects ...model.Object) {
	var u []model.Update
	for _, o := range objects {
		u = append(u, model.Set(o))
	}
	l.store.Apply(u)
}

func (l lab) remove(objects ...model.Object) {
	var u []model.Update
	for _, o := range objects {
		u = append(u, model.Delete(o.From().Ref))
	}
	l.store.Apply(u)
}

// table prints the frontends in one line each: "cluster IP 10.96.0.1:80/TCP -> 10.244.1.1:8080* ..."
// with * for local, or "reject"/"drop" for none.
func (l lab) table() []string {
	l.Flush()
	all, _ := l.All()
	var out []string
	for _, f := range all {
		out = append(out, f.Kind.String()+" "+f.Key.String()+" -> "+outcome(f))
	}
	return out
}

func outcome(f Frontend) string {
	text := printBackends(f.Backends)
	if len(f.Backends) == 0 {
		text = map[Empty]string{Reject: "reject", Drop: "drop"}[f.Empty]
	}
	if len(f.Inside) > 0 {
		text += ", inside " + printBackends(f.Inside)
	}
	if f.Filtered {
		text += fmt.Sprintf(" for %v", f.Sources)
	}
	return text
}

func printBackends(list []Backend) string {
	var b []string
	for _, x := range list {
		s := x.AddrPort.String()
		if x.Local {
			s += "*"
		}
		b = append(b, s)
	}
	return strings.Join(b, " ")
}
