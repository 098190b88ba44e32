package iptables

import (
	"net/netip"

	"github.com/braidnet/braid/internal/desired"
	"github.com/braidnet/braid/internal/desired/xt"
	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/netagent/service"
)

// The tables in the order in which they are written: what guards loopback addresses before any of them is
// served, and translation before refusal, so that a frontend that gets its first backend is translated before it
// stops being refused.
var tables = append([]string{"raw"}, FrontendTables...)

// FrontendTables are those in which frontends have rules.
var FrontendTables = []string{"nat", "filter"}

// family is all that differs between IPv4 and IPv6.
type family struct {
	ipv6        bool
	addrNibbles int
	loopback    netip.Prefix
	unreachable string // what REJECT answers where there is no connection to reset
	mask        string // of a single address, as the match `recent` takes it
}

func newFamily(ipv6 bool) family {
	if ipv6 {
		return family{true, 32, netip.MustParsePrefix("::1/128"), "icmp6-port-unreachable", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"}
	}
	return family{false, 8, netip.MustParsePrefix("127.0.0.0/8"), "icmp-port-unreachable", "255.255.255.255"}
}

// jump is a rule in a chain that is not ours.
type jump struct{ table, chain, rule string }

// untranslated is what enters the filter trees: the table is walked after translation, so a new
// connection whose destination was not replaced by then found no backend, or was not allowed to. One
// that somebody else translated is none of ours any more, whatever its address is now.
const untranslated = "-m conntrack --ctstate NEW -m conntrack ! --ctstate DNAT"

// invalid are segments of which connection tracking cannot tell the connection, so that they are not translated.
const invalid = "-p tcp -m conntrack --ctstate INVALID"

// jumps lists how packets get to our chains.
var jumps = []jump{
	{"nat", "PREROUTING", rule(comment("braid services"), "-j "+chainServices)},
	{"nat", "OUTPUT", rule(comment("braid services"), "-j "+chainServices)},
	{"nat", "POSTROUTING", rule(comment("braid masquerading"), "-j "+chainPostrouting)},
	{"filter", "INPUT", rule(invalid, comment("braid invalid packets"), "-j "+chainInvalid)},
	{"filter", "INPUT", rule(untranslated, comment("braid refused connections"), "-j "+chainServices)},
	{"filter", "FORWARD", rule(comment("braid forwarding"), "-j "+chainForward)},
	{"filter", "FORWARD", rule(untranslated, comment("braid refused connections"), "-j "+chainServices)},
	{"filter", "OUTPUT", rule(untranslated, comment("braid refused connections"), "-j "+chainServices)},
}

// Entrance is a rule of a chain of the kernel's that leads to a chain of ours.
type Entrance struct{ Chain, To string }

// Entrances are those that are there in any case, by table.
var Entrances = func() map[string][]Entrance {
	out := map[string][]Entrance{}
	for _, j := range jumps {
		out[j.table] = append(out[j.table], Entrance{j.chain, xt.LeadsTo(j.rule)})
	}
	return out
}()

// guard leads to what guards loopback addresses. Other than the jumps above it is there only where these are served.
var guard = jump{"raw", "PREROUTING", rule(comment("braid loopback addresses"), "-j "+chainLoopback)}

// loopbackRules keep everybody but the node itself from its loopback addresses. They come before connection tracking, so
// nobody's translation comes before them, and replies, which are not translated back yet, pass.
func (f family) loopbackRules() []string {
	return []string{
		rule(destination(f.loopback), "! -i lo", comment("braid from elsewhere"), "-j DROP"),
		rule(source(f.loopback), "! -i lo", comment("braid from elsewhere"), "-j DROP"),
	}
}

// chainID names a chain.
type chainID struct{ table, name string }

// skeleton returns the chains that do not depend on any frontend or address.
func (f family) skeleton() map[chainID][]string {
	return map[chainID][]string{
		{"nat", chainMasquerade}: {
			rule(comment("braid clear the mark"), markClear),
			rule(comment("braid masquerade"), masquerade),
		},
		{"filter", chainRefuse}: {
			rule("-p tcp", comment("braid refuse"), f.reject(model.TCP)),
			rule(comment("braid refuse"), f.reject(0)),
		},
		// The accepting rules matter on hosts whose FORWARD policy is DROP. They are about connections of
		// services alone: what else passes through the node is others' business.
		{"filter", chainForward}: {
			rule(invalid, comment("braid invalid packets"), "-j "+chainInvalid),
			rule(comment("braid masqueraded connections"), marked, "-j ACCEPT"),
			rule("-m conntrack --ctstate RELATED,ESTABLISHED -m conntrack --ctstate DNAT", comment("braid translated connections"), "-j ACCEPT"),
		},
	}
}

// netChains returns the chains that depend on addresses of the cluster and the node.
func (f family) netChains(net service.Net, liberal bool) map[chainID][]string {
	post := []string{rule(comment("braid masquerade marked"), marked, "-j "+chainMasquerade)}
	var foreign []string
	for _, p := range desired.Aggregate(f.own(net.PodSources())) {
		// The node's own address among its pods' is none of theirs.
		foreign = append(foreign, rule(source(p), comment("braid pods of this node"), "-m addrtype ! --src-type LOCAL", "-j RETURN"))
	}
	if name := net.Local.Link; name != "" {
		if net.Local.Prefix {
			name += "+"
		}
		foreign = append(foreign, rule("-i "+name, comment("braid pods of this node"), "-j RETURN"))
	}
	nodePorts := f.nodePorts(net.NodePorts, net.Loopback && !f.ipv6)
	refused := []string{
		rule(comment("braid service addresses"), "-j "+chainAddresses),
		rule(comment("braid cluster IPs"), "-j "+chainClusterIPs),
	}
	for _, p := range desired.Aggregate(f.own(net.Services)) {
		// Not an address of the node itself: should one lie in the range, the node still has to be reached.
		refused = append(refused, rule(destination(p), comment("braid no such cluster IP"), "-m addrtype ! --dst-type LOCAL", "-j DROP"))
	}
	return map[chainID][]string{
		{"nat", chainServices}:    append([]string{rule(comment("braid service addresses"), "-j "+chainAddresses)}, nodePorts...),
		{"filter", chainServices}: append(refused, nodePorts...),
		{"filter", chainInvalid}:  f.invalid(net, liberal),
		{"nat", chainPostrouting}: post,
		{"nat", chainForeign}:     append(foreign, rule(comment("braid mark for masquerading"), markMasquerade)),
	}
}

// invalid returns the rules for segments outside of the window of their connection. Such a segment is not
// translated: whoever gets it knows nothing of a connection with these addresses and resets it, which ends the real
// one (kubernetes/kubernetes#74839). They are dropped where the node sees both directions of what they
// belong to: from and to its own pods, and from any pod to itself (it may have lent its address). What
// it only routes, perhaps in one direction, is invalid for no fault of its own (kubernetes/kubernetes#94861).
func (f family) invalid(net service.Net, liberal bool) (rules []string) {
	if liberal {
		return nil
	}
	for _, p := range f.own(net.LocalPods) {
		rules = append(rules,
			rule(source(p), comment("braid from a pod of this node"), "-j DROP"),
			rule(destination(p), comment("braid to a pod of this node"), "-j DROP"))
	}
	for _, p := range desired.Aggregate(f.own(net.ClusterPods)) {
		rules = append(rules, rule(source(p), comment("braid from a pod to this node"), "-m addrtype --dst-type LOCAL", "-j DROP"))
	}
	for _, p := range desired.Aggregate(f.own(net.Services)) {
		rules = append(rules, rule(destination(p), comment("braid to a service"), "-j DROP"))
	}
	return rules
}

// nodePorts returns the rules that lead to node ports: those of the node's own addresses that lie in the
// ranges. A node port on a loopback address would be translated to a packet that the kernel refuses to
// route (martian) unless it is told to: see service.Net.Loopback. Without that, loopback addresses are left to
// whoever listens there.
func (f family) nodePorts(ranges []netip.Prefix, loopback bool) (rules []string) {
	own := desired.Aggregate(f.own(ranges))
	local := "-m addrtype --dst-type LOCAL"
	if !loopback && len(own) == 1 && own[0].Bits() == 0 {
		return []string{rule("! "+destination(f.loopback), comment("braid node ports"), local, "-j "+chainNodePorts)}
	}
	for _, p := range own {
		switch {
		case loopback || !p.Overlaps(f.loopback):
		case p.Bits() >= f.loopback.Bits():
			continue
		default: // the only range that has all of loopback in it, the ranges being disjoint
			rules = append(rules, rule(destination(f.loopback), comment("braid no node ports"), "-j RETURN"))
		}
		rules = append(rules, rule(destination(p), comment("braid node ports"), local, "-j "+chainNodePorts))
	}
	return rules
}

// reject refuses a connection: a reset for TCP, else an ICMP error.
func (f family) reject(p model.Protocol) string {
	if p == model.TCP {
		return "-j REJECT --reject-with tcp-reset"
	}
	return "-j REJECT --reject-with " + f.unreachable
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
