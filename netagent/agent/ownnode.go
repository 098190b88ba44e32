package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/internal/reconcile"
	"github.com/braidnet/braid/netagent/agent/api"
	"github.com/braidnet/braid/netagent/install"
	"github.com/braidnet/braid/netagent/overlay"
)

// AnnotationsFile is a file in the run folder. An agent that reads manifests writes nothing into their
// folder: here is what it wants in the annotations of its own Node, as a JSON object of strings, for
// whoever keeps the folder.
const AnnotationsFile = "node-annotations.json"

// ownNode keeps what this node writes into its own Node: annotations that other nodes need, and pod CIDRs
// where the cluster gives none.
type ownNode struct {
	agent *Agent
	keys  *keyring // nil unless the overlay is wireguard
	under bool     // settings choose where other nodes reach this one
	lease *lease   // nil unless pod CIDRs are to be taken

	api api.Client
}

// buildOwnNode adds the loop of what this node writes into its own Node, where there is any of that.
func (a *Agent) buildOwnNode() {
	n := &ownNode{agent: a}
	if a.overlay != nil && a.cfg.Overlay == "wireguard" {
		n.keys = a.overlay.cfg.Keys
	}
	if a.cfg.AllocateNodeCIDRs {
		from, _ := prefixes(a.cfg.DetectLocal.ClusterCIDR) // Validate has read it
		n.lease = &lease{api: n, node: a.cfg.Node, from: from, bits: a.cfg.nodeMask, pause: pauseFor}
	}
	n.under = a.overlay != nil && a.cfg.Interface.given()
	if n.keys == nil && n.lease == nil && !n.under {
		return
	}
	a.addLoop("own-node", n.step, 10*time.Second)
	if n.keys != nil || n.under {
		a.overlay.onOwn = a.byName["own-node"].Kick
	}
}

// wanted are the annotations that this node should have, "" for those that it should not have.
func (o *ownNode) wanted(node *model.Node) map[string]string {
	want := map[string]string{}
	if o.keys != nil {
		want = o.keys.annotations()
	}
	if a := o.agent.overlay; o.under && a.own.Load() != nil {
		want[overlay.UnderlayAnnotation] = ""
		without, _ := overlay.Addresses(&model.Node{InternalIPs: node.InternalIPs})
		if own := *a.own.Load(); !slices.Equal(own, without) {
			words := make([]string, len(own))
			for i, addr := range own {
				words[i] = addr.String()
			}
			want[overlay.UnderlayAnnotation] = strings.Join(words, ",")
		}
	}
	return want
}

// step writes the annotations where they differ.
func (o *ownNode) step(ctx context.Context) (out reconcile.Outcome, err error) {
	node, _ := o.agent.store.Get(model.Ref{Kind: model.KindNode, Key: model.Key{Name: o.agent.cfg.Node}}).(*model.Node)
	if node != nil && len(node.PodCIDRs) == 0 && o.lease != nil {
		got, err := o.lease.take(ctx)
		if err != nil {
			return out, fmt.Errorf("take pod CIDRs for %s: %w", node.Origin, err)
		}
		out.Changes = append(out.Changes, fmt.Sprintf("took pod CIDRs %s for %s: the cluster gave it none", join(got), node.Origin))
	}
	if node == nil {
		out.Summary = "nothing to write"
		return out, nil
	}
	want := o.wanted(node)
	if o.agent.cfg.Manifests != "" {
		return out, o.save(want)
	}
	patch := map[string]any{}
	for name, value := range want {
		switch have, ok := node.Annotations[name]; {
		case value == "" && ok:
			patch[name] = nil
		case value != "" && have != value:
			patch[name] = value
		}
	}
	out.Summary = fmt.Sprintf("%d annotations of %s", len(want), node.Origin)
	if len(patch) == 0 {
		return out, nil
	}
	body, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": patch}})
	if err == nil {
		err = o.patch(ctx, body)
	}
	if err != nil {
		return out, fmt.Errorf("write the annotations of %s: %w", node.Origin, err)
	}
	for name, value := range patch {
		if value == nil {
			out.Changes = append(out.Changes, fmt.Sprintf("took annotation %s from %s: its InternalIPs are right", name, node.Origin))
			continue
		}
		out.Changes = append(out.Changes, fmt.Sprintf("set annotation %s of %s to %s", name, node.Origin, value))
	}
	return out, nil
}

// save writes the file for whoever keeps the manifests, when it does not say so already.
func (o *ownNode) save(want map[string]string) error {
	path := filepath.Join(o.agent.cfg.RunDir, AnnotationsFile)
	maps.DeleteFunc(want, func(_, value string) bool { return value == "" })
	data, err := json.Marshal(want)
	if err != nil {
		return err
	}
	have, err := os.ReadFile(path)
	if err == nil && bytes.Equal(have, data) || os.IsNotExist(err) && len(want) == 0 {
		return nil
	}
	return install.Replace(path, data, 0o644)
}

// patch changes this node's Node by a JSON merge patch (RFC 7386). One that names a resourceVersion is
// refused when the Node has changed since.
func (o *ownNode) patch(ctx context.Context, body []byte) error {
	_, err := o.ask(ctx, http.MethodPatch, "api/v1/nodes/"+o.agent.cfg.Node, body)
	return err
}

// nodes lists all Nodes as they are now, not as a cache had them.
func (o *ownNode) nodes(ctx context.Context) ([]leaseNode, error) {
	text, err := o.ask(ctx, http.MethodGet, "api/v1/nodes", nil)
	if err != nil {
		return nil, err
	}
	var list struct{ Items []leaseNode }
	if err := json.Unmarshal(text, &list); err != nil {
		return nil, fmt.Errorf("list Nodes: %w", err)
	}
	return list.Items, nil
}

// ask sends one request to the API server and returns the answer.
func (o *ownNode) ask(ctx context.Context, method, path string, body []byte) ([]byte, error) {
	o.api.Kubeconfig, o.api.Context = o.agent.cfg.Kubeconfig, o.agent.cfg.Context
	text, err := o.api.Ask(ctx, method, path, "application/merge-patch+json", body)
	var refused *api.Error
	if errors.As(err, &refused) && refused.Code == http.StatusForbidden {
		return nil, fmt.Errorf("the API server forbids it: apply the component deploy/own-node, which grants it: %s", refused.Message)
	}
	return text, err
}
