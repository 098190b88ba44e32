package cluster

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
)

// permanent are the namespaces that are always there.
var permanent = []string{"default", "kube-system"}

// put creates or changes one object; notes are for people. The object becomes the controller's.
func (c *Controller) put(o object) (action Action, notes []string, err error) {
	switch o := o.(type) {
	case *corev1.Namespace:
		action = c.putNamespace(o)
	case *corev1.Node:
		action, err = c.putNode(o)
	case *corev1.Service:
		action, err = c.putService(o)
	case *corev1.Pod:
		action, notes, err = c.putPod(o)
	case *discoveryv1.EndpointSlice:
		if err = admitSlice(o); err == nil {
			action = store(c.userSlice, o)
		}
	case *networkingv1.NetworkPolicy:
		admitPolicy(o)
		action = store(c.policies, o)
	case *networkingv1.ServiceCIDR:
		err = complain("spec.cidrs", "the ranges of cluster IPs are the playground's own: %v", c.cfg.ServiceCIDRs)
	default:
		action, err = c.putWorkload(o)
	}
	if ns := o.GetNamespace(); err == nil && ns != "" && c.spaces[ns] == nil {
		c.ensureNamespace(ns)
		notes = append(notes, fmt.Sprintf("namespace %s is not declared anywhere: it was created; a cluster would refuse the object", ns))
	}
	return action, notes, err
}

// store puts an object into the map of its kind.
func store[T object](m map[types.NamespacedName]T, o T) Action {
	key := keyOf(o)
	old, exists := m[key]
	o.SetUID(uidOf(kindOf(o), key, 0))
	switch {
	case !exists:
		m[key] = o
		return Created
	case equality.Semantic.DeepEqual(old, o):
		return Unchanged
	}
	m[key] = o
	return Configured
}

func (c *Controller) ensureNamespace(name string) {
	c.putNamespace(&corev1.Namespace{ObjectMeta: metaOf(name)})
}

func (c *Controller) putNamespace(o *corev1.Namespace) Action {
	if o.Labels == nil {
		o.Labels = map[string]string{}
	}
	o.Labels[corev1.LabelMetadataName] = o.Name
	o.UID = uidOf("Namespace", keyOf(o), 0)
	old := c.spaces[o.Name]
	if old != nil && equality.Semantic.DeepEqual(old.ObjectMeta, o.ObjectMeta) {
		return Unchanged
	}
	c.spaces[o.Name] = o
	if old == nil {
		return Created
	}
	return Configured
}

func (c *Controller) putNode(o *corev1.Node) (Action, error) {
	if c.node(o.Name) == nil {
		return "", complain("metadata.name", "%s is not a node of this playground: its nodes are %s; labels and annotations of these can be given",
			o.Name, strings.Join(c.nodeNames(), ", "))
	}
	if old := c.extra[o.Name]; old != nil && maps.Equal(old.Labels, o.Labels) && maps.Equal(old.Annotations, o.Annotations) {
		return Unchanged, nil
	}
	c.extra[o.Name] = o
	c.mergeNodes()
	return Configured, nil
}

func (c *Controller) putService(o *corev1.Service) (Action, error) {
	key := keyOf(o)
	if err := admitService(o, c.services[key], c.alloc); err != nil {
		return "", err
	}
	action := store(c.services, o)
	c.alloc.release(key)
	c.alloc.hold(o)
	return action, nil
}

// admitSlice fills in the API's defaults.
func admitSlice(o *discoveryv1.EndpointSlice) error {
	switch o.AddressType {
	case discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6, discoveryv1.AddressTypeFQDN:
	default:
		return complain("addressType", "is %q, expected IPv4, IPv6 or FQDN", o.AddressType)
	}
	for i := range o.Ports {
		p := &o.Ports[i]
		if p.Name == nil {
			p.Name = ptr.To("")
		}
		if p.Protocol == nil {
			p.Protocol = ptr.To(corev1.ProtocolTCP)
		}
	}
	for i, e := range o.Endpoints {
		if len(e.Addresses) == 0 {
			return complain(fmt.Sprintf("endpoints[%d].addresses", i), "is missing, expected at least one address")
		}
	}
	return nil
}

// admitPolicy fills in the API's default of policyTypes: Ingress, and Egress for a policy with
// egress rules.
func admitPolicy(o *networkingv1.NetworkPolicy) {
	if len(o.Spec.PolicyTypes) > 0 {
		return
	}
	o.Spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}
	if len(o.Spec.Egress) > 0 {
		o.Spec.PolicyTypes = append(o.Spec.PolicyTypes, networkingv1.PolicyTypeEgress)
	}
}

func (c *Controller) putPod(o *corev1.Pod) (Action, []string, error) {
	if err := admitPodSpec(&o.Spec, "spec"); err != nil {
		return "", nil, err
	}
	key := keyOf(o)
	if p := c.pods[key]; p != nil && p.owner != nil {
		return "", nil, complain("metadata.name", "pod %s belongs to %s %s: choose another name", key, p.owner.kind, p.owner.NamespacedName)
	}
	o.Status = corev1.PodStatus{}
	old := c.bare[key]
	action := store(c.bare, o)
	if old != nil && !equality.Semantic.DeepEqual(old.Spec, o.Spec) {
		return action, []string{"the pod is replaced, since its spec changed; a cluster would refuse the change"}, nil
	}
	return action, nil, nil
}

func (c *Controller) putWorkload(o object) (Action, error) {
	template := templateOf(o)
	if template == nil {
		return "", fmt.Errorf("%s is not a kind the playground takes", kindOf(o))
	}
	if err := admitPodSpec(&template.Spec, "spec.template.spec"); err != nil {
		return "", err
	}
	w, err := newWorkload(o)
	if err != nil {
		return "", err
	}
	key := workloadKey{w.kind, w.NamespacedName}
	old := c.workloads[key]
	if old == nil {
		c.workloads[key] = w
		c.made++
		w.seq = c.made
		return Created, nil
	}
	w.seq, w.made = old.seq, old.made
	if old.same(w) {
		return Unchanged, nil
	}
	*old = *w // in place: the pods point to their owner
	return Configured, nil
}

// remove deletes one object.
func (c *Controller) remove(o object) error {
	key := keyOf(o)
	missing := func(there bool) error {
		if there {
			return nil
		}
		return fmt.Errorf("there is no %s %s", kindOf(o), key)
	}
	switch o := o.(type) {
	case *corev1.Namespace:
		return c.removeNamespace(o.Name)
	case *corev1.Node:
		if c.extra[o.Name] == nil {
			return missing(false)
		}
		delete(c.extra, o.Name)
		c.mergeNodes()
		return nil
	case *corev1.Service:
		defer c.removeService(key)
		return missing(c.services[key] != nil)
	case *discoveryv1.EndpointSlice:
		defer delete(c.userSlice, key)
		return missing(c.userSlice[key] != nil)
	case *networkingv1.NetworkPolicy:
		defer delete(c.policies, key)
		return missing(c.policies[key] != nil)
	case *corev1.Pod:
		if c.pods[key] == nil && c.bare[key] == nil {
			return missing(false)
		}
		return c.deletePod(key)
	}
	w := c.workloads[workloadKey{kindOf(o), key}]
	if w == nil {
		return missing(false)
	}
	c.removeWorkload(w)
	return nil
}

func (c *Controller) removeService(key types.NamespacedName) {
	delete(c.services, key)
	c.alloc.release(key)
	c.slices.forget(key)
}

func (c *Controller) removeWorkload(w *workload) {
	delete(c.workloads, workloadKey{w.kind, w.NamespacedName})
	for _, p := range c.podsOf(w) {
		c.terminate(p)
	}
}

func (c *Controller) removeNamespace(name string) error {
	if slices.Contains(permanent, name) {
		return fmt.Errorf("namespace %s cannot be deleted", name)
	}
	if c.spaces[name] == nil {
		return fmt.Errorf("there is no Namespace %s", name)
	}
	for key := range c.services {
		if key.Namespace == name {
			c.removeService(key)
		}
	}
	for key, w := range c.workloads {
		if key.Namespace == name {
			c.removeWorkload(w)
		}
	}
	inside := func(key types.NamespacedName) bool { return key.Namespace == name }
	deleteIf(c.bare, inside)
	deleteIf(c.userSlice, inside)
	deleteIf(c.policies, inside)
	delete(c.spaces, name)
	return nil
}

func deleteIf[V any](m map[types.NamespacedName]V, gone func(types.NamespacedName) bool) {
	maps.DeleteFunc(m, func(k types.NamespacedName, _ V) bool { return gone(k) })
}
