package cni

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// intended is a difference between ours (a) and the reference (b) that we want. applies must check what was seen
// here and there, not only that it is of a kind for which there is a difference.
type intended struct {
	name, reason string
	applies      func(*difference) bool
}

// fullLength is for how many cases each intended difference must have come.
const fullLength = 600

var intendeds = []intended{
	{"addresses without a network", "a pod has no neighbour but its gateway: all it sends passes the node's services and policies",
		func(d *difference) bool {
			return d.is(`result ip \d+`) && hostAddress(d.b) == d.a || d.is(`(pod\d|elsewhere) address .*`) && full(d.a) && !full(d.b) && tentative(d.a) == tentative(d.b)
		}},
	{"a route to the gateway in place of one to the subnet", "as above",
		func(d *difference) bool {
			dst, err := netip.ParsePrefix(d.last())
			if err != nil || !d.is(`(pod\d|elsewhere|result) route .*`) {
				return false
			}
			if dst.IsSingleIP() {
				_, own := d.ours[strings.Fields(d.name)[0]+" address "+dst.Addr().String()] // which the kernel has for IPv6
				return (d.gateways()[dst.Addr()].IsValid() || own) && d.b == "" && (d.a == "on the link" || d.a == "scope 253")
			}
			for gateway, subnet := range d.gateways() {
				if subnet != dst {
					continue
				}
				if d.network.is("isGateway") && !d.network.is("isDefaultGateway") && d.a == "via "+gateway.String() {
					return d.b == "on the link" || d.b == "" && strings.HasPrefix(d.name, "result ")
				}
				if d.a == "" && d.b == "on the link" {
					return true
				}
			}
			return false
		}},
	{"a default route and a gateway, whatever is asked for", "without them a pod has no network at all here",
		func(d *difference) bool {
			switch {
			case d.network.is("isDefaultGateway") || d.network.is("isGateway"):
				return false
			case d.question():
				return unanswered(d.b) && !unanswered(d.a) || d.b == "no way" && d.a == "refused" // by the node, which can be asked now
			case d.is("node sysctl .*forward.*"):
				return d.a == "1" && d.b == "0"
			}
			return d.b == "" && (d.is("bridge address .*") && d.gateway() || d.is(`(pod\d|elsewhere|result) route (0.0.0.0|::)/0`) && strings.HasPrefix(d.a, "via"))
		}},
	{"the gateways of all ranges of a list", "the next pod may get an address of another one",
		func(d *difference) bool {
			return d.is("bridge address .*") && d.gateway() && d.a == "there" && d.b == ""
		}},
	{"loopback is up", "the reference has a plugin for that",
		func(d *difference) bool {
			pod, _, _ := strings.Cut(d.name, " ")
			return d.question() && d.b == "silence" && strings.HasPrefix(d.a, pod+":") && strings.HasSuffix(d.a, d.destination())
		}},
	{"[::1] refuses", "no connection from there can reach a pod: clients go on to 127.0.0.1 at once",
		func(d *difference) bool {
			return !d.Kept && d.is(`node \w+ to \[::1\].*`) && d.a == "refused" && (d.b == "silence" || d.b == "no way")
		}},
	{"the bridge keeps its MTU", "the kernel goes by the ports else, of which there may be none",
		func(d *difference) bool {
			return d.is("bridge") && d.ours["node link 0"] == "" && strings.Contains(d.a, "mtu "+number(d.Bridge["mtu"])+" ") &&
				strings.Replace(d.b, "mtu 1500", "mtu "+number(d.Bridge["mtu"]), 1) == d.a
		}},
	{"what ipam.routes say of a route", "mtu and advmss are in force and not in the result only, and those of a default route are not lost beside another one",
		func(d *difference) bool {
			return d.is(`(pod\d|elsewhere|result) route .*`) && d.Version == "1.1.0" && bare(d.b) != "" && d.a == bare(d.b)+d.routeWords(d.last())
		}},
	{"routes in the result with their gateway", "the specification leaves it to the plugin to say which one it is",
		func(d *difference) bool {
			a, err := netip.ParseAddr(strings.TrimPrefix(bare(d.a), "via "))
			return d.is("result route .*") && bare(d.b) == "via <nil>" && err == nil && d.gateways()[a].IsValid() && d.a == bare(d.a)+d.routeWords(d.last())
		}},
	{"the MTU in the result", "version 1.1.0 of the specification has a field for it",
		func(d *difference) bool {
			return d.Version == "1.1.0" && d.is(`result interface \d+ mtu`) && d.b == "" && d.a != "" && d.a == number(d.Bridge["mtu"])
		}},
	{"ports in hairpin mode", "so that a pod reaches itself through a service, also where br_netfilter has the bridge do that",
		func(d *difference) bool {
			pod, _, _ := strings.Cut(d.name, " ")
			return d.is(`node link \d+`) && strings.Replace(d.b, "hairpin false", "hairpin true", 1) == d.a ||
				d.question() && !d.network.is("hairpinMode") && d.b == "silence" && strings.HasPrefix(d.a, pod+":")
		}},
	{"IPv6 addresses are announced, too", "as those of IPv4 are by both, when the interface comes up again",
		func(d *difference) bool {
			return d.is(`\w+ sysctl net/ipv6/conf/eth0/ndisc_notify`) && d.a == "1" && d.b == "0"
		}},
	{"router advertisements are refused", "any pod could make itself the others' gateway (CVE-2020-10749)",
		func(d *difference) bool {
			return d.is(`\w+ sysctl net/ipv6/conf/eth0/accept_ra`) && d.a == "0" && d.b == "1"
		}},
	{"a default route that is also in ipam.routes", "it is made once",
		func(d *difference) bool {
			return d.onlyTheirsFailed("failed to add route .*file exists") && d.network.is("isDefaultGateway")
		}},
	{"what Kubernetes says in CNI_ARGS is known", "it need not say that the rest is to be ignored",
		func(d *difference) bool {
			refused := regexp.MustCompile("unknown args .*K8S_POD_")
			if d.onlyTheirsFailed("unknown args .*K8S_POD_") {
				return true
			}
			if !refused.MatchString(d.theirs["error"]) {
				return false
			}
			// In ours a plugin that comes after it may refuse, and what it found stays until the runtime calls DEL; or another pod has
			// the host port: an address was reserved and given back.
			return refused.MatchString(d.ours["error"]) || strings.Contains(d.ours["error"], "host port") && d.is(`disk last_reserved_ip\.\d+`)
		}},
	{"a plugin that changes the hardware address", "tuning heeds CNI_ARGS, and cuts off a pod that anti-spoofing keeps to another address",
		func(d *difference) bool {
			return d.question() && d.has("tuning") && unanswered(d.a) && slices.ContainsFunc(d.Pods[:], func(r request) bool {
				return r.Caps["mac"] != nil && slices.ContainsFunc(r.Args, func(a [2]string) bool { return a[0] == "MAC" })
			})
		}},
	{"an address before any", "a host port of one address is that pod's, whoever came first (CVE-2025-67499)",
		func(d *difference) bool {
			itself := d.b == "silence" && !d.network.is("hairpinMode") && d.is(`pod\d .*`) // has the port of any address
			return d.question() && !d.Kept && d.exact(d.a) && !d.exact(d.b) && (!unanswered(d.b) || itself)
		}},
	{"a host port has one pod", "the reference gives it to the first and lets the second believe it has it",
		func(d *difference) bool { return d.onlyOursFailed("host port .* belongs to pod") }},
	{"an MTU that cannot be", "the reference leaves it out in silence",
		func(d *difference) bool { return d.onlyOursFailed("mtu is -5") }},
	{"a gateway's address on a bridge that has lost its ports", "until the next comes its hardware address is zero, which the reference reads and then sets",
		func(d *difference) bool { return d.onlyTheirsFailed("could not set bridge's mac: invalid argument") }},
	{"forceAddress with two ranges of a family", "the reference takes the gateway of the first away again, and nobody reaches pods that have addresses of it",
		func(d *difference) bool {
			count := map[bool]int{}
			for gateway := range d.gateways() {
				count[gateway.Is4()]++
			}
			return d.network.is("forceAddress") && max(count[true], count[false]) > 1 && d.question() && unanswered(d.b) && !unanswered(d.a)
		}},
	{"ipMasq of two addresses of a family", "the reference has one chain for both, and cannot remove it when it has removed the first one's rule",
		func(d *difference) bool {
			return d.network.is("ipMasq") && strings.HasPrefix(d.Verb, del) && d.onlyTheirsFailed("CHAIN_DEL failed .*busy|Directory not empty|Too many links")
		}},
	{"two gateways of IPv4", "a bridge can have several addresses; forceAddress would take away the one that pods use",
		func(d *difference) bool {
			return d.onlyTheirsFailed("already has an IP address different from")
		}},
	{"what is wrong has a code", "runtimes can tell what will never work (7) from what may work later (11)",
		func(d *difference) bool {
			return d.is("code") && d.ours["failed"] == "yes" && d.b == "999" && slices.Contains([]string{"4", "7", "11", "100"}, d.a)
		}},
	{"an ADD that fails leaves nothing", "else the interface stays in the pod, and the port on the bridge",
		func(d *difference) bool {
			both := d.ours["failed"] == "yes" && d.theirs["failed"] == "yes"
			if d.is("bridge( .*)?") && d.a == "" && d.before[d.name] == "" && d.Verb != add {
				return d.ours["node link 0"] == "" // nor has anything else been made since
			}
			unchanged := d.a == d.before[d.name] || d.is("node sysctl .*") && d.a == "0" // as every case begins
			return both && strings.HasPrefix(d.Verb, add) && !d.is("code|result .*") && unchanged
		}},
	{"DEL with a configuration that has become wrong", "a pod must be removable all the same, else its address is lost",
		func(d *difference) bool {
			return d.Wrong != "" && strings.HasPrefix(d.Verb, del) && d.onlyTheirsFailed("")
		}},
	{"DEL without a namespace removes the interface", "its name follows from the container's id; the reference waits for the namespace to end",
		func(d *difference) bool {
			return (d.Verb == delNowhere || d.Verb == delGone) && (d.a == "" && d.is(fmt.Sprintf(`(pod%d|node link)\b.*`, d.Pod)) || d.movedUp())
		}},
	{"GC", "the reference has none, and leaves it to the runtime's notes",
		func(d *difference) bool {
			if pod, err := strconv.Atoi(strings.TrimPrefix(strings.Fields(d.name)[0], "pod")); err == nil && slices.Contains(d.Keep, pod) {
				return false
			}
			return d.Verb == gc && (d.a == "" && d.is(`(pod\d|node link|disk [0-9a-f]+[.:])\b.*`) || d.movedUp())
		}},
	{"pods keep their address on the way to host ports", "as on the way to services; only a pod that reaches itself has to be masqueraded",
		func(d *difference) bool {
			to, from, _ := strings.Cut(d.a, " from ")
			_, err := netip.ParseAddr(from)
			return d.question() && d.is(`pod\d .*`) && err == nil && strings.HasPrefix(d.b, to+" from ") && d.ours.pod(from) == d.name[:4] && d.ours.pod(strings.TrimPrefix(d.b, to+" from ")) == ""
		}},
	{"devices for bandwidth are not in the result", "they are nobody's interface",
		func(d *difference) bool {
			return d.is(`result interface \d+`) && d.a == "" && strings.HasPrefix(d.b, "bwp")
		}},
	{"no lock without reservations", "DEL and refused calls make no folder",
		func(d *difference) bool { return d.is("disk lock") && d.a == "" }},
	{"host ports that cannot be", "what is no address, or one port twice: refused, where the reference leaves out one in silence",
		func(d *difference) bool { return d.onlyOursFailed("expected each once|hostIP is .here.") }},
}

func intendedName(d *difference) string {
	for _, x := range intendeds {
		if x.applies(d) {
			return x.name
		}
	}
	return ""
}

// is tells whether the name is like a regular expression.
func (d *difference) is(pattern string) bool {
	return regexp.MustCompile("^(?:" + pattern + ")$").MatchString(d.name)
}

// exact tells whether an answer comes from where a mapping for the very address leads.
func (d *difference) exact(answer string) bool {
	at, _ := netip.ParseAddrPort(d.last())
	for i := range d.Pods {
		for _, m := range d.mappings(i) {
			if m.HostIP == at.Addr().String() && m.HostPort == int(at.Port()) && strings.HasPrefix(answer, "pod"+strconv.Itoa(i)+":"+strconv.Itoa(m.ContainerPort)+" ") {
				return true
			}
		}
	}
	return false
}

// pod is the pod that answers the node at an address.
func (f facts) pod(address string) string {
	at, _ := netip.ParseAddr(address)
	pod, _, _ := strings.Cut(f[question{place{name: "node"}, "tcp", netip.AddrPortFrom(at, uint16(podPorts[0]))}.String()], ":")
	return pod
}

// movedUp tells whether a link has another number only because ours has none of those before it.
func (d *difference) movedUp() bool {
	if !d.is(`node link \d+`) {
		return false
	}
	for name, link := range d.theirs {
		if strings.HasPrefix(name, "node link ") && (link == d.a || strings.Replace(link, "hairpin false", "hairpin true", 1) == d.a) {
			return true
		}
	}
	return false
}

// question tells whether it is about traffic.
func (d *difference) question() bool { return d.Verb == probe }

// destination is where a question goes, without the port.
func (d *difference) destination() string {
	at, _ := netip.ParseAddrPort(d.last())
	return at.Addr().String()
}

func unanswered(text string) bool { return text == "silence" || text == "no way" || text == "refused" }

// last is the last word of the name.
func (d *difference) last() string { return d.name[strings.LastIndex(d.name, " ")+1:] }

// onlyTheirsFailed tells whether the reference failed with an error like a regular expression, and ours did not.
func (d *difference) onlyTheirsFailed(pattern string) bool {
	return d.ours["failed"] == "" && d.theirs["failed"] == "yes" && regexp.MustCompile(pattern).MatchString(d.theirs["error"])
}

// onlyOursFailed is the same the other way round.
func (d *difference) onlyOursFailed(pattern string) bool {
	return d.theirs["failed"] == "" && d.ours["failed"] == "yes" && regexp.MustCompile(pattern).MatchString(d.ours["error"])
}

// bare is a route without what is said besides the gateway; empty where there is none.
func bare(route string) string {
	words := strings.Fields(route)
	return strings.Join(words[:min(2, len(words))], " ")
}

// gateway tells whether the last word is a gateway with the length of its network.
func (d *difference) gateway() bool {
	p, err := netip.ParsePrefix(d.last())
	return err == nil && d.gateways()[p.Addr()] == p.Masked()
}

// hostAddress is a text like 10.1.0.2/24 via 10.1.0.1 with the length of a single address.
func hostAddress(text string) string {
	p, rest, _ := strings.Cut(text, " ")
	prefix, err := netip.ParsePrefix(p)
	if err != nil {
		return ""
	}
	return netip.PrefixFrom(prefix.Addr(), prefix.Addr().BitLen()).String() + " " + rest
}

func full(text string) bool {
	return strings.HasPrefix(text, "/32 ") || strings.HasPrefix(text, "/128 ")
}

func tentative(text string) bool { return strings.HasSuffix(text, "true") }

// number is a number out of JSON as people write it.
func number(v any) string {
	f, _ := v.(float64)
	return strconv.Itoa(int(f))
}
