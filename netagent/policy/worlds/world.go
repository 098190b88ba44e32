// Package worlds draws random clusters for tests of policy, and knows the naive answer to who may reach
// whom in them. Only tests use it.
package worlds

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	"github.com/braidnet/braid/internal/model"
)

// Numbers are the transport protocols of the API.
var Numbers = map[corev1.Protocol]model.Protocol{corev1.ProtocolTCP: model.TCP, corev1.ProtocolUDP: model.UDP, corev1.ProtocolSCTP: model.SCTP}

// Everything is drawn from few values, so that things meet.
var (
	someNamespaces = []string{"a", "ab", "b"}
	someLabels     = []string{"x", "y"}
	someValues     = []string{"1", "2"}
	somePorts      = []int32{80, 81, 82, 90, 8080}
	someNames      = []string{"web", "dns"}
	someProtocols  = []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP}
	nodeAddrs      = []string{"192.0.2.2", "2001:db8::2"} // of neither node: outside
)

// World is a cluster, in the API's own words.
type World struct {
	Namespaces []*corev1.Namespace
	Pods       []*corev1.Pod
	Policies   []*networkingv1.NetworkPolicy
}

// Packet is the first packet of a connection; its fields are those of policy.Packet.
type Packet struct {
	Src, Dst netip.Addr
	Protocol model.Protocol
	Port     uint16
	FromNode bool
}

// Dice draws worlds.
type Dice struct{ *rand.Rand }

// NewDice returns the n-th dice of a seed.
func NewDice(seed, n uint64) Dice { return Dice{rand.New(rand.NewPCG(seed, n))} }

// Pick draws one of a list.
func Pick[T any](d Dice, list []T) T { return list[d.IntN(len(list))] }

// One is true once in so many times.
func (d Dice) One(in int) bool { return d.IntN(in) == 0 }

// Where pods have their addresses: eight of each family on each of two nodes.
var (
	someNodes = []string{"n1", "n2"}
	pods4     = []string{"10.244.1.", "10.244.2."}
	pods6     = []string{"fd00:10:244:1::", "fd00:10:244:2::"}
)

// address is one that a pod of a node may have.
func (d Dice) address(ipv4 bool, node int) string {
	if ipv4 {
		return fmt.Sprintf("%s%d", pods4[node], 8+d.IntN(8))
	}
	return fmt.Sprintf("%s%x", pods6[node], 8+d.IntN(8))
}

// World draws a world.
func (d Dice) World() World {
	var w World
	for _, name := range someNamespaces[:1+d.IntN(3)] {
		ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: d.labels()}}
		if d.One(8) {
			ns.Annotations = map[string]string{audit: "true"}
		}
		w.Namespaces = append(w.Namespaces, ns)
	}
	for i := range 1 + d.IntN(8) {
		w.Pods = append(w.Pods, d.pod(w, i))
	}
	for i := range d.IntN(6) {
		w.Policies = append(w.Policies, d.policy(Pick(d, w.Namespaces).Name, i))
	}
	return w
}

func (d Dice) labels() map[string]string {
	out := map[string]string{}
	for _, k := range someLabels {
		if d.One(2) {
			out[k] = Pick(d, someValues)
		}
	}
	return out
}

// pod draws a pod; two that live never have the same address.
func (d Dice) pod(w World, i int) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: Pick(d, w.Namespaces).Name, Name: fmt.Sprintf("p%d", i), UID: types.UID(fmt.Sprint(d.IntN(1000))), Labels: d.labels()}}
	p.Status.Phase = corev1.PodRunning
	switch d.IntN(8) {
	case 0:
		p.Status.Phase = Pick(d, []corev1.PodPhase{corev1.PodSucceeded, corev1.PodFailed})
	case 1:
		p.Status.Phase = corev1.PodPending
	}
	p.Spec.HostNetwork = d.One(8)
	if d.One(8) {
		p.DeletionTimestamp = &metav1.Time{}
	}
	p.Spec.Containers = []corev1.Container{{Ports: d.ports()}}
	if d.One(2) {
		p.Spec.InitContainers = []corev1.Container{{Ports: d.ports()}}
		if d.One(2) {
			p.Spec.InitContainers[0].RestartPolicy = ptr.To(corev1.ContainerRestartPolicyAlways)
		}
	}
	node := d.IntN(2)
	p.Spec.NodeName = someNodes[node]
	families := Pick(d, [][]bool{{true}, {false}, {true, false}, {true, false}, {}})
	for _, ipv4 := range families {
		ip := d.address(ipv4, node)
		switch {
		case p.Spec.HostNetwork:
			ip = nodeAddrs[map[bool]int{true: 0, false: 1}[ipv4]]
		case p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed:
		default:
			for (Naive{World: w}).PodAt(netip.MustParseAddr(ip)) != nil {
				ip = d.address(ipv4, node)
			}
		}
		p.Status.PodIPs = append(p.Status.PodIPs, corev1.PodIP{IP: ip})
	}
	return p
}

func (d Dice) ports() (out []corev1.ContainerPort) {
	for range d.IntN(3) {
		p := corev1.ContainerPort{ContainerPort: Pick(d, somePorts), Protocol: Pick(d, append(someProtocols, ""))}
		if d.One(2) {
			p.Name = Pick(d, someNames)
		}
		out = append(out, p)
	}
	return out
}

func (d Dice) selector() *metav1.LabelSelector {
	s := &metav1.LabelSelector{}
	switch d.IntN(4) {
	case 0:
	case 1:
		s.MatchLabels = map[string]string{Pick(d, someLabels): Pick(d, someValues)}
	case 2:
		s.MatchLabels = d.labels()
	case 3:
		r := metav1.LabelSelectorRequirement{Key: Pick(d, someLabels), Operator: Pick(d, []metav1.LabelSelectorOperator{
			metav1.LabelSelectorOpIn, metav1.LabelSelectorOpNotIn, metav1.LabelSelectorOpExists, metav1.LabelSelectorOpDoesNotExist})}
		if r.Operator == metav1.LabelSelectorOpIn || r.Operator == metav1.LabelSelectorOpNotIn {
			r.Values = slices.Clone(someValues[:1+d.IntN(2)])
		}
		s.MatchExpressions = []metav1.LabelSelectorRequirement{r}
	}
	return s
}

func (d Dice) policy(namespace string, i int) *networkingv1.NetworkPolicy {
	p := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: fmt.Sprintf("n%d", i)}}
	p.Spec.PodSelector = *d.selector()
	p.Spec.PolicyTypes = Pick(d, [][]networkingv1.PolicyType{nil, {networkingv1.PolicyTypeIngress}, {networkingv1.PolicyTypeEgress},
		{networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress}})
	for range d.IntN(3) {
		p.Spec.Ingress = append(p.Spec.Ingress, networkingv1.NetworkPolicyIngressRule{From: d.peers(), Ports: d.policyPorts()})
	}
	for range d.IntN(3) {
		p.Spec.Egress = append(p.Spec.Egress, networkingv1.NetworkPolicyEgressRule{To: d.peers(), Ports: d.policyPorts()})
	}
	return p
}

func (d Dice) peers() (out []networkingv1.NetworkPolicyPeer) {
	for range d.IntN(4) {
		var x networkingv1.NetworkPolicyPeer
		switch d.IntN(4) {
		case 0:
			x.PodSelector = d.selector()
		case 1:
			x.NamespaceSelector = d.namespaceSelector()
		case 2:
			x.PodSelector, x.NamespaceSelector = d.selector(), d.namespaceSelector()
		case 3:
			x.IPBlock = d.block()
		}
		out = append(out, x)
	}
	return out
}

func (d Dice) namespaceSelector() *metav1.LabelSelector {
	if d.One(3) {
		return &metav1.LabelSelector{MatchLabels: map[string]string{"kubernetes.io/metadata.name": Pick(d, someNamespaces)}}
	}
	return d.selector()
}

// block draws a block and exceptions that lie in it, and in each other.
func (d Dice) block() *networkingv1.IPBlock {
	ipv4 := d.One(2)
	lengths := map[bool][]int{true: {0, 22, 23, 24, 28, 29, 30, 31, 32}, false: {0, 62, 63, 64, 124, 125, 126, 127, 128}}[ipv4]
	within := func(p netip.Prefix, least int) netip.Prefix {
		for {
			a := netip.MustParseAddr(d.address(ipv4, d.IntN(2)))
			if bits := Pick(d, lengths); bits >= least && p.Contains(a) {
				return netip.PrefixFrom(a, bits).Masked()
			}
		}
	}
	p := within(netip.MustParsePrefix(map[bool]string{true: "0.0.0.0/0", false: "::/0"}[ipv4]), 0)
	b := &networkingv1.IPBlock{CIDR: p.String()}
	for range d.IntN(4) {
		if e := within(p, p.Bits()); e != p {
			b.Except = append(b.Except, e.String())
		}
	}
	return b
}

func (d Dice) policyPorts() (out []networkingv1.NetworkPolicyPort) {
	for range d.IntN(4) {
		var x networkingv1.NetworkPolicyPort
		if d.One(2) {
			x.Protocol = ptr.To(Pick(d, someProtocols))
		}
		switch d.IntN(4) {
		case 0: // all of the protocol
		case 1:
			x.Port = ptr.To(intstr.FromString(Pick(d, someNames)))
		case 2:
			x.Port = ptr.To(intstr.FromInt32(Pick(d, somePorts)))
		case 3:
			from := Pick(d, somePorts)
			x.Port, x.EndPort = ptr.To(intstr.FromInt32(from)), ptr.To(from+int32(d.IntN(5)))
		}
		out = append(out, x)
	}
	return out
}

// Packet draws one, mostly between pods of the world.
func (d Dice) Packet(w World) Packet {
	ipv4 := d.One(2)
	address := func() netip.Addr {
		if d.One(3) {
			return netip.MustParseAddr(d.address(ipv4, d.IntN(2)))
		}
		for range 8 {
			for _, ip := range Pick(d, w.Pods).Status.PodIPs {
				if a := netip.MustParseAddr(ip.IP); a.Is4() == ipv4 {
					return a
				}
			}
		}
		return netip.MustParseAddr(nodeAddrs[map[bool]int{true: 0, false: 1}[ipv4]])
	}
	p := Packet{Src: address(), Dst: address(), Protocol: Numbers[Pick(d, someProtocols)], Port: uint16(Pick(d, somePorts)), FromNode: d.One(16)}
	if d.One(8) {
		p.Port += uint16(d.IntN(5))
	}
	if d.One(24) {
		p.Protocol, p.Port = 1, 0
	}
	return p
}
