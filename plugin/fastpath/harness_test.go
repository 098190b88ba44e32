package fastpath

import (
	"bytes"
	"fmt"
	stdlog "log"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	_ "github.com/coredns/coredns/plugin/acl"
	_ "github.com/coredns/coredns/plugin/bind"
	_ "github.com/coredns/coredns/plugin/cache"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/forward"
	_ "github.com/coredns/coredns/plugin/hosts"
	_ "github.com/coredns/coredns/plugin/loadbalance"
	_ "github.com/coredns/coredns/plugin/log"
	_ "github.com/coredns/coredns/plugin/multisocket"
	_ "github.com/coredns/coredns/plugin/template"
	_ "github.com/coredns/coredns/plugin/view"
	_ "github.com/coredns/coredns/plugin/whoami"
	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"

	_ "github.com/braidnet/braid/plugin/kubernetes"
)

// patience is how long a test waits for something that takes milliseconds on an idle machine.
const patience = 30 * time.Second

// said is what the process logs.
var said syncBuffer

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) take() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer s.b.Reset()
	return s.b.String()
}

func TestMain(m *testing.M) {
	dnsserver.Quiet, caddy.Quiet = true, true
	if err := dnsserver.SetDirectives(append(slices.Clone(dnsserver.Directives), pluginName)); err != nil {
		panic(err)
	}
	stdlog.SetOutput(&said)
	os.Exit(m.Run())
}

const clusterYAML = `
apiVersion: v1
kind: Service
metadata: {name: web, namespace: prod}
spec: {clusterIP: 10.96.1.1, clusterIPs: [10.96.1.1, "fd00:10:96::1"], ports: [{name: http, port: 80}, {name: dns, port: 53, protocol: UDP}]}
---
apiVersion: v1
kind: Service
metadata: {name: db, namespace: prod}
spec: {clusterIP: None, ports: [{name: sql, port: 5432}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: db-4, namespace: prod, labels: {kubernetes.io/service-name: db}}
addressType: IPv4
ports: [{name: sql, port: 5432}]
endpoints:
- {addresses: [10.244.1.6], hostname: db-0}
- {addresses: [10.244.2.6]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-4, namespace: prod, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints:
- {addresses: [10.244.1.6]}
`

// manifests returns a folder with a small cluster.
func manifests(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "cluster.yaml"), []byte(clusterYAML), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

// start runs a server with a Corefile; KUBERNETES stands for the cluster's stanza.
func start(t testing.TB, corefile string) *caddy.Instance {
	t.Helper()
	inst, err := caddy.Start(input(t, corefile))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, inst) })
	return inst
}

func input(t testing.TB, corefile string) caddy.CaddyfileInput {
	stanza := "kubernetes cluster.local in-addr.arpa {\n manifests " + manifests(t) + "\n pods insecure\n ttl 30\n "
	corefile = strings.ReplaceAll(corefile, "KUBERNETES", stanza+"\n}")
	return caddy.CaddyfileInput{Filepath: "Corefile", ServerTypeName: "dns", Contents: []byte(strings.ReplaceAll(corefile, "NEAREST", stanza+"nearest\n}"))}
}

func stop(t testing.TB, inst *caddy.Instance) {
	t.Helper()
	inst.ShutdownCallbacks()
	if err := inst.Stop(); err != nil {
		t.Error(err)
	}
}

// freePort returns a port that is free for UDP and TCP.
func freePort(t testing.TB) int {
	t.Helper()
	for range 100 {
		l, err := net.Listen("tcp", ":0")
		if err != nil {
			t.Fatal(err)
		}
		port := l.Addr().(*net.TCPAddr).Port
		u, err := net.ListenUDP("udp", &net.UDPAddr{Port: port})
		l.Close()
		if err == nil {
			u.Close()
			return port
		}
	}
	t.Fatal("no port is free for both UDP and TCP")
	return 0
}

// serving waits until there are sockets on an address, and returns them.
func serving(t testing.TB, addr string) *group {
	t.Helper()
	var g *group
	eventually(t, "a fast path on "+addr, func() bool {
		groups.Lock()
		defer groups.Unlock()
		g = groups.by[addr]
		return g != nil
	})
	return g
}

func eventually(t testing.TB, what string, try func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !try() {
		if time.Now().After(deadline) {
			t.Fatalf("no %s; the log says\n%s", what, said.take())
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// ask sends a question and returns the outcome in one line.
func ask(t testing.TB, addr, name string, typ uint16) string {
	t.Helper()
	c := &dns.Client{Timeout: patience}
	m, _, err := c.Exchange(new(dns.Msg).SetQuestion(name, typ), addr)
	if err != nil {
		t.Fatalf("%s at %s: %v", name, addr, err)
	}
	out := []string{dns.RcodeToString[m.Rcode]}
	for _, rr := range m.Answer {
		out = append(out, strings.TrimPrefix(rr.String(), rr.Header().String()))
	}
	return strings.Join(out, " ")
}

func local(port int) string { return fmt.Sprintf("127.0.0.1:%d", port) }

// fastAnswers is the number of answers that were made on the fast path, by all servers.
func fastAnswers(t testing.TB) float64 {
	t.Helper()
	families, err := prometheus.DefaultGatherer.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "coredns_fastpath_answers_total" {
			return f.GetMetric()[0].GetCounter().GetValue()
		}
	}
	t.Fatal("the fast path does not count")
	return 0
}
