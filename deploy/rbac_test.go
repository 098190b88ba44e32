package deploy

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	_ "github.com/coredns/coredns/plugin/bind"
	_ "github.com/coredns/coredns/plugin/cache"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/forward"
	_ "github.com/coredns/coredns/plugin/health"
	_ "github.com/coredns/coredns/plugin/loadbalance"
	_ "github.com/coredns/coredns/plugin/loop"
	_ "github.com/coredns/coredns/plugin/metrics"
	_ "github.com/coredns/coredns/plugin/ready"
	_ "github.com/coredns/coredns/plugin/reload"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"

	"github.com/braidnet/braid/netagent/agent"
	_ "github.com/braidnet/braid/plugin/fastpath"
	_ "github.com/braidnet/braid/plugin/kubernetes"
)

// apiServer answers every list with its items and every watch with silence, and notes what it was asked
// for as the audit log of an API server would: "list services", "watch endpointslices.discovery.k8s.io".
type apiServer struct {
	*httptest.Server
	items map[string][]any // what lists answer, by resource
	mu    sync.Mutex
	asked map[string]bool
	news  chan struct{}
}

func newAPIServer(t *testing.T) *apiServer {
	s := &apiServer{asked: map[string]bool{}, news: make(chan struct{}, 1)}
	s.Server = httptest.NewServer(s)
	s.closeAfter(t)
	return s
}

func (s *apiServer) closeAfter(t *testing.T) {
	t.Cleanup(func() {
		s.CloseClientConnections()
		s.Close()
	})
}

// listKinds are the types of the lists that are answered.
var listKinds = map[string]string{"namespaces": "NamespaceList", "nodes": "NodeList", "pods": "PodList", "services": "ServiceList",
	"endpointslices": "EndpointSliceList", "networkpolicies": "NetworkPolicyList", "servicecidrs": "ServiceCIDRList"}

func (s *apiServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	group, version := "", "v1"
	resource := path[len(path)-1]
	what := resource
	if path[0] == "apis" && len(path) == 4 {
		group, version = path[1], path[2]
		what += "." + group
	} else if path[0] != "api" || len(path) != 3 {
		what = r.URL.Path // of one namespace, one object, or no resource at all
	}
	verb := map[string]string{"GET": "list", "POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}[r.Method]
	q := r.URL.Query()
	watch := q.Get("watch") != ""
	if watch {
		verb = "watch"
	}
	s.mu.Lock()
	s.asked[verb+" "+what] = true
	s.mu.Unlock()
	select {
	case s.news <- struct{}{}:
	default:
	}
	w.Header().Set("Content-Type", "application/json")
	switch {
	case watch && q.Get("sendInitialEvents") != "": // not known here: an ordinary list has to follow
		w.WriteHeader(http.StatusUnprocessableEntity)
		fmt.Fprint(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Invalid","code":422}`)
	case watch:
		w.WriteHeader(http.StatusOK)
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	default:
		_ = json.NewEncoder(w).Encode(map[string]any{"kind": listKinds[resource], "apiVersion": strings.TrimPrefix(group+"/"+version, "/"),
			"metadata": map[string]string{"resourceVersion": "1"}, "items": append([]any{}, s.items[resource]...)})
	}
}

// until waits for the server to have been asked for everything in want, and returns all it was asked for.
func (s *apiServer) until(t *testing.T, want []string) []string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for {
		s.mu.Lock()
		got := slices.Sorted(maps.Keys(s.asked))
		s.mu.Unlock()
		if !slices.ContainsFunc(want, func(w string) bool { return !slices.Contains(got, w) }) {
			return got
		}
		select {
		case <-s.news:
		case <-ctx.Done():
			return got
		}
	}
}

// granted lists what a service account of the manifests may do, as "verb resource.group".
func granted(t *testing.T, account string) (out []string) {
	t.Helper()
	objects := read(t, "braid.yaml")
	for _, o := range objects {
		b, ok := o.value.(*rbacv1.ClusterRoleBinding)
		if !ok || !slices.Contains(b.Subjects, rbacv1.Subject{Kind: "ServiceAccount", Name: account, Namespace: "kube-system"}) {
			continue
		}
		for _, rule := range find[rbacv1.ClusterRole](t, objects, b.RoleRef.Name).Rules {
			if len(rule.NonResourceURLs)+len(rule.ResourceNames) > 0 {
				t.Errorf("%s: rule of another form: %v", b.RoleRef.Name, rule)
			}
			for _, g := range rule.APIGroups {
				for _, r := range rule.Resources {
					for _, v := range rule.Verbs {
						out = append(out, strings.TrimSuffix(v+" "+r+"."+g, "."))
					}
				}
			}
		}
	}
	slices.Sort(out)
	return out
}

// The agent asks the API server for exactly what its role grants.
func TestAgentUsesWhatIsGranted(t *testing.T) {
	s := newAPIServer(t)
	dir := t.TempDir()
	kubeconfig := filepath.Join(dir, "kubeconfig")
	if err := os.WriteFile(kubeconfig, fmt.Appendf(nil, `{"apiVersion": "v1", "kind": "Config", "current-context": "x",
		"clusters": [{"name": "x", "cluster": {"server": %q}}], "contexts": [{"name": "x", "context": {"cluster": "x"}}]}`, s.URL), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := agent.DefaultConfig()
	cfg.Node, cfg.Kubeconfig, cfg.RunDir, cfg.StateDir, cfg.CNIConfDir = "n1", kubeconfig, dir, dir, ""
	cfg.Overlay, cfg.ServiceMode, cfg.HTTP = "none", "none", ""
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- agent.Run(ctx, cfg) }()
	want := granted(t, "braid-netagent")
	// Events are for policies that cannot be enforced: see TestEvents of netagent/agent.
	events := slices.Index(want, "create events")
	if events < 0 {
		t.Fatalf("granted are %v", want)
	}
	want = slices.Delete(want, events, events+1)
	got := s.until(t, want)
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if !slices.Equal(got, want) || len(want) == 0 {
		t.Errorf("asked for\n%v\ngranted\n%v", got, want)
	}
}

// CoreDNS, with the Corefile of the manifests, asks for exactly what its role grants.
func TestCoreDNSUsesWhatIsGranted(t *testing.T) {
	s := newAPIServer(t)
	corefile := find[corev1.ConfigMap](t, read(t, "braid.yaml"), "coredns").Data["Corefile"]
	corefile = strings.Replace(corefile, "    kubernetes cluster.local in-addr.arpa ip6.arpa {\n", "$0        endpoint "+s.URL+"\n", 1)
	corefile = strings.Replace(corefile, "$0", "    kubernetes cluster.local in-addr.arpa ip6.arpa {\n", 1)
	if !strings.Contains(corefile, s.URL) {
		t.Fatalf("no place for the server's address in\n%s", corefile)
	}
	if err := dnsserver.SetDirectives(append(slices.Clone(dnsserver.Directives), "fastpath")); err != nil {
		t.Fatal(err)
	}
	// All of it is understood. Started is the plugin's part alone, on a free port.
	whole := caddy.CaddyfileInput{Filepath: "Corefile", Contents: []byte(corefile), ServerTypeName: "dns"}
	if err := caddy.ValidateAndExecuteDirectives(whole, nil, true); err != nil {
		t.Errorf("the Corefile is not accepted: %v", err)
	}
	stanza := regexp.MustCompile(`(?s) {4}kubernetes .*?\n {4}}\n`).FindString(corefile)
	instance, err := caddy.Start(caddy.CaddyfileInput{Filepath: "Corefile", ServerTypeName: "dns",
		Contents: []byte(".:0 {\n    bind 127.0.0.1\n" + stanza + "}\n")})
	if err != nil {
		t.Fatal(err)
	}
	want := granted(t, "braid-coredns")
	got := s.until(t, want)
	instance.ShutdownCallbacks()
	if err := instance.Stop(); err != nil {
		t.Error(err)
	}
	if !slices.Equal(got, want) || len(want) == 0 {
		t.Errorf("asked for\n%v\ngranted\n%v", got, want)
	}
}
