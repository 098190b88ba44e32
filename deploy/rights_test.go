package deploy

import (
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
)

// Every right that the manifests grant is needed: without it the container ends, and says why.
func TestEveryCapabilityIsNeeded(t *testing.T) {
	requireBinaries(t)
	iptables := withComponent(t, read(t, "braid.yaml"), "iptables")
	for _, tc := range []struct {
		set   string
		right corev1.Capability
		want  []string // one of them
	}{
		{"netagent", "NET_ADMIN", []string{"ermission denied", "not permitted"}},
		{"coredns", "NET_BIND_SERVICE", []string{"ermission denied", "not permitted"}},
		{"iptables", "NET_RAW", []string{"deploy/iptables"}},
	} {
		t.Run(tc.set+" "+string(tc.right), func(t *testing.T) {
			b := newBox(t)
			b.likeAPod(t)
			set := iptables.DeepCopy()
			if tc.set == "iptables" { // where the kubelet uses variant legacy
				b.iptables(t, "legacy", "-t", "mangle", "-N", "KUBE-IPTABLES-HINT")
			} else {
				set = find[appsv1.DaemonSet](t, b.objects, tc.set).DeepCopy()
			}
			c := &set.Spec.Template.Spec.Containers[0]
			granted := c.SecurityContext.Capabilities
			var rest []corev1.Capability
			for _, right := range granted.Add {
				if right != tc.right {
					rest = append(rest, right)
				}
			}
			if len(rest) != len(granted.Add)-1 {
				t.Fatalf("granted are %v", granted.Add)
			}
			granted.Add = rest
			out, err := b.run(t, &set.Spec.Template.Spec, c.Name)
			said := false
			for _, w := range tc.want {
				said = said || strings.Contains(out, w)
			}
			if err == nil || !said {
				t.Errorf("without %s: %v\n%s", tc.right, err, out)
			}
		})
	}
}
