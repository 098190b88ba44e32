package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"k8s.io/client-go/rest"

	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/internal/reconcile"
	"github.com/braidnet/braid/internal/source/kube"
	"github.com/braidnet/braid/netagent/install"
	"github.com/braidnet/braid/netagent/overlay"
)

// AnnotationsFile is a file in the run folder. An agent that reads manifests writes nothing into their
// folder: here is what it wants in the annotations of its own Node, as a JSON object of strings, for
// whoever keeps the folder.
const AnnotationsFile = "node-annotations.json"

// ownNode keeps the annotations of this node's own Node that other nodes need.
type ownNode struct {
	agent *Agent
	keys  *keyring // nil unless the overlay is wireguard

	http *http.Client // made when it is needed
	base *url.URL
}

// wanted are the annotations that this node should have.
func (o *ownNode) wanted() map[string]string {
	words := []string{}
	for _, k := range o.keys.public() {
		words = append(words, k.String())
	}
	if len(words) == 0 {
		return nil
	}
	return map[string]string{overlay.KeyAnnotation: strings.Join(words, " ")}
}

// step writes the annotations where they differ.
func (o *ownNode) step(ctx context.Context) (out reconcile.Outcome, err error) {
	want := o.wanted()
	node, _ := o.agent.store.Get(model.Ref{Kind: model.KindNode, Key: model.Key{Name: o.agent.cfg.Node}}).(*model.Node)
	if node == nil || want == nil {
		out.Summary = "nothing to write yet"
		return out, nil
	}
	out.Summary = fmt.Sprintf("%d annotations of %s", len(want), node.Origin)
	if o.agent.cfg.Manifests != "" {
		return out, o.save(want)
	}
	for name, value := range want {
		if node.Annotations[name] == value {
			delete(want, name)
		}
	}
	if len(want) == 0 {
		return out, nil
	}
	body, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": want}})
	if err == nil {
		err = o.patch(ctx, body)
	}
	if err != nil {
		return out, fmt.Errorf("write the annotations of %s: %w", node.Origin, err)
	}
	for name, value := range want {
		out.Changes = append(out.Changes, fmt.Sprintf("set annotation %s of %s to %s", name, node.Origin, value))
	}
	return out, nil
}

// save writes the file for whoever keeps the manifests, when it does not say so already.
func (o *ownNode) save(want map[string]string) error {
	path := filepath.Join(o.agent.cfg.RunDir, AnnotationsFile)
	data, err := json.Marshal(want)
	if err != nil {
		return err
	}
	if have, err := os.ReadFile(path); err == nil && bytes.Equal(have, data) {
		return nil
	}
	return install.Replace(path, data, 0o644)
}

// patch changes this node's Node by a JSON merge patch (RFC 7386). One that names a resourceVersion is
// refused when the Node has changed since.
func (o *ownNode) patch(ctx context.Context, body []byte) error {
	if o.http == nil {
		cfg, err := kube.Config(o.agent.cfg.Kubeconfig, o.agent.cfg.Context)
		if err != nil {
			return err
		}
		if o.base, _, err = rest.DefaultServerUrlFor(cfg); err != nil {
			return err
		}
		if o.http, err = rest.HTTPClientFor(cfg); err != nil {
			return err
		}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPatch, o.base.JoinPath("api/v1/nodes", o.agent.cfg.Node).String(), bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/merge-patch+json")
	resp, err := o.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 4096))
	switch {
	case resp.StatusCode == http.StatusForbidden:
		return fmt.Errorf("the API server forbids it: apply the component deploy/wireguard, which grants it: %s", message(text))
	case resp.StatusCode/100 != 2:
		return fmt.Errorf("the API server answers %s: %s", resp.Status, message(text))
	}
	return nil
}

// message returns the text of a Status object, or all of it when it is none.
func message(body []byte) string {
	var s struct{ Message string }
	if json.Unmarshal(body, &s) == nil && s.Message != "" {
		return s.Message
	}
	return string(bytes.TrimSpace(body))
}
