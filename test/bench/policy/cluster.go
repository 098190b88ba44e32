package main

import (
	"fmt"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/braidnet/braid/test/bench/bulkapi"
	"github.com/braidnet/braid/test/bench/rig"
)

// shape is the size of a cluster.
type shape struct {
	policies, pods, local int // local: of the pods, those of the node, besides client and server
	same                  int // policies that all isolate the server, and allow it to be reached
}

func (s shape) String() string {
	return fmt.Sprintf("%d policies, %d pods, %d of them local", s.policies+s.same, s.pods, s.local)
}

const (
	namespaces = 50
	apps       = 10 // in each namespace
	otherNodes = 200
	home       = "bench"
)

// cluster is what an API server holds: namespaces of ten apps, whose policies allow ingress from another app of the
// same namespace, and from one of all namespaces of a team.
type cluster struct {
	shape
	api  *bulkapi.Server
	next int // number of the next pod elsewhere
}

// fill makes a cluster on an API server that has nothing.
func fill(api *bulkapi.Server, s shape) (*cluster, error) {
	c := &cluster{shape: s, api: api, next: s.pods}
	objects := []bulkapi.Object{
		&corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: nodeName, Labels: map[string]string{"kubernetes.io/hostname": nodeName}, UID: uid('n', 0)},
			Spec:       corev1.NodeSpec{PodCIDR: podCIDR.String(), PodCIDRs: []string{podCIDR.String()}},
			Status:     corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: wireNode.String()}}},
		},
		namespace(home, map[string]string{}),
		c.client("no"), podObject(home, "server", nodeName, serverAddr, uid('p', 1<<20), map[string]string{"app": "server"}),
	}
	for i := range namespaces {
		objects = append(objects, namespace(namespaceName(i), map[string]string{"team": fmt.Sprintf("team-%d", i%5)}))
	}
	for i := range s.pods {
		objects = append(objects, c.pod(i))
	}
	for i := range s.policies {
		objects = append(objects, policyObject(namespaceName(i), fmt.Sprintf("policy-%d", i), "app", appName(i/namespaces),
			selects(nil, map[string]string{"app": appName(i/namespaces + 1)}),
			selects(map[string]string{"team": fmt.Sprintf("team-%d", i%5)}, map[string]string{"app": appName(i/namespaces + 2)})))
	}
	for i := range s.same {
		objects = append(objects, policyObject(home, fmt.Sprintf("same-%d", i), "app", "server", selects(nil, map[string]string{"with": fmt.Sprintf("x-%d", i)})))
	}
	if s.same > 0 { // the last by name
		objects = append(objects, policyObject(home, "zzz", "app", "server", selects(nil, map[string]string{"app": "client"})))
	}
	return c, api.Put(objects...)
}

func namespaceName(i int) string { return fmt.Sprintf("team-%d-%d", i%5, i%namespaces) }

func appName(i int) string { return fmt.Sprintf("app-%d", i%apps) }

func uid(kind byte, n int) types.UID {
	return types.UID(fmt.Sprintf("7a1c5c8e-%04x-4000-8000-%012x", kind, n))
}

func namespace(name string, labels map[string]string) *corev1.Namespace {
	labels["kubernetes.io/metadata.name"] = name
	return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels, UID: types.UID("ns-" + name)}}
}

// client is the client pod, with a label that policies look at.
func (c *cluster) client(role string) *corev1.Pod {
	return podObject(home, "client", nodeName, clientAddr, uid('p', 1<<20+1), map[string]string{"app": "client", "role": role})
}

// pod is pod i; the first are the node's.
func (c *cluster) pod(i int) *corev1.Pod {
	node, ip := fmt.Sprintf("node-%d", i%otherNodes), rig.Offset(farRange, 1+i)
	if i < c.local {
		node, ip = nodeName, rig.Offset(podCIDR, 4+i)
	}
	return podObject(namespaceName(i), fmt.Sprintf("pod-%d", i), node, ip, uid('p', i), map[string]string{
		"app": appName(i / namespaces), "pod-template-hash": "5d4f8c7b6d", "app.kubernetes.io/part-of": "bench"})
}

// hostOf is a node's address.
func hostOf(node string) netip.Addr {
	if node == nodeName {
		return wireNode
	}
	var i int
	_, _ = fmt.Sscanf(node, "node-%d", &i) // all others are called that
	return netip.AddrFrom4([4]byte{10, 253, 0, byte(1 + i)})
}

func podObject(ns, name, node string, ip netip.Addr, id types.UID, labels map[string]string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: ns, UID: id, Labels: labels},
		Spec:       corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{Name: "main", Image: "registry.example/main:1", Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: podPort, Protocol: corev1.ProtocolTCP}}}}},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIP: ip.String(), PodIPs: []corev1.PodIP{{IP: ip.String()}}, HostIP: hostOf(node).String(),
			Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}},
	}
}

// selects is a peer; without labels of namespaces it is of the policy's own.
func selects(namespaces, pods map[string]string) networkingv1.NetworkPolicyPeer {
	p := networkingv1.NetworkPolicyPeer{PodSelector: &metav1.LabelSelector{MatchLabels: pods}}
	if namespaces != nil {
		p.NamespaceSelector = &metav1.LabelSelector{MatchLabels: namespaces}
	}
	return p
}

// policyObject isolates pods with a label for ingress, and allows what peers send to the port of all pods.
func policyObject(ns, name, key, value string, peers ...networkingv1.NetworkPolicyPeer) *networkingv1.NetworkPolicy {
	tcp, udp, port := corev1.ProtocolTCP, corev1.ProtocolUDP, intstr.FromInt32(podPort)
	return &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: ns, UID: types.UID("np-" + ns + "-" + name)},
		Spec: networkingv1.NetworkPolicySpec{
			PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{key: value}},
			PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress},
			Ingress: []networkingv1.NetworkPolicyIngressRule{{From: peers,
				Ports: []networkingv1.NetworkPolicyPort{{Protocol: &tcp, Port: &port}, {Protocol: &udp, Port: &port}}}},
		},
	}
}
