package kube

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"

	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/internal/source"
)

// health follows how the requests for one kind go. The reflector retries most errors in silence;
// here each is seen.
type health struct {
	kind   model.Kind
	host   string
	board  *source.Board
	log    *slog.Logger
	outage *outage

	mu    sync.Mutex
	inRow int   // errors since the last success
	last  error // the newest of them
}

// watched returns lw with its requests observed, and asked again where the server is absent, until it answers. What fails
// because the context end is done is no error.
func (h *health) watched(end context.Context, lw *cache.ListWatch) *cache.ListWatch {
	return &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, opts metav1.ListOptions) (list runtime.Object, err error) {
			err = h.answered(ctx, end, "list", opts, func() error { list, err = lw.ListWithContextFunc(ctx, opts); return err })
			return list, err
		},
		WatchFuncWithContext: func(ctx context.Context, opts metav1.ListOptions) (w watch.Interface, err error) {
			err = h.answered(ctx, end, "watch", opts, func() error { w, err = lw.WatchFuncWithContext(ctx, opts); return err })
			return w, err
		},
	}
}

// answered calls request until that is answered, or ctx is done.
func (h *health) answered(ctx, end context.Context, verb string, opts metav1.ListOptions, request func() error) error {
	for {
		err := request()
		h.note(end, verb, opts, err)
		if !absent(err) || ctx.Err() != nil {
			return err
		}
		if h.outage.wait(ctx, end); ctx.Err() != nil {
			return err
		}
	}
}

func (h *health) note(end context.Context, verb string, opts metav1.ListOptions, err error) {
	switch {
	case err == nil:
		h.well()
	case apierrors.IsResourceExpired(err) || apierrors.IsGone(err):
		// The reflector lists anew: this is how a long absence ends, not a fault.
	case opts.SendInitialEvents != nil && unsupported(err):
		// A server older than streamed lists; the reflector falls back to an ordinary one.
	default:
		h.failed(end, verb, err)
	}
}

// unsupported reports whether a server refused a request because it does not know its form.
func unsupported(err error) bool {
	status, ok := err.(apierrors.APIStatus)
	if !ok {
		return false
	}
	switch status.Status().Code {
	case http.StatusBadRequest, http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusUnprocessableEntity:
		return true
	}
	return false
}

func (h *health) key() string { return "api|" + string(h.kind) }

// well notes that a request succeeded.
func (h *health) well() {
	h.mu.Lock()
	h.inRow, h.last = 0, nil
	h.mu.Unlock()
	h.board.Clear(h.key())
}

// fine reports whether the last request succeeded, or needs not: a kind without a definition has no objects.
func (h *health) fine() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.inRow == 0 || undefined(h.kind, h.last)
}

// undefined reports whether a request failed because the server does not know the kind, which it need
// not where the kind is defined by a resource of its own.
func undefined(kind model.Kind, err error) bool {
	return kind == model.KindServiceImport && apierrors.IsNotFound(err)
}

// seen reports whether err is, or wraps, the error noted last.
func (h *health) seen(err error) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.last != nil && errors.Is(err, h.last)
}

// failed notes an error. The first of a row becomes a problem and is logged with it; after that, each
// time their number has doubled.
func (h *health) failed(end context.Context, verb string, err error) {
	if end.Err() != nil {
		return
	}
	h.mu.Lock()
	h.inRow++
	h.last = err
	n := h.inRow
	h.mu.Unlock()
	if n > 1 && n&(n-1) == 0 {
		h.log.Warn("the API server still does not answer as it should", "kind", h.kind, "verb", verb, "errors", n, "err", err)
	}
	r := resources[h.kind]
	todo := "see whether the API server can be reached at " + h.host
	switch {
	case apierrors.IsForbidden(err):
		todo = fmt.Sprintf("grant list and watch on %s in all namespaces", r.gv.WithResource(r.name).GroupResource())
	case undefined(h.kind, err):
		todo = "install the CustomResourceDefinition of " + r.gv.WithResource(r.name).GroupResource().String()
	case apierrors.IsUnauthorized(err):
		todo = "renew the credentials"
	}
	h.board.Set(h.key(), fmt.Sprintf("%s %s: %v; %s (what was read last stays in force)", verb, r.name, err, todo))
}
