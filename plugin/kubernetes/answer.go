package kubernetes

import (
	"context"
	"net/netip"
	"strings"

	"github.com/coredns/coredns/plugin/pkg/dnsutil"
	"github.com/coredns/coredns/request"
	"github.com/miekg/dns"

	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/internal/names"
)

// question is a name and type to answer within a zone of ours. name and zone keep the case in which
// they were asked: clients that mix case (0x20) compare it.
type question struct {
	state request.Request
	name  string
	typ   uint16
	zone  string
	chain []string // lower-case owners of the CNAMEs that led here
}

// relative returns the lower-case name without its zone and the dot between them.
func (q question) relative() string {
	name := strings.ToLower(q.name)
	if q.zone == "." {
		return strings.TrimSuffix(name, ".")
	}
	return strings.TrimSuffix(name[:len(name)-len(q.zone)], ".")
}

const (
	schemaVersion = "1.1.0" // of the Kubernetes DNS specification
	schemaTTL     = 28800
)

// answer finds the records of a name. It never changes the request.
func (k *Kubernetes) answer(ctx context.Context, q question) reply {
	n, ok := k.grammar(q.zone).Parse(q.relative())
	switch {
	case q.typ == dns.TypeTXT && strings.HasPrefix(q.relative(), whyLabel) && k.explains(q.state):
		return k.whyRecord(q)
	case ok && n.Kind == names.Node:
		return k.apex(q)
	case ok && n.Kind == names.Version:
		out := reply{exists: true, fixed: true}
		if q.typ == dns.TypeTXT {
			out.records = []dns.RR{&dns.TXT{Hdr: header(q.name, dns.TypeTXT, schemaTTL), Txt: []string{schemaVersion}}}
		}
		return out
	case ok && n.Kind == names.NSHost:
		return reply{exists: true, fixed: true, records: k.addresses(q, k.nameServerAddrs())}
	case dnsutil.IsReverse(strings.ToLower(q.name)) > 0:
		return k.reverse(q)
	case !ok || !k.exposed(n.Namespace):
		return reply{}
	case n.Kind == names.Pod:
		return k.pod(q, n)
	}
	return k.service(ctx, q, n)
}

// exposed reports whether the names of a namespace are served: it exists, and no option hides it.
// Manifests need not declare the namespaces they use, unless these are chosen by their labels.
func (k *Kubernetes) exposed(ns string) bool {
	if !k.listed(ns) {
		return false
	}
	x := k.index()
	return x.HasNamespace(ns) || (k.cfg.source.Manifests != "" && k.cfg.source.NamespaceLabels == "" && x.UsesNamespace(ns))
}

func (k *Kubernetes) listed(ns string) bool {
	if len(k.cfg.namespaces) == 0 {
		return true
	}
	_, ok := k.cfg.namespaces[ns]
	return ok
}

// pointed reports whether PTR records may lead into a namespace.
func (k *Kubernetes) pointed(ns string) bool {
	return k.listed(ns) && (k.cfg.source.NamespaceLabels == "" || k.exposed(ns))
}

func (k *Kubernetes) service(ctx context.Context, q question, n names.Name) reply {
	if n.Object == "" {
		return reply{exists: true}
	}
	a := k.resolve(q.zone, n, q.typ == dns.TypeSRV)
	out := reply{exists: a.Exists}
	switch {
	case !a.Exists:
	case q.typ == dns.TypeCNAME && a.External != "":
		out.records = []dns.RR{k.cname(q.name, a.External)}
	case isAddress(q.typ) && a.External != "":
		return k.follow(ctx, q, a.External)
	case isAddress(q.typ):
		out.records = k.addresses(q, addrsOf(k.byDistance(q.state, a.Targets)))
	case q.typ == dns.TypeSRV:
		out.records, out.extra = k.srv(q, n, a.Targets)
	}
	return out
}

func (k *Kubernetes) resolve(zone string, n names.Name, ports bool) names.Answer {
	if k.class(zone) == names.SetZone {
		return k.index().ResolveImport(n, k.cfg.view, ports)
	}
	return k.index().Resolve(n, k.cfg.view, ports)
}

func (k *Kubernetes) pod(q question, n names.Name) reply {
	if k.cfg.pods == podsDisabled {
		return reply{}
	}
	if n.Object == "" {
		return reply{exists: true}
	}
	addr, ok := names.ParseDashed(n.Object)
	if !ok || (k.cfg.pods == podsVerified && !k.index().HasPod(n.Namespace, addr)) {
		return reply{}
	}
	out := reply{exists: true, records: k.addresses(q, []netip.Addr{addr})}
	if q.typ == dns.TypeSRV {
		// A pod's name says nothing of ports; CoreDNS has always answered with port 0.
		target := dnsutil.Join(n.Object, n.Namespace, "pod", q.zone)
		out.records = []dns.RR{&dns.SRV{Hdr: header(q.name, dns.TypeSRV, k.cfg.ttl), Weight: weight(1), Target: target}}
		out.extra = []dns.RR{address(target, addr, k.cfg.ttl)}
	}
	return out
}

// reverse answers PTR: the service of a cluster IP, else every service the address is an endpoint of.
func (k *Kubernetes) reverse(q question) reply {
	addr, ok := names.ParseReverse(strings.ToLower(q.name))
	if !ok {
		return reply{}
	}
	targets := k.pointers(addr)
	out := reply{exists: len(targets) > 0}
	if q.typ == dns.TypePTR {
		for _, t := range targets {
			out.records = append(out.records, &dns.PTR{Hdr: header(q.name, dns.TypePTR, k.cfg.ttl), Ptr: t})
		}
	}
	return out
}

// pointers returns the distinct names an address leads to.
func (k *Kubernetes) pointers(addr netip.Addr) (out []string) {
	for _, p := range k.index().PointersInto(nil, addr, k.cfg.view, k.pointed) {
		name := serviceName(p.Service, k.cfg.primary)
		if labels := p.Labels(); labels != "" {
			name = labels + "." + name
		}
		out = append(out, name)
	}
	return out
}

// serviceName returns the full name of a service in a zone that ends in a dot.
func serviceName(key model.Key, zone string) string {
	return dnsutil.Join(key.Name, key.Namespace, "svc", zone)
}

func isAddress(typ uint16) bool { return typ == dns.TypeA || typ == dns.TypeAAAA }

func addrsOf(targets []names.Target) []netip.Addr {
	out := make([]netip.Addr, len(targets))
	for i, t := range targets {
		out[i] = t.Addr
	}
	return out
}
