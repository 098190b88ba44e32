package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/braidnet/braid/internal/kernel/ipt"
	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/internal/reconcile"
	"github.com/braidnet/braid/netagent/agent/tools"
	"github.com/braidnet/braid/netagent/service"
)

func TestProxyHealthFollowsTheServices(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	for _, c := range []struct {
		name    string
		status  reconcile.Status
		healthy bool
		updated time.Time
	}{
		{"never programmed", reconcile.Status{}, false, time.Time{}},
		{"quiet for an hour", reconcile.Status{Ready: true, Synced: ago(time.Hour)}, true, now},
		{"a change on its way", reconcile.Status{Ready: true, Synced: ago(time.Hour), Pending: true, Since: ago(59 * time.Second)}, true, now},
		{"a change waits", reconcile.Status{Ready: true, Synced: ago(time.Hour), Pending: true, Since: ago(61 * time.Second)}, false, ago(time.Hour)},
		{"an audit failed", reconcile.Status{Ready: true, Failing: true, Synced: ago(time.Hour)}, true, now},
	} {
		h := proxyHealthOf(c.status, now, []string{"IPv4", "IPv6"})
		if h.Healthy != c.healthy || !h.LastUpdated.Equal(c.updated) || len(h.Status) != 2 || h.Status["IPv6"].Healthy != c.healthy {
			t.Errorf("%s: %+v, want healthy %v, updated %s", c.name, h, c.healthy, c.updated)
		}
	}
}

// faceAgent is an agent whose services are programmed, on a node that the cluster has.
func faceAgent(t *testing.T, step reconcile.Step) *Agent {
	a := newAgent(Config{Node: "n1", Log: slog.New(slog.DiscardHandler)})
	a.addLoop("services", step, 0)
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	go a.loops[0].Run(ctx)
	a.store.Apply([]model.Update{model.Set(nodeNamed("n1"))})
	return a
}

func nodeNamed(name string) *model.Node {
	return &model.Node{Origin: model.Origin{Ref: model.Ref{Kind: model.KindNode, Key: model.Key{Name: name}}}}
}

func TestProxyHealthPort(t *testing.T) {
	a := faceAgent(t, func(context.Context) (reconcile.Outcome, error) { return reconcile.Outcome{}, nil })
	<-a.loops[0].Ready()
	get := func(path string) (int, string, proxyHealth) {
		w := httptest.NewRecorder()
		a.proxyHealthHandler().ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		var h proxyHealth
		if err := json.Unmarshal(w.Body.Bytes(), &h); err != nil {
			t.Errorf("%s: %v", path, err)
		}
		return w.Code, w.Body.String(), h
	}
	code, body, h := get("/healthz")
	if code != 200 || !strings.Contains(body, `"lastUpdated"`) || !strings.Contains(body, `"currentTime"`) || h.NodeEligible == nil || !*h.NodeEligible || !h.Healthy {
		t.Errorf("%d %s", code, body)
	}
	if code, body, _ := get("/livez"); code != 200 || strings.Contains(body, "nodeEligible") {
		t.Errorf("%d %s", code, body)
	}
	// A node that is to leave gets no more traffic, yet nobody needs to restart its agent.
	tainted, ending := nodeNamed("n1"), nodeNamed("n1")
	tainted.Taints = []string{"other", "ToBeDeletedByClusterAutoscaler"}
	ending.Terminating = true
	for what, u := range map[string]model.Update{"tainted": model.Set(tainted), "ending": model.Set(ending), "gone": model.Delete(nodeNamed("n1").Ref)} {
		a.store.Apply([]model.Update{u})
		if code, body, h := get("/healthz"); code != 503 || *h.NodeEligible || !h.Healthy {
			t.Errorf("%s: %d %s", what, code, body)
		}
		if code, body, _ := get("/livez"); code != 200 {
			t.Errorf("%s: %d %s", what, code, body)
		}
	}
	other := nodeNamed("n1")
	other.Taints = []string{"node.kubernetes.io/unschedulable"}
	a.store.Apply([]model.Update{model.Set(other)})
	if code, body, _ := get("/healthz"); code != 200 {
		t.Errorf("a node that is only cordoned: %d %s", code, body)
	}
	wantMetrics(t, a.registry(), map[string]float64{
		`kubeproxy_proxy_healthz_total{code="200"}`: 2, `kubeproxy_proxy_healthz_total{code="503"}`: 3,
		`kubeproxy_proxy_livez_total{code="200"}`: 4,
	})
}

func TestProxyHealthPortBeforeServicesAreInForce(t *testing.T) {
	a := faceAgent(t, func(context.Context) (reconcile.Outcome, error) { return reconcile.Outcome{}, errors.New("no") })
	for _, path := range []string{"/healthz", "/livez"} {
		w := httptest.NewRecorder()
		a.proxyHealthHandler().ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		if w.Code != 503 {
			t.Errorf("%s: %d %s", path, w.Code, w.Body)
		}
	}
}

type namedPlane struct{ service.Dataplane }

func (namedPlane) Name() string { return "nftables" }

func TestProxyMode(t *testing.T) {
	for want, a := range map[string]*Agent{"200 nftables": {services: &services{dataplane: namedPlane{}}}, "404 service mode none": {}} {
		w := httptest.NewRecorder()
		a.answerProxyMode(w, httptest.NewRequest("GET", "/proxyMode", nil))
		if got := strings.TrimSpace(w.Result().Status[:4] + w.Body.String()); !strings.HasPrefix(got, want) {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// logLines is a log that can be waited for.
type logLines struct {
	mu    sync.Mutex
	buf   bytes.Buffer
	wrote chan struct{}
}

func (l *logLines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case l.wrote <- struct{}{}:
	default:
	}
	return l.buf.Write(p)
}

func TestUnreachableAPIServerIsExplainedOnce(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	l.Close() // refuses from here on
	lines := &logLines{wrote: make(chan struct{}, 1)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		explainUnreachable(t.Context(), slog.New(slog.NewTextHandler(lines, nil)), "http://"+address)
	}()
	<-lines.wrote
	if l, err = net.Listen("tcp", address); err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	<-done
	text := lines.buf.String()
	if strings.Count(text, "cannot be reached") != 1 || !strings.Contains(text, "ConfigMap braid-api-server") || !strings.Contains(text, "can be reached now") {
		t.Errorf("log:\n%s", text)
	}
}

// A server that answers is not spoken of, and one behind a proxy, or whose address makes no sense, is
// left to the requests.
func TestReachableAPIServerIsNotSpokenOf(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, host := range []string{"http://" + l.Addr().String(), "::", "no host"} {
		lines := &logLines{wrote: make(chan struct{}, 1)}
		explainUnreachable(t.Context(), slog.New(slog.NewTextHandler(lines, nil)), host)
		if lines.buf.Len() > 0 {
			t.Errorf("%s: %s", host, lines.buf.String())
		}
	}
}

func TestHintIPTables(t *testing.T) {
	err := errors.New("no iptables-restore of variant nft")
	denied := fmt.Errorf("read the rules: %w", os.ErrPermission)
	t.Setenv("BRAID_IMAGE", "")
	if got := tools.HintIPTables(ipt.NFT, err); got != err || tools.HintIPTables(ipt.Legacy, err) != err || tools.HintIPTables(ipt.NFT, denied) != denied {
		t.Error(got)
	}
	for _, err := range []error{denied, errors.New("Fatal: can't open lock file /run/xtables.lock: Read-only file system")} {
		if got := tools.HintIPTables(ipt.Legacy, err); !errors.Is(got, err) || !strings.Contains(got.Error(), "deploy/iptables") {
			t.Error(got)
		}
	}
	t.Setenv("BRAID_IMAGE", "nftables")
	if got := tools.HintIPTables(ipt.NFT, err); !errors.Is(got, err) || !strings.Contains(got.Error(), "service-mode to nftables") || tools.HintIPTables(ipt.NFT, nil) != nil {
		t.Error(got)
	}
}
