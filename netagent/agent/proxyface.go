package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"syscall"
	"time"

	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/internal/reconcile"
)

// What kube-proxy shows to the outside, for those who look for it: load balancers of clouds probe
// :10256/healthz to learn which nodes can take traffic, and tools ask 127.0.0.1:10249/proxyMode and
// /configz. Ports of single services are in healthports.go.

// proxyLateAfter is how long a change may wait before a node should get no more traffic from load
// balancers: twice kube-proxy's sync period, as kube-proxy has it.
const proxyLateAfter = time.Minute

// proxyHealth is the body of kube-proxy's health port, under its names (kube-proxy 1.36, healthcheck
// ProxyHealth). NodeEligible is absent from /livez.
type proxyHealth struct {
	LastUpdated  time.Time                    `json:"lastUpdated"`
	CurrentTime  time.Time                    `json:"currentTime"`
	NodeEligible *bool                        `json:"nodeEligible,omitempty"`
	Healthy      bool                         `json:"healthy"`
	Status       map[string]proxyFamilyHealth `json:"status,omitempty"` // by "IPv4" and "IPv6"
}

type proxyFamilyHealth struct {
	LastUpdated time.Time `json:"lastUpdated"`
	Healthy     bool      `json:"healthy"`
}

// proxyHealthHandler is what kube-proxy's health port answers. /healthz says whether load balancers
// should send traffic to this node: services are in force, and the node is to stay. /livez leaves the
// node out, so that nobody restarts an agent because its node is going.
func (a *Agent) proxyHealthHandler() http.Handler {
	m := http.NewServeMux()
	m.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		eligible := a.nodeStays()
		h := a.proxyHealth(time.Now())
		h.NodeEligible = &eligible
		a.proxy.healthz.count(answerProxyHealth(w, h, h.Healthy && eligible))
	})
	m.HandleFunc("GET /livez", func(w http.ResponseWriter, r *http.Request) {
		a.proxy.livez.count(a.answerLivez(w, r))
	})
	return m
}

// answerLivez is /livez of both ports.
func (a *Agent) answerLivez(w http.ResponseWriter, _ *http.Request) (code int) {
	h := a.proxyHealth(time.Now())
	return answerProxyHealth(w, h, h.Healthy)
}

// taintToBeDeleted is put on a node by the cluster autoscaler before it takes the node away.
const taintToBeDeleted = "ToBeDeletedByClusterAutoscaler"

// nodeStays reports whether the cluster still has this node and means to keep it.
func (a *Agent) nodeStays() bool {
	n, _ := a.store.Get(model.Ref{Kind: model.KindNode, Key: model.Key{Name: a.cfg.Node}}).(*model.Node)
	return n != nil && !n.Terminating && !slices.Contains(n.Taints, taintToBeDeleted)
}

// proxyHealthy reports whether services are in force and changes come through.
func (a *Agent) proxyHealthy() bool { return a.proxyHealth(time.Now()).Healthy }

func (a *Agent) proxyHealth(now time.Time) proxyHealth {
	l := a.byName["services"]
	if l == nil { // service mode none: there is nothing to be late with
		return proxyHealthOf(reconcile.Status{Ready: true, Synced: now}, now, a.proxy.families)
	}
	return proxyHealthOf(l.Status(), now, a.proxy.families)
}

// proxyHealthOf translates the state of the subsystem services. Like kube-proxy's, lastUpdated is
// now while all is well: some readers take an old one for a fault, though nothing had to be done.
func proxyHealthOf(s reconcile.Status, now time.Time, families []string) proxyHealth {
	late := s.Pending && now.Sub(s.Since) > proxyLateAfter
	h := proxyHealth{LastUpdated: s.Synced, CurrentTime: now, Healthy: s.Ready && !late, Status: map[string]proxyFamilyHealth{}}
	if h.Healthy {
		h.LastUpdated = now
	}
	for _, f := range families {
		h.Status[f] = proxyFamilyHealth{LastUpdated: h.LastUpdated, Healthy: h.Healthy}
	}
	return h
}

func answerProxyHealth(w http.ResponseWriter, h proxyHealth, well bool) (code int) {
	code = http.StatusOK
	if !well {
		code = http.StatusServiceUnavailable
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(h)
	return code
}

// answerProxyMode names the service mode in force, as 127.0.0.1:10249/proxyMode of kube-proxy does.
func (a *Agent) answerProxyMode(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if a.services == nil {
		http.Error(w, "service mode none: this agent translates no services", http.StatusNotFound)
		return
	}
	fmt.Fprint(w, a.services.dataplane.Name())
}

// answerConfig tells the settings in force, as 127.0.0.1:10249/configz of kube-proxy does: under the
// program's name, here by the names of the flags.
func (a *Agent) answerConfig(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{"netagent": a.cfg.Settings})
}

// listenProxyHealth opens kube-proxy's health port, with a message that helps.
func listenProxyHealth(ctx context.Context, addr string) (net.Listener, error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", addr)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("healthz-bind-address: %s is in use (by a kube-proxy on this node?): stop that, or set it empty for none", addr)
	}
	return l, err
}
