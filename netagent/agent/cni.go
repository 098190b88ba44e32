package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/braidnet/braid/internal/kernel/link"
	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/internal/reconcile"
	"github.com/braidnet/braid/netagent/install"
)

// Conflist is the file name of the CNI configuration. Runtimes take the first file by name.
const Conflist = "10-braid.conflist"

// readyFile is a file in the run folder that the CNI plugin's STATUS looks for. The configuration outlives a
// restart of the machine, while routes and rules do not, and nor does the run folder.
const readyFile = "ready"

type cniRange struct {
	Subnet netip.Prefix `json:"subnet"`
}

type cniIPAM struct {
	Ranges  [][]cniRange `json:"ranges"`
	DataDir string       `json:"dataDir"`
}

type cniPlugin struct {
	Type         string          `json:"type"`
	Capabilities map[string]bool `json:"capabilities"` // what the runtime is to tell the plugin about each pod
	ReadyFile    string          `json:"readyFile"`
	PolicySocket string          `json:"policySocket,omitempty"` // of the agent, while it enforces policy
	PolicyFirst  bool            `json:"policyFirst,omitempty"`
	Mode         string          `json:"mode,omitempty"`
	Bridge       string          `json:"bridge,omitempty"`
	MTU          int             `json:"mtu,omitempty"`
	IPAM         cniIPAM         `json:"ipam"`
}

type cniConflist struct {
	Version  string      `json:"cniVersion"`  // for runtimes that do not know the list
	Versions []string    `json:"cniVersions"` // the runtime takes the newest that it knows
	Name     string      `json:"name"`
	Plugins  []cniPlugin `json:"plugins"`
}

// cniStep writes the conflist that makes the runtime call our CNI plugin. It runs only after
// overlay and services are in force, and repairs the file when somebody changed or removed it.
func (a *Agent) cniStep(context.Context) (reconcile.Outcome, error) {
	a.tellFound() // this step is repeated whenever one of it changes
	node, _ := a.store.Get(model.Ref{Kind: model.KindNode, Key: model.Key{Name: a.cfg.Node}}).(*model.Node)
	switch {
	case node == nil:
		return reconcile.Outcome{}, fmt.Errorf("node %s is not in the cluster: is --node the name that `kubectl get nodes` prints?", a.cfg.Node)
	case len(node.PodCIDRs) == 0:
		return reconcile.Outcome{}, fmt.Errorf("%s has no spec.podCIDRs: let the controller manager allocate them (--allocate-node-cidrs) or set them", node.Origin)
	}
	want, err := json.MarshalIndent(a.conflist(node), "", "  ")
	if err != nil {
		return reconcile.Outcome{}, err
	}
	if err := a.saveReady(); err != nil {
		return reconcile.Outcome{}, err
	}
	path := filepath.Join(a.cfg.CNIConfDir, Conflist)
	out := reconcile.Outcome{Summary: fmt.Sprintf("%s: pods get %v", path, node.PodCIDRs)}
	if have, err := os.ReadFile(path); err == nil && bytes.Equal(have, want) {
		return out, nil
	}
	out.Changes = []string{"wrote " + path}
	if err := os.MkdirAll(a.cfg.CNIConfDir, 0o755); err != nil {
		return out, err
	}
	return out, install.Replace(path, want, 0o644)
}

func (a *Agent) saveReady() error {
	path := filepath.Join(a.cfg.RunDir, readyFile)
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	if err := os.MkdirAll(a.cfg.RunDir, 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, []byte("routes and services have been in force since this file was made\n"), 0o644)
}

// podMTU is the MTU of pods, bytes; 0 where it is not known, or is the kernel's to choose.
func (a *Agent) podMTU() int {
	switch {
	case a.cfg.MTU > 0:
		return a.cfg.MTU
	case a.overlay != nil:
		return int(a.overlay.mtu.Load())
	}
	return 0
}

func (a *Agent) conflist(node *model.Node) cniConflist {
	p := cniPlugin{Type: "braid", Capabilities: map[string]bool{"portMappings": true, "bandwidth": true},
		ReadyFile: filepath.Join(a.cfg.RunDir, readyFile), Bridge: link.PodBridge, IPAM: cniIPAM{DataDir: filepath.Join(a.cfg.StateDir, "networks")}}
	if a.cfg.PodMode == "routed" {
		p.Mode, p.Bridge = a.cfg.PodMode, ""
	}
	p.MTU = a.podMTU()
	if a.policies != nil {
		p.PolicySocket, p.PolicyFirst = a.cfg.Socket(), a.cfg.PolicyFirst
	}
	for _, c := range node.PodCIDRs {
		p.IPAM.Ranges = append(p.IPAM.Ranges, []cniRange{{c}})
	}
	return cniConflist{Version: "1.0.0", Versions: []string{"1.0.0", "1.1.0"}, Name: "braid", Plugins: []cniPlugin{p}}
}
