package fakeapi

import (
	"encoding/json"
	"net/http"
	"net/url"
	"sort"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
)

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	group, resource, known := locate(r.URL.Path)
	q := r.URL.Query()
	verb := strings.ToLower(r.Method)
	if r.Method == http.MethodGet && known {
		verb = "list"
		if watch, _ := strconv.ParseBool(q.Get("watch")); watch {
			verb = "watch"
		}
	}
	s.mu.Lock()
	s.asked[Request{verb, group, resource}]++
	s.mu.Unlock()
	keep, err := selected(q)
	switch {
	case !known || r.Method != http.MethodGet:
		status(w, http.StatusNotFound, metav1.StatusReasonNotFound, r.URL.Path)
	case err != nil:
		status(w, http.StatusBadRequest, metav1.StatusReasonBadRequest, err.Error())
	case verb == "list":
		s.list(w, r, resource, keep)
	default:
		s.watch(w, r, resource, keep)
	}
}

// locate takes /api/v1/RESOURCE and /apis/GROUP/VERSION/RESOURCE apart. Other paths are not known.
func locate(path string) (group, resource string, known bool) {
	parts := strings.Split(strings.Trim(path, "/"), "/")
	switch {
	case len(parts) == 3 && parts[0] == "api":
		resource = parts[2]
	case len(parts) == 4 && parts[0] == "apis":
		group, resource = parts[1], parts[3]
	default:
		return "", path, false
	}
	r, ok := resources[resource]
	return group, resource, ok && r.gv.Group == group
}

// selected returns what a request's label and field selectors keep.
func selected(q url.Values) (func(Object) bool, error) {
	byLabel, err := labels.Parse(q.Get("labelSelector"))
	if err != nil {
		return nil, err
	}
	byField, err := fields.ParseSelector(q.Get("fieldSelector"))
	if err != nil {
		return nil, err
	}
	return func(o Object) bool {
		if o == nil || !byLabel.Matches(labels.Set(o.GetLabels())) {
			return false
		}
		set := fields.Set{"metadata.name": o.GetName(), "metadata.namespace": o.GetNamespace()}
		if p, ok := o.(*corev1.Pod); ok {
			set["status.phase"], set["spec.nodeName"] = string(p.Status.Phase), p.Spec.NodeName
		}
		return byField.Matches(set)
	}, nil
}

func status(w http.ResponseWriter, code int, reason metav1.StatusReason, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(failure(code, reason, message)) // the client may be gone
}

func failure(code int, reason metav1.StatusReason, message string) metav1.Status {
	return metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusFailure,
		Code: int32(code), Reason: reason, Message: message}
}

func (s *Server) list(w http.ResponseWriter, req *http.Request, resource string, keep func(Object) bool) {
	r := resources[resource]
	s.mu.Lock()
	items, rv := s.current(resource, keep), s.rv
	s.mu.Unlock()
	if partial(req) {
		list := metav1.PartialObjectMetadataList{TypeMeta: metav1.TypeMeta{Kind: "PartialObjectMetadataList", APIVersion: metaVersion}, ListMeta: metav1.ListMeta{ResourceVersion: strconv.Itoa(rv)}}
		for _, o := range items {
			list.Items = append(list.Items, metadataOf(o))
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(list) // the client may be gone
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{ // the client may be gone
		"kind": r.kind + "List", "apiVersion": r.gv.String(),
		"metadata": metav1.ListMeta{ResourceVersion: strconv.Itoa(rv)}, "items": items,
	})
}

const metaVersion = "meta.k8s.io/v1"

// partial reports whether a client asks for metadata alone.
func partial(r *http.Request) bool {
	return strings.Contains(r.Header.Get("Accept"), "as=PartialObjectMetadata")
}

func metadataOf(o Object) metav1.PartialObjectMetadata {
	return metav1.PartialObjectMetadata{
		TypeMeta:   metav1.TypeMeta{Kind: "PartialObjectMetadata", APIVersion: metaVersion},
		ObjectMeta: metav1.ObjectMeta{Namespace: o.GetNamespace(), Name: o.GetName(), ResourceVersion: o.GetResourceVersion(), Labels: o.GetLabels(), Annotations: o.GetAnnotations()},
	}
}

// current returns the objects of a resource in order of their names. The server must be locked.
func (s *Server) current(resource string, keep func(Object) bool) []Object {
	out := []Object{}
	for _, o := range s.objects[resource] {
		if keep(o) {
			out = append(out, o)
		}
	}
	sort.Slice(out, func(i, j int) bool { return keyOf(out[i]) < keyOf(out[j]) })
	return out
}

// line is one event on the wire.
type line struct {
	Type   string `json:"type"`
	Object any    `json:"object"`
}

// bookmark tells a client that the streamed list is complete.
func bookmark(resource string, rv int) line {
	r := resources[resource]
	return line{"BOOKMARK", metav1.PartialObjectMetadata{
		TypeMeta: metav1.TypeMeta{Kind: r.kind, APIVersion: r.gv.String()},
		ObjectMeta: metav1.ObjectMeta{ResourceVersion: strconv.Itoa(rv),
			Annotations: map[string]string{metav1.InitialEventsAnnotationKey: "true"}},
	}}
}

// begin returns the lines a watch begins with and the version that it goes on from.
func (s *Server) begin(resource string, q url.Values, keep func(Object) bool) (first []line, rv int, gone bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.watching[resource]++
	rv, _ = strconv.Atoi(q.Get("resourceVersion"))
	initial, _ := strconv.ParseBool(q.Get("sendInitialEvents"))
	if !initial && rv != 0 {
		return nil, rv, rv < s.oldest
	}
	for _, o := range s.current(resource, keep) {
		first = append(first, line{"ADDED", o})
	}
	if initial {
		first = append(first, bookmark(resource, s.rv))
	}
	return first, s.rv, false
}

// after returns the lines for what happened behind a version, and what to wait for then.
func (s *Server) after(resource string, rv int, keep func(Object) bool) (lines []line, now int, wake chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	from := sort.Search(len(s.history), func(i int) bool { return s.history[i].rv > rv })
	for _, e := range s.history[from:] {
		if e.resource != resource {
			continue
		}
		before, after := keep(e.before), keep(e.after)
		switch {
		case before && after:
			lines = append(lines, line{"MODIFIED", e.after})
		case after:
			lines = append(lines, line{"ADDED", e.after})
		case before:
			last := e.before.DeepCopyObject().(Object)
			last.SetResourceVersion(strconv.Itoa(e.rv))
			lines = append(lines, line{"DELETED", last})
		}
	}
	return lines, s.rv, s.wake
}

func (s *Server) watch(w http.ResponseWriter, r *http.Request, resource string, keep func(Object) bool) {
	s.mu.Lock()
	drop := s.drop // before anything is sent: a change that comes with the end must not hide it
	s.mu.Unlock()
	lines, rv, gone := s.begin(resource, r.URL.Query(), keep)
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.watching[resource]--
	}()
	if gone {
		status(w, http.StatusGone, metav1.StatusReasonExpired, "too old resource version")
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusOK)
	enc, flush := json.NewEncoder(w), http.NewResponseController(w)
	for {
		for _, l := range lines {
			if o, ok := l.Object.(Object); ok && partial(r) {
				l.Object = metadataOf(o)
			}
			if enc.Encode(l) != nil {
				return
			}
		}
		if flush.Flush() != nil {
			return
		}
		var wake chan struct{}
		lines, rv, wake = s.after(resource, rv, keep)
		if len(lines) > 0 {
			continue
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
