package worlds

import (
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// audit is the annotation of a namespace whose pods are denied nothing.
const audit = "braid.network/policy-audit"

// Naive answers as the text of the API says, one sentence after the other, with no thought of speed. It
// reads the API's types, so what Convert makes of them is judged too. Mutant is "", or the name of a
// mistake that it is to make: the generator of worlds is good enough when each mistake shows.
type Naive struct {
	World
	Mutant string
	Node   string // when set, only the pods of this node are asked
}

// PodAt is the pod that has an address: one that has ended has none, and one on the host's network
// shares the node's.
func (n Naive) PodAt(a netip.Addr) *corev1.Pod {
	for _, p := range n.Pods {
		ended := p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
		if ended && n.Mutant != "ended pods keep addresses" || p.Spec.HostNetwork && n.Mutant != "host network counts" {
			continue
		}
		for _, ip := range p.Status.PodIPs {
			if netip.MustParseAddr(ip.IP) == a {
				return p
			}
		}
	}
	return nil
}

// Allows says whether the packet reaches the other end.
func (n Naive) Allows(p Packet) bool {
	return n.side(networkingv1.PolicyTypeEgress, p.Src, p.Dst, p) && (p.FromNode || n.side(networkingv1.PolicyTypeIngress, p.Dst, p.Src, p))
}

// side says whether the policies of the pod at self, if there is one, let it talk to other.
func (n Naive) side(dir networkingv1.PolicyType, self, other netip.Addr, p Packet) bool {
	pod := n.PodAt(self)
	if pod == nil || n.Node != "" && n.Node != pod.Spec.NodeName {
		return true
	}
	for _, ns := range n.Namespaces {
		if ns.Name == pod.Namespace && ns.Annotations[audit] == "true" && n.Mutant != "audit denies" {
			return true
		}
	}
	isolated := false
	for _, policy := range n.Policies {
		if policy.Namespace != pod.Namespace || !n.selects(&policy.Spec.PodSelector, pod.Labels) {
			continue
		}
		types := policy.Spec.PolicyTypes
		if len(types) == 0 {
			types = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}
			if len(policy.Spec.Egress) > 0 || n.Mutant == "always both types" {
				types = append(types, networkingv1.PolicyTypeEgress)
			}
		}
		if !slices.Contains(types, dir) {
			continue
		}
		isolated = true
		if n.policyAllows(policy, dir, other, p) {
			return true
		}
		if n.Mutant == "directions mixed" && slices.Contains(types, networkingv1.PolicyTypeIngress) && slices.Contains(types, networkingv1.PolicyTypeEgress) &&
			(n.policyAllows(policy, networkingv1.PolicyTypeIngress, p.Src, p) || n.policyAllows(policy, networkingv1.PolicyTypeEgress, p.Dst, p)) {
			return true
		}
	}
	return !isolated
}

func (n Naive) policyAllows(policy *networkingv1.NetworkPolicy, dir networkingv1.PolicyType, other netip.Addr, p Packet) bool {
	if dir == networkingv1.PolicyTypeIngress {
		for _, r := range policy.Spec.Ingress {
			if n.ruleAllows(policy.Namespace, r.From, r.Ports, other, p) {
				return true
			}
		}
		return false
	}
	for _, r := range policy.Spec.Egress {
		if n.ruleAllows(policy.Namespace, r.To, r.Ports, other, p) {
			return true
		}
	}
	return false
}

func (n Naive) ruleAllows(namespace string, peers []networkingv1.NetworkPolicyPeer, ports []networkingv1.NetworkPolicyPort, other netip.Addr, p Packet) bool {
	peer, port := len(peers) == 0, len(ports) == 0
	excepted := false
	for _, x := range peers {
		peer = peer || n.peerIs(namespace, x, other)
		if x.IPBlock != nil {
			for _, e := range x.IPBlock.Except {
				excepted = excepted || netip.MustParsePrefix(e).Contains(other)
			}
		}
	}
	if n.Mutant == "except of one peer binds all" && excepted {
		return false
	}
	for _, x := range ports {
		port = port || n.portIs(x, p)
	}
	return peer && port
}

func (n Naive) peerIs(namespace string, x networkingv1.NetworkPolicyPeer, other netip.Addr) bool {
	if x.IPBlock != nil {
		if !netip.MustParsePrefix(x.IPBlock.CIDR).Contains(other) {
			return false
		}
		for _, e := range x.IPBlock.Except {
			if netip.MustParsePrefix(e).Contains(other) && n.Mutant != "except ignored" {
				return false
			}
		}
		return n.Mutant != "blocks do not hold pods" || n.PodAt(other) == nil
	}
	pod := n.PodAt(other)
	if pod == nil {
		return false
	}
	if x.PodSelector != nil && !n.selects(x.PodSelector, pod.Labels) {
		return false
	}
	if x.NamespaceSelector == nil {
		return pod.Namespace == namespace || n.Mutant == "pod selector spans namespaces"
	}
	for _, ns := range n.Namespaces {
		if ns.Name == pod.Namespace {
			labels := map[string]string{"kubernetes.io/metadata.name": ns.Name}
			for k, v := range ns.Labels {
				labels[k] = v
			}
			if n.Mutant == "no default namespace label" {
				labels = ns.Labels
			}
			return n.selects(x.NamespaceSelector, labels)
		}
	}
	return false
}

func (n Naive) portIs(x networkingv1.NetworkPolicyPort, p Packet) bool {
	protocol := corev1.ProtocolTCP
	if x.Protocol != nil {
		protocol = *x.Protocol
	}
	if Numbers[protocol] != p.Protocol && n.Mutant != "protocol ignored" {
		return false
	}
	switch {
	case x.Port == nil:
		return true
	case x.Port.Type == intstr.String:
		return n.hasPort(n.PodAt(p.Dst), x.Port.StrVal, protocol, int32(p.Port))
	case x.EndPort != nil && n.Mutant != "endPort ignored":
		if n.Mutant == "endPort excluded" {
			return x.Port.IntVal <= int32(p.Port) && int32(p.Port) < *x.EndPort
		}
		return x.Port.IntVal <= int32(p.Port) && int32(p.Port) <= *x.EndPort
	}
	return x.Port.IntVal == int32(p.Port)
}

// hasPort says whether a container of the pod that lives as long as the pod has the port under the name.
func (n Naive) hasPort(pod *corev1.Pod, name string, protocol corev1.Protocol, number int32) bool {
	if pod == nil {
		return false
	}
	containers := slices.Clone(pod.Spec.Containers)
	for _, c := range pod.Spec.InitContainers {
		if (c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways && n.Mutant != "sidecars ignored") || n.Mutant == "init containers serve" {
			containers = append(containers, c)
		}
	}
	for _, c := range containers {
		for _, port := range c.Ports {
			theirs := port.Protocol
			if theirs == "" {
				theirs = corev1.ProtocolTCP
			}
			if port.Name == name && (theirs == protocol || n.Mutant == "port name regardless of protocol") && port.ContainerPort == number {
				return true
			}
		}
	}
	return false
}

func (n Naive) selects(s *metav1.LabelSelector, labels map[string]string) bool {
	for k, v := range s.MatchLabels {
		if have, ok := labels[k]; !ok || have != v {
			return false
		}
	}
	for _, r := range s.MatchExpressions {
		value, has := labels[r.Key]
		ok := false
		switch r.Operator {
		case metav1.LabelSelectorOpIn:
			ok = has && slices.Contains(r.Values, value)
		case metav1.LabelSelectorOpNotIn:
			ok = !has && n.Mutant != "NotIn needs the label" || has && !slices.Contains(r.Values, value)
		case metav1.LabelSelectorOpExists:
			ok = has
		case metav1.LabelSelectorOpDoesNotExist:
			ok = !has
		}
		if !ok {
			return false
		}
	}
	return true
}
