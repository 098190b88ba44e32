package worlds

import (
	"fmt"
	"reflect"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"

	"github.com/braidnet/braid/internal/model"
)

// Objects lists everything of a world.
func (w World) Objects() (out []runtime.Object) {
	for _, o := range w.Namespaces {
		out = append(out, o)
	}
	for _, o := range w.Pods {
		out = append(out, o)
	}
	for _, o := range w.Policies {
		out = append(out, o)
	}
	return out
}

// Changes are what leads from one world to another, sorted by object. How the API's objects become the
// model's is for the caller to say.
func Changes(from, to World, convert func(runtime.Object) model.Object) (out []model.Change) {
	old := map[model.Ref]model.Object{}
	for _, o := range from.Objects() {
		value := convert(o)
		old[value.From().Ref] = value
	}
	for _, o := range to.Objects() {
		value := convert(o)
		ref := value.From().Ref
		if before := old[ref]; !reflect.DeepEqual(before, value) {
			out = append(out, model.Change{Ref: ref, Old: before, New: value})
		}
		delete(old, ref)
	}
	for ref, value := range old {
		out = append(out, model.Change{Ref: ref, Old: value})
	}
	slices.SortFunc(out, func(a, b model.Change) int { return strings.Compare(a.Ref.String(), b.Ref.String()) })
	return out
}

// String prints a world as manifests.
func (w World) String() string {
	var b strings.Builder
	for _, o := range w.Objects() {
		switch o := o.(type) {
		case *corev1.Namespace:
			o.APIVersion, o.Kind = "v1", "Namespace"
		case *corev1.Pod:
			o.APIVersion, o.Kind = "v1", "Pod"
		case *networkingv1.NetworkPolicy:
			o.APIVersion, o.Kind = "networking.k8s.io/v1", "NetworkPolicy"
		}
		text, err := yaml.Marshal(o)
		if err != nil {
			panic(err)
		}
		fmt.Fprintf(&b, "---\n%s", text)
	}
	return b.String()
}
