package iptables

import (
	"fmt"
	"math"
	"net/netip"
	"time"

	"github.com/braidnet/braid/netagent/service"
)

// closure says how a frontend whose rules the tool refused is kept closed.
type closure uint8

const (
	open    closure = iota
	dropped         // in place of its own rules one that drops its packets
	absent          // not even that was taken: no rule at all
)

// inside returns what pods of this node and the node itself get in place of the frontend's backends,
// nil when that is the same.
func inside(f *service.Frontend) []service.Backend {
	if !f.Local() {
		return nil
	}
	return f.Inside
}

// sources returns the ranges of the frontend's own family: no packet to it comes from another.
func sources(f *service.Frontend) (list []netip.Prefix) {
	for _, p := range f.Sources {
		if p.Addr().Is4() == f.Addr.Is4() {
			list = append(list, p)
		}
	}
	return list
}

// translates reports whether any connection to the frontend has somewhere to go.
func translates(f *service.Frontend) bool {
	return (len(f.Backends) > 0 || len(inside(f)) > 0) && (!f.Filtered || len(sources(f)) > 0)
}

// frontendChains returns the chains of one frontend's own:
//
//	W  who may come: one rule for each range of source addresses (only when sources are filtered)
//	F  who is masqueraded, then one of the backends
//	I  the backends for pods of this node and the node itself, where they are others
//	B  one backend: masquerade it when it calls itself
func (f family) frontendChains(fe *service.Frontend) map[chainID][]string {
	out := map[chainID][]string{}
	text := label(fe)
	if translates(fe) {
		out[chainID{"nat", frontendChain(fe.Key)}] = append(f.masqueraded(fe, out), f.balance(fe, fe.Backends, out)...)
		if fe.Filtered {
			out[chainID{"nat", sourceChain(fe.Key)}] = sourceRules(fe, text, "-j "+frontendChain(fe.Key))
		}
	}
	if refusesSome(fe) {
		rules := sourceRules(fe, rule("-p "+protocol(fe.Protocol), text), f.reject(fe.Protocol))
		out[chainID{"filter", sourceChain(fe.Key)}] = append(rules, rule(text, "-j DROP"))
	}
	return out
}

func sourceRules(f *service.Frontend, match, target string) (rules []string) {
	for _, p := range sources(f) {
		rules = append(rules, rule(source(p), match, target))
	}
	return rules
}

// masqueraded returns the rules that decide who is masqueraded. With a short-cut, the mark also tells
// who is who: after chainForeign a packet without it is from a pod of this node.
func (f family) masqueraded(fe *service.Frontend, chains map[chainID][]string) []string {
	text := label(fe)
	switch {
	case fe.Masquerade == service.MasqueradeAll:
		return []string{rule(text, markMasquerade)}
	case !fe.Local():
		return []string{rule(text, "-j "+chainForeign)}
	case len(inside(fe)) == 0:
		return nil
	}
	short := insideChain(fe.Key)
	chains[chainID{"nat", short}] = f.balance(fe, inside(fe), chains)
	return []string{
		rule(text, "-j "+chainForeign),
		rule(text, unmarked, "-j "+short),
		rule(text, "-m addrtype --src-type LOCAL", "-j "+short),
		rule(text, markClear),
	}
}

// balance returns the rules that send a connection to one of the backends: the one that it went to
// before, else one at random. Backends that need more than one rule get a chain.
func (f family) balance(fe *service.Frontend, backends []service.Backend, chains map[chainID][]string) (rules []string) {
	text, proto := label(fe), "-p "+protocol(fe.Protocol)
	to := func(b service.Backend, when string) string {
		remember := ""
		if fe.Affinity > 0 {
			remember = f.recent(fe, b, "--set")
		}
		dnat := rule(remember, "-j DNAT --to-destination "+b.AddrPort.String())
		if !b.Local {
			return rule(proto, text, when, dnat)
		}
		own := backendChain(fe.Key, b)
		chains[chainID{"nat", own}] = []string{
			rule(source(host(b.Addr())), text, markMasquerade),
			rule(proto, text, dnat),
		}
		return rule(text, when, "-j "+own)
	}
	if fe.Affinity > 0 && len(backends) > 1 {
		for _, b := range backends {
			rules = append(rules, to(b, f.recent(fe, b, fmt.Sprintf("--rcheck --seconds %d --reap", seconds(fe.Affinity)))))
		}
	}
	for i, b := range backends {
		chance := ""
		if left := len(backends) - i; left > 1 {
			chance = probability(left)
		}
		rules = append(rules, to(b, chance))
	}
	return rules
}

// recent renders a look into, or an entry to, the list of clients of a backend. Lists belong to the
// kernel's match `recent`: they live as long as a rule names them, so a backend that left is forgotten,
// and a rewritten chain keeps them. A list holds the last 100 clients (the module's parameter
// ip_list_tot, which it takes only when it is loaded); who was pushed out is balanced anew. One of a client
// who used two frontends with different backends is on two lists, and the first in order counts.
func (f family) recent(fe *service.Frontend, b service.Backend, action string) string {
	return fmt.Sprintf("-m recent %s --name %s --mask %s --rsource", action, sessionList(fe, b), f.mask)
}

// seconds rounds up, since iptables counts whole seconds.
func seconds(d time.Duration) int64 {
	return min(int64(math.Ceil(d.Seconds())), math.MaxInt32)
}

// refusesSome reports whether the filter table must tell clients apart: those who may use the frontend
// are refused, since there is no endpoint, and others are dropped.
func refusesSome(f *service.Frontend) bool {
	return f.Filtered && len(sources(f)) > 0 && len(f.Backends) == 0 && f.Empty == service.Reject
}

// dispatch returns for each table the rule by which a packet finds the frontend, "" for none.
func (f family) dispatch(fe *service.Frontend, key string, state closure) map[string]string {
	n := f.addrNibbles
	if fe.Kind == service.NodePort {
		n = 0
	}
	// The words of pathMatch for a whole key, with the comment where iptables-save prints it.
	addr := ""
	if n > 0 {
		addr = pathMatch(key[:n], n)
	}
	match := rule(addr, "-p "+protocol(fe.Protocol), label(fe), portMatch(fe.Protocol, fe.Port, fe.Port))
	switch state {
	case dropped:
		return map[string]string{"filter": rule(match, "-j DROP")}
	case absent:
		return nil
	}
	out := map[string]string{}
	switch {
	case !translates(fe):
	case fe.Filtered:
		out["nat"] = rule(match, "-j "+sourceChain(fe.Key))
	default:
		out["nat"] = rule(match, "-j "+frontendChain(fe.Key))
	}
	switch {
	case refusesSome(fe):
		out["filter"] = rule(match, "-j "+sourceChain(fe.Key))
	case fe.Filtered, len(fe.Backends) == 0 && fe.Empty == service.Drop:
		out["filter"] = rule(match, "-j DROP")
	case len(fe.Backends) == 0:
		out["filter"] = rule(match, f.reject(fe.Protocol))
	}
	return out
}
