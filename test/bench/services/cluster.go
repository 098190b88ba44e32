package main

import (
	"fmt"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/braidnet/braid/test/bench/bulkapi"
	"github.com/braidnet/braid/test/bench/rig"
)

// shape is the size of a cluster.
type shape struct {
	services, endpoints int // endpoints of each service
	affinity            bool
	pods                int // Pod objects, which have no part in services
}

func (s shape) String() string {
	text := fmt.Sprintf("%d × %d", s.services, s.endpoints)
	if s.affinity {
		text += " with affinity"
	}
	if s.pods > 0 {
		text += fmt.Sprintf(", %d pods", s.pods)
	}
	return text
}

// sliceSize is how many endpoints the controller puts into one slice.
const sliceSize = 100

// changedPods is where the addresses of pods begin that take others' places.
const changedPods = 1 << 22

// cluster is what an API server holds: ClusterIP services of one TCP port, as their controllers write
// them. Each replacement of an endpoint has an address that nobody had before.
type cluster struct {
	shape
	api  *bulkapi.Server
	next int // number of the next replacement
}

// fill makes a cluster on an API server that has nothing.
func fill(api *bulkapi.Server, s shape) (*cluster, error) {
	c := &cluster{shape: s, api: api}
	err := api.Put(
		&corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: nodeName, Labels: map[string]string{"kubernetes.io/hostname": nodeName}, UID: "7a1c5c8e-0000-4000-8000-000000000001"},
			Spec:       corev1.NodeSpec{PodCIDR: clientCIDR.String(), PodCIDRs: []string{clientCIDR.String()}},
			Status:     corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: nodeAddr.String()}}},
		},
		&networkingv1.ServiceCIDR{ObjectMeta: metav1.ObjectMeta{Name: "kubernetes"}, Spec: networkingv1.ServiceCIDRSpec{CIDRs: []string{serviceCIDR.String()}}},
	)
	for i := range s.services {
		if err != nil {
			break
		}
		err = c.add(i)
	}
	for i := range s.pods {
		if err != nil {
			break
		}
		err = api.Put(c.podObject(i))
	}
	return c, err
}

// vip is the cluster IP of service i.
func vip(i int) netip.Addr { return rig.Offset(serviceCIDR, i+1) }

func (c *cluster) pod(i, j int) netip.Addr { return rig.Offset(podRange, i*c.endpoints+j+1) }

// add puts service i and its slices.
func (c *cluster) add(i int) error {
	objects := []bulkapi.Object{c.service(i)}
	for first := 0; first < c.endpoints; first += sliceSize {
		var pods []netip.Addr
		for j := first; j < min(first+sliceSize, c.endpoints); j++ {
			pods = append(pods, c.pod(i, j))
		}
		objects = append(objects, c.slice(i, first/sliceSize, pods))
	}
	return c.api.Put(objects...)
}

// change gives the first endpoint of service i to a new pod, and returns that.
func (c *cluster) change(i int) (netip.Addr, error) {
	o, fresh := c.changed(i)
	return fresh, c.api.Put(o)
}

func (c *cluster) changed(i int) (bulkapi.Object, netip.Addr) {
	fresh := rig.Offset(podRange, changedPods+c.next)
	c.next++
	pods := []netip.Addr{fresh}
	for j := 1; j < min(sliceSize, c.endpoints); j++ {
		pods = append(pods, c.pod(i, j))
	}
	return c.slice(i, 0, pods), fresh
}

func uid(kind byte, n int) types.UID {
	return types.UID(fmt.Sprintf("7a1c5c8e-%04x-4000-8000-%012x", kind, n))
}

func serviceName(i int) string { return fmt.Sprintf("service-%d", i) }

func (c *cluster) service(i int) *corev1.Service {
	name, address := serviceName(i), vip(i).String()
	single, cluster := corev1.IPFamilyPolicySingleStack, corev1.ServiceInternalTrafficPolicyCluster
	s := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default", UID: uid('s', i), Labels: map[string]string{"app.kubernetes.io/name": name, "app.kubernetes.io/part-of": "bench"}},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeClusterIP, ClusterIP: address, ClusterIPs: []string{address}, Selector: map[string]string{"app.kubernetes.io/name": name},
			IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol}, IPFamilyPolicy: &single, InternalTrafficPolicy: &cluster,
			SessionAffinity: corev1.ServiceAffinityNone,
			Ports:           []corev1.ServicePort{{Name: "http", Protocol: corev1.ProtocolTCP, Port: servicePort, TargetPort: intstr.FromInt32(podPort)}},
		},
	}
	if c.affinity {
		seconds := int32(10800)
		s.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
		s.Spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: &seconds}}
	}
	return s
}

// podObject is a pod of another node, which a node agent reads for policies.
func (c *cluster) podObject(i int) *corev1.Pod {
	name, address := fmt.Sprintf("%s-%d", serviceName(i), i), rig.Offset(podRange, changedPods/2+i).String()
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default", UID: uid('o', i), Labels: map[string]string{
			"app.kubernetes.io/name": serviceName(i), "app.kubernetes.io/part-of": "bench", "pod-template-hash": "5d4f8c7b6d"}},
		Spec:   corev1.PodSpec{NodeName: fmt.Sprintf("node-%d", i%1000), Containers: []corev1.Container{{Name: "main", Image: "registry.example/main:1", Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: podPort, Protocol: corev1.ProtocolTCP}}}}},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIP: address, PodIPs: []corev1.PodIP{{IP: address}}, Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}},
	}
}

func (c *cluster) slice(i, number int, pods []netip.Addr) *discoveryv1.EndpointSlice {
	name, yes, no := serviceName(i), true, false
	port, proto, node := int32(podPort), corev1.ProtocolTCP, "node-"
	portName := "http"
	s := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Name: fmt.Sprintf("%s-%05d", name, number), Namespace: "default", UID: uid('e', i*1000+number), GenerateName: name + "-",
			Labels: map[string]string{
				discoveryv1.LabelServiceName: name, discoveryv1.LabelManagedBy: "endpointslice-controller.k8s.io",
				"app.kubernetes.io/name": name, "app.kubernetes.io/part-of": "bench",
			},
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Service", Name: name, UID: uid('s', i), Controller: &yes, BlockOwnerDeletion: &yes}},
		},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: &portName, Protocol: &proto, Port: &port}},
	}
	for j, pod := range pods {
		host := fmt.Sprintf("%s%d", node, (i+j)%1000)
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{
			Addresses: []string{pod.String()}, NodeName: &host,
			Conditions: discoveryv1.EndpointConditions{Ready: &yes, Serving: &yes, Terminating: &no},
			TargetRef:  &corev1.ObjectReference{Kind: "Pod", Namespace: "default", Name: fmt.Sprintf("%s-%d", name, j), UID: uid('p', i*c.endpoints+j)},
		})
	}
	return s
}
