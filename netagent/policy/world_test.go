package policy

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

// numbers are the transport protocols of the API.
var numbers = map[corev1.Protocol]model.Protocol{corev1.ProtocolTCP: model.TCP, corev1.ProtocolUDP: model.UDP, corev1.ProtocolSCTP: model.SCTP}

// Everything is drawn from few values, so that things meet.
var (
	someNamespaces = []string{"a", "ab", "b"}
	someLabels     = []string{"x", "y"}
	someValues     = []string{"1", "2"}
	somePorts      = []int32{80, 81, 82, 90, 8080}
	someNames      = []string{"web", "dns"}
	someProtocols  = []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP}
	nodeAddrs      = []string{"192.0.2.1", "2001:db8::1"}
)

// dice draws worlds.
type dice struct{ *rand.Rand }

func newDice(seed, n uint64) dice { return dice{rand.New(rand.NewPCG(seed, n))} }

func pick[T any](d dice, list []T) T { return list[d.IntN(len(list))] }

func (d dice) one(in int) bool { return d.IntN(in) == 0 }

// address is one of sixteen of a family.
func (d dice) address(ipv4 bool) string {
	if ipv4 {
		return fmt.Sprintf("10.0.0.%d", d.IntN(16))
	}
	return fmt.Sprintf("fd00::%x", d.IntN(16))
}

func (d dice) world() world {
	var w world
	for _, name := range someNamespaces[:1+d.IntN(3)] {
		w.namespaces = append(w.namespaces, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: d.labels()}})
	}
	for i := range 1 + d.IntN(8) {
		w.pods = append(w.pods, d.pod(w, i))
	}
	for i := range d.IntN(6) {
		w.policies = append(w.policies, d.policy(pick(d, w.namespaces).Name, i))
	}
	return w
}

func (d dice) labels() map[string]string {
	out := map[string]string{}
	for _, k := range someLabels {
		if d.one(2) {
			out[k] = pick(d, someValues)
		}
	}
	return out
}

// pod draws a pod; two that live never have the same address.
func (d dice) pod(w world, i int) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: pick(d, w.namespaces).Name, Name: fmt.Sprintf("p%d", i), UID: types.UID(fmt.Sprint(d.IntN(1000))), Labels: d.labels()}}
	p.Status.Phase = corev1.PodRunning
	switch d.IntN(8) {
	case 0:
		p.Status.Phase = pick(d, []corev1.PodPhase{corev1.PodSucceeded, corev1.PodFailed})
	case 1:
		p.Status.Phase = corev1.PodPending
	}
	p.Spec.HostNetwork = d.one(8)
	if d.one(8) {
		p.DeletionTimestamp = &metav1.Time{}
	}
	p.Spec.Containers = []corev1.Container{{Ports: d.ports()}}
	if d.one(2) {
		p.Spec.InitContainers = []corev1.Container{{Ports: d.ports()}}
		if d.one(2) {
			p.Spec.InitContainers[0].RestartPolicy = ptr.To(corev1.ContainerRestartPolicyAlways)
		}
	}
	families := pick(d, [][]bool{{true}, {false}, {true, false}, {true, false}, {}})
	for _, ipv4 := range families {
		ip := d.address(ipv4)
		switch {
		case p.Spec.HostNetwork:
			ip = nodeAddrs[map[bool]int{true: 0, false: 1}[ipv4]]
		case p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed:
		default:
			for (naive{world: w}).podAt(netip.MustParseAddr(ip)) != nil {
				ip = d.address(ipv4)
			}
		}
		p.Status.PodIPs = append(p.Status.PodIPs, corev1.PodIP{IP: ip})
	}
	return p
}

func (d dice) ports() (out []corev1.ContainerPort) {
	for range d.IntN(3) {
		p := corev1.ContainerPort{ContainerPort: pick(d, somePorts), Protocol: pick(d, append(someProtocols, ""))}
		if d.one(2) {
			p.Name = pick(d, someNames)
		}
		out = append(out, p)
	}
	return out
}

func (d dice) selector() *metav1.LabelSelector {
	s := &metav1.LabelSelector{}
	switch d.IntN(4) {
	case 0:
	case 1:
		s.MatchLabels = map[string]string{pick(d, someLabels): pick(d, someValues)}
	case 2:
		s.MatchLabels = d.labels()
	case 3:
		r := metav1.LabelSelectorRequirement{Key: pick(d, someLabels), Operator: pick(d, []metav1.LabelSelectorOperator{
			metav1.LabelSelectorOpIn, metav1.LabelSelectorOpNotIn, metav1.LabelSelectorOpExists, metav1.LabelSelectorOpDoesNotExist})}
		if r.Operator == metav1.LabelSelectorOpIn || r.Operator == metav1.LabelSelectorOpNotIn {
			r.Values = slices.Clone(someValues[:1+d.IntN(2)])
		}
		s.MatchExpressions = []metav1.LabelSelectorRequirement{r}
	}
	return s
}

func (d dice) policy(namespace string, i int) *networkingv1.NetworkPolicy {
	p := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: fmt.Sprintf("n%d", i)}}
	p.Spec.PodSelector = *d.selector()
	p.Spec.PolicyTypes = pick(d, [][]networkingv1.PolicyType{nil, {networkingv1.PolicyTypeIngress}, {networkingv1.PolicyTypeEgress},
		{networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress}})
	for range d.IntN(3) {
		p.Spec.Ingress = append(p.Spec.Ingress, networkingv1.NetworkPolicyIngressRule{From: d.peers(), Ports: d.policyPorts()})
	}
	for range d.IntN(3) {
		p.Spec.Egress = append(p.Spec.Egress, networkingv1.NetworkPolicyEgressRule{To: d.peers(), Ports: d.policyPorts()})
	}
	return p
}

func (d dice) peers() (out []networkingv1.NetworkPolicyPeer) {
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

func (d dice) namespaceSelector() *metav1.LabelSelector {
	if d.one(3) {
		return &metav1.LabelSelector{MatchLabels: map[string]string{"kubernetes.io/metadata.name": pick(d, someNamespaces)}}
	}
	return d.selector()
}

// block draws a block and exceptions that lie in it, and in each other.
func (d dice) block() *networkingv1.IPBlock {
	ipv4 := d.one(2)
	bits := 32
	if !ipv4 {
		bits = 128
	}
	within := func(p netip.Prefix, longer int) netip.Prefix {
		for {
			a := netip.MustParseAddr(d.address(ipv4))
			if length := p.Bits() + longer; p.Contains(a) {
				if length == bits && p.Bits() == bits {
					return p
				}
				return netip.PrefixFrom(a, min(length, bits)).Masked()
			}
		}
	}
	all := netip.PrefixFrom(netip.MustParseAddr(map[bool]string{true: "10.0.0.0", false: "fd00::"}[ipv4]), bits-4)
	p := within(all, d.IntN(4))
	if d.one(6) {
		p = netip.MustParsePrefix(map[bool]string{true: "0.0.0.0/0", false: "::/0"}[ipv4])
	}
	b := &networkingv1.IPBlock{CIDR: p.String()}
	for range d.IntN(4) {
		e := within(p, 1+d.IntN(3))
		if p.Bits() == 0 {
			e = within(all, d.IntN(5))
		}
		if e != p {
			b.Except = append(b.Except, e.String())
		}
	}
	return b
}

func (d dice) policyPorts() (out []networkingv1.NetworkPolicyPort) {
	for range d.IntN(4) {
		var x networkingv1.NetworkPolicyPort
		if d.one(2) {
			x.Protocol = ptr.To(pick(d, someProtocols))
		}
		switch d.IntN(4) {
		case 0: // all of the protocol
		case 1:
			x.Port = ptr.To(intstr.FromString(pick(d, someNames)))
		case 2:
			x.Port = ptr.To(intstr.FromInt32(pick(d, somePorts)))
		case 3:
			from := pick(d, somePorts)
			x.Port, x.EndPort = ptr.To(intstr.FromInt32(from)), ptr.To(from+int32(d.IntN(5)))
		}
		out = append(out, x)
	}
	return out
}

// packet draws one, mostly between pods of the world.
func (d dice) packet(w world) Packet {
	ipv4 := d.one(2)
	address := func() netip.Addr {
		if d.one(3) {
			return netip.MustParseAddr(d.address(ipv4))
		}
		for range 8 {
			for _, ip := range pick(d, w.pods).Status.PodIPs {
				if a := netip.MustParseAddr(ip.IP); a.Is4() == ipv4 {
					return a
				}
			}
		}
		return netip.MustParseAddr(nodeAddrs[map[bool]int{true: 0, false: 1}[ipv4]])
	}
	p := Packet{Src: address(), Dst: address(), Protocol: numbers[pick(d, someProtocols)], Port: uint16(pick(d, somePorts)), FromNode: d.one(16)}
	if d.one(8) {
		p.Port += uint16(d.IntN(5))
	}
	if d.one(24) {
		p.Protocol, p.Port = 1, 0
	}
	return p
}
