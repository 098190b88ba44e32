package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// controlPlane are the programs that go with the API server. When it goes, the others give up their leases
// and are started anew on a real cluster too.
func (o *options) controlPlane() []job { return []job{o.apiserver(), o.controllers(), o.scheduler()} }

// followWithin is how long after the API server's return it may take until a change works: names, too.
const followWithin = 20 * time.Second

// Pods of faultAPIServer: one that loses its sandbox, and static ones.
const (
	victim = "victim"
	still  = "still"  // in a namespace without policies
	walled = "walled" // in one whose policies select everything
)

// servePod is a pod of the load image that answers with its name, on one node.
func servePod(namespace, name, node string) map[string]any {
	return map[string]any{
		"apiVersion": "v1", "kind": "Pod",
		"metadata": map[string]any{"name": name, "namespace": namespace},
		"spec": map[string]any{
			"nodeName": node, "terminationGracePeriodSeconds": 0,
			"containers": []any{map[string]any{"name": "web", "image": loadImage, "imagePullPolicy": "Never", "args": []string{"serve", ":8080"}}},
		},
	}
}

// faultAPIServer: without an API server everything that is there works on, nothing is withdrawn, and the
// kubelet can make pods of which it knows.
func faultAPIServer(r *rig) error {
	node := nodeName(1)
	if err := r.api.do(r.ctx, "POST", "/api/v1/namespaces/"+faultsNamespace+"/pods", servePod(faultsNamespace, victim, node), nil); err != nil {
		return err
	}
	defer r.tidy("pod", victim)
	if _, err := r.o.kubectl(r.ctx, "wait", "-n", faultsNamespace, "pod/"+victim, "--for=condition=Ready", "--timeout=60s"); err != nil {
		return err
	}
	if err := r.freshAgents(); err != nil {
		return err
	}
	before, err := r.kernels()
	if err != nil {
		return err
	}
	if err := r.leftBehind(); err != nil {
		return err
	}
	began := time.Now()
	if err := r.stopControlPlane(); err != nil {
		return err
	}
	defer r.removeStatic(node)
	err = r.withoutAPI(node)
	if err == nil {
		err = pause(r.ctx, r.apiDown-time.Since(began))
	}
	if err == nil {
		err = r.agentsStart()
	}
	if err == nil {
		err = r.judgeTraffic(fmt.Sprintf("%.0fs without API server", time.Since(began).Seconds()))
	}
	if err == nil {
		err = r.judgeKernels(before, "without API server")
	}
	if err := joinErr(err, r.startControlPlane()); err != nil {
		return err
	}
	if err := r.followsAgain(); err != nil {
		return err
	}
	err = r.answers(node, still+"-"+node, "")
	r.verdict(err == nil, "API server back: the static pod that no policy selects answers%s", because(err))
	name, reached := r.reached(node, walled+"-"+node)
	r.verdict(!reached, "API server back: the static pod that policies isolate is not reached%s", name)
	return r.judgeTraffic("API server back")
}

func joinErr(first, then error) error {
	if first != nil && then != nil {
		return fmt.Errorf("%w; and then: %w", first, then)
	}
	if first != nil {
		return first
	}
	return then
}

// tidy deletes an object of the faults' namespace, which goes with it at the latest.
func (r *rig) tidy(kind, name string) {
	if _, err := r.o.kubectl(context.WithoutCancel(r.ctx), "delete", kind, name, "-n", faultsNamespace, "--ignore-not-found"); err != nil {
		r.note("%v", err)
	}
}

func (r *rig) stopControlPlane() error {
	for _, j := range r.o.controlPlane() {
		if _, err := ask(r.ctx, r.o, control, request{Stop: j.Name, Signal: 9}); err != nil {
			return err
		}
	}
	return nil
}

// startControlPlane works after ctx has ended too: a cluster is not left without.
func (r *rig) startControlPlane(gates ...string) error {
	ctx := context.WithoutCancel(r.ctx)
	for n, j := range r.o.controlPlane() {
		if n == 0 && len(gates) > 0 {
			j.Argv = append(j.Argv, "--feature-gates="+strings.Join(gates, ","))
		}
		if err := start(ctx, r.o, control, j); err != nil {
			return err
		}
		err := await(ctx, j.Name, time.Minute, func() error {
			if err := alive(ctx, r.o, control, j.Name); err != nil {
				return err
			}
			return r.api.get(ctx, "/version", nil)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// withoutAPI is what has to work while there is no API server, besides the traffic.
func (r *rig) withoutAPI(node string) error {
	old, err := r.containers(node, victim, "sandbox")
	if err != nil {
		return err
	}
	if len(old) != 1 {
		return fmt.Errorf("pod %s has sandboxes %v, want one", victim, old)
	}
	begin := time.Now()
	if _, err := r.o.output(r.ctx, node, true, nodeBin+"/ctr", "-n", "k8s.io", "tasks", "kill", "--signal", "SIGKILL", old[0]); err != nil {
		return err
	}
	err = r.answers(node, victim, old[0])
	r.verdict(err == nil, "without API server: a pod whose sandbox was killed answers again, with a new one, after %.1fs%s", time.Since(begin).Seconds(), because(err))

	begin = time.Now()
	if err := r.makeStatic(node); err != nil {
		return err
	}
	for _, name := range []string{still, walled} {
		err := r.runs(node, name+"-"+node)
		r.verdict(err == nil, "without API server: static pod %s is made after %.1fs%s", name, time.Since(begin).Seconds(), because(err))
		if err == nil {
			// Nobody knows yet which policies select it.
			answer, reached := r.reached(node, name+"-"+node)
			r.verdict(!reached, "without API server: static pod %s is cut off%s", name, answer)
		}
	}
	return nil
}

func (r *rig) staticManifest(node, name string) string {
	return r.o.path(node, "var/lib/kubelet/manifests", name+".json")
}

// makeStatic has a node's kubelet make the static pods, which takes no API server.
func (r *rig) makeStatic(node string) error {
	for name, namespace := range map[string]string{still: faultsNamespace, walled: guarded} {
		data, err := json.Marshal(servePod(namespace, name, ""))
		if err != nil {
			return err
		}
		file := r.staticManifest(node, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(file, data, 0o644); err != nil {
			return err
		}
	}
	return nil
}

func (r *rig) removeStatic(node string) {
	for _, name := range []string{still, walled} {
		if err := os.Remove(r.staticManifest(node, name)); err != nil {
			r.note("%v", err)
		}
	}
}

// addresses are those that a node holds for a pod's sandboxes.
func (r *rig) addresses(node, name string) (out []string, err error) {
	ids, err := r.containers(node, name, "sandbox")
	if err != nil {
		return nil, err
	}
	held, err := r.o.reservations(node)
	for addr, owner := range held {
		if slices.Contains(ids, owner) {
			out = append(out, addr)
		}
	}
	return out, err
}

// runs waits until a pod's container is there and its sandbox has addresses.
func (r *rig) runs(node, name string) error {
	return await(r.ctx, name+" to run", time.Minute, func() error {
		made, err := r.containers(node, name, "container")
		if err != nil {
			return err
		}
		addrs, err := r.addresses(node, name)
		if err == nil && (len(made) == 0 || len(addrs) == 0) {
			err = fmt.Errorf("it has containers %v and addresses %v", made, addrs)
		}
		return err
	})
}

// reached tells whether a pod of the first node answers the second.
func (r *rig) reached(node, name string) (answer string, yes bool) {
	return r.reachedFrom(nodeName(2), node, name)
}

// reachedFrom asks a pod again and again for some seconds from another node, and returns what it answers.
func (r *rig) reachedFrom(asker, node, name string) (answer string, yes bool) {
	for begin := time.Now(); time.Since(begin) < quiet; {
		addrs, err := r.addresses(node, name)
		if err != nil {
			return ": " + err.Error(), true
		}
		for _, addr := range addrs {
			if got, err := r.o.askName(asker, addr); err == nil {
				return fmt.Sprintf(": %s answered %q", addr, got), true
			}
		}
		if err := pause(r.ctx, 100*time.Millisecond); err != nil {
			return ": " + err.Error(), true
		}
	}
	return "", false
}

// agentsStart kills the agents while there is no API server: the kubelet has to have at hand all that their
// containers need.
func (r *rig) agentsStart() error {
	begin := time.Now()
	for i := range r.o.Nodes {
		if err := r.killAgent(nodeName(i + 1)); err != nil {
			return err
		}
	}
	err := await(r.ctx, "the agents to be started again", time.Minute, func() error {
		for i := range r.o.Nodes {
			if _, err := r.o.output(r.ctx, nodeName(i+1), true, "pgrep", "-x", agentProgram); err != nil {
				return err
			}
		}
		return nil
	})
	r.verdict(err == nil, "without API server: agents that were killed run again after %.1fs%s", time.Since(begin).Seconds(), because(err))
	return nil
}

// answers waits until a pod answers with its name, from another node's view, in a sandbox other than old. The
// reservation says which address that has: nobody else does without an API server.
func (r *rig) answers(node, name, old string) error {
	return await(r.ctx, name+" to answer", time.Minute, func() error {
		ids, err := r.containers(node, name, "sandbox")
		if err != nil {
			return err
		}
		held, err := r.o.reservations(node)
		if err != nil {
			return err
		}
		for addr, owner := range held {
			if owner == old || !slices.Contains(ids, owner) {
				continue
			}
			if got, err := r.o.askName(nodeName(2), addr); err != nil || got != name {
				return fmt.Errorf("%s says %q: %v", addr, got, err)
			}
			return nil
		}
		return fmt.Errorf("no address is reserved for one of its sandboxes %v, other than %s", ids, old)
	})
}

// followsAgain makes a Service and waits until it works on every node, by address and by name.
func (r *rig) followsAgain() error {
	const name = "later"
	begin := time.Now()
	body := map[string]any{"apiVersion": "v1", "kind": "Service", "metadata": map[string]any{"name": name},
		"spec": map[string]any{"selector": map[string]string{"app": "web"}, "ports": []any{map[string]any{"port": webPort}}}}
	var svc checkService
	// The API server says "range is full" until it has read its own ranges.
	err := await(r.ctx, "the API server to give a new Service an address", followWithin, func() error {
		return r.api.do(r.ctx, "POST", "/api/v1/namespaces/"+faultsNamespace+"/services", body, &svc)
	})
	if err != nil {
		return err
	}
	defer r.tidy("service", name)
	err = await(r.ctx, "a new Service to work everywhere", followWithin, func() error {
		for i := range r.o.Nodes {
			node, ip := nodeName(i+1), svc.Spec.ClusterIPs[0]
			if _, err := r.o.askName(node, ip.String()); err != nil {
				return fmt.Errorf("%s: %w", node, err)
			}
			kind := "A"
			if ip.Is6() {
				kind = "AAAA"
			}
			out, err := r.o.output(r.ctx, node, true, "dig", "+short", "+tries=1", "+time=1", "@"+r.o.families()[0].dns.String(),
				name+"."+faultsNamespace+".svc.cluster.local", kind)
			if err != nil || strings.TrimSpace(out) != ip.String() {
				return fmt.Errorf("%s: the name is answered with %q: %v", node, strings.TrimSpace(out), err)
			}
		}
		return nil
	})
	r.verdict(err == nil, "API server back: a new Service works everywhere, by address and name, after %.1fs%s", time.Since(begin).Seconds(), because(err))
	return nil
}
