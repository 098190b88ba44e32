package cluster

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

func TestServedPorts(t *testing.T) {
	p := newPlayground(t, 1)
	p.apply(t, `
apiVersion: v1
kind: Pod
metadata: {name: a, labels: {app: a}}
spec:
  initContainers:
  - {name: once, image: i, ports: [{containerPort: 1}]}
  - {name: side, image: i, restartPolicy: Always, ports: [{containerPort: 90}]}
  containers:
  - {name: x, image: i, ports: [{name: web, containerPort: 80}, {containerPort: 80, protocol: UDP}]}
  - {name: z, image: i, ports: [{containerPort: 80}, {containerPort: 70, protocol: SCTP}]}
`)
	text := func() (out []string) {
		p.fake.mu.Lock()
		defer p.fake.mu.Unlock()
		for _, q := range p.fake.live["default/a"].Ports {
			out = append(out, fmt.Sprintf("%s %d/%s", q.Name, q.Number, q.Protocol))
		}
		return out
	}
	equal(t, "ports", text(), []string{" 70/SCTP", "web 80/TCP", " 80/UDP", " 90/TCP"})
	p.apply(t, `
apiVersion: v1
kind: Service
metadata: {name: a}
spec: {selector: {app: a}, ports: [{name: num, port: 1000, targetPort: 7777}, {name: w, port: 80, targetPort: web}]}
`)
	equal(t, "ports with a service that targets another", text(), []string{" 70/SCTP", "web 80/TCP", " 80/UDP", " 90/TCP", " 7777/TCP"})
}

func TestHostPortsKeepPodsApart(t *testing.T) {
	p := newPlayground(t, 2)
	pod := func(name, node, port string) string {
		return fmt.Sprintf("---\napiVersion: v1\nkind: Pod\nmetadata: {name: %s}\nspec: {%s containers: [{name: c, image: i, ports: [{containerPort: 80, %s}]}]}\n", name, node, port)
	}
	p.applyOnly(t, pod("a", "nodeName: n1,", "hostPort: 8000")+pod("b", "", "hostPort: 8000")+pod("c", "", "hostPort: 8000, hostIP: 127.0.0.1"))
	p.until(t, "c to be refused", func(pods []PodStatus) bool {
		return len(pods) == 3 && pods[0].Ready && pods[1].Ready && pods[2].Error != ""
	})
	if b, c := p.pod(t, "b"), p.pod(t, "c"); b.Node != "n2" || c.Error != "each node that fits has a pod with one of its host ports, [127.0.0.1:8000/TCP]" {
		t.Errorf("b is on %q, c: %q", b.Node, c.Error)
	}
	p.applyOnly(t, pod("d", "nodeName: n1,", "hostPort: 8000, protocol: UDP"))
	if _, err := p.Delete(t.Context(), "x", []byte("apiVersion: v1\nkind: Pod\nmetadata: {name: b}\n")); err != nil {
		t.Fatal(err)
	}
	p.until(t, "c to run where b was", func(pods []PodStatus) bool { return p.pod(t, "c").Ready && p.pod(t, "d").Ready })
	p.fake.mu.Lock()
	defer p.fake.mu.Unlock()
	if c, d := p.fake.live["default/c"], p.fake.live["default/d"]; c.Node != "n2" || fmt.Sprint(c.HostPorts, d.HostPorts) != "[127.0.0.1:8000/TCP] [:8000/UDP]" {
		t.Errorf("c is on %s with %v, d has %v", c.Node, c.HostPorts, d.HostPorts)
	}
}

func TestFailingPodIsRetriedAndOthersGoOn(t *testing.T) {
	p := newPlayground(t, 2)
	p.fake.setFail("default/bad", errors.New("no address left"))
	p.applyOnly(t, `
apiVersion: v1
kind: Pod
metadata: {name: bad}
spec: {containers: [{name: c, image: i}]}
---
apiVersion: v1
kind: Pod
metadata: {name: good}
spec: {nodeName: n2, containers: [{name: c, image: i}]}
---
apiVersion: v1
kind: Pod
metadata: {name: lost}
spec: {nodeName: n7, containers: [{name: c, image: i}]}
---
apiVersion: v1
kind: Pod
metadata: {name: picky}
spec: {nodeSelector: {disk: ssd}, containers: [{name: c, image: i}]}
`)
	p.until(t, "several attempts", func(pods []PodStatus) bool { return pods[0].Failures >= 3 && pods[1].Ready })
	if s := p.pod(t, "bad"); s.Phase != "Pending" || s.Error != "start pod: no address left" {
		t.Errorf("bad: %+v", s)
	}
	if s := p.pod(t, "lost"); !strings.Contains(s.Error, "node n7 does not exist") {
		t.Errorf("lost: %+v", s)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	err := p.Wait(ended, nil)
	if err == nil || !strings.Contains(err.Error(), "1 of 4 pods run: pod default/bad is Pending: start pod: no address left") {
		t.Errorf("Wait: %v", err)
	}
	p.fake.setFail("default/bad", nil)
	p.applyOnly(t, "apiVersion: v1\nkind: Node\nmetadata: {name: n1, labels: {disk: ssd}}\n")
	if _, err := p.Delete(t.Context(), "x", []byte("apiVersion: v1\nkind: Pod\nmetadata: {name: lost}\n")); err != nil {
		t.Fatal(err)
	}
	var seen []string
	if err := p.Wait(bound(t), func(ready, total int) { seen = append(seen, fmt.Sprintf("%d/%d", ready, total)) }); err != nil {
		t.Fatal(err)
	}
	if s := p.pod(t, "picky"); s.Node != "n1" || s.Error != "" {
		t.Errorf("picky: %+v", s)
	}
	if seen[len(seen)-1] != "3/3" {
		t.Errorf("progress: %v", seen)
	}
}

func TestCallsAreBoundedAndCancelled(t *testing.T) {
	p := newPlayground(t, 1, func(c *Config) { c.Parallel = 2 })
	gate := make(chan struct{})
	for i := range 5 {
		p.fake.block[fmt.Sprintf("default/p%d", i)] = gate
	}
	for i := range 5 {
		p.applyOnly(t, fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata: {name: p%d}\nspec: {containers: [{name: c, image: i}]}\n", i))
	}
	p.fake.waitCall(t, "start default/p0")
	p.fake.waitCall(t, "start default/p1")
	if err := p.KillPod("default", "p0"); err != nil { // its Start is under way
		t.Fatal(err)
	}
	if err := p.KillPod("default", "p4"); err != nil { // never started
		t.Fatal(err)
	}
	close(gate)
	p.settle(t)
	equal(t, "pods", p.podNames(), []string{"p1", "p2", "p3"})
	if p.fake.most != 2 {
		t.Errorf("%d calls at the same time, want 2", p.fake.most)
	}
	if slices.Contains(p.fake.calls, "start default/p4") || !slices.Contains(p.fake.calls, "stop default/p0") {
		t.Errorf("calls: %v", p.fake.calls)
	}
}

func TestBarePod(t *testing.T) {
	p := newPlayground(t, 2)
	const pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: a, labels: {v: %q}}\nspec: {nodeName: n2, containers: [{name: c, image: %s}]}\n"
	p.apply(t, fmt.Sprintf(pod, "1", "x"))
	first := p.pod(t, "a")
	p.apply(t, fmt.Sprintf(pod, "2", "x"))
	if s := p.pod(t, "a"); s.UID != first.UID || read[corev1.Pod](t, p, "pod.default.a.yaml").Labels["v"] != "2" {
		t.Errorf("a change of labels: %+v", s)
	}
	r := p.apply(t, fmt.Sprintf(pod, "2", "z"))
	if s := p.pod(t, "a"); s.UID == first.UID || s.Node != "n2" || len(r.Warnings) != 1 {
		t.Errorf("a change of spec: %+v, warnings %q", s, r.Warnings)
	}
	if err := p.KillPod("default", "a"); err != nil {
		t.Fatal(err)
	}
	p.settle(t)
	equal(t, "pods", p.podNames(), nil)
	if err := p.KillPod("default", "a"); err == nil {
		t.Error("a second kill was accepted")
	}
}
