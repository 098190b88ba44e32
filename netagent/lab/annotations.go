package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"

	"github.com/fsnotify/fsnotify"

	"github.com/braidnet/braid/netagent/agent"
)

// followAnnotations gives the Nodes the annotations that their agents ask for, as the API server would
// on an agent's request, until ctx ends.
func (d *daemon) followAnnotations(ctx context.Context) {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		d.log.Error("watch what agents ask for", "err", err)
		return
	}
	defer w.Close()
	told := map[string]map[string]string{}
	for _, n := range d.o.nodes() {
		if err := w.Add(d.p.node(n.name, "run")); err != nil {
			d.log.Error("watch what the agent asks for", "node", n.name, "err", err)
		}
	}
	for {
		for _, n := range d.o.nodes() {
			if err := d.annotate(&n, told); err != nil {
				d.log.Error("annotate", "node", n.name, "err", err)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-w.Events:
		case err := <-w.Errors:
			d.log.Warn("watch what agents ask for", "err", err)
		}
	}
}

// annotate updates one Node when its agent asks for something new.
func (d *daemon) annotate(n *node, told map[string]map[string]string) error {
	data, err := os.ReadFile(filepath.Join(d.p.node(n.name, "run"), agent.AnnotationsFile))
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		return err
	}
	var asked map[string]string
	if err := json.Unmarshal(data, &asked); err != nil {
		return fmt.Errorf("%s of node %s: %w", agent.AnnotationsFile, n.name, err)
	}
	if maps.Equal(asked, told[n.name]) {
		return nil
	}
	told[n.name] = asked
	o := n.object(d.o.Created)
	o.Annotations = asked
	return d.ctl.AddObjects(o)
}
