package cluster

import (
	"fmt"
	"maps"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
)

// podOf makes the pod a workload asks for; serial tells apart those of one workload. Names and
// labels are those that the controllers of a cluster would give.
func podOf(w *workload, n newPod, serial int) corev1.Pod {
	t := w.template.DeepCopy()
	o := corev1.Pod{ObjectMeta: t.ObjectMeta, Spec: t.Spec}
	o.Namespace, o.Name = w.Namespace, n.name
	o.Labels = maps.Clone(t.Labels)
	owner := metav1.OwnerReference{APIVersion: "apps/v1", Kind: w.kind, Name: w.Name, Controller: ptr.To(true)}
	id := fmt.Sprintf("%s/%s/%s/%d", w.kind, w.NamespacedName, n.node, serial)
	switch w.kind {
	case "Deployment":
		owner.Kind, owner.Name = "ReplicaSet", w.Name+"-"+w.hash
		o.Labels["pod-template-hash"] = w.hash
		o.Name = owner.Name + "-" + suffix(id, 5)
	case "StatefulSet":
		o.Labels["statefulset.kubernetes.io/pod-name"] = o.Name
		o.Labels["apps.kubernetes.io/pod-index"] = strconv.Itoa(n.ordinal)
		o.Labels["controller-revision-hash"] = w.Name + "-" + w.hash
		o.Spec.Hostname, o.Spec.Subdomain = o.Name, w.serviceName
	case "DaemonSet":
		o.Labels["controller-revision-hash"] = w.hash
		o.Name = w.Name + "-" + suffix(id, 5)
		o.Spec.NodeName = n.node
	default:
		o.Name = w.Name + "-" + suffix(id, 5)
	}
	owner.UID = uidOf(owner.Kind, types.NamespacedName{Namespace: w.Namespace, Name: owner.Name}, 0)
	o.OwnerReferences = []metav1.OwnerReference{owner}
	return o
}

// admitPodSpec fills in the API's defaults of what the network looks at and refuses what cannot be.
// path is where the spec is in its manifest.
func admitPodSpec(s *corev1.PodSpec, path string) error {
	if s.DNSPolicy == "" {
		s.DNSPolicy = corev1.DNSClusterFirst
	}
	if len(s.Containers) == 0 {
		return complain(path+".containers", "is missing, expected at least one container")
	}
	for list, containers := range map[string][]corev1.Container{"containers": s.Containers, "initContainers": s.InitContainers} {
		for i := range containers {
			for j := range containers[i].Ports {
				p := &containers[i].Ports[j]
				if p.Protocol == "" {
					p.Protocol = corev1.ProtocolTCP
				}
				if p.ContainerPort < 1 || p.ContainerPort > 65535 {
					return complain(fmt.Sprintf("%s.%s[%d].ports[%d].containerPort", path, list, i, j),
						"is %d, expected 1 to 65535", p.ContainerPort)
				}
			}
		}
	}
	return nil
}
