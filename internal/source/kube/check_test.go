package kube

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"

	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/internal/source"
)

// lose changes the server's state without telling those who watch.
func (s *apiServer) lose(change func(objects map[string]map[string]runtime.Object, rv string)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rv++
	change(s.objects, fmt.Sprint(s.rv))
}

func TestSelfCheckRepairsWhatWatchesLost(t *testing.T) {
	for _, streaming := range []bool{true, false} {
		s := newServer(t, runtime.ContentTypeJSON, streaming)
		s.metadata = true
		s.put(service("a", "10.0.0.1"))
		s.put(service("b", "10.0.0.2"))
		odd := service("odd", "not an address")
		s.put(odd)
		type result struct {
			kind     model.Kind
			differed int
		}
		results := make(chan result, 100)
		w := follow(t, s, Options{CheckEvery: 10 * time.Millisecond, Checked: func(kind model.Kind, differed int, err error) {
			if err != nil {
				t.Errorf("check of %s: %v", kind, err)
			}
			select {
			case results <- result{kind, differed}:
			default:
			}
		}})
		w.awaitStore("Service shop/a=[10.0.0.1] Service shop/b=[10.0.0.2]")
		for range 4 {
			if r := <-results; r.differed != 0 {
				t.Errorf("%d objects of kind %s differ although nothing was lost", r.differed, r.kind)
			}
		}
		s.lose(func(objects map[string]map[string]runtime.Object, rv string) {
			delete(objects["services"], "shop/b")
			changed, added := service("a", "10.0.0.9"), service("c", "10.0.0.3")
			changed.ResourceVersion, added.ResourceVersion = rv, rv
			objects["services"]["shop/a"], objects["services"]["shop/c"] = changed, added
		})
		w.awaitStore("Service shop/a=[10.0.0.9] Service shop/c=[10.0.0.3]")
		for r := range results {
			if r.differed > 0 {
				if r.kind != model.KindService || r.differed > 3 {
					t.Errorf("%d objects of kind %s differ, want up to 3 services", r.differed, r.kind)
				}
				break
			}
		}
		s.mu.Lock()
		if counted := slices.ContainsFunc(s.queries, func(q string) bool { return strings.Contains(q, "limit=1&") || strings.HasSuffix(q, "limit=1") }); !counted {
			t.Error("the number of objects was never asked for")
		}
		s.mu.Unlock()
		s.put(service("d", "10.0.0.4")) // it goes on watching
		w.awaitStore("Service shop/a=[10.0.0.9] Service shop/c=[10.0.0.3] Service shop/d=[10.0.0.4]")
	}
}

// Of namespaces only metadata is read, from servers that can send it.
func TestNamespacesAsMetadata(t *testing.T) {
	for _, mediaType := range []string{runtime.ContentTypeJSON, runtime.ContentTypeProtobuf} {
		for _, partial := range []bool{true, false} {
			for _, streaming := range []bool{true, false} {
				s := newServer(t, mediaType, streaming)
				s.metadata = partial
				named := func(name string) *corev1.Namespace {
					return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"team": name}}}
				}
				s.put(named("red"))
				store := model.NewStore()
				changed := make(chan struct{}, 10)
				store.Subscribe(func(uint64, []model.Change) { changed <- struct{}{} })
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan error)
				go func() {
					done <- Run(ctx, s.config(), store, Options{Kinds: []model.Kind{model.KindNamespace}, Retry: time.Millisecond})
				}()
				<-changed
				s.put(named("blue"))
				<-changed
				s.remove(named("red"))
				<-changed
				if n := store.List(model.KindNamespace); len(n) != 1 || n[0].(*model.Namespace).Labels["team"] != "blue" {
					t.Errorf("%s, partial %v, streaming %v: store holds %v", mediaType, partial, streaming, n)
				}
				cancel()
				if err := <-done; err != nil {
					t.Error(err)
				}
			}
		}
	}
}

func TestSelectorsTrimAndFreshness(t *testing.T) {
	s := newServer(t, runtime.ContentTypeJSON, false)
	s.put(service("a", "10.0.0.1"))
	s.put(service("b", "10.0.0.2"))
	trim := func(o model.Object) model.Object {
		if o.From().Name == "b" {
			return nil
		}
		return o
	}
	w := follow(t, s, Options{Trim: trim, Selectors: map[model.Kind]Selector{model.KindService: {Labels: "app=web", Fields: "metadata.name!=x"}}})
	w.awaitSync()
	w.awaitStore("Service shop/a=[10.0.0.1]")
	for began := time.Now(); w.store.Current().IsZero(); {
		if time.Since(began) > 20*time.Second {
			t.Fatal("the store was never marked current")
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, q := range s.queries {
		if strings.Contains(q, "labelSelector=app%3Dweb") != strings.Contains(q, "/services?") || strings.Contains(q, "fieldSelector=metadata.name") != strings.Contains(q, "/services?") {
			t.Errorf("request %s: the selectors must be on services and on nothing else", q)
		}
	}
}

// A cluster without the definition of ServiceImports has none; everything else must not wait for it.
func TestUndefinedServiceImports(t *testing.T) {
	s := newServer(t, runtime.ContentTypeJSON, false)
	s.put(service("a", "10.0.0.1"))
	api := http.NewServeMux()
	api.Handle("/", s)
	api.HandleFunc("/apis/multicluster.x-k8s.io/", http.NotFound)
	s.Config.Handler = api
	store := model.NewStore()
	problems := make(chan string, 100)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		done <- Run(ctx, s.config(), store, Options{Kinds: []model.Kind{model.KindService, model.KindServiceImport}, Retry: time.Millisecond, Problems: func(list []Problem) {
			for _, p := range list {
				select {
				case problems <- p.Text:
				default:
				}
			}
		}})
	}()
	select {
	case <-store.Synced():
	case <-time.After(20 * time.Second):
		t.Fatal("it waits for a kind that does not exist")
	}
	if text := <-problems; !strings.Contains(text, "install the CustomResourceDefinition of serviceimports.multicluster.x-k8s.io") {
		t.Errorf("problem %q", text)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestServiceImports(t *testing.T) {
	s := newServer(t, runtime.ContentTypeJSON, true)
	s.put(&source.ServiceImport{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "far"},
		Spec: source.ServiceImportSpec{Type: "ClusterSetIP", IPs: []string{"10.98.0.1"}, Ports: []source.ServiceImportPort{{Name: "http", Port: 80}}}})
	store := model.NewStore()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		done <- Run(ctx, s.config(), store, Options{Kinds: []model.Kind{model.KindServiceImport}, Retry: time.Millisecond})
	}()
	<-store.Synced()
	got := store.Get(model.Ref{Kind: model.KindServiceImport, Key: model.Key{Namespace: "shop", Name: "far"}}).(*model.ServiceImport)
	if got.Headless || len(got.IPs) != 1 || got.Ports[0].Port != 80 || got.Ports[0].Protocol != model.TCP {
		t.Errorf("read %+v", got)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// The limits of the Corefile must be those of the requests, one limit for all kinds.
func TestLimits(t *testing.T) {
	c, err := newClients(&rest.Config{Host: "http://127.0.0.1:1", QPS: 3, Burst: 7}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	var first any
	for gv, client := range c {
		limiter := client.GetRateLimiter()
		if limiter.QPS() != 3 {
			t.Errorf("%s: %v requests per second, want 3", gv, limiter.QPS())
		}
		if first == nil {
			first = limiter
		}
		if first != any(limiter) {
			t.Error("groups have limits of their own")
		}
	}
	if c, err = newClients(&rest.Config{Host: "http://127.0.0.1:1", QPS: -1}, Options{}); err != nil || c[corev1.SchemeGroupVersion].GetRateLimiter() != nil {
		t.Errorf("no limit was asked for: %v", err)
	}
}

func TestMaxInflight(t *testing.T) {
	entered, leave := make(chan struct{}, 10), make(chan struct{})
	slow := roundTripper(func(*http.Request) (*http.Response, error) {
		entered <- struct{}{}
		<-leave
		return &http.Response{StatusCode: http.StatusOK, Body: http.NoBody}, nil
	})
	limited := atMost(2)(slow)
	request := func(ctx context.Context) error {
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://127.0.0.1/", nil)
		if err != nil {
			return err
		}
		resp, err := limited.RoundTrip(r)
		if err == nil {
			resp.Body.Close()
		}
		return err
	}
	done := make(chan error, 3)
	for range 2 {
		go func() { done <- request(t.Context()) }()
		<-entered
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := request(ctx); err == nil || len(entered) > 0 {
		t.Errorf("a third request went out, or did not give up: %v", err)
	}
	go func() { done <- request(t.Context()) }()
	leave <- struct{}{}
	<-entered // as soon as one has come back
	close(leave)
	for range 3 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// Whatever comes, twice, late or in the wrong order: the next list makes it right, to the last object.
func TestReplaceRepairsAnyHistory(t *testing.T) {
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 3))
		store := model.NewStore()
		s := &sink{kind: model.KindService, store: store, board: source.NewBoard(slog.New(slog.DiscardHandler), nil), have: map[model.Key]held{}, bad: map[model.Key]struct{}{}}
		object := func() *corev1.Service {
			o := service(string(rune('a'+r.IntN(5))), fmt.Sprintf("10.0.0.%d", 1+r.IntN(9)))
			if r.IntN(6) == 0 {
				o.Spec.ClusterIP = "odd"
			}
			o.ResourceVersion = fmt.Sprint(r.IntN(50))
			return o
		}
		for range 30 {
			var err error
			switch o := object(); r.IntN(4) {
			case 0:
				err = s.Delete(o)
			case 1:
				err = s.Add(o)
			default:
				err = s.Update(o)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		want := map[string]string{}
		var list []any
		for i := range r.IntN(5) {
			o := service(string(rune('a'+i)), fmt.Sprintf("10.0.1.%d", 1+i))
			o.ResourceVersion = fmt.Sprint(100 + i)
			want[o.Name] = o.Spec.ClusterIP
			list = append(list, o)
		}
		if err := s.Replace(list, "200"); err != nil {
			t.Fatal(err)
		}
		got := map[string]string{}
		for _, o := range store.List(model.KindService) {
			got[o.From().Name] = o.(*model.Service).ClusterIPs[0].String()
		}
		if !maps.Equal(got, want) || len(s.versions()) != len(want) || s.board.Len() != 0 {
			t.Fatalf("seed %d: store %v after a list of %v; %d versions, %d problems", seed, got, want, len(s.versions()), s.board.Len())
		}
	}
}
