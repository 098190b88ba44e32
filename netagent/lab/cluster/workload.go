package cluster

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
)

// workload is a Deployment, ReplicaSet, StatefulSet or DaemonSet, reduced to what decides which pods
// there are.
type workload struct {
	kind string
	types.NamespacedName
	template corev1.PodTemplateSpec
	replicas int
	hash     string // of the template: pods of another hash are outdated

	// StatefulSet
	serviceName string
	first       int  // the ordinal of the first pod
	parallel    bool // podManagementPolicy Parallel

	recreate bool // Deployment strategy Recreate: no old pod while there are new ones
	onDelete bool // updateStrategy OnDelete: outdated pods stay until somebody deletes them

	seq  int // order of making
	made int // pods made so far; part of the names of Deployment and DaemonSet pods
}

// same reports whether two versions of a workload want the same.
func (w *workload) same(o *workload) bool {
	return w.hash == o.hash && w.replicas == o.replicas && w.serviceName == o.serviceName && w.first == o.first &&
		w.parallel == o.parallel && w.recreate == o.recreate && w.onDelete == o.onDelete
}

// templateOf returns the pod template of a workload, nil for other objects.
func templateOf(o runtime.Object) *corev1.PodTemplateSpec {
	switch o := o.(type) {
	case *appsv1.Deployment:
		return &o.Spec.Template
	case *appsv1.ReplicaSet:
		return &o.Spec.Template
	case *appsv1.StatefulSet:
		return &o.Spec.Template
	case *appsv1.DaemonSet:
		return &o.Spec.Template
	}
	return nil
}

// newWorkload reads a workload from its manifest, with the API's defaults.
func newWorkload(o runtime.Object) (*workload, error) {
	w := &workload{kind: kindOf(o)}
	var selector *metav1.LabelSelector
	replicas := ptr.To[int32](1)
	switch o := o.(type) {
	case *appsv1.Deployment:
		w.NamespacedName, w.template, selector, replicas = keyOf(o), o.Spec.Template, o.Spec.Selector, o.Spec.Replicas
		w.recreate = o.Spec.Strategy.Type == appsv1.RecreateDeploymentStrategyType
	case *appsv1.ReplicaSet:
		w.NamespacedName, w.template, selector, replicas = keyOf(o), o.Spec.Template, o.Spec.Selector, o.Spec.Replicas
		w.onDelete = true // a ReplicaSet never replaces pods on its own
	case *appsv1.StatefulSet:
		w.NamespacedName, w.template, selector, replicas = keyOf(o), o.Spec.Template, o.Spec.Selector, o.Spec.Replicas
		w.serviceName = o.Spec.ServiceName
		w.parallel = o.Spec.PodManagementPolicy == appsv1.ParallelPodManagement
		w.onDelete = o.Spec.UpdateStrategy.Type == appsv1.OnDeleteStatefulSetStrategyType
		if o.Spec.Ordinals != nil {
			w.first = int(o.Spec.Ordinals.Start)
		}
	case *appsv1.DaemonSet:
		w.NamespacedName, w.template, selector = keyOf(o), o.Spec.Template, o.Spec.Selector
		w.onDelete = o.Spec.UpdateStrategy.Type == appsv1.OnDeleteDaemonSetStrategyType
	default:
		return nil, fmt.Errorf("%T is no workload", o)
	}
	w.replicas = int(ptr.Deref(replicas, 1))
	if w.replicas < 0 {
		return nil, complain("spec.replicas", "is %d, expected 0 or more", w.replicas)
	}
	if selector == nil {
		return nil, complain("spec.selector", "is missing, expected the labels of the pod template")
	}
	sel, err := metav1.LabelSelectorAsSelector(selector)
	if err != nil {
		return nil, &fieldError{"spec.selector", err}
	}
	if sel.Empty() || !sel.Matches(labels.Set(w.template.Labels)) {
		return nil, complain("spec.selector", "%q does not match the labels of spec.template, %q", sel, labels.Set(w.template.Labels))
	}
	w.hash, err = hashOf(w.template)
	return w, err
}

// hashOf is a short text that differs between templates, fit for a label and a name.
func hashOf(t corev1.PodTemplateSpec) (string, error) {
	data, err := json.Marshal(t)
	if err != nil {
		return "", fmt.Errorf("hash the pod template: %w", err)
	}
	return suffix(string(data), 10), nil
}

// suffix spells n characters of a hash of s, without vowels so that no words come out.
func suffix(s string, n int) string {
	const alphabet = "bcdfghjklmnpqrstvwxz2456789"
	sum := sha256.Sum256([]byte(s))
	out := make([]byte, n)
	for i := range out {
		out[i] = alphabet[int(sum[i])%len(alphabet)]
	}
	return string(out)
}

// uidOf is a UUID-shaped name for one incarnation of an object.
func uidOf(kind string, key types.NamespacedName, incarnation int) types.UID {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s/%s/%d", kind, key, incarnation))
	x := hex.EncodeToString(sum[:16])
	return types.UID(fmt.Sprintf("%s-%s-%s-%s-%s", x[:8], x[8:12], x[12:16], x[16:20], x[20:]))
}

// step is what a workload wants done next: pods to make and pods to end. It is computed anew after
// every event, so it only needs to be a step in the right direction.
type step struct {
	create []newPod
	remove []*pod
	wanted int // pods the workload has when it is done
}

// newPod asks for one pod of a workload.
type newPod struct {
	name    string // StatefulSet: the fixed name; else empty
	ordinal int
	node    string // DaemonSet: where; else empty
}

// plan compares what a workload wants with its pods, in order of their making. fits tells which
// nodes a pod of the template may run on.
func (w *workload) plan(pods []*pod, fits []string) step {
	switch w.kind {
	case "StatefulSet":
		return w.planOrdinals(pods)
	case "DaemonSet":
		return w.planNodes(pods, fits)
	}
	return w.planReplicas(pods)
}

// planReplicas is for Deployments and ReplicaSets. A new template's pods are made first and each of
// them that becomes ready ends one of the old, so a rollout never has fewer ready pods than asked for.
func (w *workload) planReplicas(pods []*pod) (s step) {
	s.wanted = w.replicas
	var fresh, old []*pod
	ready := 0
	ending := false
	for _, p := range pods {
		switch {
		case p.terminating:
			ending = ending || p.hash != w.hash
		case p.hash == w.hash || w.onDelete:
			fresh = append(fresh, p)
			if p.ready() {
				ready++
			}
		default:
			old = append(old, p)
		}
	}
	if w.recreate && len(old) > 0 {
		s.remove = old
		return s
	}
	if w.recreate && ending {
		return s
	}
	for range w.replicas - len(fresh) {
		s.create = append(s.create, newPod{})
	}
	if extra := len(fresh) - w.replicas; extra > 0 {
		// As in a cluster, what is not ready goes first, then the youngest.
		slices.SortStableFunc(fresh, func(a, b *pod) int {
			return cmp.Or(boolCompare(a.ready(), b.ready()), b.seq-a.seq)
		})
		s.remove = fresh[:extra]
	}
	keep := max(0, w.replicas-ready)
	if len(old) > keep {
		slices.SortStableFunc(old, func(a, b *pod) int { return boolCompare(a.ready(), b.ready()) })
		s.remove = append(s.remove, old[:len(old)-keep]...)
	}
	return s
}

// planOrdinals is for StatefulSets: fixed names, made in order and ended in reverse order, each step
// waiting for the one before unless the pod management policy is Parallel.
func (w *workload) planOrdinals(pods []*pod) (s step) {
	s.wanted = w.replicas
	byName := map[string]*pod{}
	calm := true // nothing is under way
	for _, p := range pods {
		byName[p.key.Name] = p
		calm = calm && p.ready()
		if p.ordinal < w.first || p.ordinal >= w.first+w.replicas {
			s.remove = append(s.remove, p)
		}
	}
	for i := w.first; i < w.first+w.replicas; i++ {
		name := fmt.Sprintf("%s-%d", w.Name, i)
		p := byName[name]
		if p == nil {
			s.create = append(s.create, newPod{name: name, ordinal: i})
		}
		if !w.parallel && (p == nil || !p.ready()) {
			calm = false
			break
		}
	}
	slices.SortFunc(s.remove, func(a, b *pod) int { return b.ordinal - a.ordinal })
	if !w.parallel && len(s.remove) > 1 {
		s.remove = s.remove[:1]
	}
	if len(s.remove) > 0 || len(s.create) > 0 || w.onDelete {
		return s
	}
	s.remove = outdated(pods, w.hash, calm, func(a, b *pod) int { return b.ordinal - a.ordinal })
	return s
}

// planNodes is for DaemonSets: one pod on each node that fits.
func (w *workload) planNodes(pods []*pod, fits []string) (s step) {
	s.wanted = len(fits)
	on := map[string]bool{}
	calm := true
	for _, p := range pods {
		calm = calm && p.ready()
		node := p.base.Spec.NodeName
		if !slices.Contains(fits, node) {
			s.remove = append(s.remove, p)
		}
		on[node] = true
	}
	for _, n := range fits {
		if !on[n] {
			s.create = append(s.create, newPod{node: n})
		}
	}
	if len(s.remove) == 0 && len(s.create) == 0 && !w.onDelete {
		s.remove = outdated(pods, w.hash, calm, func(a, b *pod) int { return a.seq - b.seq })
	}
	return s
}

// outdated picks which pods of an old template end next: all that are not ready, for they serve
// nobody, and else, when nothing is under way, the first one.
func outdated(pods []*pod, hash string, calm bool, order func(a, b *pod) int) (out []*pod) {
	var old []*pod
	for _, p := range pods {
		if p.hash == hash || p.terminating {
			continue
		}
		if old = append(old, p); !p.ready() {
			out = append(out, p)
		}
	}
	if len(out) > 0 || !calm || len(old) == 0 {
		return out
	}
	slices.SortFunc(old, order)
	return old[:1]
}

// boolCompare sorts false before true.
func boolCompare(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}
