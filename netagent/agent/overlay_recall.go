package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/netagent/install"
)

// overlayNodesFile is a file in the run folder with the nodes that the overlay was last made for. An agent that starts
// while the API server is away keeps the overlay for these: it repairs it, and carries packets where the kernel does not.
// Like the kernel's state, which is made of the same nodes, it does not outlive the machine.
const overlayNodesFile = "overlay-nodes.json"

// holdAudit is how often the overlay is looked at without an event while it is kept for nodes of the past.
const holdAudit = 30 * time.Second

// knownNode is what an overlay needs to know of a node.
type knownNode struct {
	Name        string            `json:"name"`
	Annotations map[string]string `json:"annotations,omitempty"`
	PodCIDRs    []netip.Prefix    `json:"podCIDRs,omitempty"`
	InternalIPs []netip.Addr      `json:"internalIPs,omitempty"`
}

// nodeMemory is that file. The zero value remembers nothing.
type nodeMemory struct {
	file  string
	kept  []byte       // what the file holds
	nodes *model.Store // what it held at the start; nil = nothing
}

// keep writes the nodes that the overlay was made for, when they are not what the file says already.
func (m *nodeMemory) keep(nodes []model.Object) error {
	if m.file == "" {
		return nil
	}
	list := []knownNode{}
	for _, o := range nodes {
		if n, ok := o.(*model.Node); ok {
			list = append(list, knownNode{n.Name, n.Annotations, n.PodCIDRs, n.InternalIPs})
		}
	}
	data, err := json.Marshal(list)
	if err != nil || bytes.Equal(data, m.kept) {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(m.file), 0o755); err != nil {
		return err
	}
	if err := install.Replace(m.file, data, 0o600); err != nil {
		return fmt.Errorf("keep the nodes of the overlay for the next agent: %w", err)
	}
	m.kept = data
	return nil
}

// recall reads the file and returns how many nodes it knows. Without one it is no error.
func (m *nodeMemory) recall() (count int, err error) {
	if m.file == "" {
		return 0, nil
	}
	data, err := os.ReadFile(m.file)
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	var list []knownNode
	if err == nil {
		err = json.Unmarshal(data, &list)
	}
	if err != nil || len(list) == 0 {
		return 0, err
	}
	m.kept, m.nodes = data, model.NewStore()
	for _, n := range list {
		ref := model.Ref{Kind: model.KindNode, Key: model.Key{Name: n.Name}}
		m.nodes.Apply([]model.Update{model.Set(&model.Node{Origin: model.Origin{Ref: ref, File: m.file},
			Annotations: n.Annotations, PodCIDRs: n.PodCIDRs, InternalIPs: n.InternalIPs})})
	}
	m.nodes.MarkSynced()
	return len(list), nil
}

// known is the store to plan from: the cluster's, or, as long as that is not complete, what is remembered.
func (o *podNetwork) known() *model.Store {
	if o.memory.nodes != nil && !o.store.HasSynced() {
		return o.memory.nodes
	}
	return o.store
}

// hold keeps the overlay as the agent before had it until the cluster's state is complete or ctx ends.
func (o *overlayLoop) hold(ctx context.Context) {
	count, err := o.memory.recall()
	if err != nil {
		o.log.Warn("overlay: the nodes that the last agent knew cannot be read: waiting for the cluster's", "file", o.memory.file, "err", err)
	}
	if count == 0 {
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	kicks := make(chan struct{}, 1)
	var wg sync.WaitGroup
	wg.Go(func() { o.Watch(ctx, func() { hit(kicks) }) })
	defer wg.Wait()
	defer cancel()
	o.log.Info("overlay: kept as the last agent had it until the cluster's state is complete", "nodes", count)
	tick := time.NewTicker(holdAudit)
	defer tick.Stop()
	for last := ""; !o.store.HasSynced(); {
		if _, err := o.Sync(ctx); err != nil && err.Error() != last && ctx.Err() == nil {
			last = err.Error()
			o.log.Warn("overlay: sync for the nodes that the last agent knew failed", "err", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-o.store.Synced():
		case <-kicks:
		case <-tick.C:
		}
	}
}
