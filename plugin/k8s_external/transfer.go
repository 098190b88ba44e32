package k8s_external

import (
	"context"
	"errors"
	"slices"

	"github.com/coredns/coredns/plugin/pkg/dnsutil"
	"github.com/coredns/coredns/plugin/transfer"
	"github.com/miekg/dns"

	"github.com/braidnet/braid/internal/names"
	"github.com/braidnet/braid/plugin/kubernetes"
)

// Transfer implements transfer.Transferer, as the kubernetes plugin does: the zone as the answers to
// every name that it has.
func (e *External) Transfer(zone string, serial uint32) (<-chan []dns.RR, error) {
	if !slices.Contains(e.cfg.zones, zone) {
		return nil, transfer.ErrNotAuthoritative
	}
	if !e.cluster.Ready() {
		return nil, errors.New("cluster state not synced")
	}
	current := e.cluster.Index().HandOut(names.ExternalZone)
	soa := e.soa(zone).(*dns.SOA)
	soa.Serial = current
	ch := make(chan []dns.RR)
	go func() {
		defer close(ch)
		ch <- []dns.RR{soa}
		if serial != 0 && serial >= current {
			return
		}
		e.contents(zone, func(rrs []dns.RR) {
			if len(rrs) > 0 {
				ch <- rrs
			}
		})
		ch <- []dns.RR{soa}
	}()
	return ch, nil
}

// contents emits the records of a zone but its SOA.
func (e *External) contents(zone string, emit func([]dns.RR)) {
	ask := func(name string, types ...uint16) {
		for _, typ := range types {
			emit(e.answer(context.Background(), question{name: name, typ: typ, zone: zone}).records)
		}
	}
	ask(zone, dns.TypeNS)
	ask(dnsutil.Join("ns1", e.cfg.apex, zone), dns.TypeA, dns.TypeAAAA)
	x := e.cluster.Index()
	if kubernetes.IsReverseZone(zone) {
		for _, a := range x.ExternalIPs() {
			if name, err := dns.ReverseAddr(a.String()); err == nil && dns.IsSubDomain(zone, name) {
				ask(name, dns.TypePTR)
			}
		}
		return
	}
	for _, s := range x.Services() {
		if !e.cluster.Exposed(s.Namespace) {
			continue
		}
		base := dnsutil.Join(s.Name, s.Namespace, zone)
		addrs, hosts := names.ExternalAddrs(s), names.ExternalHosts(s)
		switch {
		case len(addrs) > 0:
			ask(base, dns.TypeA, dns.TypeAAAA, dns.TypeSRV)
		case len(hosts) > 0:
			ask(base, dns.TypeCNAME) // nothing may stand beside it
			for _, l := range x.Ports(s) {
				ask(l+"."+base, dns.TypeSRV)
			}
			continue
		case e.cfg.headless && s.Headless:
			ask(base, dns.TypeA, dns.TypeAAAA, dns.TypeSRV)
			below(base, x.Labels(s, e.cluster.View()), ask)
		default:
			continue
		}
		below(base, x.Ports(s), ask)
	}
}

// below asks for the names in front of a service.
func below(base string, labels []string, ask func(string, ...uint16)) {
	for _, l := range labels {
		ask(l+"."+base, dns.TypeA, dns.TypeAAAA, dns.TypeSRV)
	}
}
