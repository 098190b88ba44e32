// Package egress decides what becomes of connections that leave pods of this node: which source address the
// other end sees (masquerading), and which packets are not for a pod to send, because they would be taken
// for the overlay's own. What is said here once is translated by two renderers, to nftables and to iptables.
//
// Masquerading, in the order in which it is decided, for the first packet of a connection:
//
//  1. a packet with mark 0x4000 is left to whoever marked it: services do, and so does kube-proxy
//  2. from a pod of this node to a pod CIDR of the cluster, a range of Keep, or a multicast group: as it is
//  3. from a pod of this node to anywhere else: replaced by the node's address
//  4. from anybody but a pod, by a tunnel, to a pod of another node: replaced by the node's address on the
//     tunnel, since the answer would not come back by the tunnel otherwise, and WireGuard takes nothing else
//
// The rest is left alone, what the node itself and pods in its network send among it.
//
// The package is pure: no kernel, no clock, no process.
package egress

import (
	"net/netip"
	"slices"
	"sync"

	"github.com/braidnet/braid/internal/desired"
	"github.com/braidnet/braid/internal/model"
)

// Mark is the bit of the packet mark by which services, and kube-proxy's, tell which connections they masquerade.
const Mark = 0x4000

// Config is what an administrator decides, and what is known of this node's overlay.
type Config struct {
	Node       string         // name of this node
	Masquerade bool           // rules 1 to 3
	SamePorts  bool           // source ports are kept where they can be, instead of drawn at random
	Cluster    []netip.Prefix // where pods are besides the pod CIDRs of nodes
	Keep       []netip.Prefix // destinations outside of the cluster that are to see pods' own addresses
	Overlay    Overlay
	// Reached are the addresses by which nodes reach a node besides its InternalIPs; nil: none.
	Reached func(*model.Node) []netip.Addr
}

// Overlay is how packets to other nodes are wrapped. The zero value is none.
type Overlay struct {
	Links     string   // how the names of its devices begin; empty: it has none
	UDPPorts  []uint16 // that nodes take its packets at
	Protocols []uint8  // IP protocols by which nodes take its packets, with IPv4 around them
	Authentic bool     // a packet that is not of a node is recognised by its contents
	Tracked   bool     // connections are tracked on this node in any case
}

// Rules is all that renderers need. Prefixes are as few as can be, and sorted.
type Rules struct {
	Masquerade, SamePorts bool
	Pods                  []netip.Prefix // of this node
	Cluster               []netip.Prefix // of all nodes
	Own                   []netip.Prefix // where pods' addresses are seen: Cluster and what Config.Keep adds
	Nodes                 []netip.Prefix // addresses of nodes
	Overlay               Overlay
}

// Guarded reports whether pods are kept from sending packets of the overlay.
func (r *Rules) Guarded() bool { return len(r.Overlay.UDPPorts) > 0 || len(r.Overlay.Protocols) > 0 }

// Empty reports whether there is nothing to be done at all.
func (r *Rules) Empty() bool { return !r.Masquerade && r.Overlay.Links == "" && !r.Guarded() }

// Equal reports whether two values ask for the same.
func (r *Rules) Equal(o *Rules) bool {
	return r.Masquerade == o.Masquerade && r.SamePorts == o.SamePorts && slices.Equal(r.Pods, o.Pods) && slices.Equal(r.Cluster, o.Cluster) &&
		slices.Equal(r.Own, o.Own) && slices.Equal(r.Nodes, o.Nodes) && r.Overlay.equal(o.Overlay)
}

func (v Overlay) equal(o Overlay) bool {
	return v.Links == o.Links && slices.Equal(v.UDPPorts, o.UDPPorts) && slices.Equal(v.Protocols, o.Protocols) && v.Authentic == o.Authentic && v.Tracked == o.Tracked
}

// Planner follows the nodes of the cluster. Its methods may be called from different goroutines.
type Planner struct {
	config Config

	mu    sync.Mutex
	nodes map[string]*model.Node
	dirty bool
}

// NewPlanner returns a Planner that knows no node yet.
func NewPlanner(c Config) *Planner {
	return &Planner{config: c, nodes: map[string]*model.Node{}, dirty: true}
}

// Apply takes one batch of changes; its shape is that of model.Subscriber.
func (p *Planner) Apply(_ uint64, changes []model.Change) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range changes {
		if c.Kind != model.KindNode {
			continue
		}
		node, _ := c.New.(*model.Node)
		was := p.nodes[c.Name]
		if node == nil {
			delete(p.nodes, c.Name)
		} else {
			p.nodes[c.Name] = node
		}
		p.dirty = p.dirty || was == nil || node == nil || !slices.Equal(was.PodCIDRs, node.PodCIDRs) || !slices.Equal(p.addresses(was), p.addresses(node))
	}
}

// Dirty reports whether Rules has changed since it was last called.
func (p *Planner) Dirty() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.dirty
}

// Rules says what is to be done, as of the changes seen so far.
func (p *Planner) Rules() Rules {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.dirty = false
	c := p.config
	r := Rules{Masquerade: c.Masquerade, SamePorts: c.SamePorts, Overlay: c.Overlay}
	cluster := slices.Clone(c.Cluster)
	for name, n := range p.nodes {
		cluster = append(cluster, n.PodCIDRs...)
		if name == c.Node {
			r.Pods = append(r.Pods, n.PodCIDRs...)
		}
		for _, a := range p.addresses(n) {
			r.Nodes = append(r.Nodes, netip.PrefixFrom(a, a.BitLen()))
		}
	}
	r.Pods, r.Nodes, r.Cluster = desired.Aggregate(r.Pods), desired.Aggregate(r.Nodes), desired.Aggregate(cluster)
	r.Own = desired.Aggregate(slices.Concat(cluster, c.Keep))
	return r
}

func (p *Planner) addresses(n *model.Node) []netip.Addr {
	if p.config.Reached == nil {
		return n.InternalIPs
	}
	return slices.Concat(n.InternalIPs, p.config.Reached(n))
}
