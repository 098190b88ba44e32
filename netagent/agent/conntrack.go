package agent

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/braidnet/braid/internal/kernel/conntrack"
	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/internal/reconcile"
	"github.com/braidnet/braid/netagent/service"
)

const (
	// cleanShare bounds what clean-ups cost while backends come and go all the time: one part of the
	// time in so many. What is stale meanwhile is collected for one reading of the table.
	cleanShare = 10
	// cleanCredit is how much of that time may be spent before it has passed: a few clean-ups, such as
	// those of a service whose pods are replaced one by one, wait for nothing.
	cleanCredit = 10 * time.Second
)

// flowKeeper ends flows that translation would no longer make. The kernel decides once, with the first
// packet, where a flow goes; a client of UDP or SCTP that keeps its source port stays with a backend
// that has gone, or with no translation at all from before there was a service, for as long as it
// sends. TCP is left alone: its connections end with their backends, as with kube-proxy; but for those
// that began while others had taken rules away, and never got an answer.
//
// It reads the kernel's table only when an endpoint stopped serving, a frontend went, or one got its
// first endpoint, or rules were repaired, and after the kernel has those that keep the flow from being
// made again.
type flowKeeper struct {
	planner *service.Planner
	conn    *conntrack.Conn
	metrics *proxyMetrics
	log     *slog.Logger
	kick    func()

	mu    sync.Mutex
	known map[service.Key][]netip.AddrPort // who may keep the flows of each frontend, as the kernel's rules have it
	owned map[model.Key][]service.Key      // the frontends of each Service
	stale map[service.Key]struct{}         // frontends whose flows have to be looked at

	// What follows is the step's alone.
	began   bool      // flows from before this agent were looked at
	paid    time.Time // when the share of the time that clean-ups took will have passed
	deleted int
	missing error // why this kernel cannot do it
	tuner   tuner
}

func newFlowKeeper(p *service.Planner, c Config, m *proxyMetrics) (*flowKeeper, error) {
	conn, err := conntrack.Open()
	if err != nil {
		return nil, err
	}
	return &flowKeeper{planner: p, conn: conn, metrics: m, log: c.Log, kick: func() {}, tuner: tuner{c.Conntrack, map[string]bool{}},
		known: map[service.Key][]netip.AddrPort{}, owned: map[model.Key][]service.Key{}, stale: map[service.Key]struct{}{}}, nil
}

// inForce says that the kernel has the state of these Services that the planner had at its last Flush.
// Until it returns there must be no other Flush.
func (k *flowKeeper) inForce(services map[model.Key]uint64) {
	k.mu.Lock()
	for svc := range services {
		k.compare(svc)
	}
	due := len(k.stale) > 0
	k.mu.Unlock()
	if due {
		k.kick()
	}
}

// repaired says that rules which others took away are there again. A flow of the time between may go past
// the services: one of UDP for as long as the client sends, one of TCP until the client gives up, and those
// after it that happen to have its port.
func (k *flowKeeper) repaired(frontends map[service.Key]struct{}) {
	k.mu.Lock()
	for f := range k.known {
		k.stale[f] = struct{}{}
	}
	for f := range frontends {
		if f.Protocol == model.TCP {
			k.stale[f] = struct{}{}
		}
	}
	due := len(k.stale) > 0
	k.mu.Unlock()
	if due {
		k.kick()
	}
}

// compare looks at the frontends that a Service has now or had before, and marks those that may have
// stale flows.
func (k *flowKeeper) compare(svc model.Key) {
	now := k.planner.Connectionless(svc)
	for _, f := range slices.Concat(k.owned[svc], now) {
		was, had := k.known[f]
		keep, have := k.planner.Serving(f) // of whoever has the address now: it may be another Service
		lost := slices.ContainsFunc(was, func(a netip.AddrPort) bool {
			_, kept := slices.BinarySearchFunc(keep, a, netip.AddrPort.Compare)
			return !kept
		})
		first := len(was) == 0 && len(keep) > 0
		if lost || first || had && !have || have && !k.began {
			k.stale[f] = struct{}{}
		}
		if have {
			k.known[f] = keep
		} else {
			delete(k.known, f)
		}
	}
	if len(now) == 0 {
		delete(k.owned, svc)
	} else {
		k.owned[svc] = now
	}
}

func (k *flowKeeper) step(ctx context.Context) (reconcile.Outcome, error) {
	if !waitUntil(ctx, k.paid.Add(-cleanCredit)) {
		return reconcile.Outcome{}, ctx.Err()
	}
	k.mu.Lock()
	stale, first := k.stale, !k.began
	k.stale, k.began = map[service.Key]struct{}{}, true
	k.mu.Unlock()
	if err := k.clean(stale, first); err != nil {
		k.mu.Lock()
		defer k.mu.Unlock()
		k.began = !first
		maps.Copy(k.stale, stale)
		return reconcile.Outcome{}, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	out := reconcile.Outcome{Summary: fmt.Sprintf("%d UDP and SCTP frontends watched, %d stale flows ended", len(k.known), k.deleted)}
	if out.Changes, out.Notes = k.tuner.tune(); len(out.Notes) > 0 {
		k.tuner.say(k.log, out.Notes)
	}
	if k.missing != nil {
		out.Notes = append(out.Notes, fmt.Sprintf("stale UDP and SCTP flows are not ended: this kernel has no nf_conntrack_netlink: %v", k.missing))
	}
	return out, nil
}

// waitUntil reports whether t came before the end of ctx.
func waitUntil(ctx context.Context, t time.Time) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(time.Until(t)):
		return true
	}
}

// clean ends the flows of stale frontends that must not go on; at first also those of services that went
// while no agent ran.
func (k *flowKeeper) clean(stale map[service.Key]struct{}, first bool) error {
	if k.missing != nil || len(stale) == 0 && !first {
		return nil
	}
	local, err := k.conn.LocalAddrs()
	if err != nil {
		return err
	}
	begin := time.Now()
	for _, protocol := range []model.Protocol{model.UDP, model.SCTP, model.TCP} {
		for _, ipv6 := range []bool{false, true} {
			s := newStaleFlows(protocol, ipv6, stale)
			s.local, s.serving = local, k.planner.Serving
			if first && protocol != model.TCP {
				s.pods = k.planner.Net().ClusterPods
			}
			if len(s.frontends)+len(s.pods) == 0 {
				continue
			}
			if err := k.cleanOne(&s); err != nil {
				return err
			}
		}
	}
	if k.paid.Before(begin) {
		k.paid = begin
	}
	k.paid = k.paid.Add(cleanShare * time.Since(begin))
	return nil
}

func (k *flowKeeper) cleanOne(s *staleFlows) error {
	begin := time.Now()
	n, err := k.conn.Delete(s.filter(), s.has)
	family := string(service.IPv4)
	if s.ipv6 {
		family = string(service.IPv6)
	}
	k.metrics.cleanTook.WithLabelValues(family).Observe(time.Since(begin).Seconds())
	k.metrics.cleaned.WithLabelValues(family).Add(float64(n))
	k.deleted += n
	if n > 0 {
		k.log.Info("ended flows whose backend or service has gone", "protocol", s.protocol.String(), "family", family, "flows", n, "frontends", len(s.frontends))
	}
	if err != nil && conntrack.Unsupported(err) {
		k.missing = err
		return nil
	}
	return err
}

// staleFlows says which entries of one protocol and family must not go on.
type staleFlows struct {
	protocol  model.Protocol
	ipv6      bool
	frontends map[netip.AddrPort]service.Key // by address; a node port's is unspecified
	local     map[netip.Addr]struct{}        // this node's addresses, where node ports are
	pods      []netip.Prefix                 // empty: only flows of the frontends above are asked for

	// serving is the planner's, which is never behind the kernel's rules. It is asked about each flow when that is read:
	// by then there are flows to backends, and of services, that came after the others had been marked.
	serving func(service.Key) (keep []netip.AddrPort, exists bool)
}

func newStaleFlows(protocol model.Protocol, ipv6 bool, stale map[service.Key]struct{}) staleFlows {
	s := staleFlows{protocol: protocol, ipv6: ipv6, frontends: map[netip.AddrPort]service.Key{}}
	for f := range stale {
		if f.Protocol == protocol && f.Addr.Is6() == ipv6 {
			s.frontends[netip.AddrPortFrom(f.Addr, f.Port)] = f
		}
	}
	return s
}

// filter is as narrow as all that is asked for allows.
func (s *staleFlows) filter() conntrack.Filter {
	f := conntrack.Filter{IPv6: s.ipv6, Protocol: uint8(s.protocol)}
	if len(s.pods) > 0 {
		return f
	}
	var addrs, ports []netip.AddrPort
	for at := range s.frontends {
		if !slices.ContainsFunc(addrs, func(x netip.AddrPort) bool { return x.Addr() == at.Addr() }) {
			addrs = append(addrs, at)
		}
		if !slices.ContainsFunc(ports, func(x netip.AddrPort) bool { return x.Port() == at.Port() }) {
			ports = append(ports, at)
		}
		if len(addrs) > 1 && len(ports) > 1 {
			return f
		}
	}
	if len(addrs) == 1 && !addrs[0].Addr().IsUnspecified() {
		f.Addr = addrs[0].Addr()
	}
	if len(ports) == 1 {
		f.Port = ports[0].Port()
	}
	return f
}

// has reports whether a flow must not go on.
func (s *staleFlows) has(f conntrack.Flow) bool {
	at, ok := s.frontends[f.Dst]
	if s.protocol == model.TCP {
		return ok && f.Answers == f.Dst && !f.Answered
	}
	_, local := s.local[f.Dst.Addr()]
	if !ok && local {
		any := netip.IPv4Unspecified()
		if s.ipv6 {
			any = netip.IPv6Unspecified()
		}
		at, ok = s.frontends[netip.AddrPortFrom(any, f.Dst.Port())]
	}
	if !ok {
		// A service address of which nobody knows any more. Whoever else translates to pods, such as
		// for host ports, does so from the node's own addresses.
		_, exists := s.serving(service.Key{Kind: service.ClusterIP, Protocol: s.protocol, Addr: f.Dst.Addr(), Port: f.Dst.Port()})
		return !exists && !local && f.Answers != f.Dst && slices.ContainsFunc(s.pods, func(p netip.Prefix) bool { return p.Contains(f.Answers.Addr()) })
	}
	keep, exists := s.serving(at)
	if !exists {
		return f.Answers != f.Dst // what was not translated is no flow of a service
	}
	_, kept := slices.BinarySearchFunc(keep, f.Answers, netip.AddrPort.Compare)
	return !kept
}
