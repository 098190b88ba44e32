package model

import (
	"net/netip"

	"k8s.io/apimachinery/pkg/labels"
)

// NetworkPolicy is a networking.k8s.io/v1 NetworkPolicy. What the API leaves to defaults is filled in,
// and what it expresses by the length of a list is said in words here, so that no list that became
// empty on its way can come to mean "everybody".
type NetworkPolicy struct {
	Origin
	UID          string          // metadata.uid, empty in manifests
	Faults       []string        // what of it could not be understood, and allows nothing; empty: all could
	PodSelector  labels.Selector // pods of the policy's namespace; never nil
	Ingress      bool            // isolates the pods for ingress: only what IngressRules allow reaches them
	Egress       bool            // the same for egress
	IngressRules []PolicyRule    // empty: nothing is allowed
	EgressRules  []PolicyRule
}

// PolicyRule allows what is with one of its peers and for one of its ports. A rule with neither peers
// nor AnyPeer matches nothing; so does one with neither ports nor AnyPort.
type PolicyRule struct {
	AnyPeer bool // the manifest gives no peers
	AnyPort bool // the manifest gives no ports
	Peers   []PolicyPeer
	Ports   []PolicyPort
}

// PolicyPeer is the other end of a connection: pods by their labels and their namespaces', or a block
// of addresses, when Pods is nil.
type PolicyPeer struct {
	Pods       labels.Selector
	Namespaces labels.Selector // nil: the policy's own namespace
	Block      netip.Prefix    // masked
	Except     []netip.Prefix  // masked, of the family of Block
}

// PolicyPort is a port of the destination: by Name, as the destination pod's containers call it, or
// the numbers From to To, which are 0 and 65535 for every port of the protocol.
type PolicyPort struct {
	Protocol Protocol
	Name     string
	From, To uint16
}
