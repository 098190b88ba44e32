package kubernetes

import (
	"math/rand/v2"
	"net/netip"
	"slices"

	"github.com/coredns/coredns/request"

	"github.com/braidnet/braid/internal/names"
)

// byDistance orders the endpoints of an answer for the client that asks: those of its own node first,
// then those of its zone, then the rest, each part in random order. Clients in no known place, and
// answers that are not endpoints, get the plain order.
func (k *Kubernetes) byDistance(state request.Request, targets []names.Target) []names.Target {
	if !k.cfg.nearest || len(targets) < 2 || !targets[0].IsEndpoint() || state.W == nil {
		return targets
	}
	a, err := netip.ParseAddr(state.IP())
	if err != nil {
		return targets
	}
	node, zone := k.index().Place(a.Unmap().WithZone(""))
	if node == "" {
		return targets
	}
	distance := func(t names.Target) int {
		switch {
		case t.Place().Node == node:
			return 0
		case t.Place().Zone == zone && zone != "":
			return 1
		}
		return 2
	}
	out := slices.Clone(targets)
	rand.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	slices.SortStableFunc(out, func(a, b names.Target) int { return distance(a) - distance(b) })
	return out
}

// warnOfNeighbours says which other plugins of the server block undo what an option does.
func (k *Kubernetes) warnOfNeighbours(has func(plugin string) bool) {
	if !k.cfg.nearest {
		return
	}
	if has("loadbalance") {
		log.Warningf("%s:%d: nearest has no effect beside loadbalance, which shuffles addresses: give the cluster's zones a server block without it", k.cfg.file, k.cfg.line)
	}
	if has("cache") {
		log.Warningf("%s:%d: cache gives one client's nearest addresses to the next: disable success in it for the cluster's zones", k.cfg.file, k.cfg.line)
	}
}
