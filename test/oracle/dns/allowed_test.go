package dns

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"
)

// difference is one that plugin/kubernetes/README.md announces. applies must check that our answer is
// the one that is announced, not only that the question is of a kind for which there is one.
type difference struct {
	reason  string
	applies func(*exchange) bool
}

var allowed = []difference{
	{"TXT of a name that exists is NODATA", func(x *exchange) bool {
		return x.q.typ == dns.TypeTXT && x.nodata() && x.sameAs(x.asked(strings.ToLower(x.q.name), dns.TypeHINFO))
	}},
	{"PTR of ns.dns is NODATA", func(x *exchange) bool {
		return x.q.typ == dns.TypePTR && x.nodata() && denied(x.stock) && strings.HasPrefix(strings.ToLower(x.q.name), "ns.dns.") && x.sameAs(x.asked(strings.ToLower(x.q.name), dns.TypeHINFO))
	}},
	{"a name between others is NODATA", func(x *exchange) bool {
		label, _, _ := strings.Cut(strings.ToLower(x.q.name), ".")
		if label == "dns" {
			return x.nodata() && denied(x.stock)
		}
		return strings.HasPrefix(label, "_") && x.nodata() && denied(x.stock) && !denied(x.asked("_."+x.q.name, dns.TypeA))
	}},
	{"what holds zone-scoped names is NODATA", func(x *exchange) bool {
		lower := strings.ToLower(x.q.name)
		for _, holder := range []string{"_zone.", "pin._zone.", "prefer._zone."} {
			if strings.HasPrefix(lower, holder) {
				_, below, _ := strings.Cut(lower, "_zone.")
				return x.nodata() && denied(x.stock) && !denied(x.asked("x.pin._zone."+below, dns.TypeA))
			}
		}
		return false
	}},
	{"a cluster in front of a service of a cluster set is NODATA", func(x *exchange) bool {
		label, rest, _ := strings.Cut(strings.ToLower(x.q.name), ".")
		return (label == "east" || label == "west") && strings.HasSuffix(rest, ".svc.clusterset.local.") && x.nodata() && denied(x.stock) && !denied(x.asked(rest, dns.TypeA))
	}},
	{"k8s_external refuses transfers without the transfer plugin", func(x *exchange) bool {
		return x.external() && (x.q.typ == dns.TypeAXFR || x.q.typ == dns.TypeIXFR) && x.ours.rcode == dns.RcodeRefused && len(x.ours.answer) == 0
	}},
	{"a load balancer's host is one CNAME, and none beside addresses", func(x *exchange) bool {
		return x.external() && isAddress(x.q.typ) && x.stock.rcode == x.ours.rcode && oneAlias(x.stock.answer, x.ours.answer)
	}},
	{"an external zone's name server has each address once", func(x *exchange) bool {
		lower := strings.ToLower(x.q.name)
		return x.external() && (x.q.typ == dns.TypeNS || strings.HasPrefix(lower, "ns1.dns.")) && sameFold(x.ours.answer, x.stock.answer) && sameFold(x.ours.extra, x.stock.extra)
	}},
	{"a load balancer's host is answered for CNAME", func(x *exchange) bool {
		a := x.asked(x.q.name, dns.TypeA)
		return x.external() && x.q.typ == dns.TypeCNAME && len(x.ours.answer) == 1 && len(x.stock.answer) == 0 && slices.Contains(a.answer, x.ours.answer[0])
	}},
	{"a load balancer's host has each address once in the additional section", func(x *exchange) bool {
		return x.external() && x.q.typ == dns.TypeSRV && slices.Equal(x.ours.answer, x.stock.answer) && sameFold(x.ours.extra, x.stock.extra)
	}},
	{"SOA of a name that does not exist is denied", func(x *exchange) bool {
		a := x.asked(x.q.name, dns.TypeHINFO)
		return x.q.typ == dns.TypeSOA && x.stock.rcode == dns.RcodeSuccess && len(x.stock.answer) == 0 && denied(x.ours) && denied(a) && x.ours.rcode == a.rcode
	}},
	{"an address of a pod may be written in any way", func(x *exchange) bool {
		return x.q.variant.verified && strings.Contains(strings.ToLower(x.q.name), ".pod.") && denied(x.stock) && !denied(x.ours) && canonicalPod(x)
	}},
	{"dns-version is NODATA for other types", func(x *exchange) bool {
		return x.nodata() && denied(x.stock) && strings.HasPrefix(strings.ToLower(x.q.name), "dns-version.") && len(x.asked(x.q.name, dns.TypeTXT).answer) == 1
	}},
	{"a reverse name is NODATA for other types than PTR", func(x *exchange) bool {
		q := x.q
		q.typ, q.tcp = dns.TypePTR, true
		return x.nodata() && x.q.typ != dns.TypePTR && strings.HasSuffix(strings.ToLower(x.q.name), ".arpa.") && len(newView(x.pair.ours.ask(q)).answer) > 0
	}},
	{"nothing has its name below the reverse name of an IPv6 address", func(x *exchange) bool {
		labels := dns.SplitDomainName(strings.ToLower(x.q.name))
		return x.q.typ == dns.TypePTR && len(labels) > 34 && labels[len(labels)-2] == "ip6" && len(x.stock.answer) > 0 && denied(x.ours)
	}},
	{"ns.dns of the root zone exists", func(x *exchange) bool {
		return strings.EqualFold(x.q.name, "ns.dns.") && x.nodata() && denied(x.stock)
	}},
	{"NS and ns.dns in mixed case", func(x *exchange) bool {
		lower := strings.ToLower(x.q.name)
		if lower == x.q.name || (x.q.typ != dns.TypeNS && !strings.HasPrefix(lower, "ns.dns.")) {
			return false
		}
		y := x
		if x.ours.tc { // what is dropped is arbitrary
			q := x.q
			q.tcp = true
			y = x.pair.ask(q)
		}
		return y.sameAs(x.asked(lower, x.q.typ)) // glue is not repeated, as below
	}},
	{"NS has each address once", func(x *exchange) bool {
		return x.q.typ == dns.TypeNS && len(x.ours.answer) > 0 && slices.Equal(x.ours.answer, x.stock.answer) && slices.Equal(x.ours.extra, slices.Compact(slices.Clone(x.stock.extra)))
	}},
	{"CNAME stays, and the outcome is its target's", func(x *exchange) bool { return isAddress(x.q.typ) && x.followsChain() }},
	{"slices of addressType FQDN are not read", func(x *exchange) bool {
		_, rest, ok := strings.Cut(strings.ToLower("."+x.q.name), ".fqdn.hand.svc.")
		if x.external() {
			return strings.HasSuffix(strings.ToLower("."+x.q.name), ".fqdn.hand."+externalZone) && denied(x.ours) && !denied(x.asked("fqdn.hand."+externalZone, dns.TypeA))
		}
		return ok && slices.Contains(x.q.variant.zones, max(rest, ".")) && denied(x.ours) && len(x.asked(x.q.name, dns.TypeCNAME).answer) == 1
	}},
	{"a terminating pod has its name, also after a restart", func(x *exchange) bool {
		return x.q.variant.verified && strings.Contains(strings.ToLower("."+x.q.name), ".10-244-83-3.hand.pod.") && denied(x.stock) && !denied(x.ours)
	}},
	{"what does not fit into UDP is arbitrary", func(x *exchange) bool {
		if x.q.tcp || x.stock.rcode != x.ours.rcode || x.stock.header != x.ours.header || x.stock.opt != x.ours.opt || !slices.Equal(x.stock.answer, x.ours.answer) {
			return false
		}
		q := x.q
		q.tcp = true
		y := x.pair.ask(q)
		return len(y.stock.diff(y.ours)) == 0 && y.stock.size > max(512, int(q.edns)) && len(y.stock.extra) > max(len(x.stock.extra), len(x.ours.extra))
	}},
}

// external reports whether k8s_external was asked.
func (x *exchange) external() bool {
	lower := strings.ToLower("." + x.q.name)
	return x.q.variant.external && (strings.HasSuffix(lower, "."+externalZone) || strings.HasSuffix(lower, ".2.0.192.in-addr.arpa."))
}

// oneAlias reports whether our answer is the stock one without repeated records and, where that has
// addresses of the name itself, without its aliases, else without all but one alias and what is behind.
func oneAlias(stock, ours []string) bool {
	aliases := 0
	for _, rr := range ours {
		if !slices.Contains(stock, rr) {
			return false
		}
		if strings.Contains(rr, " CNAME ") {
			aliases++
		}
	}
	stockAliases := 0
	for _, rr := range slices.Compact(slices.Clone(stock)) {
		if strings.Contains(rr, " CNAME ") {
			stockAliases++
		}
	}
	return stockAliases > 0 && aliases <= 1
}

func isAddress(typ uint16) bool { return typ == dns.TypeA || typ == dns.TypeAAAA }

// nodata reports whether our answer says that the name exists without such records.
func (x *exchange) nodata() bool {
	return x.ours.rcode == dns.RcodeSuccess && len(x.ours.answer) == 0 && len(x.ours.ns) == 1 && strings.Contains(x.ours.ns[0], " SOA ") && x.ours.opt == x.stock.opt
}

// denied reports whether an answer says that the name does not exist, or comes from what is behind
// the plugin: the zone that has every name, or nothing.
func denied(v view) bool {
	all := strings.Join(append(slices.Clone(v.answer), v.ns...), "\n")
	return v.rcode != dns.RcodeSuccess || strings.Contains(all, " NS ns.") || strings.Contains(all, " SOA ns.") && !strings.Contains(all, " SOA ns.dns.")
}

// canonicalPod reports whether our answer is that to the same pod's name with its address in canonical form.
func canonicalPod(x *exchange) bool {
	name := strings.ToLower(x.q.name)
	at := strings.LastIndex(name, ".pod.")
	labels := strings.Split(name[:at], ".")
	if len(labels) < 2 {
		return false
	}
	label, rest := labels[len(labels)-2], labels[len(labels)-1]+name[at:]
	a, err := netip.ParseAddr(strings.ReplaceAll(label, "-", ":"))
	canonical := ""
	if err == nil { // "fd00--0" is the form that endpoints have; CoreDNS knows that pod as "fd00--" only
		canonical = strings.ReplaceAll(a.String(), ":", "-")
	}
	if canonical == "" || canonical == label {
		return false
	}
	want := x.asked(canonical+"."+rest, x.q.typ)
	return !denied(want) && x.ours.rcode == want.rcode && len(x.ours.answer) == len(want.answer) && sameFold(x.ours.ns, want.ns)
}

func (x *exchange) sameAs(v view) bool {
	return x.ours.rcode == v.rcode && sameFold(x.ours.answer, v.answer) && sameFold(x.ours.ns, v.ns) && sameFold(x.ours.extra, v.extra)
}

func sameFold(a, b []string) bool {
	fold := func(list []string) (out []string) {
		for _, s := range list {
			out = append(out, strings.ToLower(s))
		}
		slices.Sort(out)
		return slices.Compact(out)
	}
	return slices.Equal(fold(a), fold(b))
}

// followsChain reports whether our answer is the chain of CNAMEs that the stock server gives one by
// one, followed by what it says of the last target.
func (x *exchange) followsChain() bool {
	var chain []string
	name := x.q.name
	for range 12 {
		v := x.asked(name, dns.TypeCNAME)
		if len(v.answer) != 1 || !strings.Contains(v.answer[0], " CNAME ") || strings.HasSuffix(strings.ToLower(name), ".example.net.") {
			if len(chain) == 0 {
				return false
			}
			end := x.asked(name, x.q.typ)
			return x.ours.rcode == end.rcode && sameFold(x.ours.answer, append(chain, end.answer...)) && sameFold(x.ours.ns, soas(end.ns))
		}
		chain = append(chain, v.answer[0])
		name = v.answer[0][strings.LastIndexByte(v.answer[0], ' ')+1:]
	}
	// It has no end, or is too long.
	return x.ours.rcode == dns.RcodeServerFailure && len(x.ours.answer) > 0
}

// soas leaves only what explains a negative answer.
func soas(list []string) []string {
	return slices.DeleteFunc(slices.Clone(list), func(s string) bool { return !strings.Contains(s, " SOA ") })
}
