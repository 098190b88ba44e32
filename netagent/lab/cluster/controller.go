// Package cluster is the little control plane of the playground. It takes ordinary manifests, does
// with them what the API server, the controllers, the scheduler and the kubelet of a cluster would
// (as far as the network can tell), and keeps the outcome as a folder of ordinary Kubernetes YAML,
// one file per object, which the agents and name servers of the playground read and watch.
//
// Containers are not run: a PodRuntime makes the pods' networks and stands in for what is in them.
package cluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Port is a port that the stand-in of a pod serves. Name is empty for a port that no container
// declares and only a Service targets.
type Port struct {
	Name     string          `json:"name,omitempty"`
	Number   uint16          `json:"number"`
	Protocol corev1.Protocol `json:"protocol"`
}

// PodSandbox is what a runtime needs to know of a pod.
type PodSandbox struct {
	Namespace, Name, UID, Node string
	Attempt                    int    // how many sandboxes of the pod were lost
	Hostname                   string // spec.hostname, or the pod's name
	Subdomain                  string // spec.subdomain
	HostNetwork                bool
	Ports                      []Port // sorted, each (number, protocol) once
	HostPorts                  []HostPort
	DNSPolicy                  corev1.DNSPolicy
	DNSConfig                  *corev1.PodDNSConfig // nil when the pod gives none
	HostAliases                []corev1.HostAlias
}

// PodRuntime makes pods real. Calls for different pods run at the same time, calls for one pod never.
type PodRuntime interface {
	// Start makes the pod's network, serves its ports, and returns its addresses, the primary one
	// first. A failed Start leaves nothing behind and is tried again later.
	Start(ctx context.Context, p PodSandbox) (ips []netip.Addr, err error)
	// Stop removes what Start made. It succeeds when there is nothing (any more).
	Stop(ctx context.Context, p PodSandbox) error
}

// PortSetter is implemented by runtimes that can change the ports a running pod serves. It is called
// when a Service that came after the pod targets a port which no container declares.
type PortSetter interface {
	SetPorts(ctx context.Context, p PodSandbox) error
}

// Config says what the control plane controls.
type Config struct {
	// StateDir is the folder of generated objects. It belongs to the controller: New empties it.
	StateDir string
	// Nodes are the machines, with pod CIDRs and InternalIP addresses, in the order of placement.
	Nodes []*corev1.Node
	// ServiceCIDRs hold the cluster IPs: one or two, of different families, the primary first. They
	// decide which families Services may have.
	ServiceCIDRs []netip.Prefix
	// BalancerCIDRs hold the addresses which a cloud would give to Services of type LoadBalancer, at
	// most one range per family. Without one such addresses stay pending.
	BalancerCIDRs []netip.Prefix
	// DNSIPs are kept free for the cluster DNS: only a Service that asks for one by number gets it.
	DNSIPs  []netip.Addr
	Runtime PodRuntime
	Logger  *slog.Logger // nil = none
	// Progress is told after every change (nil = nobody). It must return at once and may not call the
	// controller.
	Progress func()
	// Parallel bounds how many pods are started or stopped at the same time; 0 = 4.
	Parallel int
	// Grace is how long a deleted pod goes on serving at most, for the nodes to learn that it will go:
	// it stands in for a container that ends well on SIGTERM. A shorter terminationGracePeriodSeconds
	// of the pod cuts it; a killed pod has none. 0 = none.
	Grace time.Duration
	// MinRetry and MaxRetry bound the back-off of pods that do not start; 0 = 500 ms and 30 s.
	MinRetry, MaxRetry time.Duration
}

// workloadKey identifies a workload.
type workloadKey struct {
	kind string
	types.NamespacedName
}

// Controller is the control plane. Its methods may be called from any goroutine, also before Run.
type Controller struct {
	cfg    Config
	log    *slog.Logger
	wake   chan struct{} // buffered: the worker looks for something to do
	folder *folder
	slices *sliceMaker

	mu        sync.Mutex
	changed   chan struct{} // closed and replaced after every change
	failed    error         // why the folder is behind; nil when it is not
	alloc     *allocator
	ranges    *networkingv1.ServiceCIDR
	nodes     []*corev1.Node // as configured, with labels and annotations of manifests merged
	extra     map[string]*corev1.Node
	spaces    map[string]*corev1.Namespace
	services  map[types.NamespacedName]*corev1.Service
	userSlice map[types.NamespacedName]*discoveryv1.EndpointSlice
	policies  map[types.NamespacedName]*networkingv1.NetworkPolicy
	workloads map[workloadKey]*workload
	bare      map[types.NamespacedName]*corev1.Pod // pods of manifests: those without an owner
	pods      map[types.NamespacedName]*pod
	wanted    int // pods there are when nothing is left to do
	made      int // pods and services made so far
	placed    int // pods placed so far: where the round robin stands
	busy      int // runtime calls under way
}

// New returns a controller whose folder holds the nodes and the namespaces default and kube-system.
func New(cfg Config) (*Controller, error) {
	cfg.Parallel = cmp.Or(cfg.Parallel, 4)
	cfg.MinRetry = cmp.Or(cfg.MinRetry, 500*time.Millisecond)
	cfg.MaxRetry = cmp.Or(cfg.MaxRetry, 30*time.Second)
	if err := checkConfig(&cfg); err != nil {
		return nil, fmt.Errorf("playground control plane: %w", err)
	}
	f, err := openFolder(cfg.StateDir)
	if err != nil {
		return nil, fmt.Errorf("playground control plane: %w", err)
	}
	c := &Controller{
		cfg: cfg, log: cfg.Logger, folder: f, wake: make(chan struct{}, 1), changed: make(chan struct{}),
		alloc:     newAllocator(cfg.ServiceCIDRs, cfg.DNSIPs),
		ranges:    rangesOf(cfg.ServiceCIDRs),
		extra:     map[string]*corev1.Node{},
		spaces:    map[string]*corev1.Namespace{},
		services:  map[types.NamespacedName]*corev1.Service{},
		userSlice: map[types.NamespacedName]*discoveryv1.EndpointSlice{},
		policies:  map[types.NamespacedName]*networkingv1.NetworkPolicy{},
		workloads: map[workloadKey]*workload{},
		bare:      map[types.NamespacedName]*corev1.Pod{},
		pods:      map[types.NamespacedName]*pod{},
	}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	c.slices = newSliceMaker(func(k types.NamespacedName) bool { return c.userSlice[k] != nil })
	c.mergeNodes()
	c.alloc.balancer = cfg.BalancerCIDRs
	for _, ns := range permanent {
		c.ensureNamespace(ns)
	}
	if err := c.sync(); err != nil {
		return nil, fmt.Errorf("playground control plane: %w", err)
	}
	return c, nil
}

func checkConfig(cfg *Config) error {
	switch n := len(cfg.ServiceCIDRs); {
	case cfg.Runtime == nil:
		return errors.New("no pod runtime")
	case len(cfg.Nodes) == 0:
		return errors.New("no nodes")
	case n < 1 || n > 2 || (n == 2 && cfg.ServiceCIDRs[0].Addr().Is4() == cfg.ServiceCIDRs[1].Addr().Is4()):
		return fmt.Errorf("service CIDRs %v: expected one, or one of each family", cfg.ServiceCIDRs)
	}
	return nil
}

// rangesOf is the ServiceCIDR that an API server makes of its own flag.
func rangesOf(cidrs []netip.Prefix) *networkingv1.ServiceCIDR {
	out := &networkingv1.ServiceCIDR{ObjectMeta: metaOf("kubernetes")}
	for _, c := range cidrs {
		out.Spec.CIDRs = append(out.Spec.CIDRs, c.String())
	}
	return out
}

// mergeNodes lays the labels and annotations of Node manifests over the configured nodes.
func (c *Controller) mergeNodes() {
	c.nodes = make([]*corev1.Node, len(c.cfg.Nodes))
	for i, n := range c.cfg.Nodes {
		n = n.DeepCopy()
		if x := c.extra[n.Name]; x != nil {
			n.Labels = overlay(n.Labels, x.Labels)
			n.Annotations = overlay(n.Annotations, x.Annotations)
		}
		c.nodes[i] = n
	}
	c.slices.setNodes(c.nodes)
}

func overlay(under, over map[string]string) map[string]string {
	out := make(map[string]string, len(under)+len(over))
	for _, m := range []map[string]string{under, over} {
		for k, v := range m {
			out[k] = v
		}
	}
	return out
}

func (c *Controller) node(name string) *corev1.Node {
	i := slices.IndexFunc(c.nodes, func(n *corev1.Node) bool { return n.Name == name })
	if i < 0 {
		return nil
	}
	return c.nodes[i]
}

func (c *Controller) nodeNames() []string {
	var out []string
	for _, n := range c.nodes {
		out = append(out, n.Name)
	}
	return out
}

// kick tells the worker that there may be something to do.
func (c *Controller) kick() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}
