package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// listenSocket opens the agent's unix socket, taking over the file a dead agent left.
func listenSocket(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
		c.Close()
		return nil, fmt.Errorf("another agent answers on %s: stop it first, or give this one a --run-dir of its own", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// listenHTTP opens the health and metrics port with a message that helps.
func listenHTTP(ctx context.Context, addr string) (net.Listener, error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", addr)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("http: %s is in use (kube-proxy's metrics port?): give another address with --http, or --http= for none", addr)
	}
	return l, err
}

func (a *Agent) serve(ctx context.Context, l net.Listener, h http.Handler) {
	s := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second}
	stop := context.AfterFunc(ctx, func() { s.Close() })
	defer stop()
	if err := s.Serve(l); err != nil && !errors.Is(err, http.ErrServerClosed) {
		a.log.Error("server ended", "addr", l.Addr().String(), "err", err)
	}
}

// adminHandler is what the unix socket answers.
func (a *Agent) adminHandler() http.Handler {
	m := http.NewServeMux()
	m.HandleFunc("GET /status", func(w http.ResponseWriter, req *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		r := a.fullReport()
		if a.services != nil && req.FormValue("services") == "all" {
			r.Services = a.ledger.programmed()
		}
		_ = r.JSON(w)
	})
	m.HandleFunc("GET /services", a.answerServices)
	m.HandleFunc("POST /attachments", a.answerAttachment)
	return m
}

// healthHandler is what the HTTP port answers: /healthz says the agent is alive (its loops come
// round), /readyz that the newest known state is in the kernel, /metrics the numbers.
func (a *Agent) healthHandler() http.Handler {
	m := http.NewServeMux()
	m.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, a.stuck())
	})
	m.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, a.notReady())
	})
	m.HandleFunc("GET /livez", func(w http.ResponseWriter, r *http.Request) { a.answerLivez(w, r) })
	m.HandleFunc("GET /proxyMode", a.answerProxyMode)
	m.HandleFunc("GET /configz", a.answerConfig)
	m.Handle("GET /metrics/slis", promhttp.HandlerFor(a.sliRegistry(), promhttp.HandlerOpts{}))
	m.Handle("GET /metrics", promhttp.HandlerFor(a.registry(), promhttp.HandlerOpts{}))
	return m
}

// stuck lists loops that have stopped coming round.
func (a *Agent) stuck() (why []string) {
	if !a.store.HasSynced() {
		return nil // waiting for the source is not a fault of this process
	}
	for _, l := range a.loops {
		if idle, stuck := l.Stuck(time.Now()); stuck {
			why = append(why, fmt.Sprintf("%s has not moved for %s", l.Status().Name, idle.Round(time.Second)))
		}
	}
	return why
}

// notReady lists what keeps the newest state from being in the kernel.
func (a *Agent) notReady() (why []string) {
	if !a.store.HasSynced() {
		return []string{"waiting for the first full state from " + a.cfg.source()}
	}
	for _, l := range a.loops {
		s := l.Status()
		if p := s.Problem(time.Now()); p != "" {
			why = append(why, s.Name+": "+p)
		}
	}
	return why
}

func answer(w http.ResponseWriter, problems []string) {
	w.Header().Set("Content-Type", "application/json")
	code, state := http.StatusOK, "ok"
	if len(problems) > 0 {
		code, state = http.StatusServiceUnavailable, "not ok"
	}
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(map[string]any{"status": state, "problems": problems})
}
