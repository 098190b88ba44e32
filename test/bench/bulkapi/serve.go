package bulkapi

import (
	"encoding/binary"
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
	"sort"
	"strconv"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
)

// Envelope of protobuf on Kubernetes' wire: four magic bytes, then a runtime.Unknown.
const magic = "k8s\x00"

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	resource, name, known := locate(r.URL.Path)
	q := r.URL.Query()
	switch {
	case r.Method == http.MethodPost: // events that a proxy reports of itself
		_, _ = w.Write([]byte("{}")) // the client may be gone
	case !known || r.Method != http.MethodGet:
		status(w, http.StatusNotFound, metav1.StatusReasonNotFound, r.URL.Path)
	case !strings.Contains(r.Header.Get("Accept"), runtime.ContentTypeProtobuf):
		status(w, http.StatusNotAcceptable, metav1.StatusReasonNotAcceptable, "only protobuf is served")
	case name != "":
		s.get(w, resource, name)
	default:
		keep, err := selected(q)
		if err != nil {
			status(w, http.StatusBadRequest, metav1.StatusReasonBadRequest, err.Error())
			return
		}
		if watch, _ := strconv.ParseBool(q.Get("watch")); watch {
			s.watch(w, r, resource, keep)
			return
		}
		s.list(w, resource, keep)
	}
}

// locate takes /api/v1/RESOURCE[/NAME] and /apis/GROUP/VERSION/RESOURCE apart.
func locate(path string) (resource, name string, known bool) {
	parts := strings.Split(strings.Trim(path, "/"), "/")
	switch {
	case len(parts) >= 3 && parts[0] == "api":
		parts = parts[2:]
	case len(parts) >= 4 && parts[0] == "apis":
		parts = parts[3:]
	default:
		return "", "", false
	}
	if len(parts) == 2 {
		name = parts[1]
	}
	_, known = kinds[parts[0]]
	return parts[0], name, known && len(parts) <= 2
}

func selected(q url.Values) (func(name string) bool, error) {
	sel, err := fields.ParseSelector(q.Get("fieldSelector"))
	if err != nil {
		return nil, err
	}
	return func(name string) bool {
		want, chosen := sel.RequiresExactMatch("metadata.name")
		return !chosen || name == want
	}, nil
}

func status(w http.ResponseWriter, code int, reason metav1.StatusReason, message string) {
	w.Header().Set("Content-Type", runtime.ContentTypeJSON)
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"},
		Status: metav1.StatusFailure, Code: int32(code), Reason: reason, Message: message}) // the client may be gone
}

// envelope wraps a message, which must know how to marshal itself.
func envelope(t runtime.TypeMeta, body []byte) ([]byte, error) {
	b, err := (&runtime.Unknown{TypeMeta: t, Raw: body}).Marshal()
	return append([]byte(magic), b...), err
}

func (s *Server) get(w http.ResponseWriter, resource, name string) {
	s.mu.Lock()
	v, there := s.objects[resource]["/"+name]
	s.mu.Unlock()
	if !there {
		status(w, http.StatusNotFound, metav1.StatusReasonNotFound, name)
		return
	}
	s.answer(w, kinds[resource], v.body)
}

func (s *Server) answer(w http.ResponseWriter, t runtime.TypeMeta, body []byte) {
	b, err := envelope(t, body)
	if err != nil {
		status(w, http.StatusInternalServerError, metav1.StatusReasonInternalError, err.Error())
		return
	}
	w.Header().Set("Content-Type", runtime.ContentTypeProtobuf)
	_, _ = w.Write(b) // the client may be gone
}

// list answers with a list: message with field 1 ListMeta, and each item as field 2.
func (s *Server) list(w http.ResponseWriter, resource string, keep func(string) bool) {
	s.mu.Lock()
	items, rv := s.current(resource, keep), s.rv
	s.mu.Unlock()
	m, err := (&metav1.ListMeta{ResourceVersion: strconv.Itoa(rv)}).Marshal()
	if err != nil {
		status(w, http.StatusInternalServerError, metav1.StatusReasonInternalError, err.Error())
		return
	}
	body := field(nil, 1, m)
	for _, v := range items {
		body = field(body, 2, v.body)
	}
	t := kinds[resource]
	t.Kind += "List"
	s.answer(w, t, body)
}

// field appends a protobuf field of bytes.
func field(b []byte, number uint64, value []byte) []byte {
	const lengthDelimited = 2
	b = binary.AppendUvarint(b, number<<3|lengthDelimited)
	b = binary.AppendUvarint(b, uint64(len(value)))
	return append(b, value...)
}

// current returns the objects of a resource in order of their names. The server must be locked.
func (s *Server) current(resource string, keep func(string) bool) []stored {
	keys := make([]string, 0, len(s.objects[resource]))
	for k, v := range s.objects[resource] {
		if keep(v.name) {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	out := make([]stored, len(keys))
	for i, k := range keys {
		out[i] = s.objects[resource][k]
	}
	return out
}

// stream writes watch events: each is a length of four bytes and a metav1.WatchEvent.
type stream struct {
	w    http.ResponseWriter
	kind runtime.TypeMeta
	buf  []byte
}

func (st *stream) event(what string, body []byte) error {
	object, err := envelope(st.kind, body)
	if err != nil {
		return err
	}
	b, err := (&metav1.WatchEvent{Type: what, Object: runtime.RawExtension{Raw: object}}).Marshal()
	if err != nil {
		return err
	}
	st.buf = append(binary.BigEndian.AppendUint32(st.buf[:0], uint32(len(b))), b...)
	_, err = st.w.Write(st.buf)
	return err
}

// bookmark tells that a streamed list is complete.
func (st *stream) bookmark(rv int) error {
	m := metav1.ObjectMeta{ResourceVersion: strconv.Itoa(rv), Annotations: map[string]string{metav1.InitialEventsAnnotationKey: "true"}}
	b, err := m.Marshal()
	if err != nil {
		return err
	}
	return st.event("BOOKMARK", field(nil, 1, b)) // metadata is field 1 of every kind
}

func (s *Server) watch(w http.ResponseWriter, r *http.Request, resource string, keep func(string) bool) {
	q := r.URL.Query()
	w.Header().Set("Content-Type", runtime.ContentTypeProtobuf+";stream=watch")
	w.WriteHeader(http.StatusOK)
	st, flush := &stream{w: w, kind: kinds[resource]}, http.NewResponseController(w)
	rv, _ := strconv.Atoi(q.Get("resourceVersion"))
	if initial, _ := strconv.ParseBool(q.Get("sendInitialEvents")); initial || rv == 0 {
		s.mu.Lock()
		items, now := s.current(resource, keep), s.rv
		s.mu.Unlock()
		for _, v := range items {
			if st.event("ADDED", v.body) != nil {
				return
			}
		}
		if initial && st.bookmark(now) != nil {
			return
		}
		rv = now
	}
	for flush.Flush() == nil {
		changes, wake := s.after(resource, rv)
		for _, c := range changes {
			rv = c.rv
			if keep(c.value.name) && st.event(c.what, c.value.body) != nil {
				return
			}
		}
		if len(changes) > 0 {
			continue
		}
		select {
		case <-wake:
		case <-r.Context().Done():
			return
		}
	}
}

// after returns the changes behind a version, and what to wait for when there are none.
func (s *Server) after(resource string, rv int) ([]change, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := s.history[resource]
	from := sort.Search(len(h), func(i int) bool { return h[i].rv > rv })
	return h[from:len(h):len(h)], s.wake
}
