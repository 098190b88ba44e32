package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// convergeWithin is how long after the API server's return everything that was changed may take to be in force
// (F4 of the policy tests' list).
const convergeWithin = 5 * time.Second

const (
	backlogSize  = 500
	backlogLabel = "braid-backlog"
	markerPort   = 8082 // of the guarded servers: opened by the last object that is changed
)

// faultBacklog takes the API server away from the nodes alone, for as long as objects are changed. Before and after, the same
// pods may reach each other, and at no time of the API server's may others. But an agent that took the new namespaces
// in before the new policy would let strangers in, and one that took them in after it would shut friends out.
func faultBacklog(r *rig) (err error) {
	defer func() { err = joinErr(err, r.endBacklog()) }()
	if err := r.changeBacklog("before"); err != nil {
		return err
	}
	if err := r.leftBehind(); err != nil {
		return err
	}
	if err := r.cutAPI(); err != nil {
		return err
	}
	// What the API server knew of the past is lost with it: whoever watches has to begin anew.
	if err := joinErr(r.stopControlPlane(), r.startControlPlane()); err != nil {
		return err
	}
	begin := time.Now()
	if err := errors.Join(r.changeBacklog("after"), r.swapTeams(true)); err != nil {
		return err
	}
	revision, err := r.compact()
	if err != nil {
		return err
	}
	r.note("%d objects changed in %.1fs, etcd compacted at revision %d", backlogSize, time.Since(begin).Seconds(), revision)
	if err := r.judgeTraffic("nodes without API server"); err != nil {
		return err
	}
	begin = time.Now()
	if err := r.healAPI(); err != nil {
		return err
	}
	took, err := r.converged(begin, true)
	r.verdict(err == nil && took <= convergeWithin, "API server back: the last of %d changes is in force on all nodes after %.1fs (at most %s)%s", backlogSize, took.Seconds(), convergeWithin, because(err))
	if err := r.judgeTraffic("API server back with changes"); err != nil {
		return err
	}
	return r.droppedWatches()
}

// droppedWatches restarts the API server again and again while the teams change back and forth, in the order in which
// at most friends are shut out.
func (r *rig) droppedWatches() error {
	for range 3 {
		if err := joinErr(r.stopControlPlane(), r.startControlPlane()); err != nil {
			return err
		}
	}
	if err := r.agentsReady(); err != nil {
		return err
	}
	return r.judgeTraffic("API server killed three times")
}

// cutAPI keeps the nodes from the API server. Established connections are cut too, as soon as something is sent.
func (r *rig) cutAPI() error {
	_, err := r.o.output(r.ctx, control, false, "nft", fmt.Sprintf("table inet braid-cut { chain input { type filter hook input priority 0; iifname %q tcp dport %d reject with tcp reset; }; }", bridge, apiPort))
	return err
}

// healAPI undoes that, whether it is there or not, also after the end of ctx.
func (r *rig) healAPI() error {
	_, err := r.o.output(context.WithoutCancel(r.ctx), control, false, "nft", "add table inet braid-cut; delete table inet braid-cut")
	return err
}

// everyObject calls fn for the backlog's numbers, some at a time.
func everyObject(fn func(i int) error) error {
	const workers = 8
	var next atomic.Int64
	var wg sync.WaitGroup
	errs := make([]error, workers)
	for w := range workers {
		wg.Go(func() {
			for i := next.Add(1); i <= backlogSize && errs[w] == nil; i = next.Add(1) {
				errs[w] = fn(int(i))
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

const applied = "?fieldManager=braid-faults&force=true"

// apply is a server-side apply of one object.
func (a *api) apply(ctx context.Context, path string, object map[string]any) error {
	return a.do(ctx, apply, path+applied, object, nil)
}

// changeBacklog makes or changes the backlog: policies for the guarded servers that let in nobody who exists, and Services.
func (r *rig) changeBacklog(value string) error {
	return everyObject(func(i int) error {
		name := fmt.Sprintf("backlog-%d", i)
		meta := map[string]any{"name": name, "namespace": guarded, "labels": map[string]string{backlogLabel: value}}
		if i%2 == 0 {
			port := map[string]int{"before": 1000, "after": 2000}[value] + i
			return r.api.apply(r.ctx, "/api/v1/namespaces/"+guarded+"/services/"+name, map[string]any{
				"apiVersion": "v1", "kind": "Service", "metadata": meta,
				"spec": map[string]any{"selector": map[string]string{"app": "guarded"}, "ports": []any{map[string]any{"port": 80, "targetPort": port}}}})
		}
		third := map[string]int{"before": 0, "after": 1}[value]
		block := fmt.Sprintf("203.0.%d.%d/32", 112+third, i/2)
		return r.api.apply(r.ctx, "/apis/networking.k8s.io/v1/namespaces/"+guarded+"/networkpolicies/"+name, allowBlock(meta, block, webPort))
	})
}

func allowBlock(meta map[string]any, block string, port int) map[string]any {
	return map[string]any{"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": meta,
		"spec": map[string]any{"podSelector": map[string]any{"matchLabels": map[string]string{"app": "guarded"}},
			"ingress": []any{map[string]any{"from": []any{map[string]any{"ipBlock": map[string]any{"cidr": block}}}, "ports": []any{map[string]any{"port": port}}}}}}
}

// swapTeams has the policy admit another team, to which friends go, and gives strangers the name of the one before. The
// order is that in which strangers are never admitted. In the end the marker opens.
func (r *rig) swapTeams(swapped bool) error {
	policy := "/apis/networking.k8s.io/v1/namespaces/" + guarded + "/networkpolicies/"
	team := func(namespace, name string) error { return r.api.setTeam(r.ctx, namespace, name) }
	if !swapped {
		if err := errors.Join(team(strangers, ""), team(friends, "friends")); err != nil {
			return err
		}
		return r.o.apply(r.ctx, r.o.wallsManifest())
	}
	if err := r.o.apply(r.ctx, r.o.wallsOf("allies")); err != nil {
		return err
	}
	if err := errors.Join(team(friends, "allies"), team(strangers, "friends")); err != nil {
		return err
	}
	meta := map[string]any{"name": "marker", "namespace": guarded, "labels": map[string]string{backlogLabel: "marker"}}
	f := r.o.families()[0]
	return r.api.apply(r.ctx, policy+"marker", allowBlock(meta, netip.PrefixFrom(f.control, f.control.BitLen()).String(), markerPort))
}

// converged waits until the marker is in force for all servers, and returns how long that took.
func (r *rig) converged(begin time.Time, open bool) (time.Duration, error) {
	err := await(r.ctx, "the last change to be in force", time.Minute, func() error {
		for _, p := range r.traffic.walls.servers {
			addr := netip.AddrPortFrom(netip.MustParseAddr(p.Status.PodIPs[0].IP), markerPort)
			if _, err := r.o.askLoad(control, addr, "who"); (err == nil) != open {
				return fmt.Errorf("%s on %s: %v", p.Metadata.Name, p.Spec.NodeName, err)
			}
		}
		return nil
	})
	return time.Since(begin), err
}

// compact has etcd forget its past.
func (r *rig) compact() (revision int64, err error) {
	var status struct {
		Header struct {
			Revision int64 `json:",string"`
		}
	}
	text, err := r.o.output(r.ctx, control, false, "curl", "-fsS", "-d", "{}", "http://127.0.0.1:2379/v3/maintenance/status")
	if err != nil {
		return 0, err
	}
	if err := json.Unmarshal([]byte(text), &status); err != nil {
		return 0, err
	}
	_, err = r.o.output(r.ctx, control, false, "curl", "-fsS", "-d", fmt.Sprintf(`{"revision":"%d","physical":true}`, status.Header.Revision), "http://127.0.0.1:2379/v3/kv/compaction")
	return status.Header.Revision, err
}

// endBacklog leaves the cluster as it was.
func (r *rig) endBacklog() error {
	if err := r.healAPI(); err != nil {
		return err
	}
	if _, err := r.o.kubectl(context.WithoutCancel(r.ctx), "delete", "networkpolicies,services", "-n", guarded, "-l", backlogLabel, "--wait=false"); err != nil {
		return err
	}
	if err := r.swapTeams(false); err != nil {
		return err
	}
	_, err := r.converged(time.Now(), false)
	return err
}

// faultAlone: what an agent finds when it starts without an API server, it keeps; where it finds nothing, it cuts pods
// off. A node that starts without one makes no pods before its agent runs. Nobody is let through who must not be.
func faultAlone(r *rig) error {
	i := r.o.Nodes
	node := nodeName(i)
	if err := r.stopControlPlane(); err != nil {
		return err
	}
	err := r.flushedAlone(node)
	if err == nil {
		err = r.rebootedAlone(i)
	}
	if err := joinErr(err, r.startControlPlane()); err != nil {
		return err
	}
	err = r.settled(node, nil)
	r.verdict(err == nil, "API server back: %s is Ready and its pods run%s", node, because(err))
	return r.newTraffic()
}

// flushedAlone kills an agent, and takes its rules away before there is another. Until then nobody holds anything.
func (r *rig) flushedAlone(node string) error {
	const table = "table ip6 braid-policy" // the last that is made
	// The tables are the agent's until the kernel has closed its socket, and the kubelet is quick to start another.
	script := "pkill -KILL -x " + agentProgram + "; for i in $(seq 100); do nft flush ruleset; nft list table ip braid-policy >/dev/null 2>&1 || exit 0; done; exit 1"
	if _, err := r.o.output(r.ctx, node, true, "sh", "-c", script); err != nil {
		return fmt.Errorf("take the rules of %s away while it has no agent: %w", node, err)
	}
	begin := time.Now()
	err := await(r.ctx, "pods to be cut off", time.Minute, func() error {
		_, err := r.o.output(r.ctx, node, true, "sh", "-c", "nft list "+table+" >/dev/null")
		return err
	})
	r.verdict(err == nil, "without API server: an agent that found no rules cuts pods off, %.1fs after they were flushed%s", time.Since(begin).Seconds(), because(err))
	if err := r.leftBehind(); err != nil {
		return err
	}
	if _, err := r.traffic.walls.accepted(r.ctx, r.o); err != nil {
		return err
	}
	if err := pause(r.ctx, 2*quiet); err != nil {
		return err
	}
	return r.judgeForbidden("without API server, after the flush")
}

// judgeForbidden is judgeTraffic where what is allowed cannot go on.
func (r *rig) judgeForbidden(during string) error {
	t, failures, accepted, err := r.heard()
	if err != nil {
		return err
	}
	r.verdict(t.forbidden.OK > 0 && t.forbidden.Failed == 0 && len(accepted) == 0, "%s: forbidden connections tried %d, let through %d, accepted by servers %d",
		during, t.forbidden.OK+t.forbidden.Failed, t.forbidden.Failed, len(accepted))
	if t.forbidden.Failed > 0 {
		for _, f := range failures {
			r.note("%s", f)
		}
	}
	return nil
}

// rebootedAlone starts a node whose memory is gone. Its kubelet knows the static pods only, and nobody could say what
// isolates them.
func (r *rig) rebootedAlone(i int) error {
	node := nodeName(i)
	if err := r.makeStatic(node); err != nil {
		return err
	}
	defer r.removeStatic(node)
	if err := joinErr(r.loseNode(i, false), r.bootNode(i, false)); err != nil {
		return err
	}
	err := await(r.ctx, "the kubelet to try to make pods", time.Minute, func() error {
		made, err := r.o.output(r.ctx, node, true, "sh", "-c", "ls /var/log/pods")
		if err == nil && made == "" {
			err = errors.New("it has not")
		}
		return err
	})
	if err != nil {
		return err
	}
	for range 3 {
		for _, name := range []string{still, walled} {
			answer, reached := r.reachedFrom(nodeName(1), node, name+"-"+node)
			r.verdict(!reached, "without API server: static pod %s of a node that has started waits, or is cut off%s", name, answer)
		}
	}
	return nil
}
