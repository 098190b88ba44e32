package service

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/braidnet/braid/internal/model"
)

// Note says that something a Service asks for is not done, or not done in full.
type Note struct {
	Origin model.Origin
	Field  string // the field that asks for it, as manifests spell it: "spec.sessionAffinity"
	Text   string // what happens instead
}

// String prints "Service default/web: spec.sessionAffinity: ...".
func (n Note) String() string { return fmt.Sprintf("%s: %s: %s", n.Origin, n.Field, n.Text) }

// notes writes down what the Service asks for beyond this release and reports whether its
// load-balancer addresses must stay closed: a filter that is not enforced must not become an open door.
func (b *builder) notes() (noLB bool) {
	s := b.svc
	if s.Affinity > 0 {
		b.note("spec.sessionAffinity", "ClientIP is not kept: each connection is balanced on its own")
	}
	if s.ExternalLocal && external(s) {
		b.note("spec.externalTrafficPolicy", "Local is treated as Cluster: all endpoints are used and the client's address is replaced by the node's")
	}
	if len(s.ExternalIPs) > 0 {
		b.note("spec.externalIPs", "not programmed: anybody who may write a Service could take over any address with them (CVE-2020-8554)")
	}
	if s.Type == model.LoadBalancer && filtered(s) {
		b.note("spec.loadBalancerSourceRanges", "not enforced yet, so the load balancer addresses are not programmed at all; cluster IPs and node ports work")
		return true
	}
	return false
}

func (b *builder) note(field, text string) {
	b.plan.notes = append(b.plan.notes, Note{Origin: b.svc.Origin, Field: field, Text: text})
}

// filtered reports whether loadBalancerSourceRanges excludes anybody: a range of length 0 admits all.
func filtered(s *model.Service) bool {
	for _, r := range s.SourceRanges {
		if r.Bits() == 0 {
			return false
		}
	}
	return len(s.SourceRanges) > 0
}

// Notes lists, as of the last Flush and sorted by service, what Services ask for and do not get,
// including addresses that another Service holds.
func (p *Planner) Notes() []Note {
	p.out.mu.Lock()
	defer p.out.mu.Unlock()
	var all []Note
	for _, pl := range p.out.plans {
		all = append(all, pl.notes...)
	}
	all = append(all, p.out.conflicts()...)
	slices.SortStableFunc(all, func(a, b Note) int {
		return cmp.Or(compareNames(a.Origin.Key, b.Origin.Key), cmp.Compare(a.Field, b.Field), cmp.Compare(a.Text, b.Text))
	})
	return all
}
