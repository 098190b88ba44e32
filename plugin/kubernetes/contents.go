package kubernetes

import (
	"context"
	"net/netip"
	"strings"

	"github.com/coredns/coredns/plugin/pkg/dnsutil"
	"github.com/miekg/dns"

	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/internal/names"
)

// contents emits the records of a zone but its SOA, name by name, as queries would get them. Left out
// is what has no end: pod names when they are not verified, and spellings of a name that mean another.
func (k *Kubernetes) contents(zone string, emit func([]dns.RR)) {
	ask := func(name string, types ...uint16) {
		for _, typ := range types {
			emit(k.answer(context.Background(), question{name: name, typ: typ, zone: zone}).records)
		}
	}
	apex := k.answer(context.Background(), question{name: zone, typ: dns.TypeNS, zone: zone})
	emit(apex.records)
	if len(apex.records) > 0 && strings.HasPrefix(apex.records[0].(*dns.NS).Ns, "ns.dns.") {
		emit(apex.extra) // other name servers are services, which come below
	} else {
		ask(dnsutil.Join("ns.dns", zone), dns.TypeA, dns.TypeAAAA)
	}
	ask(dnsutil.Join("dns-version", zone), dns.TypeTXT)
	if IsReverseZone(zone) {
		for _, a := range k.index().Addresses() {
			if name := reverseName(a); dns.IsSubDomain(zone, name) {
				ask(name, dns.TypePTR)
			}
		}
		return
	}
	services := k.index().Services
	if k.class(zone) == names.SetZone {
		services = k.index().Imports
	}
	for _, s := range services() {
		if k.exposed(s.Namespace) {
			k.serviceContents(zone, s, ask)
		}
	}
	if k.cfg.pods == podsVerified {
		k.podContents(zone, ask)
	}
}

// serviceContents asks for the names of one service.
func (k *Kubernetes) serviceContents(zone string, s *model.Service, ask func(string, ...uint16)) {
	base := serviceName(s.Key, zone)
	if s.Type == model.ExternalName {
		ask(base, dns.TypeCNAME)
		return
	}
	x := k.index()
	all := []string{""}
	all = append(all, x.Ports(s)...)
	if !k.cfg.view.NoEndpoints || s.Kind == model.KindServiceImport {
		all = append(all, x.Labels(s, k.cfg.view)...)
		if k.cfg.zonal && s.Headless && s.Kind == model.KindService {
			for _, z := range x.Zones(s) {
				all = append(all, z+".pin._zone", z+".prefer._zone")
			}
		}
	}
	for _, label := range all {
		if label != "" {
			label += "."
		}
		ask(label+base, dns.TypeA, dns.TypeAAAA, dns.TypeSRV)
	}
}

// podContents asks for the names of the pods there are. Pods that share an address share the name.
func (k *Kubernetes) podContents(zone string, ask func(string, ...uint16)) {
	type place struct {
		namespace string
		addr      netip.Addr
	}
	seen := map[place]bool{}
	for _, p := range k.index().Pods() {
		for _, a := range p.IPs {
			if at := (place{p.Namespace, a}); !seen[at] && k.exposed(p.Namespace) {
				seen[at] = true
				ask(dnsutil.Join(names.DashedAddr(a), p.Namespace, "pod", zone), dns.TypeA, dns.TypeAAAA)
			}
		}
	}
}

// IsReverseZone reports whether the names of a zone, in lower case, stand for addresses.
func IsReverseZone(zone string) bool {
	return zone == "in-addr.arpa." || zone == "ip6.arpa." || dnsutil.IsReverse(zone) > 0
}

// reverseName returns the name whose PTR records tell about an address.
func reverseName(a netip.Addr) string {
	name, err := dns.ReverseAddr(a.String())
	if err != nil {
		return "" // no valid address: it is below no zone
	}
	return name
}
