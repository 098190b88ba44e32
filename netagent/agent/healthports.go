package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/internal/reconcile"
	"github.com/braidnet/braid/netagent/agent/tools"
	"github.com/braidnet/braid/netagent/service"
)

// healthPortsRetry is how often a port that somebody else holds is tried again.
const healthPortsRetry = 5 * time.Second

// healthPorts answers on the healthCheckNodePort of each Service that has one: load balancers send a
// Service's traffic to the nodes whose answer is 200. Endpoints are counted when somebody asks, so only
// changes of Services cost anything.
type healthPorts struct {
	planner *service.Planner
	healthy func() bool // whether services are in force here
	log     *slog.Logger

	mu    sync.Mutex
	dirty map[model.Key]struct{}

	// What follows is the step's alone, and after the last one close's.
	open map[healthPort]*http.Server
	bad  map[healthPort]error // could not be opened
}

// healthPort is one port of one family, and whom it speaks of.
type healthPort struct {
	service model.Key
	family  service.Family
	port    uint16
}

func newHealthPorts(p *service.Planner, healthy func() bool, log *slog.Logger) *healthPorts {
	return &healthPorts{planner: p, healthy: healthy, log: log, dirty: map[model.Key]struct{}{},
		open: map[healthPort]*http.Server{}, bad: map[healthPort]error{}}
}

// note marks Services that changed, and reports whether there were any. The planner has to know already.
func (h *healthPorts) note(changes []model.Change) (any bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, c := range changes {
		if c.Kind == model.KindService {
			h.dirty[c.Key] = struct{}{}
			any = true
		}
	}
	return any
}

// step opens and closes ports. One that is in use is noted and tried again: it is its Service's fault
// or that of whoever holds it, and none of the others'.
func (h *healthPorts) step(ctx context.Context) (reconcile.Outcome, error) {
	h.mu.Lock()
	dirty := h.dirty
	h.dirty = map[model.Key]struct{}{}
	h.mu.Unlock()
	for p := range h.bad {
		dirty[p.service] = struct{}{}
	}
	want := map[healthPort]struct{}{}
	for svc := range dirty {
		check, asked := h.planner.HealthCheck(svc)
		for family := range check.Local {
			if asked && (family == service.IPv4 || tools.HaveIPv6()) {
				want[healthPort{svc, family, check.Port}] = struct{}{}
			}
		}
	}
	h.closeUnwanted(dirty, want) // first: a port may pass from one Service to another
	for p := range want {
		if h.open[p] == nil {
			h.listen(ctx, p)
		}
	}
	return h.outcome(), nil
}

func (h *healthPorts) closeUnwanted(dirty map[model.Key]struct{}, want map[healthPort]struct{}) {
	unwanted := func(p healthPort) bool {
		_, concerned := dirty[p.service]
		_, keep := want[p]
		return concerned && !keep
	}
	for p, server := range h.open {
		if unwanted(p) {
			_ = server.Close()
			delete(h.open, p)
		}
	}
	for p := range h.bad {
		if unwanted(p) {
			delete(h.bad, p)
		}
	}
}

func (h *healthPorts) listen(ctx context.Context, p healthPort) {
	network := "tcp4"
	if p.family == service.IPv6 {
		network = "tcp6"
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, network, ":"+strconv.Itoa(int(p.port)))
	if err != nil {
		if h.bad[p] == nil {
			h.log.Error("cannot answer for the health of a service: load balancers will take this node for one without endpoints",
				"service", p.service, "port", p.port, "family", p.family, "err", err)
		}
		h.bad[p] = err
		return
	}
	delete(h.bad, p)
	server := &http.Server{Handler: h.handler(p), ReadHeaderTimeout: 5 * time.Second}
	h.open[p] = server
	go func() {
		if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			h.log.Error("health check port ended", "service", p.service, "port", p.port, "err", err)
		}
	}()
}

// serviceHealth is the body of an answer, under kube-proxy's names.
type serviceHealth struct {
	Service struct {
		Namespace string `json:"namespace"`
		Name      string `json:"name"`
	} `json:"service"`
	LocalEndpoints      int  `json:"localEndpoints"`
	ServiceProxyHealthy bool `json:"serviceProxyHealthy"`
}

func (h *healthPorts) handler(p healthPort) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !h.served(r) {
			panic(http.ErrAbortHandler) // closes the connection without an answer
		}
		check, _ := h.planner.HealthCheck(p.service)
		body := serviceHealth{LocalEndpoints: check.Local[p.family], ServiceProxyHealthy: h.healthy()}
		body.Service.Namespace, body.Service.Name = p.service.Namespace, p.service.Name
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.Header().Set("X-Load-Balancing-Endpoint-Weight", strconv.Itoa(body.LocalEndpoints))
		if body.LocalEndpoints == 0 || !body.ServiceProxyHealthy {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		_ = json.NewEncoder(w).Encode(body)
	})
}

// served reports whether node ports are served on the address that a request came to.
func (h *healthPorts) served(r *http.Request) bool {
	local, _ := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr)
	at := local.AddrPort().Addr().Unmap()
	return slices.ContainsFunc(h.planner.Net().NodePorts, func(p netip.Prefix) bool { return p.Contains(at) })
}

func (h *healthPorts) outcome() reconcile.Outcome {
	out := reconcile.Outcome{Summary: fmt.Sprintf("%d health check ports open", len(h.open))}
	for p, err := range h.bad {
		why := err.Error()
		if errors.Is(err, syscall.EADDRINUSE) {
			why = "another program on this node has it"
		}
		out.Notes = append(out.Notes, fmt.Sprintf("Service %s: spec.healthCheckNodePort %d (%s) is not answered: %s", p.service, p.port, p.family, why))
	}
	slices.Sort(out.Notes)
	return out
}

func (h *healthPorts) close() {
	for _, server := range h.open {
		_ = server.Close()
	}
}
