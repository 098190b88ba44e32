// Package service decides, once for every renderer, what a Service means on this node: which
// addresses and ports are frontends, which backends each may use, who is masqueraded, and what
// happens when there is no backend. It is pure: model values in, Frontend values out. The renderers
// (nftables, iptables) only translate.
package service

import (
	"fmt"
	"net/netip"

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
	Local bool // the endpoint runs on this node: it can reach itself through the frontend (hairpin)
}

// Masquerade says whose source address is replaced by the node's on the way to a backend. Hairpin
// traffic (a backend that reaches itself) is masqueraded always.
type Masquerade uint8

// Masquerade rules.
const (
	MasqueradeForeign Masquerade = iota + 1 // every source that is not a pod of this node (cluster IPs)
	MasqueradeAll                           // every source (node ports, load balancer IPs: the reply must come back through here)
)

// Empty says what happens to a new connection when a frontend has no backend.
type Empty uint8

// What becomes of connections to a frontend without backends.
const (
	Reject Empty = iota // refused at once: the service has no endpoints at all
	Drop                // silently dropped: it has endpoints, but a traffic policy forbids all of them here
)

// Frontend is one address that a service answers on, with everything a renderer needs. Backends are
// sorted and distinct, so that equal frontends are equal values.
type Frontend struct {
	Key
	Origin     model.Origin // the Service
	PortName   string
	Backends   []Backend
	Masquerade Masquerade
	Empty      Empty  // meaningful when Backends is empty
	Why        string // why there is no backend; empty when there are some
}

// Name prints "namespace/name" or "namespace/name:port", the text that rule comments carry.
func (f *Frontend) Name() string {
	if f.PortName == "" {
		return f.Origin.Key.String()
	}
	return f.Origin.Key.String() + ":" + f.PortName
}

// Net is what translation needs to know about pod addresses.
type Net struct {
	LocalPods   []netip.Prefix // this node's pod CIDRs
	ClusterPods []netip.Prefix // the pod CIDRs of all nodes: traffic from LocalPods to these is never masqueraded
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
