package enforce

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/netagent/agent/api"
	"github.com/braidnet/braid/netagent/policy"
)

// eventServer is an API server that keeps the Events it is given, by name, and answers with *code unless that is 0.
func eventServer(t *testing.T, code *int) (kept map[string]corev1.Event, client *api.Client) {
	kept = map[string]corev1.Event{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var e corev1.Event
		if err := json.NewDecoder(r.Body).Decode(&e); err != nil || r.Method != http.MethodPost || r.URL.Path != "/api/v1/namespaces/"+e.Namespace+"/events" || r.Header.Get("Content-Type") != "application/json" {
			t.Errorf("asked for %s %s: %v", r.Method, r.URL, err)
		}
		_, have := kept[e.Name]
		switch {
		case *code != 0:
			w.WriteHeader(*code)
		case have:
			w.WriteHeader(http.StatusConflict)
		default:
			kept[e.Name] = e
			w.WriteHeader(http.StatusCreated)
		}
	}))
	t.Cleanup(server.Close)
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	if err := os.WriteFile(kubeconfig, fmt.Appendf(nil, `{"apiVersion": "v1", "kind": "Config", "current-context": "x",
		"clusters": [{"name": "x", "cluster": {"server": %q}}], "contexts": [{"name": "x", "context": {"cluster": "x"}}]}`, server.URL), 0o600); err != nil {
		t.Fatal(err)
	}
	return kept, &api.Client{Kubeconfig: kubeconfig}
}

// TestEvents: each fault is told once an hour, by all nodes as one Event, and its end too; a server that does not
// answer is asked again.
func TestEvents(t *testing.T) {
	code := 0
	kept, client := eventServer(t, &code)
	var nodes []*eventWriter
	for _, name := range []string{"n1", "n2"} {
		nodes = append(nodes, newEventWriter(slog.New(slog.DiscardHandler), name, client))
	}
	now := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	tell := func(fails bool, want ...string) {
		t.Helper()
		for _, n := range nodes {
			if err := n.tell(t.Context(), now); (err != nil) != fails {
				t.Errorf("error %v", err)
			}
		}
		var got []string
		for _, e := range kept {
			got = append(got, fmt.Sprintf("%s %s %s/%s %s: %s", e.Type, e.Reason, e.InvolvedObject.Kind, e.InvolvedObject.Name, e.InvolvedObject.UID, e.Message))
		}
		if slices.Sort(got); !slices.Equal(got, want) {
			t.Errorf("events\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	}
	fault := policy.Fault{Policy: object(model.KindNetworkPolicy, strings.Repeat("long", 60)), UID: "u1", Why: strings.Repeat("no space ", 200)}
	web := policy.Fault{Policy: object(model.KindNetworkPolicy, "web"), UID: "u2", Closed: true, Why: "no space"}
	set := func(list ...policy.Fault) {
		for _, n := range nodes {
			n.set(list)
		}
	}
	tell(false)
	set(web)
	code = http.StatusServiceUnavailable
	tell(true)
	code = 0
	closed := "Warning NotEnforced NetworkPolicy/web u2: policy shop/web is closed, its rules allow nothing: no space"
	tell(false, closed)
	now = now.Add(time.Minute)
	tell(false, closed)
	now = now.Add(time.Hour)
	tell(false, closed, closed)
	clear(kept)
	set()
	code = http.StatusNotFound // with its namespace
	tell(false)
	code = 0
	set(fault)
	tell(false, "Warning PartlyEnforced NetworkPolicy/"+fault.Policy.Name+" u1: "+fault.String()[:1000])
	for name := range kept {
		if len(name) > 253 {
			t.Errorf("the name of an event has %d bytes", len(name))
		}
	}
	clear(kept)
	set()
	tell(false, "Normal Enforced NetworkPolicy/"+fault.Policy.Name+" u1: policy "+fault.Policy.Key.String()+" is in force as it is written, or gone")
}
