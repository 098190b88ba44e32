// Package model holds Braid's view of a cluster: slim, immutable values made of netip types,
// each carrying the Origin it was read from, and the Store that keeps them.
//
// Every consumer (DNS index, service table, overlay plan, policy compiler) reads these values and
// nothing else of Kubernetes. The sources (internal/source) fill the store; nobody else does.
// Values are shared between goroutines and must never be changed after they were handed to a Store.
package model

import (
	"fmt"
	"net/netip"
	"time"

	"k8s.io/apimachinery/pkg/labels"
)

// Kind names a kind of object as Kubernetes manifests spell it.
type Kind string

// The kinds the model knows.
const (
	KindNamespace     Kind = "Namespace"
	KindNode          Kind = "Node"
	KindPod           Kind = "Pod"
	KindService       Kind = "Service"
	KindEndpointSlice Kind = "EndpointSlice"
	KindNetworkPolicy Kind = "NetworkPolicy"
	KindServiceCIDR   Kind = "ServiceCIDR"
)

// KindServiceImport is a kind of the Multi-Cluster Services API (KEP-1645). It is not among Kinds: a
// source reads it only when it is asked to, because most clusters do not have its definition.
const KindServiceImport Kind = "ServiceImport"

// Kinds lists every kind of the model in the order in which a source should load them.
var Kinds = []Kind{KindNamespace, KindNode, KindServiceCIDR, KindService, KindEndpointSlice, KindPod, KindNetworkPolicy}

// ClusterWide reports whether objects of the kind belong to no namespace.
func (k Kind) ClusterWide() bool {
	return k == KindNamespace || k == KindNode || k == KindServiceCIDR
}

// Key identifies an object of one kind. Namespace is empty for kinds that are ClusterWide.
type Key struct {
	Namespace, Name string
}

// String prints namespace/name, or just the name for cluster-wide objects.
func (k Key) String() string {
	if k.Namespace == "" {
		return k.Name
	}
	return k.Namespace + "/" + k.Name
}

// Ref identifies one object of the cluster.
type Ref struct {
	Kind Kind
	Key
}

// String prints "Kind namespace/name".
func (r Ref) String() string { return string(r.Kind) + " " + r.Key.String() }

// Origin says where a piece of state comes from: the object, and for manifests the file and the
// line its document starts at. Desired kernel state carries it so that every rule can name its cause.
type Origin struct {
	Ref
	File string // empty when the object came from the API server
	Line int    // 1-based line in File, 0 when unknown
}

// String prints "Kind namespace/name", followed by " (file:line)" for manifests.
func (o Origin) String() string {
	if o.File == "" {
		return o.Ref.String()
	}
	return fmt.Sprintf("%s (%s:%d)", o.Ref, o.File, o.Line)
}

// Object is one value of the model.
type Object interface {
	// From returns the identity of the object and where it was read.
	From() Origin
}

// From implements Object for every type that embeds an Origin.
func (o Origin) From() Origin { return o }

// Protocol is a transport protocol of a service or container port.
type Protocol uint8

// Transport protocols, by their IANA protocol numbers.
const (
	TCP  Protocol = 6
	UDP  Protocol = 17
	SCTP Protocol = 132
)

// String returns the protocol's name as Kubernetes spells it.
func (p Protocol) String() string {
	switch p {
	case TCP:
		return "TCP"
	case UDP:
		return "UDP"
	case SCTP:
		return "SCTP"
	}
	return fmt.Sprintf("protocol %d", uint8(p))
}

// Namespace is a Kubernetes namespace.
type Namespace struct {
	Origin
	Labels labels.Set
	Audit  bool // what policies deny its pods is told and counted, and not denied
}

// Node is a machine of the cluster.
type Node struct {
	Origin
	Labels      labels.Set
	Annotations map[string]string // only those that start with "braid.network/"
	PodCIDRs    []netip.Prefix    // masked, at most one per family, in the order of spec.podCIDRs
	InternalIPs []netip.Addr      // status.addresses of type InternalIP, in order
	Taints      []string          // keys of spec.taints, sorted
	Terminating bool              // metadata.deletionTimestamp is set
}

// Address returns the first InternalIP of the node in IPv4 (is4) or IPv6, and whether it has one.
func (n *Node) Address(is4 bool) (netip.Addr, bool) {
	for _, a := range n.InternalIPs {
		if a.Is4() == is4 {
			return a, true
		}
	}
	return netip.Addr{}, false
}

// Phase is the phase of a pod's life.
type Phase string

// Pod phases, as in PodStatus.phase.
const (
	PhasePending   Phase = "Pending"
	PhaseRunning   Phase = "Running"
	PhaseSucceeded Phase = "Succeeded"
	PhaseFailed    Phase = "Failed"
	PhaseUnknown   Phase = "Unknown"
)

// ContainerPort is a named or unnamed port of a container.
type ContainerPort struct {
	Name     string
	Protocol Protocol
	Port     uint16
}

// Pod is a pod as the network sees it.
type Pod struct {
	Origin
	UID         string // as runtimes know it, which of static pods is not metadata.uid
	Labels      labels.Set
	Node        string       // spec.nodeName, empty until scheduled
	IPs         []netip.Addr // status.podIPs (falls back to status.podIP)
	HostNetwork bool
	Phase       Phase
	Ready       bool // the Ready condition is True
	Terminating bool // metadata.deletionTimestamp is set
	Ports       []ContainerPort
}

// Finished reports whether the pod's containers have ended for good; its addresses may belong to
// another pod already.
func (p *Pod) Finished() bool { return p.Phase == PhaseSucceeded || p.Phase == PhaseFailed }

// ServiceType is spec.type of a Service.
type ServiceType string

// Service types.
const (
	ClusterIP    ServiceType = "ClusterIP"
	NodePort     ServiceType = "NodePort"
	LoadBalancer ServiceType = "LoadBalancer"
	ExternalName ServiceType = "ExternalName"
)

// ServicePort is one port of a Service.
type ServicePort struct {
	Name     string
	Protocol Protocol
	Port     uint16
	NodePort uint16 // 0 = none
}

// Ingress is one load-balancer address of a Service.
type Ingress struct {
	Addr     netip.Addr // invalid when only a hostname is given
	Hostname string
	Proxy    bool // ipMode Proxy: traffic arrives with another destination, do not program the address
}

// Service is a Kubernetes Service. A headless service has no ClusterIPs and Headless set.
type Service struct {
	Origin
	Labels              labels.Set
	Type                ServiceType
	Headless            bool         // spec.clusterIP is "None"
	ClusterIPs          []netip.Addr // empty for headless, ExternalName and not yet allocated
	ExternalName        string
	Ports               []ServicePort
	ExternalIPs         []netip.Addr
	Ingress             []Ingress
	SourceRanges        []netip.Prefix
	Affinity            time.Duration // sessionAffinity ClientIP: its timeout; 0 = none
	ExternalLocal       bool          // externalTrafficPolicy: Local
	InternalLocal       bool          // internalTrafficPolicy: Local
	TrafficDistribution string
	HealthCheckNodePort uint16
	PublishNotReady     bool
}

// ServiceCIDR is a range that the API server allocates cluster IPs from (KEP-1880).
type ServiceCIDR struct {
	Origin
	CIDRs []netip.Prefix // masked
}

// ServiceImport is a service of a set of clusters, as this cluster sees it (KEP-1645).
type ServiceImport struct {
	Origin
	Labels   labels.Set
	Headless bool         // spec.type is Headless
	IPs      []netip.Addr // of the cluster set; empty for headless
	Ports    []ServicePort
}

// EndpointPort is a port of an EndpointSlice, matched to a ServicePort by Name.
type EndpointPort struct {
	Name     string
	Protocol Protocol
	Port     uint16 // 0 = the slice gives none (all ports)
}

// Endpoint is one endpoint of a slice. Nil conditions are resolved as the API says:
// ready and serving default to true, terminating to false.
type Endpoint struct {
	Addrs       []netip.Addr // all of one family; consumers that need one address use Addrs[0]
	Ready       bool
	Serving     bool
	Terminating bool
	Hostname    string
	Node        string
	Zone        string
	Target      Ref      // targetRef; zero when absent
	HintZones   []string // hints.forZones
	HintNodes   []string // hints.forNodes
}

// EndpointSlice lists endpoints of a service. Slices of addressType FQDN are dropped by the decoder.
type EndpointSlice struct {
	Origin
	Labels    labels.Set
	Service   Key    // zero Name when the slice has no kubernetes.io/service-name label
	Import    Key    // the ServiceImport it belongs to; zero Name when it has no multicluster.kubernetes.io/service-name label
	Cluster   string // multicluster.kubernetes.io/source-cluster
	IPv6      bool   // addressType IPv6
	Ports     []EndpointPort
	Endpoints []Endpoint
	// LastChange is endpoints.kubernetes.io/last-change-trigger-time; zero when absent.
	LastChange time.Time
}
