package source

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/braidnet/braid/internal/model"
)

// The Multi-Cluster Services API (KEP-1645). Its Go module brings a whole clientset; the one kind and
// the two labels that are read here are few lines.
const (
	labelImport        = "multicluster.kubernetes.io/service-name"
	labelSourceCluster = "multicluster.kubernetes.io/source-cluster"
)

var mcsGroupVersion = schema.GroupVersion{Group: "multicluster.x-k8s.io", Version: "v1alpha1"}

// ServiceImport is multicluster.x-k8s.io/v1alpha1 ServiceImport.
type ServiceImport struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   ServiceImportSpec   `json:"spec,omitempty"`
	Status ServiceImportStatus `json:"status,omitempty"`
}

// ServiceImportSpec is the spec of a ServiceImport. Type is ClusterSetIP or Headless.
type ServiceImportSpec struct {
	Ports                 []ServiceImportPort           `json:"ports"`
	IPs                   []string                      `json:"ips,omitempty"`
	IPFamilies            []corev1.IPFamily             `json:"ipFamilies,omitempty"`
	Type                  string                        `json:"type"`
	SessionAffinity       corev1.ServiceAffinity        `json:"sessionAffinity,omitempty"`
	SessionAffinityConfig *corev1.SessionAffinityConfig `json:"sessionAffinityConfig,omitempty"`
}

// ServiceImportPort is a port of a ServiceImport.
type ServiceImportPort struct {
	Name        string          `json:"name,omitempty"`
	Protocol    corev1.Protocol `json:"protocol,omitempty"`
	AppProtocol *string         `json:"appProtocol,omitempty"`
	Port        int32           `json:"port"`
}

// ServiceImportStatus names the clusters that export the service.
type ServiceImportStatus struct {
	Clusters []struct {
		Cluster string `json:"cluster"`
	} `json:"clusters,omitempty"`
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// ServiceImportList is a list of ServiceImports.
type ServiceImportList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []ServiceImport `json:"items"`
}

// AddMCSToScheme registers the types of the Multi-Cluster Services API.
func AddMCSToScheme(s *runtime.Scheme) error {
	s.AddKnownTypes(mcsGroupVersion, &ServiceImport{}, &ServiceImportList{})
	metav1.AddToGroupVersion(s, mcsGroupVersion)
	return nil
}

// MCSGroupVersion is the group and version that ServiceImports are read in.
func MCSGroupVersion() schema.GroupVersion { return mcsGroupVersion }

// DeepCopyObject implements runtime.Object.
func (s *ServiceImport) DeepCopyObject() runtime.Object {
	out := *s
	s.ObjectMeta.DeepCopyInto(&out.ObjectMeta)
	out.Spec.Ports = slices.Clone(s.Spec.Ports)
	out.Spec.IPs = slices.Clone(s.Spec.IPs)
	out.Spec.IPFamilies = slices.Clone(s.Spec.IPFamilies)
	out.Spec.SessionAffinityConfig = s.Spec.SessionAffinityConfig.DeepCopy()
	for i := range out.Spec.Ports {
		if p := out.Spec.Ports[i].AppProtocol; p != nil {
			v := *p
			out.Spec.Ports[i].AppProtocol = &v
		}
	}
	out.Status.Clusters = slices.Clone(s.Status.Clusters)
	out.Status.Conditions = nil
	for i := range s.Status.Conditions {
		out.Status.Conditions = append(out.Status.Conditions, *s.Status.Conditions[i].DeepCopy())
	}
	return &out
}

// DeepCopyObject implements runtime.Object.
func (l *ServiceImportList) DeepCopyObject() runtime.Object {
	out := *l
	l.ListMeta.DeepCopyInto(&out.ListMeta)
	out.Items = make([]ServiceImport, len(l.Items))
	for i := range l.Items {
		out.Items[i] = *l.Items[i].DeepCopyObject().(*ServiceImport)
	}
	return &out
}

func (c *converter) serviceImport(o *ServiceImport, origin model.Origin) *model.ServiceImport {
	s := &model.ServiceImport{Origin: origin, Labels: o.Labels, Headless: choice(c, "spec.type", o.Spec.Type, "ClusterSetIP", "Headless") == "Headless"}
	if !s.Headless {
		s.IPs = c.addrs("spec.ips", o.Spec.IPs)
	}
	for i, p := range o.Spec.Ports {
		path := fmt.Sprintf("spec.ports[%d]", i)
		s.Ports = append(s.Ports, model.ServicePort{
			Name:     p.Name,
			Protocol: c.protocol(path+".protocol", p.Protocol),
			Port:     c.port(path+".port", p.Port, false),
		})
	}
	return s
}
