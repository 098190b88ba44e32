package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// runTimings measures what users wait for, on a cluster that does nothing else. It prints figures and judges
// none, except that a node has to become Ready.
func runTimings(ctx context.Context, args []string) error {
	o, rest, err := load("timings", args)
	if err != nil {
		return err
	}
	if len(rest) > 0 {
		return usageError{fmt.Errorf("timings: unexpected argument %q", rest[0])}
	}
	a, err := o.api()
	if err != nil {
		return err
	}
	r := &rig{ctx: ctx, o: o, api: a}
	if err := stopTraffic(ctx, o); err != nil {
		return err
	}
	if err := loadProgram(ctx, o); err != nil {
		return err
	}
	if err := o.apply(ctx, "{apiVersion: v1, kind: Namespace, metadata: {name: "+faultsNamespace+"}}"); err != nil {
		return err
	}
	fmt.Printf("network %s, %s, %d nodes\n", o.Network, strings.Join(o.Families, "+"), o.Nodes)
	for _, at := range []int{1, 20} {
		var all []time.Duration
		for range 20 / at {
			took, err := r.createPods(at)
			if err != nil {
				return err
			}
			all = append(all, took...)
		}
		slices.Sort(all)
		fmt.Printf("20 pods, %2d at once, creation to Running: p50 %.2fs, p95 %.2fs, most %.2fs\n", at,
			percentile(all, 50).Seconds(), percentile(all, 95).Seconds(), all[len(all)-1].Seconds())
	}
	if err := stopTraffic(ctx, o); err != nil {
		return err
	}
	if o.Network != networkBraid || o.Deploy == "" {
		return nil
	}
	return r.timeNodeReady()
}

// percentile returns the smallest of the sorted times that p percent do not exceed.
func percentile(sorted []time.Duration, p int) time.Duration {
	return sorted[(len(sorted)*p+99)/100-1]
}

// createPods makes n pods at once on one node, and returns how long after its request each was seen Running.
// Then it deletes them and waits until they are gone.
func (r *rig) createPods(n int) ([]time.Duration, error) {
	ctx, cancel := context.WithTimeout(r.ctx, 2*time.Minute)
	defer cancel()
	pods := "/api/v1/namespaces/" + faultsNamespace + "/pods"
	begun := make(map[string]time.Time, n)
	for i := range n {
		name := fmt.Sprintf("p%d", i)
		begun[name] = time.Now()
		if err := r.api.do(ctx, http.MethodPost, pods, servePod(faultsNamespace, name, nodeName(1)), nil); err != nil {
			return nil, err
		}
	}
	var took []time.Duration
	running := map[string]bool{}
	err := watch(ctx, r.api, pods+"?watch=1", func(_ string, p pod) bool {
		if name := p.Metadata.Name; p.Status.Phase == "Running" && !running[name] {
			running[name] = true
			took = append(took, time.Since(begun[name]))
		}
		return len(running) == n
	})
	if err != nil {
		return nil, err
	}
	for name := range begun {
		if err := r.api.delete(ctx, pods+"/"+name); err != nil {
			return nil, err
		}
	}
	return took, await(ctx, "the pods to go", time.Minute, func() error {
		left, err := r.api.pods(ctx, faultsNamespace, "")
		if err == nil && len(left) > 0 {
			err = fmt.Errorf("%d are left", len(left))
		}
		return err
	})
}

// timeNodeReady removes Braid, installs it again, and compares when each node's agent began with when the
// node was seen Ready.
func (r *rig) timeNodeReady() error {
	if err := r.remove(); err != nil {
		return err
	}
	type node struct {
		Metadata struct{ Name string }
		Status   struct{ Conditions []condition }
	}
	err := await(r.ctx, "nodes without a network", time.Minute, func() error {
		var list struct{ Items []node }
		if err := r.api.get(r.ctx, "/api/v1/nodes", &list); err != nil {
			return err
		}
		for _, n := range list.Items {
			if is(n.Status.Conditions, "Ready") {
				return fmt.Errorf("%s is Ready", n.Metadata.Name)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	applied := time.Now()
	if err := r.o.install(r.ctx); err != nil {
		return err
	}
	ready := map[string]time.Time{}
	ctx, cancel := context.WithTimeout(r.ctx, 2*time.Minute)
	defer cancel()
	err = watch(ctx, r.api, "/api/v1/nodes?watch=1", func(_ string, n node) bool {
		if name := n.Metadata.Name; ready[name].IsZero() && is(n.Status.Conditions, "Ready") {
			ready[name] = time.Now()
		}
		return len(ready) == r.o.Nodes
	})
	if err != nil {
		return err
	}
	for i := range r.o.Nodes {
		name := nodeName(i + 1)
		began, err := r.o.agentBegan(name)
		if err != nil {
			return err
		}
		fmt.Printf("%s Ready %.1fs after its agent's start, %.1fs after `kubectl apply`\n", name,
			ready[name].Sub(began).Seconds(), ready[name].Sub(applied).Seconds())
	}
	_, err = r.o.kubectl(r.ctx, "wait", "--for=condition=Ready", "pods", "--all", "-n", system, "--timeout=120s")
	return err
}

// agentBegan is the time of the first line that a node's newest agent wrote, as containerd notes it.
func (o *options) agentBegan(node string) (first time.Time, err error) {
	logs, err := filepath.Glob(o.path(node, "var/log/pods", system+"_netagent-*", "netagent", "*.log"))
	if err != nil || len(logs) == 0 {
		return first, errors.Join(err, fmt.Errorf("%s has no log of an agent", node))
	}
	for _, path := range logs {
		data, err := os.ReadFile(path)
		if err != nil {
			return first, err
		}
		stamp, _, _ := strings.Cut(string(data), " ")
		begin, err := time.Parse(time.RFC3339Nano, stamp)
		if err != nil {
			return first, fmt.Errorf("%s: %w", path, err)
		}
		if begin.After(first) {
			first = begin
		}
	}
	return first, nil
}
