package deploy

import (
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/miekg/dns"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/braidnet/braid/internal/kernel/netns/nstest"
)

// cluster is what the API server of these tests holds.
const cluster = `
namespaces: [{metadata: {name: default}}]
nodes:
  - {metadata: {name: n1}, spec: {podCIDRs: [10.244.1.0/24, "fd00:10:244:1::/64"]}, status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}}
  - {metadata: {name: n2}, spec: {podCIDRs: [10.244.2.0/24, "fd00:10:244:2::/64"]}, status: {addresses: [{type: InternalIP, address: 192.0.2.2}]}}
services:
  - {metadata: {name: web, namespace: default}, spec: {clusterIP: 10.96.7.7, clusterIPs: [10.96.7.7], ipFamilies: [IPv4], ports: [{port: 80, protocol: TCP}]}}
  - {metadata: {name: elsewhere, namespace: default}, spec: {type: ExternalName, externalName: foo.example.com}}
endpointslices:
  - {metadata: {name: web-1, namespace: default, labels: {kubernetes.io/service-name: web}}, addressType: IPv4, ports: [{port: 8080, protocol: TCP}],
     endpoints: [{addresses: [192.0.2.1], nodeName: n1, conditions: {ready: true}}]}
`

// newBox returns a box with a node's network namespace and an API server in it, which the containers
// find as in a cluster: by KUBERNETES_SERVICE_HOST and the service account's files.
func newBox(t *testing.T) *box {
	t.Helper()
	ns, other := nstest.New(t), nstest.New(t)
	nstest.Veth(t, ns, "eth0", other, "eth0")
	ns.Exec(t, "ip", "addr", "add", "192.0.2.1/24", "dev", "eth0")
	s := &apiServer{asked: map[string]bool{}, news: make(chan struct{}, 1)}
	if err := yaml.Unmarshal([]byte(cluster), &s.items); err != nil {
		t.Fatal(err)
	}
	s.Server = httptest.NewUnstartedServer(s)
	ns.Run(t, func() (err error) {
		s.Listener.Close()
		s.Listener, err = net.Listen("tcp", "127.0.0.1:0")
		return err
	})
	s.StartTLS()
	s.closeAfter(t)
	account := t.TempDir()
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
	if err := errors.Join(os.WriteFile(filepath.Join(account, "ca.crt"), ca, 0o644),
		os.WriteFile(filepath.Join(account, "token"), []byte("token"), 0o644)); err != nil {
		t.Fatal(err)
	}
	openTo(t, account)
	b := &box{ns: ns, host: t.TempDir(), objects: read(t, "braid.yaml"), configs: map[string][]string{},
		env:   map[string]string{"KUBERNETES_SERVICE_HOST": "10.96.0.1", "KUBERNETES_SERVICE_PORT": "443"},
		extra: []mount{{From: account, To: "/var/run/secrets/kubernetes.io/serviceaccount", ReadOnly: true}}}
	host, port, err := net.SplitHostPort(s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	// As docs/operations.md says: the address that works before services do.
	find[corev1.ConfigMap](t, b.objects, "braid-api-server").Data = map[string]string{"host": host, "port": port}
	return b
}

// run runs a container to its end.
func (b *box) run(t *testing.T, p *corev1.PodSpec, name string, args ...string) (string, error) {
	t.Helper()
	cmd := b.command(t, p, name, args...)
	var out output
	cmd.Stdout, cmd.Stderr = &out, &out
	err := b.ns.Start(cmd)
	if err == nil {
		err = cmd.Wait()
	}
	return out.String(), err
}

// start runs a container until the test ends or stop is called, which returns how it ended.
func (b *box) start(t *testing.T, p *corev1.PodSpec, name string) (out *output, stop func() error) {
	t.Helper()
	cmd := b.command(t, p, name)
	out = &output{}
	cmd.Stdout, cmd.Stderr = out, out
	if err := b.ns.Start(cmd); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	stopped := false
	stop = func() error {
		stopped = true
		return errors.Join(cmd.Process.Signal(syscall.SIGTERM), <-ended)
	}
	t.Cleanup(func() {
		if !stopped {
			_ = cmd.Process.Kill()
			<-ended
		}
		if t.Failed() {
			t.Logf("%s wrote:\n%s", name, out)
		}
	})
	return out, stop
}

// probe asks what the kubelet would ask.
func (b *box) probe(c *corev1.Container, p *corev1.Probe) error {
	port := p.HTTPGet.Port.String()
	for _, named := range c.Ports {
		if named.Name == port {
			port = fmt.Sprint(named.ContainerPort)
		}
	}
	host := p.HTTPGet.Host
	if host == "" {
		host = "127.0.0.1" // stands for the pod's address
	}
	return b.get("http://" + net.JoinHostPort(host, port) + p.HTTPGet.Path)
}

// get asks for a page inside the box's network and wants it to be there.
func (b *box) get(url string) error {
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, addr string) (c net.Conn, err error) {
			err = b.ns.Do(func() error {
				c, err = (&net.Dialer{}).DialContext(ctx, network, addr)
				return err
			})
			return c, err
		}}}
	resp, err := client.Get(url)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", url, resp.Status)
	}
	return nil
}

// requireBinaries ends the test when there is nothing to put into images.
func requireBinaries(t *testing.T) {
	t.Helper()
	nstest.RequireRoot(t)
	dir := os.Getenv("BRAID_BIN")
	if dir == "" {
		dir = "../bin"
	}
	for _, name := range []string{"netagent", "braid", "coredns"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Fatalf("%v: run `make build` first", err)
		}
	}
}

// TestNodeFromInstallToRemoval takes a node through its life with the containers of the manifests: the
// plugin is installed, the agent becomes ready and programs the node, it is stopped, and all is removed.
// What a container lacks in rights or mounts shows here.
func TestNodeFromInstallToRemoval(t *testing.T) {
	requireBinaries(t)
	b := newBox(t)
	pod := &find[appsv1.DaemonSet](t, b.objects, "netagent").Spec.Template.Spec
	plugin := filepath.Join(b.host, "opt/cni/bin/braid")
	conflist := filepath.Join(b.host, "etc/cni/net.d/10-braid.conflist")

	if out, err := b.run(t, pod, "install-cni"); err != nil || !strings.Contains(out, "installed") {
		t.Fatalf("install-cni: %v\n%s", err, out)
	}
	if out, err := exec.Command("env", "CNI_COMMAND=VERSION", plugin).CombinedOutput(); err != nil {
		t.Errorf("the installed plugin does not run: %v\n%s", err, out)
	}
	if forwarding(t, b) {
		t.Fatal("forwarding is on already: it would not show whether the agent can set it")
	}
	log, stop := b.start(t, pod, "netagent")
	agent := &pod.Containers[0]
	nstest.Wait(t, "the agent to be ready", func() error { return b.probe(agent, agent.ReadinessProbe) })
	if err := b.probe(agent, agent.LivenessProbe); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(conflist); err != nil {
		t.Error(err)
	}
	if !forwarding(t, b) {
		t.Error("the node does not forward")
	}
	if rules := b.ns.Exec(t, "nft", "list", "ruleset"); !strings.Contains(rules, "10.96.7.7") {
		t.Errorf("no rules for service web:\n%s", rules)
	}
	if routes := b.ns.Exec(t, "ip", "route"); !strings.Contains(routes, "10.244.2.0/24") {
		t.Errorf("no route to the pods of n2:\n%s", routes)
	}
	b.found(t, pod, log, map[string]string{
		"pod CIDRs": "10.244.1.0/24, fd00:10:244:1::/64  spec.podCIDRs of Node n1", "overlay": "vxlan  setting overlay",
		"node addresses": "192.0.2.1 on eth0  InternalIP of the Node", "pod MTU": "1450  eth0 has 1500, less 50 for VXLAN over IPv4",
		"service mode": "nftables  the kernel can"})
	// What upstream's tests ask of kube-proxy on every node.
	for _, url := range []string{"http://127.0.0.1:10256/healthz", "http://127.0.0.1:10256/livez", "http://127.0.0.1:10249/proxyMode"} {
		if err := b.get(url); err != nil {
			t.Error(err)
		}
	}
	remove := &find[appsv1.DaemonSet](t, read(t, "remove.yaml"), "braid-remove").Spec.Template.Spec
	if out, err := b.run(t, remove, "cleanup"); err == nil || !strings.Contains(out, "an agent is running") {
		t.Errorf("cleanup beside a running agent: %v\n%s", err, out)
	}
	if err := stop(); err != nil {
		t.Errorf("the agent ended with %v", err)
	}
	if out, err := b.run(t, remove, "cleanup"); err != nil {
		t.Errorf("cleanup: %v\n%s", err, out)
	}
	out, stop := b.start(t, remove, "uninstall-cni")
	nstest.Wait(t, "the plugin to be removed", func() error {
		if !strings.Contains(out.String(), "waiting to be stopped") {
			return errors.New(out.String())
		}
		return nil
	})
	if err := stop(); err != nil {
		t.Errorf("uninstall-cni ended with %v", err)
	}
	for _, path := range []string{plugin, conflist} {
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: %v", path, err)
		}
	}
	for _, cmd := range []string{"nft list ruleset", "ip route show proto 66", "ip -o link show type vxlan"} {
		argv := strings.Fields(cmd)
		if out := b.ns.Exec(t, argv[0], argv[1:]...); strings.Contains(out, "braid") || strings.Contains(out, "10.244") {
			t.Errorf("left by removal: %s\n%s", cmd, out)
		}
	}
}

// found wants the agent to say what it has worked out, with the reason: in the status, and in the log of its
// start. want has the beginning of "VALUE  REASON" by name.
func (b *box) found(t *testing.T, pod *corev1.PodSpec, log *output, want map[string]string) {
	t.Helper()
	text, err := b.run(t, pod, "netagent", "netagent", "status")
	if err != nil {
		t.Errorf("netagent status: %v\n%s", err, text)
	}
	for what, says := range want {
		value, why, _ := strings.Cut(says, "  ")
		row := regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(what) + ` +` + regexp.QuoteMeta(value) + ` +` + regexp.QuoteMeta(why))
		if !row.MatchString(text) {
			t.Errorf("status does not say %s: %s\n%s", what, says, text)
		}
		line := regexp.MustCompile(`msg="found ` + what + `".* value="?` + regexp.QuoteMeta(value) + `"? because="?` + regexp.QuoteMeta(why))
		if !line.MatchString(log.String()) {
			t.Errorf("the log does not say %s: %s\n%s", what, says, log)
		}
	}
}

func forwarding(t *testing.T, b *box) (on bool) {
	t.Helper()
	b.ns.Run(t, func() error {
		data, err := os.ReadFile("/proc/sys/net/ipv4/ip_forward")
		on = strings.TrimSpace(string(data)) == "1"
		return err
	})
	return on
}

// The init container has no right to override permissions: a folder of somebody else is closed to it,
// and what it says about that ends up in `kubectl describe pod`.
func TestInstallIntoAForeignFolder(t *testing.T) {
	requireBinaries(t)
	b := newBox(t)
	dir := filepath.Join(b.host, "opt/cni/bin")
	if err := errors.Join(os.MkdirAll(dir, 0o755), os.Chown(dir, 1000, 1000)); err != nil {
		t.Fatal(err)
	}
	out, err := b.run(t, &find[appsv1.DaemonSet](t, b.objects, "netagent").Spec.Template.Spec, "install-cni")
	if err == nil || !strings.Contains(out, "must belong to root") {
		t.Errorf("%v\n%s", err, out)
	}
}

// likeAPod gives containers what pods of the cluster's network have.
func (b *box) likeAPod(t *testing.T) {
	t.Helper()
	resolv := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(resolv, []byte("nameserver 192.0.2.53\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	openTo(t, filepath.Dir(resolv))
	b.extra = append(b.extra, mount{From: resolv, To: "/etc/resolv.conf", ReadOnly: true})
	// A pod finds the API server by its service, which the agent of its node has programmed by then.
	address := find[corev1.ConfigMap](t, b.objects, "braid-api-server").Data
	b.env = map[string]string{"KUBERNETES_SERVICE_HOST": address["host"], "KUBERNETES_SERVICE_PORT": address["port"]}
}

// CoreDNS answers on port 53 as an ordinary user, from the cluster's state.
func TestCoreDNSContainer(t *testing.T) {
	requireBinaries(t)
	b := newBox(t)
	b.likeAPod(t)
	pod := &find[appsv1.DaemonSet](t, b.objects, "coredns").Spec.Template.Spec
	if port := strings.TrimSpace(b.ns.Exec(t, "sysctl", "-n", "net.ipv4.ip_unprivileged_port_start")); port != "1024" {
		t.Fatalf("ports from %s on are free to all: this test would not show that CoreDNS may take port 53", port)
	}
	_, stop := b.start(t, pod, "coredns")
	c := &pod.Containers[0]
	nstest.Wait(t, "CoreDNS to be ready", func() error { return b.probe(c, c.ReadinessProbe) })
	if err := b.probe(c, c.LivenessProbe); err != nil {
		t.Error(err)
	}
	for _, network := range []string{"udp", "tcp"} {
		if got := b.query(t, network, "web.default.svc.cluster.local.", dns.TypeA); got != "10.96.7.7" {
			t.Errorf("%s: %s", network, got)
		}
	}
	if err := stop(); err != nil {
		t.Errorf("coredns ended with %v", err)
	}
}
