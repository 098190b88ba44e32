package main

import (
	"fmt"
	"strings"
	"time"
)

// Where the pods of the manifests are.
const (
	system       = "kube-system"
	agentLabel   = "app.kubernetes.io/name=netagent"
	coreDNSLabel = "app.kubernetes.io/name=coredns"
	agentProgram = "netagent"
)

// deletePods deletes pods and waits until others have taken their place.
func (r *rig) deletePods(selector string, pods ...pod) error {
	for _, p := range pods {
		if err := r.api.delete(r.ctx, p.path()); err != nil {
			return err
		}
	}
	_, err := r.api.awaitPods(r.ctx, system, selector, r.o.Nodes, pods...)
	return err
}

// inTurnAndTogether deletes a DaemonSet's pods one after another, then all at once.
func (r *rig) inTurnAndTogether(selector, what string) error {
	pods, err := r.api.awaitPods(r.ctx, system, selector, r.o.Nodes)
	if err != nil {
		return err
	}
	if err := r.leftBehind(); err != nil {
		return err
	}
	begin := time.Now()
	for _, p := range pods {
		if err := r.deletePods(selector, p); err != nil {
			return err
		}
	}
	if err := r.judgeTraffic(fmt.Sprintf("%s deleted one after another (%.0fs)", what, time.Since(begin).Seconds())); err != nil {
		return err
	}
	if pods, err = r.api.awaitPods(r.ctx, system, selector, r.o.Nodes); err != nil {
		return err
	}
	begin = time.Now()
	if err := r.deletePods(selector, pods...); err != nil {
		return err
	}
	return r.judgeTraffic(fmt.Sprintf("%s deleted all at once (%.0fs)", what, time.Since(begin).Seconds()))
}

// faultAgents: traffic does not depend on a running agent, and the next one adopts what it finds.
func faultAgents(r *rig) error {
	if err := r.freshAgents(); err != nil {
		return err
	}
	before, err := r.kernels()
	if err != nil {
		return err
	}
	if err := r.inTurnAndTogether(agentLabel, "agent pods"); err != nil {
		return err
	}
	if err := r.judgeKernels(before, "agent pods deleted"); err != nil {
		return err
	}
	if err := r.killAgents(); err != nil {
		return err
	}
	if err := r.judgeTraffic("agent processes killed"); err != nil {
		return err
	}
	return r.judgeKernels(before, "agent processes killed")
}

// killAgent kills a node's agent in the middle of whatever it does. The kubelet starts it again.
func (r *rig) killAgent(node string) error {
	_, err := r.o.output(r.ctx, node, true, "pkill", "-KILL", "-x", agentProgram)
	return err
}

// freshAgents replaces the agents: new ones leave out what the old ones kept for frontends that are gone, and
// have no back-off of earlier faults.
func (r *rig) freshAgents() error {
	pods, err := r.api.awaitPods(r.ctx, system, agentLabel, r.o.Nodes)
	if err != nil {
		return err
	}
	return r.deletePods(agentLabel, pods...)
}

// killAgents kills the agents of all nodes and waits until others are ready.
func (r *rig) killAgents() error {
	for i := range r.o.Nodes {
		if err := r.killAgent(nodeName(i + 1)); err != nil {
			return err
		}
	}
	return r.agentsReady()
}

// agentsReady waits until every node's agent says that the newest state is in the kernel.
func (r *rig) agentsReady() error {
	return await(r.ctx, "the agents to be ready", 2*time.Minute, func() error {
		for i := range r.o.Nodes {
			if _, err := r.o.output(r.ctx, nodeName(i+1), true, "curl", "-fsS", "http://127.0.0.1:10249/readyz"); err != nil {
				return err
			}
		}
		return nil
	})
}

// faultCoreDNS: a pod asks the CoreDNS of its own node while that is ready, and another one else. Only when
// all of them go at once is there a time without any.
func faultCoreDNS(r *rig) error {
	return r.inTurnAndTogether(coreDNSLabel, "CoreDNS pods")
}

// containers returns a node's containers of a pod, by the labels that containerd takes from it: their IDs.
func (r *rig) containers(node, name, kind string) ([]string, error) {
	filter := fmt.Sprintf(`labels."io.kubernetes.pod.name"==%s,labels."io.cri-containerd.kind"==%s`, name, kind)
	out, err := r.o.output(r.ctx, node, true, nodeBin+"/ctr", "-n", "k8s.io", "containers", "list", "-q", filter)
	return strings.Fields(out), err
}
