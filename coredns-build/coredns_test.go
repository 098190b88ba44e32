package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/miekg/dns"
)

const manifests = `apiVersion: v1
kind: Service
metadata: {name: kubernetes, namespace: default}
spec: {clusterIP: 10.96.0.1, clusterIPs: [10.96.0.1], ports: [{name: https, port: 443}]}
---
apiVersion: v1
kind: Namespace
metadata: {name: prod}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: prod}
spec: {clusterIP: 10.96.1.1, clusterIPs: [10.96.1.1, "fd00:10:96::1"], ports: [{name: http, port: 80, protocol: TCP}]}
---
apiVersion: v1
kind: Service
metadata: {name: db, namespace: prod}
spec: {clusterIP: None, ports: [{name: sql, port: 5432}]}
---
apiVersion: v1
kind: Service
metadata: {name: out, namespace: prod}
spec: {type: ExternalName, externalName: www.example.net}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: db-1, namespace: prod, labels: {kubernetes.io/service-name: db}}
addressType: IPv4
ports: [{name: sql, port: 5432, protocol: TCP}]
endpoints:
- {addresses: [10.244.1.6], hostname: db-0}
- {addresses: [10.244.2.6], conditions: {ready: false}}
`

// exampleOn returns Corefile.example moved away from the ports and the resolvers of this machine.
func exampleOn(t *testing.T, port, metrics int, upstream string) string {
	t.Helper()
	text := read(t, "../Corefile.example")
	for _, r := range [][2]string{
		{".:53 {", fmt.Sprintf(".:%d {\n    bind 127.0.0.1", port)},
		{"    health {", fmt.Sprintf("    health 127.0.0.1:%d {", freePort(t))},
		{"    ready\n", fmt.Sprintf("    ready 127.0.0.1:%d\n", freePort(t))},
		{"prometheus :9153", fmt.Sprintf("prometheus 127.0.0.1:%d", metrics)},
		{"forward . /etc/resolv.conf", "forward . " + upstream},
	} {
		if strings.Count(text, r[0]) != 1 {
			t.Fatalf("Corefile.example has %d times %q, want one", strings.Count(text, r[0]), r[0])
		}
		text = strings.Replace(text, r[0], r[1], 1)
	}
	return text
}

// running starts the program as the playground does, on manifests of its own.
func running(t *testing.T) (p *program, folder, corefile string, metrics int) {
	t.Helper()
	work := t.TempDir()
	folder, corefile = filepath.Join(work, "manifests"), filepath.Join(work, "Corefile")
	if err := os.Mkdir(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(folder, "all.yaml"), manifests)
	port := freePort(t)
	metrics = freePort(t)
	write(t, corefile, exampleOn(t, port, metrics, outside(t)))
	return start(t, corefile, fmt.Sprintf("127.0.0.1:%d", port), "BRAID_MANIFESTS="+folder), folder, corefile, metrics
}

func TestExampleAnswers(t *testing.T) {
	p, folder, _, metrics := running(t)
	tests := []struct {
		name string
		typ  uint16
		want string
	}{
		{"kubernetes.default.svc.cluster.local.", dns.TypeA, "NOERROR 10.96.0.1"},
		{"web.prod.svc.cluster.local.", dns.TypeA, "NOERROR 10.96.1.1"},
		{"web.prod.svc.cluster.local.", dns.TypeAAAA, "NOERROR fd00:10:96::1"},
		{"WEB.prod.svc.CLUSTER.local.", dns.TypeA, "NOERROR 10.96.1.1"},
		{"db.prod.svc.cluster.local.", dns.TypeA, "NOERROR 10.244.1.6"},
		{"db-0.db.prod.svc.cluster.local.", dns.TypeA, "NOERROR 10.244.1.6"},
		{"_http._tcp.web.prod.svc.cluster.local.", dns.TypeSRV, "NOERROR 0 50 80 web.prod.svc.cluster.local."},
		{"_sql._tcp.db.prod.svc.cluster.local.", dns.TypeSRV, "NOERROR 0 100 5432 db-0.db.prod.svc.cluster.local."},
		{"1.1.96.10.in-addr.arpa.", dns.TypePTR, "NOERROR web.prod.svc.cluster.local."},
		{"6.1.244.10.in-addr.arpa.", dns.TypePTR, "NOERROR db-0.db.prod.svc.cluster.local."},
		{"dns-version.cluster.local.", dns.TypeTXT, `NOERROR "1.1.0"`},
		{"out.prod.svc.cluster.local.", dns.TypeCNAME, "NOERROR www.example.net."},
		{"out.prod.svc.cluster.local.", dns.TypeA, "NOERROR www.example.net. 192.0.2.80"},
		{"10-244-1-6.prod.pod.cluster.local.", dns.TypeA, "NOERROR 10.244.1.6"},
		{"www.example.net.", dns.TypeA, "NOERROR 192.0.2.80"},
		{"web.prod.svc.cluster.local.", dns.TypeTXT, "NOERROR"},
		{"none.prod.svc.cluster.local.", dns.TypeA, "NXDOMAIN"},
		{"www.example.net.prod.svc.cluster.local.", dns.TypeA, "NXDOMAIN"},
		{"8.8.8.8.in-addr.arpa.", dns.TypePTR, "NXDOMAIN"}, // from outside
	}
	for _, network := range []string{"udp", "tcp"} {
		for _, tc := range tests {
			m, err := p.ask(network, tc.name, tc.typ)
			if err != nil {
				t.Errorf("%s %s %s: %v", network, tc.name, dns.TypeToString[tc.typ], err)
				continue
			}
			if got := short(m); got != tc.want {
				t.Errorf("%s %s %s = %q, want %q", network, tc.name, dns.TypeToString[tc.typ], got, tc.want)
			}
		}
	}

	// What is edited is answered.
	write(t, filepath.Join(folder, "all.yaml"), strings.ReplaceAll(manifests, "10.96.1.1", "10.96.1.99"))
	p.eventually(t, "web.prod.svc.cluster.local.", dns.TypeA, "NOERROR 10.96.1.99")
	p.eventually(t, "1.1.96.10.in-addr.arpa.", dns.TypePTR, "NXDOMAIN")
	write(t, filepath.Join(folder, "more.yaml"), strings.ReplaceAll(strings.Split(manifests, "---\n")[2], "web", "late"))
	p.eventually(t, "late.prod.svc.cluster.local.", dns.TypeA, "NOERROR 10.96.1.1")
	if err := os.Remove(filepath.Join(folder, "more.yaml")); err != nil {
		t.Fatal(err)
	}
	p.eventually(t, "late.prod.svc.cluster.local.", dns.TypeA, "NXDOMAIN")

	page := get(t, fmt.Sprintf("http://127.0.0.1:%d/metrics", metrics))
	for _, want := range []string{
		fmt.Sprintf("braid_dns_source_synced{source=%q} 1", "manifests "+folder),
		fmt.Sprintf("braid_dns_source_revision{source=%q} 4", "manifests "+folder),
		"coredns_dns_responses_total{",
	} {
		if !strings.Contains(page, want) {
			t.Errorf("metrics have no %s in:\n%s", want, page)
		}
	}
}

func get(t *testing.T, url string) string {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

// Reloads must not be noticed by clients, nor read the source again; a broken Corefile leaves the
// running server alone.
func TestReloadKeepsAnswering(t *testing.T) {
	p, _, corefile, _ := running(t)
	stop := make(chan struct{})
	var asked, wrong int
	var wg sync.WaitGroup
	wg.Add(1)
	go func() {
		defer wg.Done()
		for {
			select {
			case <-stop:
				return
			default:
			}
			asked++
			if m, err := p.ask("udp", "web.prod.svc.cluster.local.", dns.TypeA); err != nil || short(m) != "NOERROR 10.96.1.1" {
				wrong++
				t.Errorf("query %d: %v %v", asked, m, err)
			}
		}
	}()
	reload := func(says string, n int) {
		t.Helper()
		if err := p.Process.Signal(syscall.SIGUSR1); err != nil {
			t.Fatal(err)
		}
		p.out.wait(t, says, n)
	}
	good := read(t, corefile)
	for i := range 3 {
		write(t, corefile, strings.Replace(good, "ttl 30", fmt.Sprintf("ttl %d", 10+i), 1))
		reload("Reloading complete", i+1)
	}
	write(t, corefile, strings.Replace(good, "pods insecure", "pods sometimes", 1))
	reload(`pods: found "sometimes", want disabled, insecure or verified`, 1)
	close(stop)
	wg.Wait()
	if asked == 0 || wrong > 0 {
		t.Errorf("%d of %d queries failed while reloading", wrong, asked)
	}
	m, err := p.ask("udp", "web.prod.svc.cluster.local.", dns.TypeA)
	if err != nil || len(m.Answer) != 1 || m.Answer[0].Header().Ttl != 12 {
		t.Errorf("after the reloads: %v %v, want the TTL of the last good Corefile", m, err)
	}
	if n := strings.Count(p.out.String(), "reading manifests"); n != 1 {
		t.Errorf("the manifests were read %d times from the start, want once:\n%s", n, p.out)
	}
	if !strings.Contains(p.out.String(), corefile+":") {
		t.Errorf("the error of the broken Corefile names no file and line:\n%s", p.out)
	}
}

// Outside a pod and without manifests there is nothing to answer from, and the message says where
// that is configured.
func TestExampleWithoutASource(t *testing.T) {
	for _, tc := range []struct{ env, want string }{
		{"BRAID_MANIFESTS=", "in-cluster API server: "},
		{"BRAID_MANIFESTS=/nonexistent/manifests", "manifests /nonexistent/manifests: "},
	} {
		cmd := exec.Command(build(t), "-conf", "../Corefile.example", "-p", "0")
		cmd.Env = append(slices.DeleteFunc(os.Environ(), func(s string) bool { return strings.HasPrefix(s, "KUBERNETES_") }), tc.env)
		out, err := cmd.CombinedOutput()
		if err == nil {
			t.Fatalf("%s: it started:\n%s", tc.env, out)
		}
		line := 1 + strings.Count(strings.Split(read(t, "../Corefile.example"), "    kubernetes cluster")[0], "\n")
		want := fmt.Sprintf("plugin/kubernetes: ../Corefile.example:%d - Error during parsing: %s", line, tc.want)
		if !strings.Contains(string(out), want) {
			t.Errorf("%s: got\n%swant %s…", tc.env, out, want)
		}
	}
}

func TestVersionAndPlugins(t *testing.T) {
	out, err := exec.Command(build(t), "-version").CombinedOutput()
	if err != nil || !strings.HasPrefix(string(out), "CoreDNS-1.15.") {
		t.Errorf("-version: %v\n%s", err, out)
	}
	out, err = exec.Command(build(t), "-plugins").CombinedOutput()
	if err != nil || !slices.Contains(strings.Fields(string(out)), "dns.kubernetes") && !slices.Contains(strings.Fields(string(out)), "kubernetes") {
		t.Errorf("-plugins: %v\n%s", err, out)
	}
}

// A Corefile as tutorials carry it starts.
func TestOldCorefileStarts(t *testing.T) {
	work, port := t.TempDir(), freePort(t)
	write(t, filepath.Join(work, "all.yaml"), manifests)
	corefile := filepath.Join(work, "Corefile")
	write(t, corefile, fmt.Sprintf(`.:%[1]d {
    bind 127.0.0.1
    errors
    health 127.0.0.1:%[2]d
    kubernetes cluster.local in-addr.arpa ip6.arpa {
        manifests %[3]s
        pods insecure
        upstream
        resyncperiod 5m
        fallthrough in-addr.arpa ip6.arpa
    }
    prometheus 127.0.0.1:%[4]d
    forward . %[5]s
    cache 30
    loop
    reload
    loadbalance
}
other.local:%[1]d other.test:%[1]d {
    bind 127.0.0.1
    kubernetes {
        transfer to *
        manifests %[3]s
        pods verified
    }
}
`, port, freePort(t), filepath.Join(work, "all.yaml"), freePort(t), outside(t)))
	p := start(t, corefile, fmt.Sprintf("127.0.0.1:%d", port))
	p.eventually(t, "web.prod.svc.cluster.local.", dns.TypeA, "NOERROR 10.96.1.1")
	for _, want := range []string{"Corefile:8: upstream has no effect", "Corefile:9: resyncperiod has no effect", "Corefile:22: transfer has no effect", "reading manifests"} {
		if n := strings.Count(p.out.String(), want); n != 1 {
			t.Errorf("%q was said %d times, want once:\n%s", want, n, p.out)
		}
	}
	for _, zone := range []string{"other.local.", "other.test."} {
		p.eventually(t, "web.prod.svc."+zone, dns.TypeA, "NOERROR 10.96.1.1")
	}
}

// Without its API server the program starts, is not ready, and says so in each answer that it cannot give.
func TestUnreachableAPIServer(t *testing.T) {
	work, port, ready, health := t.TempDir(), freePort(t), freePort(t), freePort(t)
	corefile, api := filepath.Join(work, "Corefile"), freePort(t)
	write(t, corefile, fmt.Sprintf(`.:%d {
    bind 127.0.0.1
    errors
    ready 127.0.0.1:%d
    health 127.0.0.1:%d
    kubernetes cluster.local {
        endpoint http://127.0.0.1:%d
        startup_timeout 10ms
        fallthrough
    }
    forward . %s
}
`, port, ready, health, api, outside(t)))
	p := start(t, corefile, fmt.Sprintf("127.0.0.1:%d", port))
	m, err := p.ask("udp", "web.prod.svc.cluster.local.", dns.TypeA)
	if err != nil {
		t.Fatal(err)
	}
	if text := m.IsEdns0().String(); m.Rcode != dns.RcodeServerFailure || !strings.Contains(text, "cluster state not synced") {
		t.Errorf("got %s with %q, want SERVFAIL and why", dns.RcodeToString[m.Rcode], text)
	}
	p.eventually(t, "www.example.net.", dns.TypeA, "NOERROR 192.0.2.80")
	resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/ready", ready))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("/ready says %s, want %d", resp.Status, http.StatusServiceUnavailable)
	}
	want := fmt.Sprintf("OK\nkubernetes: endpoint http://127.0.0.1:%d: cluster state not synced", api)
	if got := get(t, fmt.Sprintf("http://127.0.0.1:%d/health", health)); got != want {
		t.Errorf("/health says %q, want %q", got, want)
	}
}
