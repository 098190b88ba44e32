package agent

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/netagent/overlay"
)

// TestOwnNodeIsWritten runs an agent's writes against an HTTP server that plays the API server.
func TestOwnNodeIsWritten(t *testing.T) {
	f := newFakeNodes("n1", "n2")
	api := &fakeAPI{fakeNodes: f, node: "n1"}
	forbid := false
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		switch {
		case forbid:
			w.WriteHeader(http.StatusForbidden)
			fmt.Fprint(w, `{"kind":"Status","message":"nodes is forbidden to you"}`)
		case r.Method == http.MethodGet && r.URL.Path == "/api/v1/nodes":
			list, _ := f.nodes(r.Context())
			_ = json.NewEncoder(w).Encode(map[string]any{"items": list})
		case r.Method == http.MethodPatch && r.URL.Path == "/api/v1/nodes/n1" && r.Header.Get("Content-Type") == "application/merge-patch+json":
			if err := api.patch(r.Context(), body); err != nil {
				w.WriteHeader(http.StatusConflict)
				fmt.Fprint(w, err)
			}
		default:
			t.Errorf("%s %s", r.Method, r.URL)
		}
	}))
	defer server.Close()
	kubeconfig := filepath.Join(t.TempDir(), "config")
	config := fmt.Sprintf("apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters: [{name: c, cluster: {server: %q}}]\ncontexts: [{name: c, context: {cluster: c, user: u}}]\nusers: [{name: u}]\n", server.URL)
	if err := os.WriteFile(kubeconfig, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := DefaultConfig()
	cfg.Node, cfg.Kubeconfig, cfg.Overlay = "n1", kubeconfig, "none"
	cfg.AllocateNodeCIDRs, cfg.DetectLocal.ClusterCIDR = true, "10.244.0.0/16"
	a := newAgent(cfg)
	a.store.Apply([]model.Update{model.Set(&model.Node{Origin: model.Origin{Ref: model.Ref{Kind: model.KindNode, Key: model.Key{Name: "n1"}}}})})
	o := &ownNode{agent: a, keys: &keyring{path: filepath.Join(t.TempDir(), "key")}}
	o.lease = &lease{api: o, node: "n1", from: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")}, bits: cfg.nodeMask, pause: pauseFor}
	stepAll(t, o.keys, crossing{})
	key, detour := o.keys.private()

	forbid = true
	if _, err := o.step(t.Context()); err == nil || !strings.Contains(err.Error(), "forbidden to you") || !strings.Contains(err.Error(), "deploy/own-node") {
		t.Errorf("error %v: want the API server's words, and what to apply", err)
	}
	forbid = false
	out, err := o.step(t.Context())
	if err != nil || len(out.Changes) != 3 {
		t.Fatalf("%+v, %v: want pod CIDRs and two keys", out, err)
	}
	n := f.list["n1"]
	if len(n.Spec.PodCIDRs) != 1 || n.Metadata.Annotations[overlay.KeyAnnotation] != public(key).String() || n.Metadata.Annotations[overlay.DetourAnnotation] != public(detour).String() || len(n.Metadata.Annotations) != 2 {
		t.Errorf("the Node is %+v", n)
	}
	for _, text := range out.Changes {
		if strings.Contains(text, key.String()) || strings.Contains(text, detour.String()) {
			t.Errorf("%q holds the private key", text)
		}
	}
	// The cluster's state arrives with what was written: nothing is left to do.
	a.store.Apply([]model.Update{model.Set(&model.Node{Origin: model.Origin{Ref: model.Ref{Kind: model.KindNode, Key: model.Key{Name: "n1"}}},
		PodCIDRs: []netip.Prefix{netip.MustParsePrefix(n.Spec.PodCIDRs[0])}, Annotations: n.Metadata.Annotations})})
	if out, err := o.step(t.Context()); err != nil || len(out.Changes) != 0 {
		t.Errorf("second step: %+v, %v", out, err)
	}
}
