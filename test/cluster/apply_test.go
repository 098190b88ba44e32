package main

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// apiOnly starts etcd and an API server alone: what kubectl says of manifests needs no node. It skips where
// they were not built.
func apiOnly(t *testing.T, fam string) *options {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("skipped: an API server in a network namespace needs root")
	}
	o := testOptions(t, fam, 0)
	o.Name = "apply-" + fam
	o.Root = must(findRoot())
	o.Cache = filepath.Join(envOr("BRAID_CLUSTER_CACHE", "/var/cache/braid-cluster"), versionKey())
	for _, p := range []string{"etcd", "kube-apiserver", "kubectl"} {
		if _, err := os.Stat(o.bin(p)); err != nil {
			t.Skipf("skipped: %v: `go run -C test/cluster . build` makes it", err)
		}
	}
	ctx := context.Background()
	if err := o.remove(ctx); err != nil { // of a run that was killed
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := o.remove(context.Background()); err != nil {
			t.Error(err)
		}
	})
	err := errors.Join(os.MkdirAll(o.path(control, "log"), 0o755), os.WriteFile(o.path(control, "audit.yaml"), []byte(auditPolicy), 0o644),
		writeCredentials(o), buildTopology(o))
	if err != nil {
		t.Fatal(err)
	}
	for _, j := range []job{o.etcd(), o.apiserver()} {
		log := must(os.Create(o.log(control, j.Name)))
		defer log.Close()
		cmd := exec.Command(j.Argv[0], j.Argv[1:]...)
		cmd.Stdout, cmd.Stderr = log, log
		if err := within(o.nsName(control), cmd.Start); err != nil {
			t.Fatal(err)
		}
		ended := make(chan struct{})
		go func() {
			_ = cmd.Wait() // it is killed
			close(ended)
		}()
		t.Cleanup(func() {
			_ = cmd.Process.Kill()
			<-ended
		})
	}
	err = await(ctx, "the API server", 3*time.Minute, func() error {
		_, err := o.ctl("", "get", "namespace", "kube-system")
		return err
	})
	if err != nil {
		t.Fatalf("%v\n%s", err, tail(o.log(control, "kube-apiserver")))
	}
	return o
}

// ctl runs kubectl as a user would and returns everything it prints.
func (o *options) ctl(stdin string, args ...string) (string, error) {
	cmd := exec.Command(o.bin("kubectl"), args...)
	cmd.Dir, cmd.Env = o.Root, append(os.Environ(), "KUBECONFIG="+o.kubeconfig())
	cmd.Stdin = strings.NewReader(stdin)
	var out []byte
	err := within(o.nsName(control), func() (err error) {
		out, err = cmd.CombinedOutput()
		return err
	})
	if err != nil {
		err = errors.Join(err, errors.New(string(out)))
	}
	return string(out), err
}

// ok is ctl that ends the test on an error.
func (o *options) ok(t *testing.T, stdin string, args ...string) string {
	t.Helper()
	out, err := o.ctl(stdin, args...)
	if err != nil {
		t.Fatalf("kubectl %s: %v", strings.Join(args, " "), err)
	}
	return out
}

// objects lists ours, without what the cluster makes of them.
func (o *options) objects(t *testing.T) []string {
	t.Helper()
	out := o.ok(t, "", "get", "configmaps,services,serviceaccounts,daemonsets,clusterroles,clusterrolebindings", "-A",
		"-l", "app.kubernetes.io/part-of=braid", "-o", "name")
	list := strings.Fields(out)
	slices.Sort(list)
	return list
}

// ours are the objects that Braid is made of.
var ours = []string{
	"clusterrole.rbac.authorization.k8s.io/braid-coredns", "clusterrole.rbac.authorization.k8s.io/braid-netagent",
	"clusterrolebinding.rbac.authorization.k8s.io/braid-coredns", "clusterrolebinding.rbac.authorization.k8s.io/braid-netagent",
	"configmap/braid-api-server", "configmap/braid-netagent", "configmap/coredns",
	"daemonset.apps/coredns", "daemonset.apps/netagent", "service/kube-dns",
	"serviceaccount/braid-coredns", "serviceaccount/braid-netagent",
}

// overlay makes a kustomization of somebody's own.
func (o *options) overlay(t *testing.T, lines string) string {
	t.Helper()
	dir := t.TempDir()
	deploy := must(filepath.Rel(must(filepath.EvalSymlinks(dir)), filepath.Join(o.Root, "deploy")))
	text := strings.ReplaceAll("resources: [DEPLOY/base]\n"+lines, "DEPLOY", deploy)
	if err := os.WriteFile(filepath.Join(dir, "kustomization.yaml"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

// dnsService returns what the API server made of Service kube-dns.
func (o *options) dnsService(t *testing.T) (s struct {
	Spec struct {
		ClusterIPs          []string
		TrafficDistribution string
	}
}) {
	t.Helper()
	if err := json.Unmarshal([]byte(o.ok(t, "", "-n", "kube-system", "get", "service", "kube-dns", "-o", "json")), &s); err != nil {
		t.Fatal(err)
	}
	return s
}

// The documented ways to install, upgrade and remove, against a real API server.
func TestApply(t *testing.T) {
	o := apiOnly(t, "v4")
	t.Run("new cluster, by -k and by file", func(t *testing.T) {
		if out := o.ok(t, "", "apply", "-k", "deploy/base"); strings.Contains(strings.ToLower(out), "warning") {
			t.Errorf("the API server warns:\n%s", out)
		}
		if got := o.objects(t); !slices.Equal(got, ours) {
			t.Errorf("objects\n%v\nwant\n%v", got, ours)
		}
		if out := o.ok(t, "", "apply", "-k", "deploy/base"); strings.Contains(out, "configured") || strings.Contains(out, "created") {
			t.Errorf("a second apply changes:\n%s", out)
		}
		if s := o.dnsService(t); !slices.Equal(s.Spec.ClusterIPs, []string{"10.96.0.10"}) || s.Spec.TrafficDistribution != "PreferSameNode" {
			t.Errorf("kube-dns: %+v", s)
		}
		// The administrator's setting survives an upgrade by the file, also after the ways were mixed.
		o.ok(t, "", "-n", "kube-system", "patch", "configmap", "braid-api-server", "--type", "merge", "-p", `{"data":{"host":"192.0.2.10","port":"6443"}}`)
		o.ok(t, "", "apply", "--server-side", "-f", "deploy/braid.yaml")
		o.ok(t, "", "apply", "--server-side", "-k", "deploy/base")
		if host := o.ok(t, "", "-n", "kube-system", "get", "configmap", "braid-api-server", "-o", "jsonpath={.data.host}"); host != "192.0.2.10" {
			t.Errorf("the API server's address is %q", host)
		}
		o.ok(t, "", "delete", "--ignore-not-found", "-f", "deploy/braid.yaml")
		if got := o.objects(t); len(got) > 0 {
			t.Errorf("left: %v", got)
		}
		o.ok(t, "", "apply", "--server-side", "-f", "deploy/remove.yaml")
		o.ok(t, "", "delete", "-f", "deploy/remove.yaml")
	})
	t.Run("component iptables", func(t *testing.T) {
		dir := o.overlay(t, "components: [DEPLOY/iptables]\n")
		o.ok(t, "", "apply", "--server-side", "-k", dir)
		const path = "jsonpath={.spec.template.spec.containers[0].args} {.spec.template.spec.containers[0].securityContext.capabilities.add}"
		if got := o.ok(t, "", "-n", "kube-system", "get", "daemonset", "netagent", "-o", path); got != `["--service-mode=iptables"] ["NET_ADMIN","NET_RAW"]` {
			t.Errorf("netagent: %s", got)
		}
		o.ok(t, "", "-n", "kube-system", "patch", "daemonset", "netagent", "--type", "json",
			"-p", `[{"op":"replace","path":"/spec/template/spec/containers/0/args","value":["--service-mode=nftables"]}]`)
		o.ok(t, "", "apply", "--server-side", "-k", "deploy/base")
		if got := o.ok(t, "", "-n", "kube-system", "get", "daemonset", "netagent", "-o", path); !strings.HasSuffix(got, ` ["NET_ADMIN"]`) {
			t.Errorf("netagent without the component: %s", got)
		}
		o.ok(t, "", "delete", "-k", dir)
	})
	t.Run("cluster with a Corefile", func(t *testing.T) { testKeepCorefile(t, o) })
}

// kubeadms is what `kubeadm init` leaves of its CoreDNS, with a Corefile that was changed since.
const kubeadms = `
apiVersion: v1
kind: ConfigMap
metadata: {name: coredns, namespace: kube-system}
data: {Corefile: ".:53 {\n    whoami # my own\n}\n"}
---
apiVersion: v1
kind: Service
metadata:
  labels: {k8s-app: kube-dns, kubernetes.io/cluster-service: "true", kubernetes.io/name: CoreDNS}
  name: kube-dns
  namespace: kube-system
  annotations: {prometheus.io/port: "9153", prometheus.io/scrape: "true"}
spec:
  clusterIP: 10.96.0.10
  ports:
    - {name: dns, port: 53, protocol: UDP, targetPort: 53}
    - {name: dns-tcp, port: 53, protocol: TCP, targetPort: 53}
    - {name: metrics, port: 9153, protocol: TCP, targetPort: 9153}
  selector: {k8s-app: kube-dns}
`

// testKeepCorefile: nothing that the documentation says overwrites the Corefile of a cluster.
func testKeepCorefile(t *testing.T, o *options) {
	o.ok(t, kubeadms, "create", "--field-manager=kubeadm", "-f", "-")
	mine := func() bool {
		return strings.Contains(o.ok(t, "", "-n", "kube-system", "get", "configmap", "coredns", "-o", "jsonpath={.data.Corefile}"), "my own")
	}
	out, err := o.ctl("", "apply", "--server-side", "-f", "deploy/braid.yaml")
	if err == nil || strings.Count(out, "Apply failed") != 1 || !strings.Contains(out, `failed with 1 conflict: conflict with "kubeadm" using v1: .data.Corefile`) {
		t.Errorf("want one conflict, over the Corefile: %v", err)
	}
	if !mine() {
		t.Error("server-side apply overwrote the Corefile")
	}
	// Everything else was taken, the Service too.
	if s := o.dnsService(t); s.Spec.TrafficDistribution != "PreferSameNode" {
		t.Errorf("kube-dns: %+v", s)
	}
	if got, want := o.objects(t), slices.DeleteFunc(slices.Clone(ours), func(s string) bool { return s == "configmap/coredns" }); !slices.Equal(got, want) {
		t.Errorf("objects\n%v\nwant\n%v", got, want)
	}
	dir := o.overlay(t, "components: [DEPLOY/keep-corefile]\n")
	o.ok(t, "", "apply", "--server-side", "-k", dir)
	o.ok(t, "", "apply", "-k", dir)
	if !mine() {
		t.Error("apply with keep-corefile overwrote the Corefile")
	}
	o.ok(t, "", "delete", "-k", dir)
	if got := o.objects(t); len(got) > 0 || !mine() {
		t.Errorf("left: %v, the Corefile is kept: %t", got, mine())
	}
	o.ok(t, "", "apply", "--server-side", "--force-conflicts", "-f", "deploy/base/corefile.yaml")
	if mine() {
		t.Error("Braid's Corefile was asked for and not taken")
	}
}

// In a cluster of both families kube-dns gets an address of each. One of IPv6 alone refuses the address of the
// manifest, and takes the one that the documentation puts in its place.
func TestApplyOtherFamilies(t *testing.T) {
	t.Run("dual", func(t *testing.T) {
		o := apiOnly(t, "dual")
		o.ok(t, "", "apply", "--server-side", "-f", "deploy/braid.yaml")
		if ips := o.dnsService(t).Spec.ClusterIPs; len(ips) != 2 || ips[0] != "10.96.0.10" || !strings.Contains(ips[1], ":") {
			t.Errorf("addresses %v", ips)
		}
	})
	t.Run("v6", func(t *testing.T) {
		o := apiOnly(t, "v6")
		manifest := string(must(os.ReadFile(filepath.Join(o.Root, "deploy/braid.yaml"))))
		if out, err := o.ctl(manifest, "apply", "--server-side", "-f", "-"); err == nil || !strings.Contains(out, "IPv4 is not configured on this cluster") {
			t.Errorf("an IPv4 address: %v", err)
		}
		o.ok(t, strings.ReplaceAll(manifest, "clusterIP: 10.96.0.10", "clusterIP: fd00:10:96::a"), "apply", "--server-side", "-f", "-")
		if ips := o.dnsService(t).Spec.ClusterIPs; !slices.Equal(ips, []string{"fd00:10:96::a"}) {
			t.Errorf("addresses %v", ips)
		}
	})
}
