// Package k8s_external is a CoreDNS plugin that answers, in a zone of its own, with the addresses by
// which services of a Kubernetes cluster are reached from outside. It is a drop-in for CoreDNS's plugin
// of that name, which links the kubernetes plugin that ours replaces; README.md lists the differences.
package k8s_external

import (
	"context"
	"net/netip"
	"strings"

	"github.com/coredns/coredns/plugin"
	"github.com/coredns/coredns/plugin/pkg/dnsutil"
	"github.com/coredns/coredns/request"
	"github.com/miekg/dns"

	"github.com/braidnet/braid/internal/names"
	"github.com/braidnet/braid/plugin/kubernetes"
)

// upstreamer resolves names outside the zone through the server we run in.
type upstreamer interface {
	Lookup(ctx context.Context, state request.Request, name string, typ uint16) (*dns.Msg, error)
}

// External answers for the zones of one stanza.
type External struct {
	Next plugin.Handler

	cfg      *config
	upstream upstreamer
	cluster  cluster
}

// cluster is the kubernetes plugin of the same server block.
type cluster interface {
	Ready() bool
	Index() *names.Index
	View() names.View
	TTL() uint32
	Exposed(ns string) bool
	Pointed(ns string) bool
	Local() []netip.Addr
	OwnServices() []names.Owner
}

// Name implements plugin.Handler.
func (e *External) Name() string { return pluginName }

// ServeDNS implements plugin.Handler.
func (e *External) ServeDNS(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	state := request.Request{W: w, Req: r}
	zone := plugin.Zones(e.cfg.zones).Matches(state.Name())
	if zone == "" {
		return plugin.NextOrFailure(e.Name(), e.Next, ctx, w, r)
	}
	if t := state.QType(); t == dns.TypeAXFR || t == dns.TypeIXFR {
		return dns.RcodeRefused, nil
	}
	a := e.answer(ctx, question{state, state.QName(), state.QType(), zone})
	m := new(dns.Msg)
	m.SetReply(r)
	m.Authoritative = true
	m.Answer, m.Extra, m.Truncated = a.records, a.extra, a.truncated
	switch {
	case !a.fixed && len(a.records) == 0 && !e.cluster.Ready():
		kubernetes.NotSynced(m, r)
	case !a.exists && !a.fixed && e.cfg.fall.Through(state.Name()):
		return plugin.NextOrFailure(e.Name(), e.Next, ctx, w, r)
	case !a.exists:
		m.Rcode = dns.RcodeNameError
	}
	if len(a.records) == 0 {
		m.Ns = []dns.RR{e.soa(zone)}
	}
	if state.QType() == dns.TypeSOA && len(a.records) > 0 {
		e.cluster.Index().HandOut(names.ExternalZone)
	}
	if err := w.WriteMsg(m); err != nil {
		log.Warningf("answer to %s %s could not be sent: %v", state.QName(), state.Type(), err)
	}
	return dns.RcodeSuccess, nil
}

// question is a name and type to answer in one of our zones, which is in lower case.
type question struct {
	state request.Request
	name  string
	typ   uint16
	zone  string
}

// reply is an answer before it is a message.
type reply struct {
	exists    bool // false ends as NXDOMAIN, or in the next plugin
	fixed     bool // it does not depend on the cluster's state
	truncated bool
	records   []dns.RR
	extra     []dns.RR
}

func (e *External) answer(ctx context.Context, q question) reply {
	lower := strings.ToLower(q.name)
	if lower == q.zone {
		return e.apex(q)
	}
	if apex := dnsutil.Join(e.cfg.apex, q.zone); dns.IsSubDomain(apex, lower) {
		return e.belowApex(q, lower, apex)
	}
	if q.typ == dns.TypePTR {
		if addr, ok := names.ParseReverse(lower); ok {
			return e.reverse(q, addr)
		}
	}
	n, ok := parseName(strings.TrimSuffix(strings.TrimSuffix(lower, q.zone), "."))
	switch {
	case !ok || !e.cluster.Exposed(n.Namespace):
		return reply{}
	case n.Object == "":
		return reply{exists: true}
	}
	targets, exists := e.cluster.Index().ResolveExternal(n, e.cluster.View(), e.cfg.headless)
	out := reply{exists: exists}
	switch q.typ {
	case dns.TypeA, dns.TypeAAAA, dns.TypeCNAME:
		e.addresses(ctx, q, targets, &out)
	case dns.TypeSRV:
		e.srv(ctx, q, n, targets, &out)
	}
	return out
}

// parseName reads a lower-case name relative to its zone: service.namespace and what is in front, which is
// the cluster's grammar without the "svc" behind it.
func parseName(rel string) (names.Name, bool) {
	n, ok := names.Parse(rel + ".svc")
	n.Endpoint = strings.TrimPrefix(n.Endpoint, "_")
	return n, ok && n.Kind == names.Svc
}

// reverse answers with the services that an external address belongs to, as names of our first zone.
func (e *External) reverse(q question, addr netip.Addr) (out reply) {
	for _, key := range e.cluster.Index().ExternalIP(addr) {
		if e.cluster.Pointed(key.Namespace) {
			target := dnsutil.Join(key.Name, key.Namespace, e.cfg.zones[0])
			out.records = append(out.records, &dns.PTR{Hdr: e.header(q.name, dns.TypePTR, e.cfg.ttl), Ptr: target})
		}
	}
	out.exists = len(out.records) > 0
	return out
}
