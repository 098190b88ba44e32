// Package kubernetes is a CoreDNS plugin that answers the names of a Kubernetes cluster: services,
// their endpoints, pods, and the way back from addresses. It is a drop-in for the plugin of that
// name in CoreDNS, whose word in the Corefile it takes; README.md lists the differences.
package kubernetes

import (
	"context"
	"net/netip"
	"strings"
	"sync/atomic"

	"github.com/coredns/coredns/plugin"
	"github.com/coredns/coredns/request"
	"github.com/miekg/dns"

	"github.com/braidnet/braid/internal/names"
	"github.com/braidnet/braid/plugin/kubernetes/stores"
)

const pluginName = "kubernetes"

// upstreamer resolves names outside the zone through the server we run in.
type upstreamer interface {
	Lookup(ctx context.Context, state request.Request, name string, typ uint16) (*dns.Msg, error)
}

// Kubernetes answers for the zones of one stanza.
type Kubernetes struct {
	Next plugin.Handler

	cfg      *config
	upstream upstreamer
	search   []string // search path of the machine we run on, which autopath goes on with
	live     atomic.Pointer[live]
	whenLive []func() // what neighbours want done once live is set
}

// live is what exists only while the server runs. The ready plugin may ask before that.
type live struct {
	lease *stores.Lease
	local []netip.Addr // addresses the server is bound to, loopback excepted
	ctx   context.Context
	quit  context.CancelFunc // ends ctx
}

// Name implements plugin.Handler. Other plugins find this one by it.
func (k *Kubernetes) Name() string { return pluginName }

// Ready implements ready.Readiness: the source has given a complete first state.
func (k *Kubernetes) Ready() bool {
	l := k.live.Load()
	return l != nil && l.lease.Store.HasSynced()
}

func (k *Kubernetes) index() *names.Index { return k.live.Load().lease.Index }

// class returns what sort of zone one of ours is, by its name in any case.
func (k *Kubernetes) class(zone string) names.ZoneClass {
	for _, z := range k.cfg.sets {
		if strings.EqualFold(z, zone) {
			return names.SetZone
		}
	}
	return names.ClusterZone
}

func (k *Kubernetes) grammar(zone string) names.Grammar {
	return names.Grammar{Clusters: k.class(zone) == names.SetZone, Zonal: k.cfg.zonal}
}

// notSynced is the text of the extended error that explains a SERVFAIL before the first state is complete.
const notSynced = "cluster state not synced"

// ServeDNS implements plugin.Handler.
func (k *Kubernetes) ServeDNS(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	state := request.Request{W: w, Req: r}
	zone := plugin.Zones(k.cfg.zones).Matches(state.Name())
	if zone == "" {
		return plugin.NextOrFailure(k.Name(), k.Next, ctx, w, r)
	}
	if t := state.QType(); t == dns.TypeAXFR || t == dns.TypeIXFR {
		return dns.RcodeRefused, nil
	}
	name := state.QName()
	q := question{state: state, name: name, typ: state.QType(), zone: name[len(name)-len(zone):]}
	a := k.answer(ctx, q)
	if q.typ == dns.TypeSOA && len(a.records) > 0 {
		k.index().HandOut(k.class(zone)) // the asker may be about to copy the zone
	}
	switch {
	case a.uncertain() && !k.Ready():
		// Nothing can be denied before everything is known, nor handed on: a denial from elsewhere would be cached.
		a = reply{exists: true, rcode: dns.RcodeServerFailure, explain: notSynced, code: dns.ExtendedErrorCodeNotReady}
	case !a.exists && k.cfg.fall.Through(state.Name()):
		return plugin.NextOrFailure(k.Name(), k.Next, ctx, w, r)
	case !a.exists:
		a.rcode = dns.RcodeNameError
	}
	if len(a.records) == 0 || a.rcode != dns.RcodeSuccess {
		a.authority = append(a.authority, k.denial(a, q)...)
		if a.explain == "" && !a.foreign && k.explains(state) {
			a.explain, a.code = k.why(q), dns.ExtendedErrorCodeOther
		}
	}
	if err := w.WriteMsg(a.message(r)); err != nil {
		log.Warningf("answer to %s %s could not be sent: %v", name, dns.TypeToString[q.typ], err)
	}
	return dns.RcodeSuccess, nil
}

// denial is the SOA that lets resolvers keep a negative answer, unless the answer brings another zone's.
func (k *Kubernetes) denial(a reply, q question) []dns.RR {
	if len(a.authority) > 0 || a.foreign {
		return nil
	}
	return []dns.RR{k.soa(q.zone)}
}

// reply is an answer before it is a message.
type reply struct {
	exists    bool // the name exists; false ends as NXDOMAIN, or in the next plugin
	fixed     bool // the name does not depend on the cluster's state
	foreign   bool // the outcome is another zone's
	truncated bool
	rcode     int
	records   []dns.RR
	authority []dns.RR
	extra     []dns.RR
	explain   string // text of an extended DNS error (RFC 8914), sent to clients that speak EDNS
	code      uint16 // and its code
}

// uncertain reports whether more of the cluster's state could turn the reply into an answer.
func (a reply) uncertain() bool { return !a.exists || (len(a.records) == 0 && !a.fixed) }

func (a reply) message(r *dns.Msg) *dns.Msg {
	m := new(dns.Msg)
	m.SetReply(r)
	m.Authoritative = true
	m.Truncated = a.truncated
	m.Answer, m.Ns, m.Extra = a.records, a.authority, a.extra
	a.finish(m, r)
	return m
}

// finish sets the outcome, and what explains it to a client that speaks EDNS.
func (a reply) finish(m, r *dns.Msg) {
	m.Rcode = a.rcode
	if opt := r.IsEdns0(); opt != nil && a.explain != "" {
		m.SetEdns0(opt.UDPSize(), opt.Do())
		o := m.IsEdns0()
		o.Option = append(o.Option, &dns.EDNS0_EDE{InfoCode: a.code, ExtraText: a.explain})
	}
}
