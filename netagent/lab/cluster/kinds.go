package cluster

import (
	"fmt"
	"reflect"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
)

// taken lists the kinds the control plane takes. The name of the Go type is the kind.
var taken = map[schema.GroupVersion][]runtime.Object{
	corev1.SchemeGroupVersion:       {&corev1.Namespace{}, &corev1.Node{}, &corev1.Pod{}, &corev1.Service{}},
	appsv1.SchemeGroupVersion:       {&appsv1.Deployment{}, &appsv1.ReplicaSet{}, &appsv1.StatefulSet{}, &appsv1.DaemonSet{}},
	discoveryv1.SchemeGroupVersion:  {&discoveryv1.EndpointSlice{}},
	networkingv1.SchemeGroupVersion: {&networkingv1.NetworkPolicy{}, &networkingv1.ServiceCIDR{}},
}

// object is what all those kinds are.
type object interface {
	runtime.Object
	metav1.Object
}

// known returns a new object of a kind, nil when the control plane does not take the kind.
func known(apiVersion, kind string) runtime.Object {
	gv, err := schema.ParseGroupVersion(apiVersion)
	if err != nil {
		return nil
	}
	for _, o := range taken[gv] {
		if kindOf(o) == kind {
			return reflect.New(reflect.TypeOf(o).Elem()).Interface().(runtime.Object)
		}
	}
	return nil
}

func kindOf(o runtime.Object) string { return reflect.TypeOf(o).Elem().Name() }

func gvkOf(o runtime.Object) (schema.GroupVersionKind, error) {
	for gv, objects := range taken {
		for _, t := range objects {
			if reflect.TypeOf(t) == reflect.TypeOf(o) {
				return gv.WithKind(kindOf(o)), nil
			}
		}
	}
	return schema.GroupVersionKind{}, fmt.Errorf("kind %T is not one the playground takes", o)
}

// clusterWide reports whether objects of the kind have no namespace.
func clusterWide(o runtime.Object) bool {
	switch o.(type) {
	case *corev1.Namespace, *corev1.Node, *networkingv1.ServiceCIDR:
		return true
	}
	return false
}

func keyOf(o metav1.Object) types.NamespacedName {
	return types.NamespacedName{Namespace: o.GetNamespace(), Name: o.GetName()}
}
