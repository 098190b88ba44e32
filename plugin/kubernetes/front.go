package kubernetes

import (
	"strings"

	"github.com/miekg/dns"

	"github.com/braidnet/braid/internal/names"
)

// Front answers the plain questions of one zone without making messages, for a front end that reads
// and writes packets itself. What it does not know it leaves to ServeDNS, and what it says is what
// ServeDNS would: both ask the same index by the same grammar.
type Front struct {
	Zone string // lower-case, with the dot at its end
	TTL  uint32 // of its records; the SOA's own is at most 300

	k       *Kubernetes
	grammar names.Grammar
	through bool // a name that does not exist may be the next plugin's
}

// Outcome is what a Front knows of a question.
type Outcome uint8

// Outcomes.
const (
	Unknown Outcome = iota // ServeDNS has to answer
	Found                  // there are targets
	NoData                 // the name exists, without such records
	NoName                 // it does not exist
)

// Fronts returns the zones that can be answered this way: those of the cluster itself that lie under a
// name. Options that make an answer depend on who asks leave none.
func (k *Kubernetes) Fronts() (out []*Front) {
	if k.cfg.nearest || len(k.cfg.explain) > 0 {
		return nil
	}
	for _, zone := range k.cfg.zones {
		zone = strings.ToLower(zone)
		if zone == "." || k.class(zone) != names.ClusterZone || IsReverseZone(zone) {
			continue
		}
		f := &Front{Zone: zone, TTL: k.cfg.ttl, k: k, grammar: k.grammar(zone)}
		for _, z := range k.cfg.fall.Zones {
			f.through = f.through || dns.IsSubDomain(z, zone) || dns.IsSubDomain(zone, z)
		}
		out = append(out, f)
	}
	return out
}

// Addresses returns what a lower-case name relative to the zone has of a type: A or AAAA. The targets
// are in the array of buf as far as it reaches, of both families and with duplicates.
func (f *Front) Addresses(rel string, buf []names.Target) (Outcome, []names.Target) {
	n, ok := f.grammar.Parse(rel)
	switch {
	case ok && n.Kind != names.Svc, !f.k.Ready():
		return Unknown, nil
	case !ok || !f.k.exposed(n.Namespace):
		return f.denied(), nil
	case n.Object == "":
		return NoData, nil
	}
	a := f.k.index().ResolveInto(buf, n, f.k.cfg.view, false)
	switch {
	case a.External != "":
		return Unknown, nil
	case !a.Exists:
		return f.denied(), nil
	case len(a.Targets) == 0:
		return NoData, nil
	}
	return Found, a.Targets
}

// denied is the outcome for a name that is not there.
func (f *Front) denied() Outcome {
	if f.through {
		return Unknown
	}
	return NoName
}

// Serial is the serial of the zone's SOA as of now.
func (f *Front) Serial() uint32 { return f.k.index().Serial(names.ClusterZone) }
