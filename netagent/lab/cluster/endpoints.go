package cluster

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	discoveryclient "k8s.io/client-go/kubernetes/typed/discovery/v1"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/endpointslice"
	endpointsliceutil "k8s.io/endpointslice/util"
	"k8s.io/klog/v2"
)

// Slices are cut and labelled as kube-controller-manager does by default.
const (
	sliceController      = "endpointslice-controller.k8s.io"
	maxEndpointsPerSlice = 100
)

// sliceMaker makes the EndpointSlices of Services with a selector. The rules are Kubernetes' own:
// its reconciler runs here against a client that only knows EndpointSlices, and those in memory.
type sliceMaker struct {
	nodes      cache.Indexer
	tracker    *endpointsliceutil.EndpointSliceTracker
	reconciler *endpointslice.Reconciler
	made       map[types.NamespacedName]*discoveryv1.EndpointSlice // by their own name
	byService  map[types.NamespacedName]map[string]bool            // names of the slices of a service
	nameTaken  func(types.NamespacedName) bool                     // by a slice of a manifest
}

func newSliceMaker(nameTaken func(types.NamespacedName) bool) *sliceMaker {
	m := &sliceMaker{
		nodes:     cache.NewIndexer(cache.MetaNamespaceKeyFunc, cache.Indexers{}),
		tracker:   endpointsliceutil.NewEndpointSliceTracker(),
		made:      map[types.NamespacedName]*discoveryv1.EndpointSlice{},
		byService: map[types.NamespacedName]map[string]bool{},
		nameTaken: nameTaken,
	}
	m.reconciler = endpointslice.NewReconciler(sliceClientset{m: m}, corelisters.NewNodeLister(m.nodes), maxEndpointsPerSlice,
		m.tracker, nil, nil, sliceController, endpointslice.WithPreferSameTrafficDistributionEnabled(true))
	return m
}

func (m *sliceMaker) setNodes(nodes []*corev1.Node) {
	items := make([]any, len(nodes))
	for i, n := range nodes {
		items[i] = n
	}
	_ = m.nodes.Replace(items, "") // an in-memory index of objects with names does not fail
}

// reconcile brings the slices of a service in line with the pods of its namespace.
func (m *sliceMaker) reconcile(s *corev1.Service, pods []*corev1.Pod) error {
	key := keyOf(s)
	if !selects(s) {
		m.forget(key)
		return nil
	}
	var existing []*discoveryv1.EndpointSlice
	for name := range m.byService[key] {
		existing = append(existing, m.made[types.NamespacedName{Namespace: key.Namespace, Name: name}])
	}
	slices.SortFunc(existing, func(a, b *discoveryv1.EndpointSlice) int { return cmp.Compare(a.Name, b.Name) })
	// No trigger time: the folder's content is to depend on nothing but the manifests.
	if err := m.reconciler.Reconcile(klog.Logger{}, s, pods, existing, time.Time{}); err != nil {
		return fmt.Errorf("endpoints of Service %s: %w", key, err)
	}
	return nil
}

// selects reports whether the service's endpoints are made from a selector.
func selects(s *corev1.Service) bool {
	return len(s.Spec.Selector) > 0 && s.Spec.Type != corev1.ServiceTypeExternalName
}

// selected returns the pods a service selects.
func selected(s *corev1.Service, pods []*corev1.Pod) (out []*corev1.Pod) {
	sel := labels.SelectorFromSet(s.Spec.Selector)
	for _, p := range pods {
		if p.Namespace == s.Namespace && sel.Matches(labels.Set(p.Labels)) {
			out = append(out, p)
		}
	}
	return out
}

// forget removes the slices of a service that is gone or has no selector any more.
func (m *sliceMaker) forget(key types.NamespacedName) {
	for name := range m.byService[key] {
		delete(m.made, types.NamespacedName{Namespace: key.Namespace, Name: name})
	}
	delete(m.byService, key)
	m.tracker.DeleteService(key.Namespace, key.Name)
	m.reconciler.DeleteService(key.Namespace, key.Name)
}

// sliceClientset is as much of a clientset as the reconciler uses. Anything else panics.
type sliceClientset struct {
	kubernetes.Interface
	m *sliceMaker
}

func (c sliceClientset) DiscoveryV1() discoveryclient.DiscoveryV1Interface {
	return sliceGroup{m: c.m}
}

type sliceGroup struct {
	discoveryclient.DiscoveryV1Interface
	m *sliceMaker
}

func (g sliceGroup) EndpointSlices(namespace string) discoveryclient.EndpointSliceInterface {
	return sliceClient{m: g.m, namespace: namespace}
}

type sliceClient struct {
	discoveryclient.EndpointSliceInterface
	m         *sliceMaker
	namespace string
}

// Create names a slice as generateName asks, by a hash instead of at random.
func (c sliceClient) Create(_ context.Context, s *discoveryv1.EndpointSlice, _ metav1.CreateOptions) (*discoveryv1.EndpointSlice, error) {
	service := s.Labels[discoveryv1.LabelServiceName]
	for i := 0; s.Name == ""; i++ {
		name := s.GenerateName + suffix(fmt.Sprintf("%s/%s/%s/%d", c.namespace, service, s.AddressType, i), 5)
		if key := (types.NamespacedName{Namespace: c.namespace, Name: name}); c.m.made[key] == nil && !c.m.nameTaken(key) {
			s.Name = name
		}
	}
	s.UID = uidOf("EndpointSlice", keyOf(s), 0)
	return c.put(s), nil
}

func (c sliceClient) Update(_ context.Context, s *discoveryv1.EndpointSlice, _ metav1.UpdateOptions) (*discoveryv1.EndpointSlice, error) {
	return c.put(s), nil
}

// put stores a copy with its endpoints sorted: the reconciler takes them from a map.
func (c sliceClient) put(s *discoveryv1.EndpointSlice) *discoveryv1.EndpointSlice {
	s = s.DeepCopy()
	s.Generation++
	slices.SortFunc(s.Endpoints, func(a, b discoveryv1.Endpoint) int {
		return slices.Compare(a.Addresses, b.Addresses)
	})
	c.m.made[keyOf(s)] = s
	service := types.NamespacedName{Namespace: s.Namespace, Name: s.Labels[discoveryv1.LabelServiceName]}
	if c.m.byService[service] == nil {
		c.m.byService[service] = map[string]bool{}
	}
	c.m.byService[service][s.Name] = true
	return s
}

func (c sliceClient) Delete(_ context.Context, name string, _ metav1.DeleteOptions) error {
	key := types.NamespacedName{Namespace: c.namespace, Name: name}
	if s := c.m.made[key]; s != nil {
		delete(c.m.byService[types.NamespacedName{Namespace: c.namespace, Name: s.Labels[discoveryv1.LabelServiceName]}], name)
	}
	delete(c.m.made, key)
	return nil
}
