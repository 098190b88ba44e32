package cluster

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
)

// pod is one pod and what the runtime has made of it. The controller's lock guards it.
type pod struct {
	seq     int // order of making
	key     types.NamespacedName
	owner   *workload // nil for a pod of its own
	hash    string    // of the owner's template when it was made
	ordinal int       // StatefulSet
	created time.Time

	base corev1.Pod  // metadata and spec, without status
	obj  *corev1.Pod // base with status: what everybody sees; replaced, never changed

	running     bool // it has a sandbox and addresses
	busy        bool // a call of the runtime for it is under way
	tried       bool // Runtime.Start was called: Runtime.Stop is due in the end
	attempt     int  // sandboxes that were lost
	ips         []netip.Addr
	hostIPs     []netip.Addr
	notReady    bool // somebody said so
	terminating bool
	deletedAt   time.Time
	ports       []Port // what the stand-in of this pod is to serve
	portsStale  bool   // the runtime still serves others

	err      string // why the last attempt failed
	failures int
	next     time.Time // not before this time is it tried (again)
	cancel   func()    // ends the call under way
}

func (p *pod) ready() bool { return p.running && !p.notReady && !p.terminating }

// grace is how long the pod goes on serving after its deletion, at most limit.
func (p *pod) grace(limit time.Duration) time.Duration {
	if own := p.base.Spec.TerminationGracePeriodSeconds; own != nil && *own >= 0 {
		return min(limit, time.Duration(*own)*time.Second)
	}
	return limit
}

// refresh rebuilds what everybody sees of the pod.
func (p *pod) refresh() {
	o := p.base.DeepCopy()
	o.Status.Phase = corev1.PodPending
	if p.running {
		o.Status.Phase = corev1.PodRunning
		o.Status.PodIP, o.Status.HostIP = first(p.ips), first(p.hostIPs)
		for _, ip := range p.ips {
			o.Status.PodIPs = append(o.Status.PodIPs, corev1.PodIP{IP: ip.String()})
		}
		for _, ip := range p.hostIPs {
			o.Status.HostIPs = append(o.Status.HostIPs, corev1.HostIP{IP: ip.String()})
		}
	}
	if p.terminating {
		o.DeletionTimestamp = &metav1.Time{Time: p.deletedAt}
		o.DeletionGracePeriodSeconds = ptr.To[int64](0)
	}
	ready := p.running && !p.notReady
	o.Status.Conditions = []corev1.PodCondition{
		condition(corev1.PodScheduled, o.Spec.NodeName != ""), condition(corev1.PodReady, ready),
	}
	o.Status.Message = p.err
	p.obj = o
}

func condition(t corev1.PodConditionType, is bool) corev1.PodCondition {
	c := corev1.PodCondition{Type: t, Status: corev1.ConditionFalse}
	if is {
		c.Status = corev1.ConditionTrue
	}
	return c
}

func first(ips []netip.Addr) string {
	if len(ips) == 0 {
		return ""
	}
	return ips[0].String()
}

// sandbox is what the runtime gets to know of the pod.
func (p *pod) sandbox() PodSandbox {
	s := p.base.Spec
	hostname := cmp.Or(s.Hostname, p.key.Name)
	hostname = strings.TrimRight(hostname[:min(63, len(hostname))], "-.") // what the kernel and DNS take
	return PodSandbox{
		Namespace: p.key.Namespace, Name: p.key.Name, UID: string(p.base.UID), Attempt: p.attempt, Node: s.NodeName,
		Hostname: hostname, Subdomain: s.Subdomain, HostNetwork: s.HostNetwork,
		Ports: slices.Clone(p.ports), HostPorts: hostPorts(&s), DNSPolicy: s.DNSPolicy, DNSConfig: s.DNSConfig.DeepCopy(),
		HostAliases: slices.Clone(s.HostAliases),
	}
}

// servedPorts lists what the containers of a pod listen on: the ports they declare and, because
// declaring is only information in Kubernetes, the numbers that services selecting the pod name as
// their target. Each (number, protocol) is listed once.
func servedPorts(spec *corev1.PodSpec, services []*corev1.Service) (out []Port) {
	add := func(p Port) {
		p.Protocol = cmp.Or(p.Protocol, corev1.ProtocolTCP)
		same := func(o Port) bool { return o.Number == p.Number && o.Protocol == p.Protocol }
		if p.Number != 0 && !slices.ContainsFunc(out, same) {
			out = append(out, p)
		}
	}
	for _, c := range longRunning(spec) {
		for _, p := range c.Ports {
			add(Port{p.Name, uint16(p.ContainerPort), p.Protocol})
		}
	}
	for _, s := range services {
		for _, p := range s.Spec.Ports {
			add(Port{Number: uint16(p.TargetPort.IntVal), Protocol: p.Protocol})
		}
	}
	slices.SortFunc(out, func(a, b Port) int {
		return cmp.Or(cmp.Compare(a.Number, b.Number), cmp.Compare(a.Protocol, b.Protocol))
	})
	return out
}

// longRunning lists the containers that run as long as the pod: sidecars are among its init
// containers, marked by their restart policy.
func longRunning(spec *corev1.PodSpec) []corev1.Container {
	out := slices.Clone(spec.Containers)
	for _, c := range spec.InitContainers {
		if ptr.Deref(c.RestartPolicy, "") == corev1.ContainerRestartPolicyAlways {
			out = append(out, c)
		}
	}
	return out
}
