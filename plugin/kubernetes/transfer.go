//go:build !minimal

package kubernetes

import (
	"errors"
	"slices"

	"github.com/coredns/coredns/plugin/transfer"
	"github.com/miekg/dns"
)

// Transfer implements transfer.Transferer. It sends the zone as the answers to every name that the zone
// is known to have, so that a copy of it answers alike. With a serial that is not older than ours, it
// sends the SOA alone.
func (k *Kubernetes) Transfer(zone string, serial uint32) (<-chan []dns.RR, error) {
	if !slices.Contains(k.cfg.zones, zone) {
		return nil, transfer.ErrNotAuthoritative
	}
	if !k.Ready() {
		return nil, errors.New(notSynced)
	}
	// What changes from here on has a later serial: a copy that caught half of it is fetched anew.
	current := k.index().HandOut(k.class(zone))
	soa := []dns.RR{k.soa(zone)}
	soa[0].(*dns.SOA).Serial = current
	ch := make(chan []dns.RR)
	go func() {
		defer close(ch)
		ch <- soa
		if serial != 0 && serial >= current {
			return
		}
		k.contents(zone, func(rrs []dns.RR) {
			if len(rrs) > 0 {
				ch <- rrs
			}
		})
		ch <- soa
	}()
	return ch, nil
}
