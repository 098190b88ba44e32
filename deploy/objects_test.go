package deploy

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"
)

// object is one document of a manifest.
type object struct {
	metav1.TypeMeta
	metav1.Object
	value any // *appsv1.DaemonSet, …
}

func (o object) String() string { return o.Kind + " " + o.GetNamespace() + "/" + o.GetName() }

// kinds are those that the manifests may hold.
var kinds = map[string]func() metav1.Object{
	"v1 ConfigMap":       func() metav1.Object { return &corev1.ConfigMap{} },
	"v1 Service":         func() metav1.Object { return &corev1.Service{} },
	"v1 ServiceAccount":  func() metav1.Object { return &corev1.ServiceAccount{} },
	"apps/v1 DaemonSet":  func() metav1.Object { return &appsv1.DaemonSet{} },
	rbac + "ClusterRole": func() metav1.Object { return &rbacv1.ClusterRole{} },
	rbac + "ClusterRoleBinding": func() metav1.Object {
		return &rbacv1.ClusterRoleBinding{}
	},
}

const rbac = "rbac.authorization.k8s.io/v1 "

// read decodes every document of a file as the API server would with strict field validation.
func read(t *testing.T, path string) (out []object) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for docs := utilyaml.NewDocumentDecoder(io.NopCloser(bytes.NewReader(data))); ; {
		doc := make([]byte, len(data))
		n, err := docs.Read(doc)
		if err == io.EOF {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		var o object
		if err := yaml.Unmarshal(doc[:n], &o.TypeMeta); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		if o.Kind == "" && len(out) == 0 {
			continue // the comment at the top
		}
		make := kinds[o.APIVersion+" "+o.Kind]
		if make == nil {
			t.Fatalf("%s: unexpected kind %s %s", path, o.APIVersion, o.Kind)
		}
		o.Object = make()
		o.value = o.Object
		if err := yaml.UnmarshalStrict(doc[:n], o.value); err != nil {
			t.Fatalf("%s: %s: %v", path, o.Kind, err)
		}
		out = append(out, o)
	}
}

// find returns the object of one type and name.
func find[T any](t *testing.T, objects []object, name string) *T {
	t.Helper()
	for _, o := range objects {
		if v, ok := o.value.(*T); ok && o.GetName() == name {
			return v
		}
	}
	t.Fatalf("no %T named %s in %v", *new(T), name, objects)
	return nil
}

func daemonSets(objects []object) (out []*appsv1.DaemonSet) {
	for _, o := range objects {
		if d, ok := o.value.(*appsv1.DaemonSet); ok {
			out = append(out, d)
		}
	}
	return out
}

func containers(p *corev1.PodSpec) []corev1.Container {
	return append(slices.Clone(p.InitContainers), p.Containers...)
}

var files = []string{"braid.yaml", "remove.yaml"}

func TestObjectsAreWhereTheyBelong(t *testing.T) {
	for _, f := range files {
		seen := map[string]bool{}
		for _, o := range read(t, f) {
			clusterWide := strings.HasPrefix(o.Kind, "ClusterRole")
			if want := "kube-system"; (o.GetNamespace() == want) == clusterWide {
				t.Errorf("%s: %s", f, o)
			}
			if o.GetLabels()["app.kubernetes.io/part-of"] != "braid" {
				t.Errorf("%s: %s does not say that it is part of braid", f, o)
			}
			if seen[o.String()] {
				t.Errorf("%s: %s is there twice", f, o)
			}
			seen[o.String()] = true
		}
	}
}

// Selectors match their templates, and nobody else's; what a container mounts or asks for exists.
func TestDaemonSetsAreConsistent(t *testing.T) {
	for _, f := range files {
		objects := read(t, f)
		sets := daemonSets(objects)
		if len(sets) == 0 {
			t.Errorf("%s: no DaemonSets", f)
		}
		for _, d := range sets {
			sel, err := metav1.LabelSelectorAsSelector(d.Spec.Selector)
			if err != nil {
				t.Fatal(err)
			}
			for _, other := range sets {
				if sel.Matches(labels.Set(other.Spec.Template.Labels)) != (d == other) {
					t.Errorf("%s: selector %s of %s and the pods of %s", f, sel, d.Name, other.Name)
				}
			}
			checkVolumes(t, objects, d)
			if p := d.Spec.Template.Spec; p.ServiceAccountName != "" {
				find[corev1.ServiceAccount](t, objects, p.ServiceAccountName)
			} else if p.AutomountServiceAccountToken == nil || *p.AutomountServiceAccountToken {
				t.Errorf("%s: %s mounts a token and names no service account", f, d.Name)
			}
		}
	}
}

func checkVolumes(t *testing.T, objects []object, d *appsv1.DaemonSet) {
	volumes := map[string]bool{} // name -> used
	for _, v := range d.Spec.Template.Spec.Volumes {
		volumes[v.Name] = false
		if c := v.ConfigMap; c != nil {
			data := find[corev1.ConfigMap](t, objects, c.Name).Data
			for _, item := range c.Items {
				if _, ok := data[item.Key]; !ok {
					t.Errorf("%s: ConfigMap %s has no key %s", d.Name, c.Name, item.Key)
				}
			}
		}
	}
	for _, c := range containers(&d.Spec.Template.Spec) {
		for _, m := range c.VolumeMounts {
			if _, ok := volumes[m.Name]; !ok {
				t.Errorf("%s: container %s mounts volume %s, which is not there", d.Name, c.Name, m.Name)
			}
			volumes[m.Name] = true
		}
		for _, e := range c.Env {
			if e.ValueFrom != nil && e.ValueFrom.ConfigMapKeyRef != nil {
				find[corev1.ConfigMap](t, objects, e.ValueFrom.ConfigMapKeyRef.Name)
			}
		}
	}
	for name, used := range volumes {
		if !used {
			t.Errorf("%s: nobody mounts volume %s", d.Name, name)
		}
	}
}

// Least privilege: what each container may do beyond nothing at all is listed here.
func TestPrivileges(t *testing.T) {
	want := map[string]string{
		"netagent/install-cni":       "uid 0 host-network rw:/opt/cni/bin",
		"netagent/netagent":          "uid 0 host-network NET_ADMIN rw:/run/braid rw:/etc/cni/net.d rw:/proc/sys/net",
		"coredns/coredns":            "uid 65532 NET_BIND_SERVICE",
		"braid-remove/cleanup":       "uid 0 host-network NET_ADMIN NET_RAW rw:/run/braid rw:/var/lib/braid rw:/etc/cni/net.d rw:/run/xtables.lock",
		"braid-remove/uninstall-cni": "uid 0 host-network rw:/opt/cni/bin",
	}
	got := map[string]string{}
	for _, f := range files {
		for _, d := range daemonSets(read(t, f)) {
			for _, c := range containers(&d.Spec.Template.Spec) {
				got[d.Name+"/"+c.Name] = privileges(t, &d.Spec.Template.Spec, &c)
			}
		}
	}
	set := withComponent(t, read(t, "braid.yaml"), "iptables")
	got["iptables"] = privileges(t, &set.Spec.Template.Spec, &set.Spec.Template.Spec.Containers[0])
	want["iptables"] = "uid 0 host-network NET_ADMIN NET_RAW rw:/run/xtables.lock rw:/run/braid rw:/etc/cni/net.d rw:/proc/sys/net"
	set = withComponent(t, read(t, "braid.yaml"), "udp")
	got["udp"] = privileges(t, &set.Spec.Template.Spec, &set.Spec.Template.Spec.Containers[0])
	want["udp"] = "uid 0 host-network NET_ADMIN rw:/dev/net/tun rw:/run/braid rw:/etc/cni/net.d rw:/proc/sys/net"
	if !maps.Equal(got, want) {
		t.Errorf("privileges\n%v\nwant\n%v", got, want)
	}
}

// withComponent returns the DaemonSet netagent as a component of ours changes it.
func withComponent(t *testing.T, objects []object, component string) *appsv1.DaemonSet {
	t.Helper()
	var k struct {
		APIVersion, Kind string
		Patches          []struct{ Path string }
	}
	decode := func(path string, into any) []byte {
		data, err := os.ReadFile(filepath.Join(component, path))
		if err == nil {
			err = yaml.UnmarshalStrict(data, into)
		}
		if err == nil {
			data, err = yaml.YAMLToJSON(data)
		}
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	decode("kustomization.yaml", &k)
	if k.Kind != "Component" || len(k.Patches) != 1 {
		t.Fatalf("%s: %+v", component, k)
	}
	var partial, whole appsv1.DaemonSet
	patch := decode(k.Patches[0].Path, &partial)
	base := find[appsv1.DaemonSet](t, objects, partial.Name)
	data, err := json.Marshal(base)
	if err == nil {
		data, err = strategicpatch.StrategicMergePatch(data, patch, appsv1.DaemonSet{})
	}
	if err == nil {
		err = json.Unmarshal(data, &whole)
	}
	if err != nil {
		t.Fatal(err)
	}
	return &whole
}

func privileges(t *testing.T, p *corev1.PodSpec, c *corev1.Container) string {
	t.Helper()
	s := c.SecurityContext
	if s == nil || s.Privileged != nil || s.AllowPrivilegeEscalation == nil || *s.AllowPrivilegeEscalation ||
		s.ReadOnlyRootFilesystem == nil || !*s.ReadOnlyRootFilesystem || s.SeccompProfile != nil ||
		s.Capabilities == nil || !slices.Equal(s.Capabilities.Drop, []corev1.Capability{"ALL"}) {
		t.Errorf("container %s: security context %+v", c.Name, s)
		return ""
	}
	if p.SecurityContext.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault {
		t.Errorf("container %s: seccomp %v", c.Name, p.SecurityContext.SeccompProfile)
	}
	uid := p.SecurityContext.RunAsUser
	if s.RunAsUser != nil {
		uid = s.RunAsUser
	}
	out := []string{fmt.Sprintf("uid %d", *uid)}
	if p.HostNetwork {
		out = append(out, "host-network")
	}
	if p.HostPID || p.HostIPC {
		out = append(out, "host-processes")
	}
	for _, cap := range s.Capabilities.Add {
		out = append(out, string(cap))
	}
	for _, m := range c.VolumeMounts {
		for _, v := range p.Volumes {
			if v.Name == m.Name && v.HostPath != nil && !m.ReadOnly {
				out = append(out, "rw:"+v.HostPath.Path)
			}
		}
	}
	return strings.Join(out, " ")
}

func TestEveryNodeIsServed(t *testing.T) {
	for _, f := range files {
		for _, d := range daemonSets(read(t, f)) {
			p := d.Spec.Template.Spec
			if len(p.Tolerations) != 1 || p.Tolerations[0] != (corev1.Toleration{Operator: corev1.TolerationOpExists}) {
				t.Errorf("%s: tolerations %v", d.Name, p.Tolerations)
			}
			if p.PriorityClassName != "system-node-critical" || p.NodeSelector["kubernetes.io/os"] != "linux" {
				t.Errorf("%s: priority %q, nodes %v", d.Name, p.PriorityClassName, p.NodeSelector)
			}
			if p.DNSPolicy != corev1.DNSDefault {
				t.Errorf("%s: DNS policy %s would ask the cluster's DNS, which it is part of", d.Name, p.DNSPolicy)
			}
			for _, c := range containers(&p) {
				if c.Resources.Requests.Cpu().IsZero() || c.Resources.Requests.Memory().IsZero() {
					t.Errorf("%s: container %s requests no resources", d.Name, c.Name)
				}
			}
		}
	}
}

// The service leads to the pods, by ports that their container has.
func TestServiceSelectsCoreDNS(t *testing.T) {
	objects := read(t, "braid.yaml")
	svc, set := find[corev1.Service](t, objects, "kube-dns"), find[appsv1.DaemonSet](t, objects, "coredns")
	if !labels.SelectorFromSet(svc.Spec.Selector).Matches(labels.Set(set.Spec.Template.Labels)) {
		t.Errorf("selector %v, pods %v", svc.Spec.Selector, set.Spec.Template.Labels)
	}
	ports := map[string]string{}
	for _, p := range set.Spec.Template.Spec.Containers[0].Ports {
		ports[p.Name] = fmt.Sprintf("%s %d", p.Protocol, p.ContainerPort)
	}
	for _, p := range svc.Spec.Ports {
		if got, want := ports[p.Name], fmt.Sprintf("%s %d", p.Protocol, p.TargetPort.IntVal); got != want || p.Port != p.TargetPort.IntVal {
			t.Errorf("port %s leads to %q, want %q", p.Name, want, got)
		}
	}
	for _, probe := range []*corev1.Probe{set.Spec.Template.Spec.Containers[0].LivenessProbe, set.Spec.Template.Spec.Containers[0].ReadinessProbe} {
		if ports[probe.HTTPGet.Port.StrVal] == "" {
			t.Errorf("the probe asks port %s, which the container has not", probe.HTTPGet.Port.StrVal)
		}
	}
	if svc.Spec.ClusterIP != "10.96.0.10" || *svc.Spec.IPFamilyPolicy != corev1.IPFamilyPolicyPreferDualStack ||
		*svc.Spec.TrafficDistribution != corev1.ServiceTrafficDistributionPreferSameNode {
		t.Errorf("%+v", svc.Spec)
	}
}

// What is said to the reader of the sources and what clusters run is one Corefile; only the folder of
// manifests is left out.
func TestCorefileIsTheExample(t *testing.T) {
	example, err := os.ReadFile("../Corefile.example")
	if err != nil {
		t.Fatal(err)
	}
	want := regexp.MustCompile(`(?m)^\s*manifests .*$`).ReplaceAllString(string(example), "")
	if want == string(example) {
		t.Error("the example has no manifests line: this test leaves out nothing")
	}
	if got := find[corev1.ConfigMap](t, read(t, "braid.yaml"), "coredns").Data["Corefile"]; essence(got) != essence(want) {
		t.Errorf("Corefile of the manifests\n%s\nwant\n%s", essence(got), essence(want))
	}
}

// essence is a file without comments, empty lines and indentation.
func essence(text string) string {
	var out []string
	for _, line := range strings.Split(text, "\n") {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			out = append(out, line)
		}
	}
	return strings.Join(out, "\n")
}
