package cluster

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// workloadSpec and serviceSpec are what the naive model remembers of the manifests applied last.
type workloadSpec struct {
	kind, name, app, image string
	replicas               int
}

func (w workloadSpec) yaml() string {
	extra := ""
	if w.kind == "StatefulSet" {
		extra = "serviceName: " + w.app
	}
	if w.kind != "DaemonSet" {
		extra += fmt.Sprintf("\n  replicas: %d", w.replicas)
	}
	return fmt.Sprintf(`
apiVersion: apps/v1
kind: %s
metadata: {name: %s}
spec:
  %s
  selector: {matchLabels: {app: %s, of: %s}}
  template:
    metadata: {labels: {app: %s, of: %s}}
    spec: {containers: [{name: c, image: %s, ports: [{name: web, containerPort: %d}]}]}
`, w.kind, w.name, extra, w.app, w.name, w.app, w.name, w.image, w.port())
}

// port differs between images, so that a rollout changes what the name web means.
func (w workloadSpec) port() int { return 8080 + len(w.image) }

type serviceSpec struct {
	name, app, policy    string
	publish, named, head bool
}

func (s serviceSpec) yaml() string {
	target, ip := "9000", ""
	if s.named {
		target = "web"
	}
	if s.head {
		ip = "clusterIP: None, "
	}
	return fmt.Sprintf(`
apiVersion: v1
kind: Service
metadata: {name: %s}
spec: {%sselector: {app: %s}, ipFamilyPolicy: %s, publishNotReadyAddresses: %t, ports: [{port: 80, targetPort: %s}]}
`, s.name, ip, s.app, s.policy, s.publish, target)
}

// expected computes the endpoints of a service from the pods the controller reports, without any of
// its code.
func (s serviceSpec) expected(pods []PodStatus, workloads map[string]workloadSpec) (out []string) {
	for _, p := range pods {
		var owner workloadSpec
		for _, w := range workloads {
			if p.Owner == w.kind+" "+w.name {
				owner = w
			}
		}
		if owner.app != s.app {
			continue
		}
		port := 9000
		if s.named {
			port = owner.port()
		}
		for _, ip := range p.IPs {
			if ip.Is6() && s.policy == "SingleStack" {
				continue
			}
			words := ip.String()
			if p.Ready || s.publish {
				words += " ready"
			}
			if p.Ready {
				words += " serving"
			}
			if owner.kind == "StatefulSet" && s.name == s.app {
				words += " host=" + p.Name
			}
			out = append(out, fmt.Sprintf("%s port %d/", words, port))
		}
	}
	slices.Sort(out)
	return out
}

func TestAnyHistoryEndsInTheSameSlices(t *testing.T) {
	for seed := range uint64(8) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel() // they mostly wait for the disk
			anyHistory(t, rand.New(rand.NewPCG(seed, 1)))
		})
	}
}

func anyHistory(t *testing.T, r *rand.Rand) {
	p := newPlayground(t, 3)
	workloads, services := map[string]workloadSpec{}, map[string]serviceSpec{}
	apps := []string{"a", "b"}
	pick := func(from ...string) string { return from[r.IntN(len(from))] }
	somePod := func() (PodStatus, bool) {
		pods := p.Pods()
		if len(pods) == 0 {
			return PodStatus{}, false
		}
		return pods[r.IntN(len(pods))], true
	}
	for range 40 {
		switch r.IntN(10) {
		case 0, 1, 2:
			kind := pick("Deployment", "StatefulSet", "DaemonSet", "ReplicaSet")
			w := workloadSpec{kind, fmt.Sprintf("w%d", r.IntN(3)), pick(apps...), pick("v1", "v22"), r.IntN(5)}
			if old, ok := workloads[kind+w.name]; ok {
				w.app = old.app // a selector is immutable in a cluster
			}
			if kind == "ReplicaSet" {
				w.image = "v1" // it never replaces pods, so they would differ from the manifest
			}
			workloads[kind+w.name] = w
			p.applyOnly(t, w.yaml())
		case 3, 4:
			s := serviceSpec{pick("a", "b", "s"), pick(apps...), pick("SingleStack", "RequireDualStack"), r.IntN(2) == 0, r.IntN(2) == 0, false}
			if old, ok := services[s.name]; ok {
				s.head = old.head
			} else {
				s.head = r.IntN(2) == 0
			}
			services[s.name] = s
			p.applyOnly(t, s.yaml())
		case 5, 6:
			if pod, ok := somePod(); ok {
				_ = p.SetReady(pod.Namespace, pod.Name, r.IntN(2) == 0) // the pod may be going by now
			}
		case 7, 8:
			if pod, ok := somePod(); ok {
				_ = p.KillPod(pod.Namespace, pod.Name) // likewise
			}
		case 9:
			for key, w := range workloads {
				if _, err := p.Delete(t.Context(), "w.yaml", []byte(w.yaml())); err != nil {
					t.Fatal(err)
				}
				delete(workloads, key)
				break
			}
		}
	}
	// Pods that are not ready hold up rollouts and StatefulSets, as in a cluster: let all get through.
	p.until(t, "all pods to be ready", func(pods []PodStatus) bool {
		for _, s := range pods {
			if !s.Ready {
				_ = p.SetReady(s.Namespace, s.Name, true)
			}
		}
		_, finished, _, _ := p.progress()
		return finished
	})
	for range 6 {
		if pod, ok := somePod(); ok {
			if err := p.SetReady(pod.Namespace, pod.Name, r.IntN(2) == 0); err != nil {
				t.Fatal(err)
			}
		}
	}
	check(t, p, workloads, services)
}

func check(t *testing.T, p *playground, workloads map[string]workloadSpec, services map[string]serviceSpec) {
	t.Helper()
	pods := p.Pods()
	count, nodes := map[string]int{}, map[string]map[string]int{}
	for _, s := range pods {
		count[s.Owner]++
		if nodes[s.Owner] == nil {
			nodes[s.Owner] = map[string]int{}
		}
		nodes[s.Owner][s.Node]++
		o := read[corev1.Pod](t, p, "pod.default."+s.Name+".yaml")
		if string(o.UID) != s.UID || o.Status.PodIP != s.IPs[0].String() || o.Spec.NodeName != s.Node || o.DeletionTimestamp != nil {
			t.Errorf("pod %s is %+v, its file says %+v", s.Name, s, o.Status)
		}
		live, ok := p.fake.live["default/"+s.Name]
		if !ok || live.UID != s.UID || !slices.Equal(live.Ports, s.Ports) {
			t.Errorf("pod %s is %+v, the runtime has %+v", s.Name, s, live)
		}
	}
	if len(p.fake.live) != len(pods) || len(p.files(t, "pod")) != len(pods) {
		t.Errorf("%d pods, %d of the runtime, files %v", len(pods), len(p.fake.live), p.files(t, "pod"))
	}
	for _, w := range workloads {
		want := w.replicas
		if w.kind == "DaemonSet" {
			want = 3
		}
		if got := count[w.kind+" "+w.name]; got != want {
			t.Errorf("%s %s has %d pods, want %d", w.kind, w.name, got, want)
		}
	}
	for _, s := range services {
		equal(t, "endpoints of "+s.name, p.endpoints(t, "default", s.name), s.expected(pods, workloads))
	}
}

func TestPlacementSpreadsAndStays(t *testing.T) {
	p := newPlayground(t, 3)
	for _, w := range []workloadSpec{{"Deployment", "one", "a", "v1", 1}, {"Deployment", "six", "a", "v1", 6},
		{"StatefulSet", "four", "b", "v1", 4}, {"Deployment", "three", "b", "v1", 3}} {
		p.apply(t, w.yaml())
	}
	on := map[string]map[string]int{}
	total := map[string]int{}
	for _, s := range p.Pods() {
		if on[s.Owner] == nil {
			on[s.Owner] = map[string]int{}
		}
		on[s.Owner][s.Node]++
		total[s.Node]++
	}
	for owner, nodes := range on {
		least, most := 99, 0
		for i := 1; i <= 3; i++ {
			n := nodes[fmt.Sprintf("n%d", i)]
			least, most = min(least, n), max(most, n)
		}
		if most-least > 1 {
			t.Errorf("%s is spread unevenly: %v", owner, nodes)
		}
	}
	for _, n := range total {
		if n < 4 || n > 6 {
			t.Errorf("nodes have %v pods", total)
		}
	}
}

func TestPlanReplicas(t *testing.T) {
	pods := func(text string) (out []*pod) { // n/o: new or old template, upper case: ready, x: going
		for i, c := range text {
			p := &pod{seq: i, hash: "new", running: c == 'N' || c == 'O', terminating: c == 'x'}
			if c == 'o' || c == 'O' || c == 'x' {
				p.hash = "old"
			}
			out = append(out, p)
		}
		return out
	}
	for _, c := range []struct {
		have     string
		replicas int
		recreate bool
		create   int
		remove   []int // their places in have
	}{
		{"", 3, false, 3, nil},
		{"NNN", 3, false, 0, nil},
		{"NnNN", 3, false, 0, []int{1}},
		{"NNNN", 2, false, 0, []int{3, 2}},
		{"OOO", 3, false, 3, nil},
		{"OOOnnn", 3, false, 0, nil},
		{"OOONnn", 3, false, 0, []int{0}},
		{"OOOooNnn", 3, false, 0, []int{3, 4, 0}},
		{"OOONNN", 3, false, 0, []int{0, 1, 2}},
		{"OO", 0, false, 0, []int{0, 1}},
		{"xxN", 2, false, 1, nil},
		{"OO", 2, true, 0, []int{0, 1}},
		{"xO", 2, true, 0, []int{1}},
		{"xx", 2, true, 0, nil},
		{"", 2, true, 2, nil},
	} {
		w := &workload{kind: "Deployment", hash: "new", replicas: c.replicas, recreate: c.recreate}
		s := w.plan(pods(c.have), nil)
		var removed []int
		for _, p := range s.remove {
			removed = append(removed, p.seq)
		}
		if len(s.create) != c.create || !slices.Equal(removed, c.remove) || s.wanted != c.replicas {
			t.Errorf("%q with %d replicas: creates %d, removes %v; want %d, %v", c.have, c.replicas, len(s.create), removed, c.create, c.remove)
		}
	}
}
