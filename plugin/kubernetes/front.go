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

	Reverse bool   // its names stand for addresses
	Primary string // the zone that they point into

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

// Fronts returns the zones that can be answered this way: those of the cluster itself and of addresses.
// Options that make an answer depend on who asks leave none.
func (k *Kubernetes) Fronts() (out []*Front) {
	if k.cfg.nearest || len(k.cfg.explain) > 0 {
		return nil
	}
	for _, zone := range k.cfg.zones {
		zone = strings.ToLower(zone)
		if zone == "." || k.class(zone) != names.ClusterZone {
			continue
		}
		f := &Front{Zone: zone, TTL: k.cfg.ttl, Reverse: IsReverseZone(zone), Primary: k.cfg.primary, k: k, grammar: k.grammar(zone)}
		for _, z := range k.cfg.fall.Zones {
			f.through = f.through || dns.IsSubDomain(z, zone) || dns.IsSubDomain(zone, z)
		}
		out = append(out, f)
	}
	return out
}

// Resolve returns what a lower-case name relative to the zone has of a type. For A and AAAA these are
// targets of both families and with duplicates, for SRV one for each address and port; they are in the
// array of buf as far as it reaches. Other types can be asked for, to learn that there are no such
// records, but for those of the zone itself, which are Unknown. The name's parts share memory with rel.
func (f *Front) Resolve(rel string, typ uint16, buf []names.Target) (Outcome, names.Name, []names.Target) {
	n, ok := f.grammar.Parse(rel)
	switch {
	case (ok && n.Kind != names.Svc && n.Kind != names.Pod) || !f.k.Ready():
		return Unknown, n, nil
	case !ok || !f.k.exposed(n.Namespace):
		return f.denied(), n, nil
	case n.Kind == names.Pod:
		out, targets := f.pod(n, typ, buf)
		return out, n, targets
	case n.Object == "":
		return NoData, n, nil
	}
	a := f.k.index().ResolveInto(buf, n, f.k.cfg.view, typ == dns.TypeSRV)
	switch {
	case a.External != "" && (isAddress(typ) || typ == dns.TypeCNAME):
		return Unknown, n, nil
	case !a.Exists:
		return f.denied(), n, nil
	case len(a.Targets) == 0 || (!isAddress(typ) && typ != dns.TypeSRV):
		return NoData, n, nil
	}
	return Found, n, a.Targets
}

func (f *Front) pod(n names.Name, typ uint16, buf []names.Target) (Outcome, []names.Target) {
	switch {
	case f.k.cfg.pods == podsDisabled:
		return f.denied(), nil
	case n.Object == "":
		return NoData, nil
	case typ == dns.TypeSRV:
		return Unknown, nil
	}
	addr, ok := names.ParseDashed(n.Object)
	switch {
	case !ok || (f.k.cfg.pods == podsVerified && !f.k.index().HasPod(n.Namespace, addr)):
		return f.denied(), nil
	case !isAddress(typ):
		return NoData, nil
	}
	return Found, append(buf[:0], names.Target{Addr: addr})
}

// Pointers returns what a lower-case name in a reverse zone points to: a service, or endpoints of
// services. They are in the array of buf as far as it reaches.
func (f *Front) Pointers(name string, buf []names.Pointer) (Outcome, []names.Pointer) {
	addr, ok := names.ParseReverse(name)
	if !ok || !f.k.Ready() {
		return Unknown, nil
	}
	if buf = f.k.index().PointersInto(buf, addr, f.k.cfg.view, f.k.pointed); len(buf) == 0 {
		return f.denied(), nil
	}
	return Found, buf
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
