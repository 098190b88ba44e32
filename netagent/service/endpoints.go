package service

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/braidnet/braid/internal/model"
)

// labelZone is the well-known label that says in which zone a node is.
const labelZone = "topology.kubernetes.io/zone"

// endpoint is one address and port that could serve a service port.
type endpoint struct {
	addr                        netip.AddrPort
	ready, serving, terminating bool
	local                       bool
	nearby                      bool // local, or perhaps: the slice names no node, as those made by hand often do not
	hintNodes, hintZones        []string
}

// leaving reports whether the endpoint still answers while its pod ends: the last resort when no
// endpoint is ready (KEP-1669).
func (e *endpoint) leaving() bool { return e.serving && e.terminating }

// better orders two sightings of one address: during a move between slices both exist for a while,
// and the one that says more in favour of the endpoint counts.
func (e *endpoint) better(than *endpoint) bool {
	if e.ready != than.ready {
		return e.ready
	}
	if e.leaving() != than.leaving() {
		return e.leaving()
	}
	return e.local && !than.local
}

// pool is everything a service's slices say about one port in one family.
type pool struct {
	family    string // "IPv4" or "IPv6", for texts
	port      *model.ServicePort
	slices    int        // slices of the family
	listed    int        // endpoints in them, with or without the port
	endpoints []endpoint // with the port; distinct, sorted by address
}

// gather reads the pool of one port from slices, which must be sorted by name so that ties between
// equal sightings of an address are decided the same way each time. A slice names its ports itself,
// so one service port may have different numbers in different slices.
func gather(list []*model.EndpointSlice, ipv6 bool, port *model.ServicePort, at *place) pool {
	p := pool{family: "IPv4", port: port}
	if ipv6 {
		p.family = "IPv6"
	}
	seen := map[netip.AddrPort]int{}
	for _, s := range list {
		if s.IPv6 != ipv6 {
			continue
		}
		p.slices++
		p.listed += len(s.Endpoints)
		number := slicePort(s, port)
		if number == 0 {
			continue
		}
		for i := range s.Endpoints {
			e, ok := newEndpoint(&s.Endpoints[i], number, at)
			if !ok {
				continue
			}
			at, dup := seen[e.addr]
			switch {
			case !dup:
				seen[e.addr] = len(p.endpoints)
				p.endpoints = append(p.endpoints, e)
			case e.better(&p.endpoints[at]):
				p.endpoints[at] = e
			}
		}
	}
	slices.SortFunc(p.endpoints, func(a, b endpoint) int { return a.addr.Compare(b.addr) })
	return p
}

// slicePort returns the slice's number for a service port, 0 when it has none.
func slicePort(s *model.EndpointSlice, port *model.ServicePort) uint16 {
	for _, p := range s.Ports {
		if p.Name == port.Name && p.Protocol == port.Protocol {
			return p.Port
		}
	}
	return 0
}

func newEndpoint(e *model.Endpoint, port uint16, at *place) (endpoint, bool) {
	if len(e.Addrs) == 0 {
		return endpoint{}, false
	}
	return endpoint{
		addr:        netip.AddrPortFrom(e.Addrs[0], port),
		ready:       e.Ready,
		serving:     e.Serving,
		terminating: e.Terminating,
		local:       e.Node != "" && e.Node == at.Node,
		nearby:      e.Node == at.Node || e.Node == "" && at.mayHold(e.Addrs[0]),
		hintNodes:   e.HintNodes,
		hintZones:   e.HintZones,
	}, true
}

// choice is the outcome for a frontend: backends, or what to do and why there are none.
type choice struct {
	backends []Backend
	empty    Empty
	why      string
}

// cluster chooses under traffic policy Cluster: ready endpoints that the hints allow, else those that
// still serve while they terminate.
func (p *pool) cluster(node, zone string) choice {
	ready := filter(p.endpoints, func(e *endpoint) bool { return e.ready })
	use := filter(ready, hinted(ready, node, zone))
	if len(use) == 0 {
		use = filter(p.endpoints, (*endpoint).leaving)
	}
	if len(use) == 0 {
		return choice{empty: Reject, why: p.why()}
	}
	return choice{backends: backends(use)}
}

// local chooses under internalTrafficPolicy Local: hints never apply to it. A service that only has
// endpoints elsewhere is dropped, so that the client tries again until one is here, not refused.
func (p *pool) local(field string) choice {
	use := filter(p.endpoints, func(e *endpoint) bool { return e.ready && e.local })
	if len(use) == 0 {
		use = filter(p.endpoints, func(e *endpoint) bool { return e.leaving() && e.local })
	}
	if len(use) > 0 {
		return choice{backends: backends(use)}
	}
	elsewhere := filter(p.endpoints, func(e *endpoint) bool { return e.ready || e.leaving() })
	if len(elsewhere) == 0 {
		return choice{empty: Reject, why: p.why()}
	}
	return choice{empty: Drop, why: fmt.Sprintf("%s on other nodes, none on this one (%s: Local)", count(len(elsewhere), "endpoint"), field)}
}

// hinted returns which ready endpoints trafficDistribution leaves to this node. Node hints count only
// when every ready endpoint has some and one of them names the node, then zone hints by the same
// rule; a partial set of hints is no set, since following it could overload the few that have them.
func hinted(ready []endpoint, node, zone string) func(*endpoint) bool {
	byNode := func(e *endpoint) []string { return e.hintNodes }
	byZone := func(e *endpoint) []string { return e.hintZones }
	if complete(ready, byNode, node) {
		return func(e *endpoint) bool { return slices.Contains(e.hintNodes, node) }
	}
	if complete(ready, byZone, zone) {
		return func(e *endpoint) bool { return slices.Contains(e.hintZones, zone) }
	}
	return func(*endpoint) bool { return true }
}

func complete(ready []endpoint, hints func(*endpoint) []string, want string) bool {
	if want == "" {
		return false
	}
	found := false
	for i := range ready {
		h := hints(&ready[i])
		if len(h) == 0 {
			return false
		}
		found = found || slices.Contains(h, want)
	}
	return found
}

// why says for people what keeps the pool from having a usable endpoint.
func (p *pool) why() string {
	switch {
	case p.slices == 0:
		return fmt.Sprintf("no endpoints: no %s EndpointSlice names the service", p.family)
	case p.listed == 0:
		return fmt.Sprintf("no endpoints: %s of the service %s empty, its selector matches no pod with an address",
			count(p.slices, p.family+" EndpointSlice"), isAre(p.slices))
	case len(p.endpoints) == 0:
		name := "without a name"
		if p.port.Name != "" {
			name = fmt.Sprintf("named %q", p.port.Name)
		}
		return fmt.Sprintf("%s, none with a %s port %s", count(p.listed, "endpoint"), p.port.Protocol, name)
	}
	ending := len(filter(p.endpoints, func(e *endpoint) bool { return e.terminating }))
	if ending > 0 {
		return fmt.Sprintf("%s, none ready (%d terminating)", count(len(p.endpoints), "endpoint"), ending)
	}
	return fmt.Sprintf("%s, none ready", count(len(p.endpoints), "endpoint"))
}

func filter(list []endpoint, keep func(*endpoint) bool) []endpoint {
	var out []endpoint
	for i := range list {
		if keep(&list[i]) {
			out = append(out, list[i])
		}
	}
	return out
}

// backends keeps the order of the pool: sorted by address.
func backends(list []endpoint) []Backend {
	out := make([]Backend, len(list))
	for i, e := range list {
		out[i] = Backend{AddrPort: e.addr, Local: e.nearby}
	}
	return out
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func isAre(n int) string {
	if n == 1 {
		return "is"
	}
	return "are"
}

func compareNames(a, b model.Key) int {
	return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}
