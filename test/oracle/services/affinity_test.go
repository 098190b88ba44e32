package services

import (
	"net/netip"
	"slices"

	"github.com/braidnet/braid/internal/kernel/netns/nstest/wire"
	"github.com/braidnet/braid/netagent/service"
)

// maxKept is for how many probes of a cluster it is tried whether clients keep their backend.
const maxKept = 6

// canKeep reports whether it can be seen if clients of a probe are kept: there are backends to
// choose from, for everybody, none of them the node itself, which hides its address for SCTP.
func (r *run) canKeep(p *probe) bool {
	list := r.allows(p)
	return p.sticky() && p.many && len(list) > 1 && !r.frontend(p).Filtered && !slices.ContainsFunc(list, func(b netip.AddrPort) bool {
		return slices.Contains(wire.Own(b.Addr().Is4()), b.Addr())
	})
}

// compareKept sends more packets of one new client to each of the service port's addresses that have the
// backend which it got first, and compares whether it keeps that.
func (r *run) compareKept(p *probe) []*difference {
	kept := make([]outcomes, len(r.planes))
	for i, pl := range r.planes {
		kept[i] = r.keeps(pl, p)
	}
	same := *p
	same.what = "clients kept by " + p.what
	return r.differing(&same, func(i int) outcomes { return kept[i] })
}

func (r *run) keeps(pl *plane, p *probe) outcomes {
	client := *p
	client.src, client.many = r.source(p), false
	first := r.ask(pl, &client)
	if !first.IsValid() {
		return outcomes{{class: "no backend"}: 1}
	}
	for _, to := range r.siblings(&client, first) {
		for range 3 {
			if again := r.ask(pl, to); again != first {
				return outcomes{{class: "changes"}: 1}
			}
		}
	}
	return outcomes{{class: "keeps"}: 1}
}

// ask sends one packet and returns which backend it went to, if to one.
func (r *run) ask(pl *plane, p *probe) netip.AddrPort {
	packet := wire.Packet{Src: netip.AddrPortFrom(p.src, r.nextPort()), Dst: p.dst, Protocol: p.protocol}
	r.packets++
	return judge(packet, pl.Send(packet)).backend
}

// siblings are the same client's connections to all addresses of the service port that may lead to a backend.
func (r *run) siblings(p *probe, backend netip.AddrPort) (out []*probe) {
	for _, f := range frontends(p.service) {
		if f.port.Name != p.port.Name || f.ipv4 != p.dst.Addr().Is4() {
			continue
		}
		at := wire.Own(f.ipv4)[0]
		if f.addr != "" {
			at = netip.MustParseAddr(f.addr)
		}
		q := *p
		q.dst = netip.AddrPortFrom(at, f.number)
		if q.resolve(r.now); q.port == nil || q.service != p.service {
			continue
		}
		f := r.frontend(&q)
		if !f.Filtered && slices.ContainsFunc(f.Backends, func(b service.Backend) bool { return b.AddrPort == backend }) {
			out = append(out, &q)
		}
	}
	return out
}
