package cluster

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const web = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  replicas: %d
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - {name: c, image: "web:%s", ports: [{name: http, containerPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: http}]
`

func TestDeploymentEndToEnd(t *testing.T) {
	p := newPlayground(t, 3)
	r := p.apply(t, fmt.Sprintf(web, 3, "v1"))
	if len(r.Changes) != 2 || r.Changes[0].String() != "Deployment shop/web created" || r.Changes[1].Line != 14 {
		t.Errorf("changes: %+v", r.Changes)
	}
	if len(r.Warnings) != 1 || !strings.Contains(r.Warnings[0], "test.yaml:2: Deployment shop/web: namespace shop is not declared") {
		t.Errorf("warnings: %q", r.Warnings)
	}
	nodes := map[string]bool{}
	for _, s := range p.Pods() {
		nodes[s.Node] = true
		o := read[corev1.Pod](t, p, "pod.shop."+s.Name+".yaml")
		if o.Kind != "Pod" || o.Status.PodIPs[1].IP != s.IPs[1].String() || o.Status.HostIP != "192.168.77.1"+s.Node[1:] ||
			o.Status.Phase != corev1.PodRunning || o.Spec.NodeName != s.Node || o.Labels["app"] != "web" ||
			o.Spec.Containers[0].Ports[0].ContainerPort != 8080 {
			t.Errorf("pod in the folder: %+v", o)
		}
	}
	if len(nodes) != 3 {
		t.Errorf("pods are on %v, want one on each node", nodes)
	}
	equal(t, "endpoints", p.endpoints(t, "shop", "web"), []string{
		"10.244.1.2 ready serving port 8080/http", "10.244.2.2 ready serving port 8080/http", "10.244.3.2 ready serving port 8080/http"})
	equal(t, "namespaces", p.files(t, "namespace"), []string{"namespace.default.yaml", "namespace.kube-system.yaml", "namespace.shop.yaml"})
	equal(t, "nodes", p.files(t, "node"), []string{"node.n1.yaml", "node.n2.yaml", "node.n3.yaml"})

	before := p.Pods()
	for _, c := range p.apply(t, fmt.Sprintf(web, 3, "v1")).Changes {
		if c.Action != Unchanged {
			t.Errorf("the same again: %s", c)
		}
	}
	p.apply(t, fmt.Sprintf(web, 5, "v1"))
	for _, b := range before {
		if a := p.pod(t, b.Name); a.UID != b.UID || a.Node != b.Node || !slices.Equal(a.IPs, b.IPs) {
			t.Errorf("scaling up changed pod %+v to %+v", b, a)
		}
	}
	p.apply(t, fmt.Sprintf(web, 2, "v1"))
	if n := len(p.Pods()); n != 2 {
		t.Errorf("%d pods after scaling to 2", n)
	}
	if _, err := p.Delete(t.Context(), "test.yaml", fmt.Appendf(nil, web, 2, "v1")); err != nil {
		t.Fatal(err)
	}
	p.settle(t)
	if n := len(p.Pods()) + len(p.files(t, "pod")) + len(p.files(t, "service")) + len(p.files(t, "endpointslice")) + len(p.fake.live); n != 0 {
		t.Errorf("left after deletion: %d things, pods %v", n, p.Pods())
	}
}

func TestRolloutKeepsEnoughPodsReady(t *testing.T) {
	var c *Controller
	least := 3
	count := func() { // with the controller's lock held
		ready := 0
		for _, p := range c.pods {
			if p.ready() {
				ready++
			}
		}
		least = min(least, ready)
	}
	p := newPlayground(t, 2, func(cfg *Config) {
		cfg.Progress = func() {
			if c != nil {
				count()
			}
		}
	})
	p.apply(t, fmt.Sprintf(web, 3, "v1"))
	old := p.podNames()
	p.mu.Lock()
	c = p.Controller
	p.mu.Unlock()
	p.apply(t, fmt.Sprintf(web, 3, "v2"))
	for _, n := range p.podNames() {
		if slices.Contains(old, n) {
			t.Errorf("pod %s is still there after the template changed", n)
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if least < 3 {
		t.Errorf("only %d pods were ready during the rollout", least)
	}
}

const db = `
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  replicas: %d
  serviceName: db
  podManagementPolicy: %s
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec:
      containers:
      - {name: c, image: "db:%s", ports: [{containerPort: 5432}]}
---
apiVersion: v1
kind: Service
metadata: {name: db}
spec: {clusterIP: None, selector: {app: db}, ipFamilyPolicy: RequireDualStack, ports: [{port: 5432}]}
`

func TestStatefulSet(t *testing.T) {
	p := newPlayground(t, 2)
	p.apply(t, fmt.Sprintf(db, 3, "OrderedReady", "v1"))
	equal(t, "calls", p.fake.calls, []string{"start default/db-0", "start default/db-1", "start default/db-2"})
	if s := p.fake.live["default/db-1"]; s.Hostname != "db-1" || s.Subdomain != "db" || s.DNSPolicy != corev1.DNSClusterFirst {
		t.Errorf("sandbox: %+v", s)
	}
	equal(t, "endpoints", p.endpoints(t, "default", "db"), []string{
		"10.244.1.2 ready serving host=db-0 port 5432/", "10.244.1.3 ready serving host=db-2 port 5432/", "10.244.2.2 ready serving host=db-1 port 5432/",
		"fd00:10:244:1::2 ready serving host=db-0 port 5432/", "fd00:10:244:1::3 ready serving host=db-2 port 5432/", "fd00:10:244:2::2 ready serving host=db-1 port 5432/"})

	uid := p.pod(t, "db-1").UID
	if err := p.KillPod("default", "db-1"); err != nil {
		t.Fatal(err)
	}
	p.settle(t)
	if s := p.pod(t, "db-1"); s.UID == uid || !s.Ready {
		t.Errorf("db-1 after it was killed: %+v", s)
	}

	p.fake.calls = nil
	p.apply(t, fmt.Sprintf(db, 3, "OrderedReady", "v2"))
	equal(t, "rolling update", p.fake.calls, []string{"stop default/db-2", "start default/db-2",
		"stop default/db-1", "start default/db-1", "stop default/db-0", "start default/db-0"})

	p.fake.calls = nil
	p.apply(t, fmt.Sprintf(db, 1, "OrderedReady", "v2"))
	equal(t, "scaling down", p.fake.calls, []string{"stop default/db-2", "stop default/db-1"})

	if err := p.SetReady("default", "db-0", false); err != nil {
		t.Fatal(err)
	}
	p.applyOnly(t, fmt.Sprintf(db, 2, "OrderedReady", "v2"))
	equal(t, "db-1 waits for db-0", p.podNames(), []string{"db-0"})
	if err := p.SetReady("default", "db-0", true); err != nil {
		t.Fatal(err)
	}
	p.settle(t)
	equal(t, "pods", p.podNames(), []string{"db-0", "db-1"})
}

func TestDaemonSetFollowsNodeLabels(t *testing.T) {
	p := newPlayground(t, 3)
	p.apply(t, `
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: log}
spec:
  selector: {matchLabels: {app: log}}
  template:
    metadata: {labels: {app: log}}
    spec: {hostNetwork: true, containers: [{name: c, image: i}]}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: gpu}
spec:
  selector: {matchLabels: {app: gpu}}
  template:
    metadata: {labels: {app: gpu}}
    spec: {nodeSelector: {gpu: "yes"}, containers: [{name: c, image: i}]}
`)
	on := func() (out []string) {
		for _, s := range p.Pods() {
			out = append(out, strings.SplitN(s.Name, "-", 2)[0]+" "+s.Node)
		}
		slices.Sort(out)
		return out
	}
	equal(t, "pods", on(), []string{"log n1", "log n2", "log n3"})
	p.apply(t, "apiVersion: v1\nkind: Node\nmetadata: {name: n2, labels: {gpu: \"yes\"}, annotations: {note: x}}\n")
	equal(t, "pods", on(), []string{"gpu n2", "log n1", "log n2", "log n3"})
	if n := read[corev1.Node](t, p, "node.n2.yaml"); n.Labels["gpu"] != "yes" || n.Labels[corev1.LabelHostname] != "n2" || n.Annotations["note"] != "x" {
		t.Errorf("node n2: %+v", n.ObjectMeta)
	}
	p.apply(t, "apiVersion: v1\nkind: Node\nmetadata: {name: n2}\n")
	equal(t, "pods", on(), []string{"log n1", "log n2", "log n3"})
	_, err := p.Apply(t.Context(), "f.yaml", []byte("apiVersion: v1\nkind: Node\nmetadata:\n  name: n9\n"))
	if err == nil || !strings.Contains(err.Error(), "f.yaml:4: Node n9") || !strings.Contains(err.Error(), "n1, n2, n3") {
		t.Errorf("an unknown node: %v", err)
	}
}

func TestReadinessAndTermination(t *testing.T) {
	p := newPlayground(t, 1)
	p.apply(t, fmt.Sprintf(web, 2, "v1")+`
---
apiVersion: v1
kind: Service
metadata: {name: all, namespace: shop}
spec: {selector: {app: web}, publishNotReadyAddresses: true, clusterIP: None, ports: [{port: 1}]}
`)
	names := p.podNames()
	if err := p.SetReady("shop", names[0], false); err != nil {
		t.Fatal(err)
	}
	low, high := p.pod(t, names[0]).IPs[0].String(), p.pod(t, names[1]).IPs[0].String()
	want := []string{low + " port 8080/http", high + " ready serving port 8080/http"}
	slices.Sort(want)
	equal(t, "one is not ready", p.endpoints(t, "shop", "web"), want)
	want = []string{low + " ready port 1/", high + " ready serving port 1/"}
	slices.Sort(want)
	equal(t, "published anyway", p.endpoints(t, "shop", "all"), want)
	if o := read[corev1.Pod](t, p, "pod.shop."+names[0]+".yaml"); o.Status.Conditions[1].Status != corev1.ConditionFalse {
		t.Errorf("conditions: %+v", o.Status.Conditions)
	}

	gate := make(chan struct{})
	p.fake.mu.Lock()
	p.fake.block["shop/"+names[1]] = gate
	p.fake.mu.Unlock()
	if err := p.KillPod("shop", names[1]); err != nil {
		t.Fatal(err)
	}
	p.fake.waitCall(t, "stop shop/"+names[1])
	if o := read[corev1.Pod](t, p, "pod.shop."+names[1]+".yaml"); o.DeletionTimestamp == nil {
		t.Error("a pod that is going has no deletionTimestamp")
	}
	if got := p.endpoints(t, "shop", "web"); !slices.Contains(got, high+" serving terminating port 8080/http") {
		t.Errorf("endpoints while a pod is going: %v", got)
	}
	if err := p.SetReady("shop", names[1], false); err == nil {
		t.Error("SetReady of a pod that is going was accepted")
	}
	close(gate)
	p.settle(t)
	if names2 := p.podNames(); len(names2) != 2 || slices.Contains(names2, names[1]) {
		t.Errorf("pods after a kill: %v, were %v", names2, names)
	}
}

func TestBrokenDocumentsLeaveTheLastGoodVersion(t *testing.T) {
	p := newPlayground(t, 1)
	p.apply(t, fmt.Sprintf(web, 1, "v1"))
	ip := read[corev1.Service](t, p, "service.shop.web.yaml").Spec.ClusterIP
	r, err := p.Apply(t.Context(), "bad.yaml", []byte(`apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  selector: {app: web}
  ports:
  - port: 0
---
apiVersion: v1
kind: Service
metadata: {name: ok, namespace: shop}
spec: {selector: {app: web}, ports: [{port: 80, portt: 3}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec: {replicas: two}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: x}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: y}
---
apiVersion: v1
kind: Pod
metadata: {name: ../../evil}
spec: {containers: [{name: c, image: i}]}
---
this: [is, not
`))
	for _, want := range []string{"bad.yaml:7: Service shop/web: spec.ports[0].port: is 0", "bad.yaml:17: Deployment shop/web",
		"bad.yaml:29: Pod ../../evil: metadata.name", "bad.yaml:3"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("no %q in:\n%v", want, err)
		}
	}
	if len(r.Changes) != 1 || r.Changes[0].Name != "ok" || !slices.Equal(r.Ignored, []string{"ServiceAccount (2)"}) ||
		len(r.Warnings) != 1 || !strings.Contains(r.Warnings[0], "bad.yaml:12") {
		t.Errorf("report: %+v", r)
	}
	p.settle(t)
	if s := read[corev1.Service](t, p, "service.shop.web.yaml"); s.Spec.ClusterIP != ip || s.Spec.Ports[0].Port != 80 || len(p.Pods()) != 1 {
		t.Errorf("what was good is not in force: %+v", s.Spec)
	}
}

func TestUserSlicesPoliciesAndNamespaces(t *testing.T) {
	p := newPlayground(t, 1)
	ready := true
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: "kube-dns-ipv4", Namespace: "kube-system", Labels: map[string]string{discoveryv1.LabelServiceName: "kube-dns"}},
		AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Port: new(int32)}},
		Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"192.168.77.11"}, Conditions: discoveryv1.EndpointConditions{Ready: &ready}}},
	}
	service := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "kube-dns", Namespace: "kube-system"},
		Spec: corev1.ServiceSpec{ClusterIP: dns4.String(), Ports: []corev1.ServicePort{{Port: 53, Protocol: corev1.ProtocolUDP}}}}
	if err := p.AddObjects(service, slice); err != nil {
		t.Fatal(err)
	}
	if err := p.AddObjects(&corev1.ConfigMap{}); err == nil {
		t.Error("a ConfigMap was added")
	}
	if s := read[discoveryv1.EndpointSlice](t, p, "endpointslice.kube-system.kube-dns-ipv4.yaml"); s.Kind != "EndpointSlice" || *s.Ports[0].Protocol != corev1.ProtocolTCP || *s.Ports[0].Name != "" {
		t.Errorf("slice: %+v", s)
	}
	p.apply(t, fmt.Sprintf(web, 1, "v1")+`
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: np, namespace: shop}
spec: {podSelector: {}, egress: [{}]}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {team: a}}
`)
	if n := read[networkingv1.NetworkPolicy](t, p, "networkpolicy.shop.np.yaml"); len(n.Spec.PolicyTypes) != 2 {
		t.Errorf("policy types: %v", n.Spec.PolicyTypes)
	}
	if n := read[corev1.Namespace](t, p, "namespace.shop.yaml"); n.Labels["team"] != "a" || n.Labels[corev1.LabelMetadataName] != "shop" {
		t.Errorf("namespace: %v", n.Labels)
	}
	for name, right := range map[string]bool{"shop": true, "default": false, "nowhere": false} {
		_, err := p.Delete(t.Context(), "ns.yaml", []byte("apiVersion: v1\nkind: Namespace\nmetadata: {name: "+name+"}\n"))
		if (err == nil) != right {
			t.Errorf("delete namespace %s: %v", name, err)
		}
	}
	p.settle(t)
	var left []string
	for _, e := range []string{"pod", "service", "endpointslice", "networkpolicy", "namespace"} {
		left = append(left, p.files(t, e)...)
	}
	equal(t, "files", left, []string{"service.kube-system.kube-dns.yaml", "endpointslice.kube-system.kube-dns-ipv4.yaml",
		"namespace.default.yaml", "namespace.kube-system.yaml"})
}
