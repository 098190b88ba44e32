// Package fakeapi is a small Kubernetes API server for tests: it lists and watches services,
// endpointslices, namespaces, pods and serviceimports in JSON, over HTTP, and its state can change while it is
// watched. It knows streamed lists (KEP-3157), label selectors and the field selectors that clients
// of DNS and proxies use, forgets its history on demand, and remembers what it was asked.
package fakeapi

import (
	"fmt"
	"net"
	"net/http"
	"strconv"
	"sync"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/braidnet/braid/internal/source"
)

// Object is a *corev1.Namespace, *corev1.Service, *corev1.Pod, *discoveryv1.EndpointSlice or *source.ServiceImport.
type Object interface {
	runtime.Object
	metav1.Object
}

// event is one change of the state. before is nil for a new object, after for one that was deleted.
type event struct {
	rv            int
	resource      string
	before, after Object
}

// Server is a running API server. Create it with New.
type Server struct {
	addr string

	mu       sync.Mutex
	http     *http.Server
	rv       int
	oldest   int // watches from before this version are told that it is gone
	objects  map[string]map[string]Object
	history  []event
	wake     chan struct{} // closed and replaced at each change
	drop     chan struct{} // closed and replaced to end all watches
	asked    map[Request]int
	watching map[string]int
}

// Request is a request as an authorizer sees it.
type Request struct{ Verb, Group, Resource string }

// String prints "verb group/resource".
func (r Request) String() string { return fmt.Sprintf("%s %s/%s", r.Verb, r.Group, r.Resource) }

// New returns a server that serves on a free port of the loopback address.
func New() (*Server, error) {
	s := &Server{rv: 1, objects: map[string]map[string]Object{}, wake: make(chan struct{}), drop: make(chan struct{}),
		asked: map[Request]int{}, watching: map[string]int{}}
	s.addr = "127.0.0.1:0"
	return s, s.Start()
}

// URL returns the address of the server; it stays the same over Stop and Start.
func (s *Server) URL() string { return "http://" + s.addr }

// Start serves again after Stop.
func (s *Server) Start() error {
	l, err := net.Listen("tcp", s.addr)
	if err != nil {
		return fmt.Errorf("listen for the API: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.addr = l.Addr().String()
	s.http = &http.Server{Handler: s}
	go s.http.Serve(l) //nolint:errcheck // it ends with Stop
	return nil
}

// Stop closes the port and every connection, as when the machine is gone. The state stays.
func (s *Server) Stop() {
	s.mu.Lock()
	h := s.http
	close(s.drop)
	s.drop = make(chan struct{})
	s.mu.Unlock()
	h.Close()
}

// CloseWatches ends every watch, as a server does after some minutes.
func (s *Server) CloseWatches() {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.drop)
	s.drop = make(chan struct{})
}

// Forget drops the history: watches from before now are answered 410 Gone.
func (s *Server) Forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rv++
	s.oldest, s.history = s.rv, nil
}

// Put adds objects, or replaces those of the same kind, namespace and name, in order.
func (s *Server) Put(objects ...Object) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range objects {
		o = normal(o)
		res, key := resourceOf(o), keyOf(o)
		if s.objects[res] == nil {
			s.objects[res] = map[string]Object{}
		}
		before := s.objects[res][key]
		s.objects[res][key] = o
		s.log(event{resource: res, before: before, after: o})
	}
}

// Lose replaces or adds an object as Put does, but no watch is told: as when events get lost.
func (s *Server) Lose(o Object) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o = normal(o)
	s.rv++
	o.SetResourceVersion(strconv.Itoa(s.rv))
	s.objects[resourceOf(o)][keyOf(o)] = o
}

// Delete removes objects, in order; what is not there is passed over.
func (s *Server) Delete(objects ...Object) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range objects {
		res, key := resourceOf(o), keyOf(o)
		if before := s.objects[res][key]; before != nil {
			delete(s.objects[res], key)
			s.log(event{resource: res, before: before})
		}
	}
}

func (s *Server) log(e event) {
	s.rv++
	e.rv = s.rv
	if e.after != nil {
		e.after.SetResourceVersion(strconv.Itoa(s.rv))
	}
	s.history = append(s.history, e)
	close(s.wake)
	s.wake = make(chan struct{})
}

// Asked returns how often each kind of request has come.
func (s *Server) Asked() map[Request]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make(map[Request]int, len(s.asked))
	for r, n := range s.asked {
		out[r] = n
	}
	return out
}

// Watching returns the number of open watches of a resource.
func (s *Server) Watching(resource string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.watching[resource]
}

// resources are the paths that exist, by the name of the resource.
var resources = map[string]struct {
	gv   schema.GroupVersion
	kind string
}{
	"namespaces":     {corev1.SchemeGroupVersion, "Namespace"},
	"services":       {corev1.SchemeGroupVersion, "Service"},
	"pods":           {corev1.SchemeGroupVersion, "Pod"},
	"endpointslices": {discoveryv1.SchemeGroupVersion, "EndpointSlice"},
	"serviceimports": {source.MCSGroupVersion(), "ServiceImport"},
}

func resourceOf(o Object) string {
	switch o.(type) {
	case *corev1.Namespace:
		return "namespaces"
	case *corev1.Service:
		return "services"
	case *corev1.Pod:
		return "pods"
	case *discoveryv1.EndpointSlice:
		return "endpointslices"
	case *source.ServiceImport:
		return "serviceimports"
	}
	panic(fmt.Sprintf("the API has no place for a %T", o))
}

func keyOf(o Object) string { return o.GetNamespace() + "/" + o.GetName() }

// normal returns a copy with the fields that the real server fills in.
func normal(o Object) Object {
	o = o.DeepCopyObject().(Object)
	r := resources[resourceOf(o)]
	o.GetObjectKind().SetGroupVersionKind(r.gv.WithKind(r.kind))
	switch o := o.(type) {
	case *corev1.Service:
		if len(o.Spec.ClusterIPs) > 0 {
			o.Spec.ClusterIP = o.Spec.ClusterIPs[0]
		}
		for i := range o.Spec.Ports {
			if o.Spec.Ports[i].Protocol == "" {
				o.Spec.Ports[i].Protocol = corev1.ProtocolTCP
			}
		}
	case *corev1.Pod:
		if len(o.Status.PodIPs) > 0 {
			o.Status.PodIP = o.Status.PodIPs[0].IP
		}
	case *discoveryv1.EndpointSlice:
		for i := range o.Ports {
			name, tcp := "", corev1.ProtocolTCP
			if o.Ports[i].Name == nil {
				o.Ports[i].Name = &name
			}
			if o.Ports[i].Protocol == nil {
				o.Ports[i].Protocol = &tcp
			}
		}
	}
	return o
}
