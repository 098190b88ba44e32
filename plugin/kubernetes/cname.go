package kubernetes

import (
	"context"
	"slices"
	"strings"

	"github.com/miekg/dns"
)

// maxChain is how many CNAMEs are followed inside the zone.
const maxChain = 10

// follow answers an address query for an ExternalName service: the CNAME, and what is behind it. The
// CNAME stays in the answer when its target fails, and the outcome is the target's (RFC 6604).
func (k *Kubernetes) follow(ctx context.Context, q question, target string) reply {
	rr := k.cname(q.name, target)
	out := reply{exists: true, records: []dns.RR{rr}}
	owners := append(slices.Clone(q.chain), strings.ToLower(q.name))
	if slices.Contains(owners, strings.ToLower(rr.Target)) || len(owners) > maxChain {
		// RFC 1034 section 3.6.2: a loop is an error, not an empty answer.
		out.rcode, out.explain, out.code = dns.RcodeServerFailure, "CNAME chain has no end at "+rr.Target, dns.ExtendedErrorCodeOther
		return out
	}
	if !dns.IsSubDomain(strings.ToLower(q.zone), strings.ToLower(rr.Target)) {
		return k.outside(ctx, q, out, rr.Target)
	}
	next := k.answer(ctx, question{state: q.state, name: rr.Target, typ: q.typ, zone: rr.Target[len(rr.Target)-len(q.zone):], chain: owners})
	switch {
	case next.uncertain() && !k.Ready():
		out.rcode, out.explain, out.code = dns.RcodeServerFailure, notSynced, dns.ExtendedErrorCodeNotReady
	case !next.exists && k.cfg.fall.Through(strings.ToLower(rr.Target)):
		return k.outside(ctx, q, out, rr.Target)
	case !next.exists:
		out.rcode = dns.RcodeNameError
	case len(next.records) == 0:
		out.authority = []dns.RR{k.soa(q.zone)}
	default:
		next.records = append(out.records, next.records...)
		return next
	}
	return out
}

// outside completes a CNAME whose target is not ours to answer, by asking the server we run in.
func (k *Kubernetes) outside(ctx context.Context, q question, out reply, target string) reply {
	out.foreign = true
	m, err := k.upstream.Lookup(ctx, q.state, target, q.typ)
	if err != nil || m == nil {
		out.rcode, out.explain, out.code = dns.RcodeServerFailure, "no answer for "+target, dns.ExtendedErrorCodeNetworkError
		return out
	}
	out.rcode = m.Rcode
	out.truncated = m.Truncated
	out.records = append(out.records, m.Answer...)
	for _, rr := range m.Ns {
		if rr.Header().Rrtype == dns.TypeSOA {
			out.authority = append(out.authority, rr)
		}
	}
	return out
}
