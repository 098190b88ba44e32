package kube

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/cache"

	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/internal/source"
)

func kindOf(res string) model.Kind {
	for k, r := range resources {
		if r.name == res {
			return k
		}
	}
	return ""
}

func service(name, ip string) *corev1.Service {
	return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name},
		Spec: corev1.ServiceSpec{ClusterIP: ip, Ports: []corev1.ServicePort{{Port: 80}}}}
}

func slice(name, ip string) *discoveryv1.EndpointSlice {
	return &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name}, AddressType: discoveryv1.AddressTypeIPv4,
		Endpoints: []discoveryv1.Endpoint{{Addresses: []string{ip}}}}
}

// world is a server, a store that follows it, and what woke up since.
type world struct {
	t        *testing.T
	server   *apiServer
	store    *model.Store
	stirred  chan struct{}
	mu       sync.Mutex
	problems []Problem
}

// follow runs the source against a server for the length of the test.
func follow(t *testing.T, s *apiServer, opts Options) *world {
	w := &world{t: t, server: s, store: model.NewStore(), stirred: make(chan struct{}, 1)}
	stir := w.stir
	w.store.Subscribe(func(uint64, []model.Change) { stir() })
	opts.Kinds = []model.Kind{model.KindService, model.KindEndpointSlice}
	opts.Retry = time.Millisecond
	opts.Problems = func(p []Problem) {
		w.mu.Lock()
		w.problems = p
		w.mu.Unlock()
		stir()
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- Run(ctx, s.config(), w.store, opts) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return w
}

// stir has await look again.
func (w *world) stir() {
	select {
	case w.stirred <- struct{}{}:
	default:
	}
}

// holds returns the store's objects as "Kind ns/name=address".
func (w *world) holds() string {
	var out []string
	for _, o := range w.store.List(model.KindService) {
		out = append(out, fmt.Sprintf("%s=%v", o.From().Ref, o.(*model.Service).ClusterIPs))
	}
	for _, o := range w.store.List(model.KindEndpointSlice) {
		out = append(out, fmt.Sprintf("%s=%v", o.From().Ref, o.(*model.EndpointSlice).Endpoints[0].Addrs))
	}
	return strings.Join(out, " ")
}

func (w *world) problem() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	texts := []string{}
	for _, p := range w.problems {
		texts = append(texts, p.Text)
	}
	return strings.Join(texts, "\n")
}

// await waits until the condition holds, looking each time that store or problems change.
func (w *world) await(what string, cond func() bool) {
	w.t.Helper()
	deadline := time.After(20 * time.Second)
	for !cond() {
		select {
		case <-w.stirred:
		case <-deadline:
			w.t.Fatalf("waited in vain for %s; store holds %q, problems %q", what, w.holds(), w.problem())
		}
	}
}

func (w *world) awaitStore(want string) {
	w.t.Helper()
	w.await(want, func() bool { return w.holds() == want })
}

func (w *world) awaitSync() {
	w.t.Helper()
	select {
	case <-w.store.Synced():
	case <-time.After(20 * time.Second):
		w.t.Fatalf("never synced; problems %q", w.problem())
	}
}

// TestFollow lists, watches, resumes and relists in every form the server can have.
func TestFollow(t *testing.T) {
	for _, mediaType := range []string{runtime.ContentTypeJSON, runtime.ContentTypeProtobuf} {
		for _, streaming := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s streaming=%t", filepath.Base(mediaType), streaming), func(t *testing.T) {
				s := newServer(t, mediaType, streaming)
				s.put(service("a", "10.0.0.1"))
				s.put(service("b", "10.0.0.2"))
				w := follow(t, s, Options{})
				w.awaitSync()
				if got, want := w.holds(), "Service shop/a=[10.0.0.1] Service shop/b=[10.0.0.2]"; got != want {
					t.Fatalf("at sync the store holds %q, want %q", got, want)
				}

				if n := s.count("list services"); (n == 0) != streaming {
					t.Errorf("%d lists were asked for, want one only where lists cannot be streamed", n)
				}

				s.put(slice("a-1", "10.1.0.1"))
				s.put(service("a", "10.0.0.9"))
				s.remove(service("b", ""))
				w.awaitStore("Service shop/a=[10.0.0.9] EndpointSlice shop/a-1=[10.1.0.1]")

				lists := s.count("list services")
				s.closeWatches()
				s.put(service("c", "10.0.0.3"))
				w.awaitStore("Service shop/a=[10.0.0.9] Service shop/c=[10.0.0.3] EndpointSlice shop/a-1=[10.1.0.1]")
				if n := s.count("list services"); n != lists {
					t.Errorf("a closed watch was resumed with %d lists, want none", n-lists)
				}

				// Gone, changed and new while nobody watched, and the history is lost.
				s.setDown(true)
				s.closeWatches()
				w.await("the outage to be reported", func() bool { return strings.Contains(w.problem(), "services: ") })
				s.remove(service("a", ""))
				s.remove(slice("a-1", ""))
				s.put(service("c", "10.0.0.4"))
				s.put(slice("c-1", "10.1.0.3"))
				s.forget()
				if got := w.holds(); got != "Service shop/a=[10.0.0.9] Service shop/c=[10.0.0.3] EndpointSlice shop/a-1=[10.1.0.1]" {
					t.Errorf("during the outage the store holds %q", got)
				}
				s.setDown(false)
				w.awaitStore("Service shop/c=[10.0.0.4] EndpointSlice shop/c-1=[10.1.0.3]")
				w.await("the outage to be over", func() bool { return w.problem() == "" })
			})
		}
	}
}

// TestReplaceIsOneBatch checks that a relist reaches subscribers at once, with only real changes.
func TestReplaceIsOneBatch(t *testing.T) {
	store := model.NewStore()
	var batches [][]model.Change
	store.Subscribe(func(_ uint64, c []model.Change) { batches = append(batches, c) })
	synced := -1
	s := &sink{kind: model.KindService, store: store, board: source.NewBoard(slog.New(slog.DiscardHandler), nil),
		have: map[model.Key]held{}, bad: map[model.Key]struct{}{}, synced: func(n int) { synced = n }}
	if err := s.Replace([]any{service("a", "10.0.0.1"), service("b", "10.0.0.2")}, "1"); err != nil {
		t.Fatal(err)
	}
	if synced != 2 {
		t.Errorf("synced with %d objects, want 2", synced)
	}
	synced = -1
	if err := s.Replace([]any{service("b", "10.0.0.2"), service("c", "10.0.0.3")}, "2"); err != nil {
		t.Fatal(err)
	}
	if len(batches) != 2 || len(batches[1]) != 2 || synced != -1 {
		t.Errorf("batches %v, synced again with %d; want the second to add c and delete a, and no second sync", batches, synced)
	}
	if err := s.Delete(cache.DeletedFinalStateUnknown{Key: "shop/c", Obj: service("c", "")}); err != nil || store.Len(model.KindService) != 1 {
		t.Errorf("error %v, %d services left, want 1", err, store.Len(model.KindService))
	}
	if err := s.Add(&corev1.Secret{}); err == nil {
		t.Error("a Secret was taken")
	}
}

func TestUnusableObjectKeepsItsLastGoodVersion(t *testing.T) {
	s := newServer(t, runtime.ContentTypeJSON, true)
	s.put(service("a", "10.0.0.1"))
	w := follow(t, s, Options{})
	w.awaitSync()
	s.put(service("a", "10.0.0.300"))
	s.put(service("new", "bad"))
	const bad = `Service shop/a: spec.clusterIP: is "10.0.0.300", expected an IPv4 or IPv6 address; its last good version stays in force`
	w.await("both problems", func() bool { return strings.HasPrefix(w.problem(), bad) && strings.Contains(w.problem(), "shop/new") })
	if got := w.holds(); got != "Service shop/a=[10.0.0.1]" {
		t.Errorf("the store holds %q", got)
	}
	// One is mended, the other goes while nobody watches.
	s.put(service("a", "10.0.0.2"))
	w.awaitStore("Service shop/a=[10.0.0.2]")
	s.setDown(true)
	s.closeWatches()
	w.await("the outage", func() bool { return strings.Contains(w.problem(), "services: ") })
	s.remove(service("new", ""))
	s.forget()
	s.setDown(false)
	w.await("no problem", func() bool { return w.problem() == "" })
}

func TestFQDNSlicesAreDropped(t *testing.T) {
	s := newServer(t, runtime.ContentTypeJSON, false)
	s.put(slice("x", "10.1.0.1"))
	w := follow(t, s, Options{})
	w.awaitSync()
	named := slice("x", "example.com")
	named.AddressType = discoveryv1.AddressTypeFQDN
	s.put(named)
	w.awaitStore("")
	if p := w.problem(); p != "" {
		t.Errorf("problems %q", p)
	}
}

func TestServerAwayAtTheStart(t *testing.T) {
	s := newServer(t, runtime.ContentTypeJSON, true)
	s.setDown(true)
	s.put(service("a", "10.0.0.1"))
	w := follow(t, s, Options{})
	w.await("problems of both kinds", func() bool {
		return strings.Contains(w.problem(), "services: ") && strings.Contains(w.problem(), "endpointslices: ")
	})
	if w.store.HasSynced() {
		t.Error("synced without a list")
	}
	s.setDown(false)
	w.awaitSync()
	w.awaitStore("Service shop/a=[10.0.0.1]")
}

func TestPodsOfOneNodeOnly(t *testing.T) {
	s := newServer(t, runtime.ContentTypeJSON, false)
	store := model.NewStore()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		done <- Run(ctx, s.config(), store, Options{Kinds: []model.Kind{model.KindPod, model.KindService}, NodeName: "n1"})
	}()
	select {
	case <-store.Synced():
	case <-time.After(20 * time.Second):
		t.Error("never synced")
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, q := range s.queries {
		if strings.Contains(q, "fieldSelector=spec.nodeName%3Dn1") != strings.Contains(q, "/pods?") {
			t.Errorf("request %s: the selector must be on pods and on nothing else", q)
		}
	}
	if !slices.ContainsFunc(s.queries, func(q string) bool { return strings.HasPrefix(q, "/api/v1/pods?") }) {
		t.Errorf("requests %q, want some for pods", s.queries)
	}
}

func TestRunRefusesWhatCannotWork(t *testing.T) {
	s := newServer(t, runtime.ContentTypeJSON, false)
	if err := Run(t.Context(), s.config(), model.NewStore(), Options{Kinds: []model.Kind{"Secret"}}); err == nil || !strings.Contains(err.Error(), `"Secret"`) {
		t.Errorf("kind Secret: error %v", err)
	}
	cfg := s.config()
	cfg.Host = "://"
	if err := Run(t.Context(), cfg, model.NewStore(), Options{}); err == nil {
		t.Error("a host that is no URL was taken")
	}
}

func TestConfig(t *testing.T) {
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	if _, err := Config("", ""); err == nil || !strings.Contains(err.Error(), "give a kubeconfig file") {
		t.Errorf("outside a cluster: error %v", err)
	}
	file := filepath.Join(t.TempDir(), "config")
	text := `apiVersion: v1
kind: Config
current-context: one
clusters: [{name: c, cluster: {server: "https://192.0.2.1:6443"}}, {name: d, cluster: {server: "https://192.0.2.2:6443"}}]
contexts: [{name: one, context: {cluster: c}}, {name: two, context: {cluster: d}}]
`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for kubeContext, want := range map[string]string{"": "https://192.0.2.1:6443", "two": "https://192.0.2.2:6443"} {
		if cfg, err := Config(file, kubeContext); err != nil || cfg.Host != want {
			t.Errorf("context %q: host %v, error %v, want %s", kubeContext, cfg, err, want)
		}
	}
	if _, err := Config(file, "three"); err == nil || !strings.Contains(err.Error(), "three") {
		t.Errorf("a context that is not there: error %v", err)
	}
}

// TestBrokenPolicyIsTakenIn: a policy whose part cannot be understood isolates its pods all the same.
func TestBrokenPolicyIsTakenIn(t *testing.T) {
	store, board := model.NewStore(), source.NewBoard(slog.New(slog.DiscardHandler), nil)
	s := &sink{kind: model.KindNetworkPolicy, store: store, board: board, have: map[model.Key]held{}, bad: map[model.Key]struct{}{}}
	pol := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "p", ResourceVersion: "1"},
		Spec: networkingv1.NetworkPolicySpec{Ingress: []networkingv1.NetworkPolicyIngressRule{{From: []networkingv1.NetworkPolicyPeer{{}}}}}}
	if err := s.Add(pol); err != nil {
		t.Fatal(err)
	}
	got, _ := store.Get(model.Ref{Kind: model.KindNetworkPolicy, Key: model.Key{Namespace: "shop", Name: "p"}}).(*model.NetworkPolicy)
	if got == nil || !got.Ingress || len(got.IngressRules) != 1 || got.IngressRules[0].AnyPeer || len(s.bad) != 1 {
		t.Fatalf("stored %+v, %d on the board", got, len(s.bad))
	}
	pol = pol.DeepCopy()
	pol.Spec.Ingress[0].From[0].PodSelector, pol.ResourceVersion = &metav1.LabelSelector{}, "2"
	if err := s.Update(pol); err != nil || len(s.bad) != 0 {
		t.Fatalf("error %v, %d on the board after it was mended", err, len(s.bad))
	}
}
