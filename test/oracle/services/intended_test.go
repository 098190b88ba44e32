package services

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/utils/ptr"

	"github.com/braidnet/braid/internal/kernel/netns/nstest/wire"
)

// intended is a difference between ours (a) and kube-proxy (b) that we want. applies must check what
// became of the packet here and there, not only that it is of a kind for which there is a difference.
type intended struct {
	name, reason string
	applies      func(*difference) bool
}

var intendeds = []intended{
	{"TCP is refused with a reset", "clients take it for a refusal at once; some wait on after an ICMP error, and firewalls swallow those",
		func(d *difference) bool {
			return d.protocol == wire.TCP && d.as.are("refused, reset") && d.bs.are("refused")
		}},
	{"source ranges of the other family only", "a list that names who may come admits nobody that it does not mention",
		func(d *difference) bool {
			return d.what == "load balancer" && d.as.are("dropped") && !d.bs.are("dropped") && d.rangesOfOtherFamily()
		}},
	{"source ranges before missing endpoints", "who may not come is told nothing, whether there are endpoints or not, as in nftables mode",
		func(d *difference) bool {
			return d.iptables() && d.what == "load balancer" && d.as.are("dropped") && len(d.service.Spec.LoadBalancerSourceRanges) > 0 &&
				(d.bs.are("refused") || d.fromNode() && d.bs.are("passed"))
		}},
	{"a backend of no known node that reaches itself", "masqueraded, as in iptables mode, else its replies do not come back through here",
		func(d *difference) bool {
			return !d.iptables() && slices.Equal(sortedKeys(d.as), sortedKeys(d.bs.masqueradedTo(d.src)))
		}},
	{"a backend elsewhere that reaches itself", "pods of other nodes have their connections translated there; to do it for all here takes rules for each of them",
		func(d *difference) bool {
			return d.iptables() && !d.fromPod() && !d.fromNode() && slices.Equal(sortedKeys(d.as.masqueradedTo(d.src)), sortedKeys(d.bs))
		}},
	{"a backend at another service's address", "translated already, so it is not that service's that has no endpoints; in kube-proxy it is refused or dropped with them",
		func(d *difference) bool { return d.backendAtFrontend() }},
	{"an endpoint that is listed twice", "of two that contradict each other the one that is of more use counts, on all nodes the same; in kube-proxy the one that happens to come last",
		func(d *difference) bool { return d.port != nil && d.contradicts() }},
	{"the node by an address among its pods'", "the node is no pod, whatever address it takes: masqueraded as from its other addresses",
		func(d *difference) bool {
			return d.fromNode() && podCIDR(d.src.Is4()).Contains(d.src) && slices.Equal(sortedKeys(d.as), sortedKeys(d.bs.masqueraded()))
		}},
	{"a cluster IP that is not in use", "drop what has no service and refuse ports without one, as the nftables mode does: else it leaves the node and may come back in a loop",
		func(d *difference) bool {
			unused := serviceCIDR(d.dst.Addr().Is4()).Contains(d.dst.Addr()) && d.bs.are("passed")
			return unused && d.iptables() && (d.as.are("dropped") || d.as.refused())
		}},
	{"the node's own connections to outer addresses without endpoints", "refused, as everybody else's and as in nftables mode",
		func(d *difference) bool {
			return d.iptables() && d.fromNode() && d.outer() && d.bs.are("passed") && d.as.refused()
		}},
	{"node ports on loopback in nftables mode", "they work in both modes where they are asked for",
		func(d *difference) bool {
			return !d.iptables() && d.config.loopback && d.loopbackNodePort() && d.dst.Addr().Is4() && (d.bs.are("passed to the node") || d.bs.unspoken())
		}},
	{"node ports on loopback", "where they are not served, refusing or dropping what has no endpoints there is not ours either: whoever listens is asked",
		func(d *difference) bool {
			return d.iptables() && !(d.config.loopback && d.dst.Addr().Is4()) && d.loopbackNodePort() && (d.as.are("passed to the node") || d.as.unspoken())
		}},
	{"node ports without endpoints at other addresses", "addresses that do not serve node ports know nothing of them",
		func(d *difference) bool {
			return d.iptables() && d.what == "node port" && len(d.config.nodePortAddresses) > 0 && (d.as.are("passed to the node") || d.protocol == wire.SCTP && d.as.unspoken()) && (d.bs.are("refused") || d.bs.are("dropped"))
		}},
}

// fullLength is for how many clusters each intended difference must have come.
const fullLength = 2000

func intendedName(d *difference) string {
	if strings.HasPrefix(d.b.name, "braid") {
		return ""
	}
	for _, x := range intendeds {
		if x.applies(d) {
			return x.name
		}
	}
	return ""
}

func (d *difference) iptables() bool { return strings.HasSuffix(d.b.name, "iptables") }

func (d *difference) fromPod() bool { return podCIDR(d.src.Is4()).Contains(d.src) && !d.fromNode() }

func (d *difference) fromNode() bool {
	return d.src.IsLoopback() || slices.Contains(wire.Own(d.src.Is4()), d.src)
}

func (d *difference) loopbackNodePort() bool {
	return d.dst.Addr().IsLoopback() && d.what == "node port"
}

func (d *difference) outer() bool { return d.what == "load balancer" || d.what == "external IP" }

// rangesOfOtherFamily reports whether the service has source ranges, and none for this packet.
func (d *difference) rangesOfOtherFamily() bool {
	list := d.service.Spec.LoadBalancerSourceRanges
	return len(list) > 0 && !slices.ContainsFunc(list, func(text string) bool {
		p := netip.MustParsePrefix(strings.TrimSpace(text))
		return p.Bits() == 0 || p.Addr().Is4() == d.dst.Addr().Is4()
	})
}

// backendAtFrontend reports whether only backends are missing in kube-proxy that are the node itself, by an address
// and port of a frontend.
func (d *difference) backendAtFrontend() bool {
	hidden, rest, others := 0, outcomes{}, outcomes{}
	for x, n := range d.as {
		p := probe{dst: x.backend, protocol: d.protocol}
		if x.backend.IsValid() {
			p.resolve(d.cluster)
		}
		if x.class == "to the node" && p.port != nil || d.protocol == wire.SCTP && strings.HasPrefix(x.class, "refused, icmp") {
			hidden++
		} else {
			rest[x] = n
		}
	}
	for x, n := range d.bs {
		if x.class != "refused" && x.class != "dropped" {
			others[x] = n
		}
	}
	return hidden > 0 && slices.Equal(sortedKeys(rest), sortedKeys(others))
}

// contradicts reports whether slices say different things of one address and port for the probe's port.
func (d *difference) contradicts() bool {
	type said struct {
		ready, serving, terminating bool
		node, hints                 string
	}
	known := map[string]said{}
	for _, e := range d.cluster.slices {
		if e.Namespace != d.service.Namespace || e.Labels[discoveryv1.LabelServiceName] != d.service.Name {
			continue
		}
		for _, p := range e.Ports {
			if *p.Name != d.port.Name || p.Port == nil {
				continue
			}
			for _, x := range e.Endpoints {
				at := fmt.Sprint(x.Addresses[0], " ", *p.Port)
				c := x.Conditions
				now := said{ptr.Deref(c.Ready, true), ptr.Deref(c.Serving, true), ptr.Deref(c.Terminating, false), ptr.Deref(x.NodeName, ""), fmt.Sprint(x.Hints)}
				if before, twice := known[at]; twice && before != now {
					return true
				}
				known[at] = now
			}
		}
	}
	return false
}

// are reports whether all outcomes are of a class.
func (o outcomes) are(class string) bool {
	for x := range o {
		if x.class != class {
			return false
		}
	}
	return len(o) > 0
}

// unspoken reports whether the kernel itself says that it does not speak the protocol, which is so of SCTP.
func (o outcomes) unspoken() bool { return o.are("refused, icmp 3/2") || o.are("refused, icmp 4/1") }

// refused reports whether the sender is told in the way that the protocol has for it.
func (o outcomes) refused() bool { return o.are("refused") || o.are("refused, reset") }

// masqueraded is the same with the node's other address for all that goes out by the other link.
func (o outcomes) masqueraded() outcomes {
	out := outcomes{}
	for x, n := range o {
		x.masked = x.masked || x.backend.IsValid() && !podCIDR(x.backend.Addr().Is4()).Contains(x.backend.Addr())
		out[x] += n
	}
	return out
}

// masqueradedTo is the same with the node's address for what goes to a backend.
func (o outcomes) masqueradedTo(backend netip.Addr) outcomes {
	out := outcomes{}
	for x, n := range o {
		x.masked = x.masked || x.backend.Addr() == backend
		out[x] += n
	}
	return out
}
