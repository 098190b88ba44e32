package services

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"

	"github.com/braidnet/braid/internal/kernel/netns/nstest/wire"
	"github.com/braidnet/braid/internal/model"
)

// probe is a kind of connection: from some source to one address and port.
type probe struct {
	from     string // which source
	src      netip.Addr
	many     bool // the source is one of many addresses, all alike: each packet has another
	dst      netip.AddrPort
	protocol uint8
	what     string          // what dst is
	service  *v1.Service     // whose; nil: nobody's
	port     *v1.ServicePort // nil: none of the service's
}

func (p *probe) String() string {
	who := ""
	if p.service != nil {
		who = " of " + key(p.service)
	}
	return fmt.Sprintf("%s %s → %s %s, %s%s", p.from, p.src, p.dst, model.Protocol(p.protocol), p.what, who)
}

// sticky reports whether the service keeps clients at their backends.
func (p *probe) sticky() bool {
	return p.port != nil && p.service.Spec.SessionAffinity == v1.ServiceAffinityClientIP
}

// outcome is what became of a packet.
type outcome struct {
	class   string // "to", "to the node", "refused", "dropped", "passed", "passed to the node"
	backend netip.AddrPort
	masked  bool // it has an address of the node as source that it had not before
}

func (o outcome) String() string {
	switch {
	case !o.backend.IsValid():
		return o.class
	case o.masked:
		return fmt.Sprintf("%s %s as the node", o.class, o.backend)
	}
	return fmt.Sprintf("%s %s", o.class, o.backend)
}

// outcomes are the possible ones, with how often each was seen.
type outcomes map[outcome]int

func (o outcomes) String() string {
	var texts []string
	for x := range o {
		texts = append(texts, x.String())
	}
	slices.Sort(texts)
	return strings.Join(texts, " | ")
}

// balanced reports whether there are backends among them.
func (o outcomes) balanced() bool {
	for x := range o {
		if x.backend.IsValid() {
			return true
		}
	}
	return false
}

// certain reports whether no other outcome is to be expected than the one that was seen. A backend that
// is the node itself may look as if the packet were passed, and for SCTP as if nobody spoke it.
func (o outcomes) certain() bool {
	return o.are("dropped") || o.are("refused") || o.are("refused, reset") || o.are("passed")
}

func judge(p wire.Packet, f wire.Fate) outcome {
	out := outcome{class: "dropped"}
	at := f.Sent
	switch {
	case f.Local != nil: // that nobody listens there does not matter
		at, out.class = f.Local, "to the node"
	case f.Sent != nil:
		out.class = "to"
	case f.Refused:
		out.class = "refused"
		if f.Refusal != "icmp 3/3" && f.Refusal != "icmp 1/4" {
			out.class += ", " + f.Refusal
		}
	}
	switch {
	case at == nil:
	case at.Dst == p.Dst: // what becomes of its source is not about services
		out.class = map[string]string{"to": "passed", "to the node": "passed to the node"}[out.class]
	default:
		out.backend, out.masked = at.Dst, at.Src.Addr() != p.Src.Addr()
	}
	return out
}

// source is where probes come from.
type origin struct {
	name   string
	v4, v6 string // of one address; of many: a prefix
}

var sources = []origin{
	{"a pod", "10.244.1.64/26", "fd00:10:244:1::1:0/112"},
	{"the node", "192.0.2.1", "2001:db8::1"},
	{"the node's bridge", "10.244.1.1", "fd00:10:244:1::1"},
	{"another node", "192.0.2.9", "2001:db8::9"},
	{"another node's pod", "10.244.2.12", "fd00:10:244:2::12"},
	{"outside", "198.18.0.0/15", "2001:db8:51::1:0/112"},
	{"the office", "10.9.0.0/16", "fd09::1:0/112"},
	{"far away", "100.64.0.0/10", "2001:db8:5f::1:0/112"},
}

// probes lists connections that are likely to meet a service.
func (w *world) probes(c *cluster) (out []*probe) {
	for _, s := range c.services {
		for _, f := range frontends(s) {
			out = append(out, w.toFrontend(c, s, f)...)
		}
	}
	for range 4 { // cluster IPs that nobody has, or only now and then
		ipv4 := w.chance(50)
		a := addr(ipv4, "10.96.0.", "fd00:10:96::", 1+w.IntN(40))
		p := &probe{dst: netip.AddrPortFrom(netip.MustParseAddr(a), pick[uint16](w, 80, 443)), protocol: pick(w, wire.TCP, wire.UDP)}
		out = append(out, w.from(p, pick(w, sources...)))
	}
	for range 4 { // node ports likewise
		ipv4 := w.chance(50)
		p := &probe{dst: netip.AddrPortFrom(pick(w, wire.Own(ipv4)...), uint16(30000+w.IntN(10))), protocol: pick(w, wire.TCP, wire.UDP)}
		out = append(out, w.from(p, pick(w, sources...)))
	}
	for _, p := range out {
		p.resolve(c)
	}
	w.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	return out[:min(len(out), maxProbes)]
}

const maxProbes = 100

func (w *world) toFrontend(c *cluster, s *v1.Service, f frontend) (out []*probe) {
	addrs := []netip.Addr{}
	if f.addr == "" {
		addrs = append(addrs, wire.Own(f.ipv4)...)
		addrs = append(addrs, loopback(f.ipv4))
	} else {
		addrs = append(addrs, netip.MustParseAddr(f.addr))
	}
	for _, a := range addrs {
		if a.IsLoopback() {
			out = append(out, w.from(&probe{dst: netip.AddrPortFrom(a, f.number), protocol: f.protocol}, origin{"the node's loopback", "127.0.0.1", "::1"}))
			continue
		}
		to := &probe{dst: netip.AddrPortFrom(a, f.number), protocol: f.protocol}
		for _, i := range w.Perm(len(sources))[:3] {
			out = append(out, w.from(to, sources[i]))
		}
		if b := w.backendPod(c, s, f.ipv4); b.IsValid() {
			self := *to
			self.from, self.src = "a backend", b
			out = append(out, &self)
		}
		if w.chance(10) && f.kind == "load balancer" {
			self := *to
			self.from, self.src = "the same address", a
			if !slices.Contains(wire.Own(f.ipv4), a) {
				out = append(out, &self)
			}
		}
		if w.chance(25) && f.protocol != wire.SCTP { // another port; SCTP the kernel itself refuses in its own way
			near := &probe{dst: netip.AddrPortFrom(a, f.number+1), protocol: f.protocol}
			out = append(out, w.from(near, pick(w, sources...)))
		}
		if w.chance(25) { // the port in another protocol
			near := &probe{dst: to.dst, protocol: pick(w, wire.TCP, wire.UDP)}
			out = append(out, w.from(near, pick(w, sources...)))
		}
	}
	return out
}

// resolve notes whose the destination is in a cluster.
func (p *probe) resolve(c *cluster) {
	p.what, p.service, p.port = "nobody's", nil, nil
	if serviceCIDR(p.dst.Addr().Is4()).Contains(p.dst.Addr()) {
		p.what = "in the service range"
	}
	for _, node := range []bool{false, true} {
		for _, s := range c.services {
			for _, f := range frontends(s) {
				at := f.addr == p.dst.Addr().String()
				if node {
					at = f.addr == "" && f.ipv4 == p.dst.Addr().Is4() && (slices.Contains(wire.Own(f.ipv4), p.dst.Addr()) || p.dst.Addr().IsLoopback())
				}
				if at && f.number == p.dst.Port() && f.protocol == p.protocol && p.service == nil {
					p.what, p.service, p.port = f.kind, s, f.port
				}
			}
		}
	}
	// There are not so many pods on a node that none of them would have been here before and be remembered.
	p.many = p.many && !(p.sticky() && podCIDR(p.src.Is4()).Contains(p.src))
}

func loopback(ipv4 bool) netip.Addr {
	if ipv4 {
		return netip.MustParseAddr("127.0.0.1")
	}
	return netip.IPv6Loopback()
}

func (w *world) from(p *probe, s origin) *probe {
	q := *p
	q.from = s.name
	text := s.v6
	if p.dst.Addr().Is4() {
		text = s.v4
	}
	if q.many = strings.Contains(text, "/"); q.many {
		q.src = netip.MustParsePrefix(text).Addr()
	} else {
		q.src = netip.MustParseAddr(text)
	}
	return &q
}

// backendPod picks a pod of this node that the service's slices name.
func (w *world) backendPod(c *cluster, s *v1.Service, ipv4 bool) (a netip.Addr) {
	var pods []netip.Addr
	for _, e := range slicesOf(c, s) {
		for _, x := range e.Endpoints {
			if a, err := netip.ParseAddr(x.Addresses[0]); err == nil && a.Is4() == ipv4 && podCIDR(ipv4).Contains(a) {
				pods = append(pods, a)
			}
		}
	}
	if len(pods) == 0 {
		return a
	}
	return pick(w, pods...)
}

// seen keeps what packets of a plane's probes became.
type seen map[*probe]outcomes

// send sends each probe so many times, each from a port of its own, and sources that are many from
// addresses that no packet has come from yet.
func (r *run) send(pl *plane, s seen, times int, list ...*probe) {
	var packets []wire.Packet
	var of []*probe
	flush := func() {
		for i, f := range pl.SendAll(packets) {
			if s[of[i]] == nil {
				s[of[i]] = outcomes{}
			}
			s[of[i]][judge(packets[i], f)]++
		}
		r.packets += len(packets)
		packets, of = packets[:0], of[:0]
	}
	for _, p := range list {
		for range times {
			packets = append(packets, wire.Packet{Src: netip.AddrPortFrom(r.source(p), r.nextPort()), Dst: p.dst, Protocol: p.protocol})
			of = append(of, p)
			if len(packets) == 250 {
				flush()
			}
		}
	}
	if len(packets) > 0 {
		flush()
	}
}

func (r *run) nextPort() uint16 {
	r.port++
	return uint16(2000 + r.port%60000)
}

func (r *run) source(p *probe) netip.Addr {
	if !p.many {
		return p.src
	}
	r.client++
	b := p.src.AsSlice()
	low := 2
	if p.dst.Addr().Is4() && podCIDR(true).Contains(p.src) {
		low = 1
	}
	n := r.client
	for i := range low {
		b[len(b)-1-i] |= byte(n)
		n >>= 8
	}
	if low == 1 { // a prefix of 26 bits
		b[len(b)-1] = p.src.AsSlice()[len(b)-1] | byte(r.client)&63
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

func union(all []seen, p *probe) outcomes {
	u := outcomes{}
	for _, s := range all {
		maps.Copy(u, s[p])
	}
	return u
}
