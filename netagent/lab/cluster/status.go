package cluster

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Terminating is the phase of a pod that has been deleted and is still there.
const Terminating = "Terminating"

// PodStatus is what the control plane knows of a pod.
type PodStatus struct {
	Namespace   string       `json:"namespace"`
	Name        string       `json:"name"`
	UID         string       `json:"uid"`
	Owner       string       `json:"owner,omitempty"` // "Deployment web"; empty for a pod of its own
	Node        string       `json:"node,omitempty"`  // empty while no node fits
	IPs         []netip.Addr `json:"ips,omitempty"`
	Phase       string       `json:"phase"` // corev1's Pending or Running, or Terminating
	Ready       bool         `json:"ready"`
	Created     time.Time    `json:"created"`
	Ports       []Port       `json:"ports,omitempty"`    // what its stand-in serves
	Failures    int          `json:"failures,omitempty"` // attempts that failed in a row
	Error       string       `json:"error,omitempty"`    // why it does not run or end
	HostNetwork bool         `json:"hostNetwork,omitempty"`
}

// Pods lists all pods, sorted by namespace and name.
func (c *Controller) Pods() []PodStatus {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []PodStatus
	for _, p := range sorted(c.pods) {
		s := PodStatus{
			Namespace: p.key.Namespace, Name: p.key.Name, UID: string(p.base.UID), Node: p.base.Spec.NodeName,
			IPs: slices.Clone(p.ips), Phase: string(p.obj.Status.Phase), Ready: p.ready(), Created: p.created,
			Ports: slices.Clone(p.ports), Failures: p.failures, Error: p.err, HostNetwork: p.base.Spec.HostNetwork,
		}
		if p.owner != nil {
			s.Owner = p.owner.kind + " " + p.owner.Name
		}
		if p.terminating {
			s.Phase = Terminating
		}
		out = append(out, s)
	}
	return out
}

// SetReady says whether a pod is ready to be sent traffic, as its readiness probe would. A pod is
// ready from its start until somebody says otherwise.
func (c *Controller) SetReady(ns, name string, ready bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.pods[types.NamespacedName{Namespace: ns, Name: name}]
	if p == nil {
		return fmt.Errorf("there is no pod %s/%s", ns, name)
	}
	if p.terminating {
		return fmt.Errorf("pod %s/%s is being deleted", ns, name)
	}
	p.notReady = !ready
	p.refresh()
	return c.sync()
}

// KillPod ends a pod at once, as a crash or a forced deletion does. Its workload makes another one, as
// in a cluster; a pod of its own is gone.
func (c *Controller) KillPod(ns, name string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	key := types.NamespacedName{Namespace: ns, Name: name}
	if err := c.deletePod(key); err != nil {
		return err
	}
	if p := c.pods[key]; p != nil {
		p.next = time.Now()
	}
	return c.sync()
}

// LoseNode says that a node has lost the sandboxes of its pods. They are made anew, without Runtime.Stop for the old
// ones, once back was called. While a call of the runtime for one of them is under way it is refused.
func (c *Controller) LoseNode(node string) (back func(), err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var lost []*pod
	for _, p := range c.sortedPods() {
		if p.base.Spec.NodeName != node || !p.tried {
			continue
		}
		if p.busy || p.terminating {
			return nil, fmt.Errorf("pod %s is being started or ended: try again", p.key)
		}
		lost = append(lost, p)
	}
	for _, p := range lost {
		p.busy, p.running, p.ips = true, false, nil
		p.attempt++
		p.refresh()
	}
	c.busy += len(lost)
	back = func() {
		for _, p := range lost {
			c.done(p, "start pod again", nil)
		}
	}
	return back, c.sync()
}

func (c *Controller) deletePod(key types.NamespacedName) error {
	p := c.pods[key]
	if p == nil {
		return fmt.Errorf("there is no pod %s", key)
	}
	if p.owner == nil {
		delete(c.bare, key)
	}
	c.terminate(p)
	return nil
}

// Wait returns when every pod that should be there runs, none is going, and all serve the right
// ports. A pod that was said not to be ready counts as running. progress (nil = none) is told after
// each change how many of the pods run. When ctx ends first the error names what is missing.
func (c *Controller) Wait(ctx context.Context, progress func(ready, total int)) error {
	last := [2]int{-1, -1}
	for {
		now, finished, changed, err := c.progress()
		if err != nil {
			return err
		}
		if progress != nil && now != last {
			progress(now[0], now[1])
		}
		last = now
		if finished {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("%d of %d pods run: %s: %w", now[0], now[1], c.troubles(), ctx.Err())
		}
	}
}

// progress counts the pods that run and those there should be.
func (c *Controller) progress() (now [2]int, finished bool, changed <-chan struct{}, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, setsPorts := c.cfg.Runtime.(PortSetter)
	finished = true
	for _, p := range c.pods {
		outdated := p.owner != nil && p.hash != p.owner.hash && !p.owner.onDelete
		if p.running && !p.terminating && !outdated {
			now[0]++
		} else {
			finished = false
		}
		finished = finished && !(p.portsStale && setsPorts)
	}
	now[1] = c.wanted
	return now, finished && now[0] == now[1], c.changed, c.failed
}

// troubles says of a few pods why they do not run.
func (c *Controller) troubles() string {
	const most = 3
	var out []string
	for _, p := range c.Pods() {
		if p.Phase == string(corev1.PodRunning) && p.Error == "" {
			continue
		}
		out = append(out, strings.TrimSuffix(fmt.Sprintf("pod %s/%s is %s: %s", p.Namespace, p.Name, p.Phase, p.Error), ": "))
	}
	if len(out) == 0 {
		return "the others are not made yet, since the pods before them are not ready"
	}
	if more := len(out) - most; more > 0 {
		out = append(out[:most], fmt.Sprintf("and %d more", more))
	}
	return strings.Join(out, "; ")
}
