package kube

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"path"
	"strconv"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer/streaming"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	restwatch "k8s.io/client-go/rest/watch"

	"github.com/braidnet/braid/internal/source"
)

// event is one line of the server's history.
type event struct {
	rv       int
	resource string
	watch.Event
}

// apiServer speaks just enough of the Kubernetes API to be listed and watched, in JSON or protobuf.
type apiServer struct {
	*httptest.Server
	mediaType string // what it answers with
	streaming bool   // it knows streamed lists (sendInitialEvents)
	metadata  bool   // it sends metadata alone to who asks for it

	mu       sync.Mutex
	rv       int
	oldest   int // watches from before this version are gone
	objects  map[string]map[string]runtime.Object
	history  []event
	wake     chan struct{} // closed and replaced at each change
	drop     chan struct{} // closed and replaced to end all watches
	down     bool          // answers 503 to everything
	requests map[string]int
	queries  []string
}

func newServer(t *testing.T, mediaType string, streaming bool) *apiServer {
	s := &apiServer{mediaType: mediaType, streaming: streaming, rv: 1, objects: map[string]map[string]runtime.Object{},
		wake: make(chan struct{}), drop: make(chan struct{}), requests: map[string]int{}}
	s.Server = httptest.NewServer(s)
	t.Cleanup(func() {
		s.closeWatches()
		s.CloseClientConnections()
		s.Close()
	})
	return s
}

func (s *apiServer) config() *rest.Config { return &rest.Config{Host: s.URL, QPS: -1} }

func resourceOf(obj runtime.Object) string {
	for _, r := range resources {
		if fmt.Sprintf("%T", r.empty) == fmt.Sprintf("%T", obj) {
			return r.name
		}
	}
	panic(fmt.Sprintf("no resource for %T", obj))
}

func keyOf(obj runtime.Object) string {
	m, _ := meta.Accessor(obj)
	return m.GetNamespace() + "/" + m.GetName()
}

// put adds or updates an object; remove deletes it.
func (s *apiServer) put(obj runtime.Object) {
	s.mu.Lock()
	defer s.mu.Unlock()
	obj = obj.DeepCopyObject()
	res, key := resourceOf(obj), keyOf(obj)
	if s.objects[res] == nil {
		s.objects[res] = map[string]runtime.Object{}
	}
	kind := watch.Added
	if s.objects[res][key] != nil {
		kind = watch.Modified
	}
	s.objects[res][key] = obj
	s.log(res, kind, obj)
}

func (s *apiServer) remove(obj runtime.Object) {
	s.mu.Lock()
	defer s.mu.Unlock()
	res := resourceOf(obj)
	delete(s.objects[res], keyOf(obj))
	s.log(res, watch.Deleted, obj.DeepCopyObject())
}

func (s *apiServer) log(res string, kind watch.EventType, obj runtime.Object) {
	s.rv++
	m, _ := meta.Accessor(obj)
	m.SetResourceVersion(strconv.Itoa(s.rv))
	s.history = append(s.history, event{s.rv, res, watch.Event{Type: kind, Object: obj}})
	close(s.wake)
	s.wake = make(chan struct{})
}

// closeWatches ends every watch, as a server does after some minutes.
func (s *apiServer) closeWatches() {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.drop)
	s.drop = make(chan struct{})
}

// forget makes the server answer 410 Gone to watches from before now.
func (s *apiServer) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rv++
	s.oldest, s.history = s.rv, nil
}

func (s *apiServer) setDown(down bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.down = down
}

func (s *apiServer) count(what string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.requests[what]
}

func (s *apiServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	res := path.Base(r.URL.Path)
	q := r.URL.Query()
	s.mu.Lock()
	s.queries = append(s.queries, r.URL.String())
	down := s.down
	if q.Get("watch") == "" {
		s.requests["list "+res]++
	} else {
		s.requests["watch "+res]++
	}
	s.mu.Unlock()
	switch {
	case down:
		s.status(w, apierrors.NewServiceUnavailable("down for a test"))
	case r.URL.Path == "/readyz":
		_, _ = w.Write([]byte("ok"))
	case q.Get("watch") == "":
		s.list(w, r, res)
	case q.Get("sendInitialEvents") != "" && !s.streaming:
		s.status(w, apierrors.NewInvalid(schema.GroupKind{Kind: "ListOptions"}, "", nil))
	default:
		s.watch(w, r, res)
	}
}

func (s *apiServer) info() runtime.SerializerInfo {
	info, _ := runtime.SerializerInfoForMediaType(codecs.SupportedMediaTypes(), s.mediaType)
	return info
}

func (s *apiServer) encoder(res string) runtime.Encoder {
	gv := corev1.SchemeGroupVersion
	for _, r := range resources {
		if r.name == res {
			gv = r.gv
		}
	}
	return codecs.EncoderForVersion(s.info().Serializer, gv)
}

func (s *apiServer) status(w http.ResponseWriter, err *apierrors.StatusError) {
	w.Header().Set("Content-Type", s.mediaType)
	w.WriteHeader(int(err.ErrStatus.Code))
	_ = s.encoder("").Encode(&err.ErrStatus, w)
}

// metadataGV is the group and version of metadata alone.
var metadataGV = schema.GroupVersion{Group: metav1.GroupName, Version: "v1"}

// partial reports whether a request asks for metadata alone, of a server that knows that.
func (s *apiServer) partial(r *http.Request) bool {
	return s.metadata && strings.Contains(r.Header.Get("Accept"), "as=PartialObjectMetadata")
}

func partialOf(o runtime.Object) *metav1.PartialObjectMetadata {
	m, _ := meta.Accessor(o)
	return &metav1.PartialObjectMetadata{
		TypeMeta:   metav1.TypeMeta{Kind: "PartialObjectMetadata", APIVersion: metadataGV.String()},
		ObjectMeta: metav1.ObjectMeta{Namespace: m.GetNamespace(), Name: m.GetName(), ResourceVersion: m.GetResourceVersion(), Labels: m.GetLabels(), Annotations: m.GetAnnotations()},
	}
}

func (s *apiServer) list(w http.ResponseWriter, r *http.Request, res string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	rv := metav1.ListMeta{ResourceVersion: strconv.Itoa(s.rv)}
	var list runtime.Object
	switch res {
	case "services":
		list = &corev1.ServiceList{ListMeta: rv}
	case "namespaces":
		list = &corev1.NamespaceList{ListMeta: rv}
	case "serviceimports":
		list = &source.ServiceImportList{ListMeta: rv}
	case "pods":
		list = &corev1.PodList{ListMeta: rv}
	case "endpointslices":
		list = &discoveryv1.EndpointSliceList{ListMeta: rv}
	}
	var items []runtime.Object
	for _, o := range s.objects[res] {
		items = append(items, o)
	}
	if limit := r.URL.Query().Get("limit"); limit == "1" && len(items) > 1 {
		rest := int64(len(items) - 1)
		rv.Continue, rv.RemainingItemCount = "more", &rest
		items = items[:1]
	}
	encoder := s.encoder(res)
	if s.partial(r) {
		encoder = codecs.EncoderForVersion(s.info().Serializer, metadataGV)
		partial := &metav1.PartialObjectMetadataList{ListMeta: rv}
		for _, o := range items {
			partial.Items = append(partial.Items, *partialOf(o))
		}
		list = partial
	} else if err := meta.SetList(list, items); err != nil {
		panic(err)
	}
	w.Header().Set("Content-Type", s.mediaType)
	if err := encoder.Encode(list, w); err != nil {
		panic(err)
	}
}

// initial returns the events a watch begins with and the version it goes on from.
func (s *apiServer) initial(res, from string, stream bool) (events []watch.Event, rv int, err *apierrors.StatusError) {
	s.mu.Lock()
	defer s.mu.Unlock()
	rv, _ = strconv.Atoi(from)
	if stream {
		for _, o := range s.objects[res] {
			events = append(events, watch.Event{Type: watch.Added, Object: o})
		}
		empty := resources[kindOf(res)].empty.DeepCopyObject()
		m, _ := meta.Accessor(empty)
		m.SetResourceVersion(strconv.Itoa(s.rv))
		m.SetAnnotations(map[string]string{metav1.InitialEventsAnnotationKey: "true"})
		return append(events, watch.Event{Type: watch.Bookmark, Object: empty}), s.rv, nil
	}
	if rv < s.oldest {
		return nil, 0, apierrors.NewResourceExpired("too old resource version: " + from)
	}
	return nil, rv, nil
}

func (s *apiServer) watch(w http.ResponseWriter, r *http.Request, res string) {
	q := r.URL.Query()
	s.mu.Lock()
	drop := s.drop // once: a change that comes with the end must not hide it
	s.mu.Unlock()
	first, rv, gone := s.initial(res, q.Get("resourceVersion"), q.Get("sendInitialEvents") == "true")
	if gone != nil {
		s.status(w, gone)
		return
	}
	info := s.info()
	contentType := s.mediaType
	if strings.Contains(contentType, "protobuf") {
		contentType += ";stream=watch"
	}
	w.Header().Set("Content-Type", contentType)
	w.WriteHeader(http.StatusOK)
	flush := w.(http.Flusher)
	flush.Flush()
	stream := streaming.NewEncoder(info.StreamSerializer.Framer.NewFrameWriter(w), codecs.EncoderForVersion(info.StreamSerializer.Serializer, corev1.SchemeGroupVersion))
	encoder := s.encoder(res)
	partial := s.partial(r)
	if partial {
		encoder = codecs.EncoderForVersion(info.Serializer, metadataGV)
	}
	enc := restwatch.NewEncoder(stream, encoder)
	send := func(ev watch.Event) bool {
		ev.Object = ev.Object.DeepCopyObject() // the encoder writes its kind into it, and other watches may be sent it too
		if partial {
			ev.Object = partialOf(ev.Object)
		}
		err := enc.Encode(&ev)
		flush.Flush()
		return err == nil
	}
	for _, ev := range first {
		if !send(ev) {
			return
		}
	}
	for {
		s.mu.Lock()
		var next []event
		for _, ev := range s.history {
			if ev.rv > rv && ev.resource == res {
				next = append(next, ev)
			}
		}
		wake := s.wake
		s.mu.Unlock()
		for _, ev := range next {
			if !send(ev.Event) {
				return
			}
			rv = ev.rv
		}
		select {
		case <-wake:
		case <-drop:
			return
		case <-r.Context().Done():
			return
		}
	}
}
