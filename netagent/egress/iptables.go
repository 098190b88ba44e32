package egress

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/braidnet/braid/internal/desired"
	"github.com/braidnet/braid/internal/desired/xt"
)

// ChainPrefix begins the names of our iptables chains. Those of services begin with BRAID and a hyphen, and are theirs.
const ChainPrefix = "BRAID_"

// Chains of iptables.
const (
	chainMasquerade = ChainPrefix + "MASQUERADE"
	chainPods       = ChainPrefix + "PODS"
	chainTunnel     = ChainPrefix + "TUNNEL"
	chainInput      = ChainPrefix + "INPUT"
	chainForward    = ChainPrefix + "FORWARD"
)

// jumps say how packets get to our chains: to masquerading after others' (services mark what is theirs), and to what is dropped
// in the table that comes before filter, where policies and others accept.
var jumps = []jump{
	{"nat", "POSTROUTING", chainMasquerade, "-A POSTROUTING", "egress"},
	{"mangle", "INPUT", chainInput, "-I INPUT 1", "egress"},
	{"mangle", "FORWARD", chainForward, "-I FORWARD 1", "egress"},
}

type jump struct{ table, chain, to, add, why string }

const drop = "-j DROP"

func comment(text string) string { return xt.Comment("braid " + text) }

// from and to are empty for all addresses: iptables-save prints nothing then.
func from(p netip.Prefix) string { return address("-s ", p) }
func to(p netip.Prefix) string   { return address("-d ", p) }

func address(option string, p netip.Prefix) string {
	if p.Bits() == 0 {
		return ""
	}
	return option + p.String()
}

// of returns the prefixes of a family.
func (f family) of(list []netip.Prefix) (out []netip.Prefix) {
	for _, p := range list {
		if p.Addr().Is4() == (f.nft == desired.NFTIPv4) {
			out = append(out, p)
		}
	}
	return out
}

// chains returns our chains: table → chain → rules, in the words and the order of iptables-save.
func chains(nf desired.NFTFamily, r *Rules) xt.Saved {
	f, out := families[nf], xt.Saved{"nat": {}, "mangle": {}}
	masquerade := "-j MASQUERADE"
	if !r.SamePorts {
		masquerade += " --random-fully"
	}
	entry := []string{xt.Rule("-m mark --mark 0x4000/0x4000", comment("whoever marked it replaces the source"), "-j RETURN")}
	if pods := f.of(r.Pods); r.Masquerade && len(pods) > 0 {
		var list []string
		for _, p := range f.of(r.Own) {
			list = append(list, xt.Rule(to(p), comment("pods keep their address"), "-j RETURN"))
		}
		list = append(list, xt.Rule(to(f.multicast), comment("multicast"), "-j RETURN"))
		out["nat"][chainPods] = append(list, xt.Rule(comment("pods to the world outside"), masquerade))
		for _, p := range pods {
			entry = append(entry, xt.Rule(from(p), comment("pods of this node"), "-j "+chainPods))
		}
	}
	if cluster := f.of(r.Cluster); r.Overlay.Links != "" && len(cluster) > 0 {
		var list []string
		for _, p := range cluster {
			list = append(list, xt.Rule(from(p), comment("pods keep their address"), "-j RETURN"))
			entry = append(entry, xt.Rule(to(p), "-o "+r.Overlay.Links+"+", comment("by a tunnel"), "-j "+chainTunnel))
		}
		out["nat"][chainTunnel] = append(list, xt.Rule(comment("by a tunnel, only pods by their own addresses"), masquerade))
	}
	if len(entry) > 1 {
		out["nat"][chainMasquerade] = entry
	}
	if r.Guarded() {
		out["mangle"][chainInput], out["mangle"][chainForward] = f.kept(r, chainInput), f.kept(r, chainForward)
	}
	return out
}

// kept is what guard is in nftables.
func (f family) kept(r *Rules, chain string) (rules []string) {
	var kinds [][2]string // matches before and after those of addresses and devices
	for _, port := range r.Overlay.UDPPorts {
		kinds = append(kinds, [2]string{"-p udp", fmt.Sprintf("-m udp --dport %d", port)})
	}
	for _, p := range f.protocols(r.Overlay) {
		kinds = append(kinds, [2]string{fmt.Sprintf("-p %d", p), ""})
	}
	for _, kind := range kinds {
		add := func(addresses, more, why, verdict string) {
			rules = append(rules, xt.Rule(addresses, kind[0], kind[1], more, comment(why), verdict))
		}
		own := func(addresses, verdict string) {
			for _, p := range f.of(r.Pods) {
				add(xt.Rule(from(p), addresses), "", "a pod makes no packets of the overlay", verdict)
			}
			if r.Overlay.Tracked {
				add(addresses, "-m conntrack --ctstate DNAT", "no service leads to the overlay", verdict)
			}
		}
		if chain == chainInput {
			own("", drop)
			if r.Overlay.Links != "" {
				add("-i "+r.Overlay.Links+"+", "", "the overlay carries none of its own", drop)
			}
			continue
		}
		for _, p := range f.of(r.Nodes) {
			own(to(p), drop)
		}
		if !r.Overlay.Authentic {
			for _, p := range f.of(r.Cluster) {
				add(to(p), "", "between pods", "-j RETURN")
			}
			own("", drop)
		}
	}
	return rules
}

// Input returns what iptables-restore --noflush makes the family's rules these with, "" when the kernel has them. Only
// chains that differ are named.
func Input(nf desired.NFTFamily, r *Rules, kernel xt.Saved) string {
	want := chains(nf, r)
	var b strings.Builder
	for _, table := range []string{"nat", "mangle"} {
		var into []jump
		for _, j := range jumps {
			if j.table == table {
				into = append(into, j)
			}
		}
		b.WriteString(input(table, ChainPrefix, want[table], into, kernel[table]))
	}
	return b.String()
}

// input does so for the chains of one table whose names begin with a prefix.
func input(table, prefix string, want map[string][]string, into []jump, kernel map[string][]string) string {
	var declare, fill, remove []string
	for _, name := range xt.SortedNames(want) {
		if have, there := kernel[name]; !there || !xt.EqualRules(want[name], numbered(have)) {
			declare = append(declare, ":"+name+" - [0:0]") // made, or emptied
			for _, rule := range want[name] {
				fill = append(fill, "-A "+name+" "+rule)
			}
		}
	}
	for _, name := range xt.SortedNames(kernel) {
		if _, wanted := want[name]; strings.HasPrefix(name, prefix) && !wanted {
			declare, remove = append(declare, ":"+name+" - [0:0]"), append(remove, "-X "+name)
		}
	}
	lines := slices.Concat(declare, fill, entries(into, want, kernel), remove)
	if len(lines) == 0 {
		return ""
	}
	return "*" + table + "\n" + strings.Join(lines, "\n") + "\nCOMMIT\n"
}

// entries lists what makes exactly one rule lead to each chain that packets enter by, and none where there is no such chain.
func entries(into []jump, want, kernel map[string][]string) (lines []string) {
	for _, j := range into {
		rule := xt.Rule(comment(j.why), "-j "+j.to)
		_, wanted := want[j.to]
		var have []string
		for _, k := range kernel[j.chain] {
			if xt.LeadsTo(k) == j.to {
				have = append(have, k)
			}
		}
		if wanted && xt.EqualRules([]string{rule}, have) {
			continue
		}
		for _, k := range have {
			lines = append(lines, "-D "+j.chain+" "+k)
		}
		if wanted {
			lines = append(lines, j.add+" "+rule)
		}
	}
	return lines
}

// numbered writes protocols as numbers, which iptables-save does not where the machine has names for them.
func numbered(rules []string) (out []string) {
	for _, r := range rules {
		out = append(out, names.Replace(r))
	}
	return out
}

var names = strings.NewReplacer("-p ipencap ", "-p 4 ", "-p ipv4 ", "-p 4 ", "-p ipv6 ", "-p 41 ")
