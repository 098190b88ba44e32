package egress

import (
	"net/netip"

	"github.com/braidnet/braid/internal/desired"
	"github.com/braidnet/braid/internal/desired/xt"
)

// ForwardPrefix begins the name of the iptables chain that lets pods' packets pass through the node. It is not one of those
// beginning with ChainPrefix, since it is needed whoever masquerades, and with what.
const ForwardPrefix = "BRAIDFWD-"

// ForwardChain is that chain.
const ForwardChain = ForwardPrefix + "PODS"

// ForwardTable is where it is, and ForwardEntry the kernel's chain that leads to it by a rule at its end: ours takes
// the place of that chain's policy, never that of a rule.
const (
	ForwardTable = "filter"
	ForwardEntry = "FORWARD"
)

// Forward returns the rules of that chain, in the words and the order of iptables-save; none for a family without pods.
// Where the node has a service proxy of ours, connections of services that lead elsewhere than to pods are among what is
// let through, as kube-proxy does.
func Forward(nf desired.NFTFamily, cluster []netip.Prefix, services bool) (rules []string) {
	f := families[nf]
	for _, p := range f.of(cluster) {
		rules = append(rules, xt.Rule(from(p), comment("from pods"), "-j ACCEPT"), xt.Rule(to(p), comment("to pods"), "-j ACCEPT"))
	}
	if len(rules) > 0 && services {
		rules = append(rules, xt.Rule("-m mark --mark 0x4000/0x4000", comment("masqueraded connections of services"), "-j ACCEPT"),
			xt.Rule("-m conntrack --ctstate RELATED,ESTABLISHED -m conntrack --ctstate DNAT", comment("translated connections"), "-j ACCEPT"))
	}
	return rules
}

// ForwardInput returns what iptables-restore --noflush makes the chain these rules with, and what leads to it; without
// rules it takes both away. It is "" when the kernel has it so.
func ForwardInput(rules []string, kernel xt.Saved) string {
	want := map[string][]string{}
	if len(rules) > 0 {
		want[ForwardChain] = rules
	}
	into := []jump{{ForwardTable, ForwardEntry, ForwardChain, "-A " + ForwardEntry, "pods pass whatever the policy"}}
	return input(ForwardTable, ForwardPrefix, want, into, kernel[ForwardTable])
}
