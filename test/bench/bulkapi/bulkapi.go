// Package bulkapi is a Kubernetes API server for measurements: it lists and watches many services,
// endpointslices and nodes in protobuf, the form that proxies ask for, and costs little, so that what
// is measured beside it has the processors. Objects are encoded once, when they are put.
//
// It knows streamed lists (KEP-3157) and a field selector on metadata.name. Label selectors are passed
// over, and so are others on fields: put only objects that every client may see. Kinds that it has nothing of are empty lists.
// test/oracle/fakeapi is the one that knows all of what the API's rules are.
package bulkapi

import (
	"fmt"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// Object is a *corev1.Namespace, *corev1.Node, *corev1.Pod, *corev1.Service, *discoveryv1.EndpointSlice,
// *networkingv1.ServiceCIDR or *networkingv1.NetworkPolicy.
type Object interface {
	metav1.Object
	Marshal() ([]byte, error)
}

// Server is a running API server. Create it with New.
type Server struct {
	url  string
	http *http.Server

	mu      sync.Mutex
	rv      int
	objects map[string]map[string]stored // resource → namespace/name
	history map[string][]change          // resource → all changes, in order
	wake    chan struct{}                // closed and replaced at each change
}

// stored is an object in protobuf, without an envelope.
type stored struct {
	name string
	body []byte
}

type change struct {
	rv    int
	what  string // ADDED, MODIFIED or DELETED
	value stored
}

// New serves on l until Close.
func New(l net.Listener) *Server {
	s := &Server{url: "http://" + l.Addr().String(), rv: 1, objects: map[string]map[string]stored{},
		history: map[string][]change{}, wake: make(chan struct{})}
	s.http = &http.Server{Handler: s, ReadHeaderTimeout: time.Minute}
	go s.http.Serve(l) //nolint:errcheck // it ends with Close
	return s
}

// URL returns where clients find the server.
func (s *Server) URL() string { return s.url }

// Close ends the server and every watch.
func (s *Server) Close() { s.http.Close() }

// Put adds objects or replaces those of the same kind, namespace and name. All are there when it returns,
// and watchers are being told.
func (s *Server) Put(objects ...Object) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range objects {
		res := resourceOf(o)
		if s.objects[res] == nil {
			s.objects[res] = map[string]stored{}
		}
		key, what := o.GetNamespace()+"/"+o.GetName(), "ADDED"
		if _, there := s.objects[res][key]; there {
			what = "MODIFIED"
		}
		if err := s.log(res, what, o, func(v stored) { s.objects[res][key] = v }); err != nil {
			return err
		}
	}
	s.tell()
	return nil
}

// Delete removes objects; what is not there is passed over.
func (s *Server) Delete(objects ...Object) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range objects {
		res, key := resourceOf(o), o.GetNamespace()+"/"+o.GetName()
		if _, there := s.objects[res][key]; !there {
			continue
		}
		if err := s.log(res, "DELETED", o, func(stored) { delete(s.objects[res], key) }); err != nil {
			return err
		}
	}
	s.tell()
	return nil
}

func (s *Server) log(res, what string, o Object, apply func(stored)) error {
	o.SetResourceVersion(strconv.Itoa(s.rv + 1))
	body, err := o.Marshal()
	if err != nil {
		return fmt.Errorf("encode %s %s/%s: %w", res, o.GetNamespace(), o.GetName(), err)
	}
	s.rv++
	v := stored{o.GetName(), body}
	apply(v)
	s.history[res] = append(s.history[res], change{s.rv, what, v})
	return nil
}

func (s *Server) tell() {
	close(s.wake)
	s.wake = make(chan struct{})
}

// kinds are the resources that clients ask for, whether there are any or not.
var kinds = map[string]runtime.TypeMeta{
	"namespaces":      {APIVersion: "v1", Kind: "Namespace"},
	"nodes":           {APIVersion: "v1", Kind: "Node"},
	"pods":            {APIVersion: "v1", Kind: "Pod"},
	"services":        {APIVersion: "v1", Kind: "Service"},
	"endpoints":       {APIVersion: "v1", Kind: "Endpoints"}, // of which there are none: kube-router waits for their list
	"endpointslices":  {APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSlice"},
	"servicecidrs":    {APIVersion: "networking.k8s.io/v1", Kind: "ServiceCIDR"},
	"networkpolicies": {APIVersion: "networking.k8s.io/v1", Kind: "NetworkPolicy"},
}

func resourceOf(o Object) string {
	switch o.(type) {
	case *corev1.Namespace:
		return "namespaces"
	case *corev1.Node:
		return "nodes"
	case *corev1.Pod:
		return "pods"
	case *corev1.Service:
		return "services"
	case *discoveryv1.EndpointSlice:
		return "endpointslices"
	case *networkingv1.ServiceCIDR:
		return "servicecidrs"
	case *networkingv1.NetworkPolicy:
		return "networkpolicies"
	}
	panic(fmt.Sprintf("bulkapi has no place for a %T", o))
}
