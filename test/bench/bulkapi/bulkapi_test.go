package bulkapi

import (
	"context"
	"net"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/internal/source/kube"
)

func service(name, ip string) *corev1.Service {
	return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}, Spec: corev1.ServiceSpec{ClusterIP: ip, ClusterIPs: []string{ip}}}
}

func slice(name, service, address string) *discoveryv1.EndpointSlice {
	return &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: service}},
		AddressType: discoveryv1.AddressTypeIPv4, Endpoints: []discoveryv1.Endpoint{{Addresses: []string{address}}}}
}

// serve serves until the test ends.
func serve(t *testing.T) *Server {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := New(l)
	t.Cleanup(s.Close)
	return s
}

func put(t *testing.T, s *Server, objects ...Object) {
	t.Helper()
	if err := s.Put(objects...); err != nil {
		t.Fatal(err)
	}
}

// reader follows a server into a store, as the agent does.
type reader struct {
	store   *model.Store
	changed chan struct{}
}

func follow(t *testing.T, s *Server) *reader {
	t.Helper()
	r := &reader{model.NewStore(), make(chan struct{}, 1)}
	t.Cleanup(r.store.Subscribe(func(uint64, []model.Change) {
		select {
		case r.changed <- struct{}{}:
		default:
		}
	}))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- kube.Run(ctx, &rest.Config{Host: s.URL()}, r.store, kube.Options{}) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	select {
	case <-r.store.Synced():
	case <-time.After(30 * time.Second):
		t.Fatal("the first lists did not come")
	}
	return r
}

// until waits until ok.
func (r *reader) until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.After(30 * time.Second); !ok(); {
		select {
		case <-r.changed:
		case <-deadline:
			t.Fatal("never came: ", what)
		}
	}
}

func (r *reader) address(name string) string {
	s, _ := r.store.Get(model.Ref{Kind: model.KindEndpointSlice, Key: model.Key{Namespace: "default", Name: name}}).(*model.EndpointSlice)
	if s == nil || len(s.Endpoints) != 1 {
		return ""
	}
	return s.Endpoints[0].Addrs[0].String()
}

func TestListsAndWatches(t *testing.T) {
	s := serve(t)
	put(t, s, service("a", "10.96.0.1"), service("b", "10.96.0.2"), slice("a-1", "a", "10.0.0.1"), slice("b-1", "b", "10.0.0.2"))
	r := follow(t, s)
	if n, m := r.store.Len(model.KindService), r.store.Len(model.KindEndpointSlice); n != 2 || m != 2 {
		t.Fatalf("the first lists have %d services and %d slices, want 2 and 2", n, m)
	}
	put(t, s, slice("a-1", "a", "10.0.0.3"), service("c", "10.96.0.3"))
	r.until(t, "a change and an addition", func() bool {
		return r.address("a-1") == "10.0.0.3" && r.store.Len(model.KindService) == 3
	})
	if err := s.Delete(service("b", ""), service("never", "")); err != nil {
		t.Fatal(err)
	}
	r.until(t, "a deletion", func() bool { return r.store.Len(model.KindService) == 2 })
	if got := r.address("b-1"); got != "10.0.0.2" {
		t.Errorf("the slice that nobody touched has the address %q", got)
	}
}

func TestPaths(t *testing.T) {
	for path, want := range map[string][2]string{
		"/api/v1/services":                                    {"services"},
		"/api/v1/nodes/n":                                     {"nodes", "n"},
		"/apis/discovery.k8s.io/v1/endpointslices":            {"endpointslices"},
		"/apis/discovery.k8s.io/v1/namespaces/d/pods/x":       {},
		"/apis/multicluster.x-k8s.io/v1alpha1/serviceimports": {},
		"/healthz": {},
	} {
		resource, name, known := locate(path)
		if got := [2]string{resource, name}; known && got != want || known != (want[0] != "") {
			t.Errorf("locate(%s) = %q, %v; want %q", path, got, known, want)
		}
	}
}

func TestOneNodeOnly(t *testing.T) {
	keep, err := selected(map[string][]string{"fieldSelector": {"metadata.name=n1"}})
	if err != nil {
		t.Fatal(err)
	}
	if !keep("n1") || keep("n2") {
		t.Error("a selector on metadata.name does not select by name")
	}
	if _, err := selected(map[string][]string{"fieldSelector": {"metadata.name"}}); err == nil || !strings.Contains(err.Error(), "metadata.name") {
		t.Errorf("a broken selector gives %v", err)
	}
}
