// Package source turns typed Kubernetes objects into values of the model. It is the one decode path
// of Braid: source/kube (API server) and source/dir (manifests) both end here, so an object means the
// same wherever it was read.
package source

import (
	"fmt"
	"maps"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/braidnet/braid/internal/model"
)

// Known returns a new, empty object to decode the kind into, or nil when the model has no such kind.
func Known(apiVersion, kind string) runtime.Object {
	switch apiVersion + " " + kind {
	case "v1 Namespace":
		return &corev1.Namespace{}
	case "v1 Node":
		return &corev1.Node{}
	case "v1 Pod":
		return &corev1.Pod{}
	case "v1 Service":
		return &corev1.Service{}
	case "discovery.k8s.io/v1 EndpointSlice":
		return &discoveryv1.EndpointSlice{}
	case "networking.k8s.io/v1 NetworkPolicy":
		return &networkingv1.NetworkPolicy{}
	case "networking.k8s.io/v1 ServiceCIDR":
		return &networkingv1.ServiceCIDR{}
	case mcsGroupVersion.String() + " ServiceImport":
		return &ServiceImport{}
	}
	return nil
}

// RefOf returns the identity of an object of one of the Known types, and whether it is one. Objects
// of a namespace that give none are in namespace "default"; kinds that are cluster-wide have none.
func RefOf(obj runtime.Object) (model.Ref, bool) {
	var kind model.Kind
	switch obj.(type) {
	case *corev1.Namespace:
		kind = model.KindNamespace
	case *corev1.Node:
		kind = model.KindNode
	case *corev1.Pod:
		kind = model.KindPod
	case *corev1.Service:
		kind = model.KindService
	case *discoveryv1.EndpointSlice:
		kind = model.KindEndpointSlice
	case *networkingv1.NetworkPolicy:
		kind = model.KindNetworkPolicy
	case *networkingv1.ServiceCIDR:
		kind = model.KindServiceCIDR
	case *ServiceImport:
		kind = model.KindServiceImport
	default:
		return model.Ref{}, false
	}
	m := obj.(metav1.Object)
	return Ref(kind, m.GetNamespace(), m.GetName()), true
}

// Ref returns the identity of the object of a kind with the namespace and name that its metadata
// gives, where an empty namespace means "default" for kinds that have one.
func Ref(kind model.Kind, namespace, name string) model.Ref {
	switch {
	case kind.ClusterWide():
		namespace = ""
	case namespace == "":
		namespace = metav1.NamespaceDefault
	}
	return model.Ref{Kind: kind, Key: model.Key{Namespace: namespace, Name: name}}
}

// FieldError says what is wrong with one field of an object.
type FieldError struct {
	Path string // such as spec.ports[0].port
	Got  string // what it is, with its verb: `is "x"`, "is missing"
	Want string // what was expected
}

// Error prints "path: is X, expected Y".
func (e *FieldError) Error() string { return e.Path + ": " + e.Got + ", expected " + e.Want }

// Errors is everything that is wrong with one object; never empty.
type Errors []*FieldError

// Error prints all field errors, separated by semicolons.
func (e Errors) Error() string {
	texts := make([]string, len(e))
	for i, f := range e {
		texts[i] = f.Error()
	}
	return strings.Join(texts, "; ")
}

// Unwrap lets errors.As find the field errors.
func (e Errors) Unwrap() []error {
	out := make([]error, len(e))
	for i, f := range e {
		out[i] = f
	}
	return out
}

// Convert returns the model's value of a Kubernetes object: a *corev1.Namespace, Node, Pod or
// Service, a *discoveryv1.EndpointSlice, a *networkingv1.NetworkPolicy or ServiceCIDR, or a *ServiceImport. Of origin only File and
// Line are used. EndpointSlices of addressType FQDN give nil and no error: the model has no use for
// them. An error is of type Errors unless the type of obj is none of these. A policy comes with its
// errors, closed where they are, and a namespace as one without the annotation that cannot be read; of
// other kinds there is either. Maps and strings of obj are shared
// with the result; obj itself is not kept.
func Convert(obj runtime.Object, origin model.Origin) (model.Object, error) {
	ref, ok := RefOf(obj)
	if !ok {
		return nil, fmt.Errorf("convert %T: the model has no such kind", obj)
	}
	origin.Ref = ref
	c := &converter{}
	if ref.Name == "" {
		c.fail("metadata.name", "is missing", "the object's name")
	}
	var out model.Object
	switch o := obj.(type) {
	case *corev1.Namespace:
		out = &model.Namespace{Origin: origin, Labels: namespaceLabels(o), Audit: c.audit(o)}
	case *corev1.Node:
		out = c.node(o, origin)
	case *corev1.Pod:
		out = c.pod(o, origin)
	case *corev1.Service:
		out = c.service(o, origin)
	case *discoveryv1.EndpointSlice:
		if o.AddressType != discoveryv1.AddressTypeFQDN {
			out = c.slice(o, origin)
		}
	case *networkingv1.NetworkPolicy:
		out = c.policy(o, origin)
	case *networkingv1.ServiceCIDR:
		out = c.serviceCIDR(o, origin)
	case *ServiceImport:
		out = c.serviceImport(o, origin)
	}
	switch {
	case len(c.errs) == 0:
		return out, nil
	case ref.Kind == model.KindNetworkPolicy && ref.Name != "":
		return out, c.errs
	case ref.Kind == model.KindNamespace && ref.Name != "":
		return out, c.errs // enforced, as if there were no such annotation
	}
	return nil, c.errs
}

// namespaceLabels adds what the API server gives each namespace, for manifests that rely on it.
func namespaceLabels(o *corev1.Namespace) map[string]string {
	if o.Labels[corev1.LabelMetadataName] == o.Name {
		return o.Labels
	}
	out := map[string]string{}
	maps.Copy(out, o.Labels)
	out[corev1.LabelMetadataName] = o.Name
	return out
}
