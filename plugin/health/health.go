// Package health is a CoreDNS plugin that answers "OK" over HTTP while the process lives. It is a drop-in
// for CoreDNS's plugin of that name and says one thing more: how old the state of the cluster is, when
// it is not fresh. A server that has lost its API server still answers well, so it stays healthy.
package health

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	clog "github.com/coredns/coredns/plugin/pkg/log"
	"github.com/coredns/coredns/plugin/pkg/reuseport"

	"github.com/braidnet/braid/plugin/kubernetes/stores"
)

const (
	pluginName = "health"
	path       = "/health"
	timeout    = 5 * time.Second // of requests, and of what is in flight at the end
	// fresh is the age up to which nothing is said: sources are known to be current every few seconds.
	fresh = 15 * time.Second
)

var log = clog.NewWithPlugin(pluginName)

// server is the HTTP server of one stanza.
type server struct {
	addr     string
	lameduck time.Duration
	status   func() []stores.Status

	mu   sync.Mutex
	http *http.Server // nil while it is not running
	at   net.Addr
	quit context.CancelFunc // ends the watch over itself
}

// start listens and serves.
func (s *server) start() error {
	l, err := reuseport.Listen("tcp", s.addr)
	if err != nil {
		return fmt.Errorf("listen for health checks: %w", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc(path, s.answer)
	ctx, quit := context.WithCancel(context.Background())
	h := &http.Server{Handler: mux, ReadTimeout: timeout, WriteTimeout: timeout, IdleTimeout: timeout}
	s.mu.Lock()
	s.http, s.at, s.quit = h, l.Addr(), quit
	s.mu.Unlock()
	go func() {
		if err := h.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			log.Errorf("health checks are not answered any more: %v", err)
		}
	}()
	go watch(ctx, s.url())
	return nil
}

func (s *server) answer(w http.ResponseWriter, _ *http.Request) {
	w.WriteHeader(http.StatusOK)
	io.WriteString(w, body(s.status(), time.Now())) //nolint:errcheck // the client may be gone
}

// body returns "OK", and a line for each source whose state is not complete or not fresh.
func body(list []stores.Status, now time.Time) string {
	out := []string{http.StatusText(http.StatusOK)}
	for _, s := range list {
		switch age := now.Sub(s.Current).Truncate(time.Second); {
		case !s.Synced:
			out = append(out, "kubernetes: "+s.Source+": cluster state not synced")
		case !s.Current.IsZero() && age > fresh:
			out = append(out, fmt.Sprintf("kubernetes: %s: cluster state is %s old", s.Source, age))
		}
	}
	return strings.Join(out, "\n")
}

// url is where the process itself can ask; of all addresses it must pick one.
func (s *server) url() string {
	host, _, _ := net.SplitHostPort(s.addr) // the set-up has checked it
	if host == "" {
		host = "localhost"
	}
	_, port, _ := net.SplitHostPort(s.at.String())
	return "http://" + net.JoinHostPort(host, port) + path
}

// stop ends the server; what it is answering gets done.
func (s *server) stop() error {
	s.mu.Lock()
	h, quit := s.http, s.quit
	s.http = nil
	s.mu.Unlock()
	if h == nil {
		return nil
	}
	quit()
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	if err := h.Shutdown(ctx); err != nil {
		log.Infof("health checks were cut off: %v", err)
	}
	return nil
}

// finish waits before the process ends, so that clients and load balancers can turn away first.
func (s *server) finish() error {
	s.mu.Lock()
	running := s.http != nil
	s.mu.Unlock()
	if running && s.lameduck > 0 {
		log.Infof("going on for another %s, so that clients can turn away", s.lameduck)
		wait := time.NewTimer(s.lameduck)
		<-wait.C
	}
	return s.stop()
}
