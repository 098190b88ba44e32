package iptables

import (
	"net/netip"
	"slices"

	"github.com/braidnet/braid/netagent/service"
)

// The tables in the order in which they are written: translation first, so that a frontend that gets
// its first backend is translated before it stops being refused.
var tables = []string{"nat", "filter"}

// family is all that differs between IPv4 and IPv6.
type family struct {
	ipv6        bool
	addrNibbles int
	loopback    netip.Prefix
	multicast   netip.Prefix
	unreachable string // what REJECT answers where there is no connection to reset
}

func newFamily(ipv6 bool) family {
	if ipv6 {
		return family{true, 32, netip.MustParsePrefix("::1/128"), netip.MustParsePrefix("ff00::/8"), "icmp6-port-unreachable"}
	}
	return family{false, 8, netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("224.0.0.0/4"), "icmp-port-unreachable"}
}

// jump is a rule in a chain that is not ours.
type jump struct{ table, chain, rule string }

// jumps lists how packets get to our chains. Only new connections may enter the filter tree.
var jumps = []jump{
	{"nat", "PREROUTING", rule(comment("braid services"), "-j "+chainServices)},
	{"nat", "OUTPUT", rule(comment("braid services"), "-j "+chainServices)},
	{"nat", "POSTROUTING", rule(comment("braid masquerading"), "-j "+chainPostrouting)},
	{"filter", "INPUT", rule("-m conntrack --ctstate NEW", comment("braid services without endpoints"), "-j "+chainServices)},
	{"filter", "FORWARD", rule("-m conntrack --ctstate NEW", comment("braid services without endpoints"), "-j "+chainServices)},
	{"filter", "OUTPUT", rule("-m conntrack --ctstate NEW", comment("braid services without endpoints"), "-j "+chainServices)},
}

// chainID names a chain.
type chainID struct{ table, name string }

// skeleton returns the chains that do not depend on any frontend or address.
func (f family) skeleton() map[chainID][]string {
	out := map[chainID][]string{
		{"nat", chainMasquerade}: {
			rule(comment("braid clear the mark"), markClear),
			rule(comment("braid masquerade"), masquerade),
		},
	}
	for _, t := range tables {
		out[chainID{t, chainServices}] = []string{
			rule(comment("braid service addresses"), "-j "+chainAddresses),
			// A node port on a loopback address would be translated to a packet that the kernel
			// refuses to route (martian), so it is left to whoever listens there.
			rule("! "+destination(f.loopback), comment("braid node ports"), "-m addrtype --dst-type LOCAL", "-j "+chainNodePorts),
		}
	}
	return out
}

// netChains returns the chains that depend on pod addresses.
func (f family) netChains(net service.Net) map[chainID][]string {
	local, cluster := f.own(net.LocalPods), aggregate(f.own(net.ClusterPods))
	post := []string{rule(comment("braid masquerade marked"), marked, "-j "+chainMasquerade)}
	var foreign, outside []string
	for _, p := range local {
		post = append(post, rule(source(p), comment("braid pods of this node"), "-j "+chainOutside))
		foreign = append(foreign, rule(source(p), comment("braid pods of this node"), "-j RETURN"))
	}
	for _, p := range cluster {
		outside = append(outside, rule(destination(p), comment("braid pods keep their address"), "-j RETURN"))
	}
	return map[chainID][]string{
		{"nat", chainPostrouting}: post,
		{"nat", chainForeign}:     append(foreign, rule(comment("braid mark for masquerading"), markMasquerade)),
		{"nat", chainOutside}: append(outside,
			rule(destination(f.multicast), comment("braid multicast"), "-j RETURN"),
			rule(comment("braid pods to the outside"), masquerade)),
	}
}

// own returns the prefixes of the family.
func (f family) own(list []netip.Prefix) (out []netip.Prefix) {
	for _, p := range list {
		if p.Addr().Is4() != f.ipv6 {
			out = append(out, p.Masked())
		}
	}
	return out
}

// aggregate returns the fewest prefixes that cover exactly the same addresses, sorted: a thousand
// nodes with neighbouring pod CIDRs cost a packet a few rules, not a thousand.
func aggregate(list []netip.Prefix) []netip.Prefix {
	list = slices.Clone(list)
	slices.SortFunc(list, func(a, b netip.Prefix) int {
		if c := a.Addr().Compare(b.Addr()); c != 0 {
			return c
		}
		return a.Bits() - b.Bits()
	})
	var out []netip.Prefix
	for _, p := range list {
		if n := len(out); n > 0 && out[n-1].Contains(p.Addr()) {
			continue // sorted, so the shorter of two nested prefixes came first
		}
		out = append(out, p)
		for len(out) > 1 {
			a, b := out[len(out)-2], out[len(out)-1]
			if a.Bits() != b.Bits() || a.Bits() == 0 {
				break
			}
			parent := netip.PrefixFrom(a.Addr(), a.Bits()-1).Masked()
			if parent.Addr() != a.Addr() || !parent.Contains(b.Addr()) {
				break
			}
			out = append(out[:len(out)-2], parent)
		}
	}
	return out
}

// frontendChains returns the chains of one frontend's own. The first is the one dispatch leads to;
// a frontend without backends has none.
func frontendChains(f *service.Frontend) map[chainID][]string {
	if len(f.Backends) == 0 {
		return nil
	}
	out := map[chainID][]string{}
	text, proto := label(f), "-p "+protocol(f.Protocol)
	var rules []string
	if f.Masquerade == service.MasqueradeAll {
		rules = append(rules, rule(text, markMasquerade))
	} else {
		rules = append(rules, rule(text, "-j "+chainForeign))
	}
	for i, b := range f.Backends {
		chance := ""
		if left := len(f.Backends) - i; left > 1 {
			chance = probability(left)
		}
		dnat := "-j DNAT --to-destination " + b.AddrPort.String()
		if !b.Local {
			rules = append(rules, rule(proto, text, chance, dnat))
			continue
		}
		own := backendChain(f.Key, b)
		rules = append(rules, rule(text, chance, "-j "+own))
		out[chainID{"nat", own}] = []string{
			rule(source(host(b.Addr())), text, markMasquerade),
			rule(proto, text, dnat),
		}
	}
	out[chainID{"nat", frontendChain(f.Key)}] = rules
	return out
}

// dispatchRule returns the table whose tree leads to a frontend and the rule at its end.
func (f family) dispatchRule(fe *service.Frontend, key string) (table, r string) {
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
	switch {
	case len(fe.Backends) > 0:
		return "nat", rule(match, "-j "+frontendChain(fe.Key))
	case fe.Empty == service.Drop:
		return "filter", rule(match, "-j DROP")
	case protocol(fe.Protocol) == "tcp":
		return "filter", rule(match, "-j REJECT --reject-with tcp-reset")
	}
	return "filter", rule(match, "-j REJECT --reject-with "+f.unreachable)
}
