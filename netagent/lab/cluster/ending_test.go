package cluster

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// A deleted pod serves on for its grace, here one that outlasts the test; a killed one and one whose
// manifest gives it none are gone at once.
func TestGraceIsForDeletedPodsOnly(t *testing.T) {
	p := newPlayground(t, 1, func(c *Config) { c.Grace = time.Hour })
	const pods = `
apiVersion: v1
kind: Pod
metadata: {name: slow}
spec: {containers: [{name: c, image: i}]}
---
apiVersion: v1
kind: Pod
metadata: {name: quick}
spec: {terminationGracePeriodSeconds: 0, containers: [{name: c, image: i}]}
---
apiVersion: v1
kind: Pod
metadata: {name: killed}
spec: {containers: [{name: c, image: i}]}
`
	p.apply(t, pods)
	if err := p.KillPod("default", "killed"); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Delete(t.Context(), "test.yaml", []byte(strings.Join(strings.Split(pods, "---")[:2], "---"))); err != nil {
		t.Fatal(err)
	}
	p.until(t, "the end of two pods", func(all []PodStatus) bool { return len(all) == 1 })
	if s := p.pod(t, "slow"); s.Phase != Terminating || s.Ready {
		t.Errorf("a deleted pod within its grace: %+v", s)
	}
	// Whoever does not want to wait kills it.
	if err := p.KillPod("default", "slow"); err != nil {
		t.Fatal(err)
	}
	p.settle(t)
	equal(t, "pods", p.podNames(), nil)
}

func TestLoadBalancerAddresses(t *testing.T) {
	a := newAllocator([]netip.Prefix{cidr4, cidr6}, nil)
	pool := netip.MustParsePrefix("198.51.100.0/24")
	a.balancer = []netip.Prefix{pool}
	ingress := func(s *corev1.Service) (out []string) {
		for _, in := range s.Status.LoadBalancer.Ingress {
			out = append(out, in.IP)
		}
		return out
	}
	step := func(name, spec string, old *corev1.Service) *corev1.Service {
		t.Helper()
		s := service(t, name, spec)
		if err := admit(s, old, a); err != nil {
			t.Fatalf("%s: %v", spec, err)
		}
		return s
	}
	const dual = "{type: LoadBalancer, ipFamilyPolicy: RequireDualStack, ports: [{port: %PORT}]}"
	first := step("one", strings.Replace(dual, "%PORT", "80", 1), nil)
	got := ingress(first)
	if len(got) != 1 || !pool.Contains(netip.MustParseAddr(got[0])) {
		t.Fatalf("addresses %v, want one of %s: the other family has no range", got, pool)
	}
	second := step("one", strings.Replace(dual, "%PORT", "81", 1), first)
	equal(t, "kept by a change of ports", ingress(second), got)
	equal(t, "as asked", ingress(step("two", "{type: LoadBalancer, loadBalancerIP: 198.51.100.9, ports: [{port: 1}]}", nil)), []string{"198.51.100.9"})
	if err := admit(service(t, "three", "{type: LoadBalancer, loadBalancerIP: 198.51.100.9, ports: [{port: 1}]}"), nil, a); err == nil ||
		!strings.Contains(err.Error(), "198.51.100.9 belongs to Service default/two") {
		t.Errorf("an address that is taken: %v", err)
	}
	given := service(t, "given", "{type: LoadBalancer, ports: [{port: 1}]}")
	given.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{Hostname: "balancer.example"}}
	if err := admit(given, nil, a); err != nil || len(given.Status.LoadBalancer.Ingress) != 1 || given.Status.LoadBalancer.Ingress[0].Hostname == "" {
		t.Errorf("the status of a manifest: %+v, %v", given.Status, err)
	}
	back := step("one", "{ports: [{port: 81}]}", second)
	if addr := netip.MustParseAddr(got[0]); len(ingress(back)) != 0 || a.ips[addr].Name != "" {
		t.Errorf("after the way back to ClusterIP: %v, held by %q", ingress(back), a.ips[addr])
	}
	a.balancer = nil
	equal(t, "without a range", ingress(step("four", "{type: LoadBalancer, ports: [{port: 1}]}", nil)), nil)
}
