// Package service decides, once for every renderer, what a Service means on this node: which
// addresses and ports are frontends, which backends each may use, who is masqueraded, and what
// happens when there is no backend. It is pure: model values in, Frontend values out. The renderers
// (nftables, iptables) only translate.
package service

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/braidnet/braid/internal/model"
)

// Kind says what sort of address a frontend is.
type Kind uint8

// Frontend kinds.
const (
	ClusterIP      Kind = iota + 1 // spec.clusterIPs
	NodePort                       // any address of this node; Key.Addr is the unspecified address of the family
	LoadBalancerIP                 // status.loadBalancer.ingress[].ip with ipMode VIP
	ExternalIP                     // spec.externalIPs
)

// String names the kind as users of kube-proxy know it.
func (k Kind) String() string {
	switch k {
	case ClusterIP:
		return "cluster IP"
	case NodePort:
		return "node port"
	case LoadBalancerIP:
		return "load balancer IP"
	case ExternalIP:
		return "external IP"
	}
	return fmt.Sprintf("frontend kind %d", uint8(k))
}

// Key identifies a frontend: what a packet must be addressed to. The family is Addr's.
type Key struct {
	Kind     Kind
	Protocol model.Protocol
	Addr     netip.Addr // 0.0.0.0 or :: for NodePort
	Port     uint16
}

// String prints "10.96.0.10:53/UDP".
func (k Key) String() string {
	return fmt.Sprintf("%s/%s", netip.AddrPortFrom(k.Addr, k.Port), k.Protocol)
}

// Backend is where a frontend's connections may go.
type Backend struct {
	netip.AddrPort
	Local bool // the endpoint runs on this node, or perhaps does: it can reach itself through the frontend (hairpin)
}

// Masquerade says whose source address is replaced by the node's on the way to a backend. Hairpin
// traffic (a backend that reaches itself) is masqueraded always.
type Masquerade uint8

// Masquerade rules.
const (
	MasqueradeForeign Masquerade = iota + 1 // every source that is not a pod of this node (cluster IPs)
	MasqueradeAll                           // every source (node ports, load balancer IPs: the reply must come back through here)
	MasqueradeNone                          // no source: Backends are on this node, and see the client's own address
)

// Empty says what happens to a new connection when a frontend has no backend.
type Empty uint8

// What becomes of connections to a frontend without backends.
const (
	Reject Empty = iota // refused at once: the service has no endpoints at all
	Drop                // silently dropped: it has endpoints, but a traffic policy forbids all of them here
)

// Frontend is one address that a service answers on, with everything a renderer needs. Backends and
// Inside are sorted and distinct, so that equal frontends are equal values.
type Frontend struct {
	Key
	Origin     model.Origin // the Service
	PortName   string
	Backends   []Backend
	Masquerade Masquerade
	Empty      Empty  // what becomes of connections that get Backends when there are none
	Why        string // why there is no backend; empty when there are some

	// Inside is the short-cut of externalTrafficPolicy Local: what pods of this node and the node itself
	// get in place of Backends, which are then for clients outside. The policy keeps the address of
	// clients; these are at no distance, so all endpoints serve them, as by the cluster IP. Pods keep
	// their address there, the node's own connections are masqueraded. Nil: there is no short-cut.
	Inside []Backend

	// Affinity is how long a client address stays with its backend since its last new connection; 0:
	// each connection is balanced on its own. Frontends with equal SessionName share the memory of who
	// went where (spec.sessionAffinity is the Service's, not an address's); a backend that is not
	// usable by the frontend at hand is forgotten.
	Affinity time.Duration

	// Sources are the clients that may use the frontend, merged and sorted (spec.loadBalancerSourceRanges); Filtered
	// says whether they count: others are dropped before translation. Filtered without Sources keeps everybody out.
	Filtered bool
	Sources  []netip.Prefix
}

// SessionName names the service port whose frontends share session affinity: "namespace/name:port/TCP".
func (f *Frontend) SessionName() string { return f.Name() + "/" + f.Protocol.String() }

// Local reports whether the frontend has a short-cut for this node's own connections.
func (f *Frontend) Local() bool { return f.Masquerade == MasqueradeNone }

// Name prints "namespace/name" or "namespace/name:port", the text that rule comments carry.
func (f *Frontend) Name() string {
	if f.PortName == "" {
		return f.Origin.Key.String()
	}
	return f.Origin.Key.String() + ":" + f.PortName
}

// Net is what translation needs to know about addresses. All lists are sorted and distinct.
type Net struct {
	LocalPods   []netip.Prefix // this node's pod CIDRs
	Local       Local          // who counts as a pod of this node
	ClusterPods []netip.Prefix // the pod CIDRs of all nodes
	// Services are the ranges of cluster IPs. New connections to an address in them which is no cluster
	// IP of a frontend are dropped, rather than sent out by the default route; those to a cluster IP
	// by a port that is none of its frontends' are refused.
	Services []netip.Prefix
	// NodePorts are the addresses of this node that serve node ports: those of its own in these ranges.
	// Both families are listed, a family that serves everywhere with its 0.0.0.0/0 or ::/0.
	NodePorts []netip.Prefix
	// HealthPorts are the health check node ports of services, which the agent answers itself. Mode iptables lets their clients
	// past a host's INPUT policy; a table of nftables cannot speak for others.
	HealthPorts []uint16
	// Loopback says whether addresses in 127.0.0.0/8 count among NodePorts, for the node itself. The kernel
	// routes such connections only where it is told to (route_localnet), which opens loopback services to the
	// network (CVE-2020-8558). So packets to or from loopback addresses that come in by another device than
	// lo are dropped before anything else then. [::1] never counts: the kernel has no such switch.
	Loopback bool
}

// Delta is what changed since the last Flush. A frontend in Set replaces the one with its Key.
type Delta struct {
	Rev    uint64 // the newest store revision the delta includes
	Set    []Frontend
	Delete []Key
	Net    *Net // nil when unchanged
}

// Empty reports whether the delta asks for nothing.
func (d *Delta) Empty() bool { return len(d.Set) == 0 && len(d.Delete) == 0 && d.Net == nil }

// Dataplane puts frontends into the kernel. Its implementations (agent) join a pure renderer to the
// kernel border; they are called by one goroutine.
type Dataplane interface {
	// Name is the service mode: "nftables" or "iptables".
	Name() string
	// Replace makes the kernel hold exactly these frontends. What is already right is left alone,
	// so a restarted agent disturbs nothing; what an earlier run left behind goes.
	Replace(all []Frontend, net Net) error
	// Apply changes only what the delta names. After an error the caller calls Replace.
	Apply(Delta) error
	// Cleanup removes everything that Replace and Apply ever made, and nothing else. It says what it
	// removed, also with an error.
	Cleanup() (removed []string, err error)
}
