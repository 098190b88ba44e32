package cluster

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// Run starts and stops pods until ctx ends, then waits for the runtime calls under way. Pods that
// run are left as they are.
func (c *Controller) Run(ctx context.Context) error {
	var calls sync.WaitGroup
	defer calls.Wait()
	for {
		jobs, next := c.due(ctx, time.Now())
		for _, job := range jobs {
			calls.Go(job)
		}
		stop := func() bool { return true }
		if !next.IsZero() {
			stop = time.AfterFunc(time.Until(next), c.kick).Stop
		}
		select {
		case <-ctx.Done():
			stop()
			return nil
		case <-c.wake:
			stop()
		}
	}
}

// due returns what is to be done now, as far as the bound on calls allows, and when to look again
// at the latest (zero: not before something changes).
func (c *Controller) due(ctx context.Context, now time.Time) (jobs []func(), next time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range c.sortedPods() {
		do := c.duty(p)
		if do == nil || p.busy {
			continue
		}
		if p.next.After(now) {
			if next.IsZero() || p.next.Before(next) {
				next = p.next
			}
			continue
		}
		if c.busy >= c.cfg.Parallel {
			return jobs, next // the end of any of the calls wakes the worker
		}
		call, cancel := context.WithCancel(ctx)
		p.busy, p.cancel = true, cancel
		c.busy++
		sandbox := p.sandbox()
		p.tried = true
		jobs = append(jobs, func() {
			defer cancel()
			do(call, p, sandbox)
		})
	}
	return jobs, next
}

// duty is the runtime call a pod needs; nil when it needs none.
func (c *Controller) duty(p *pod) func(context.Context, *pod, PodSandbox) {
	_, canSet := c.cfg.Runtime.(PortSetter)
	switch {
	case p.terminating:
		return c.stop
	case !p.running && c.node(p.base.Spec.NodeName) != nil:
		return c.start
	case p.running && p.portsStale && canSet:
		return c.setPorts
	}
	return nil
}

func (c *Controller) start(ctx context.Context, p *pod, s PodSandbox) {
	began := time.Now()
	ips, err := c.cfg.Runtime.Start(ctx, s)
	if err == nil && len(ips) == 0 {
		err = errors.Join(errors.New("the runtime gave the pod no address"), c.cfg.Runtime.Stop(ctx, s))
	}
	c.done(p, "start pod", err, func() {
		if p.terminating {
			return // it was deleted meanwhile: nobody is to see the addresses
		}
		p.running, p.ips = true, ips
		c.log.Info("pod started", "pod", p.key, "node", s.Node, "ips", ips, "took", time.Since(began).Round(time.Millisecond))
	}, samePorts(p, s))
}

func (c *Controller) setPorts(ctx context.Context, p *pod, s PodSandbox) {
	err := c.cfg.Runtime.(PortSetter).SetPorts(ctx, s)
	c.done(p, "serve other ports", err, func() {}, samePorts(p, s))
}

func (c *Controller) stop(ctx context.Context, p *pod, s PodSandbox) {
	err := c.cfg.Runtime.Stop(ctx, s)
	c.done(p, "stop pod", err, func() {
		delete(c.pods, p.key)
		c.log.Info("pod stopped", "pod", p.key, "node", s.Node)
	}, nil)
}

// samePorts notes whether the ports a call was made with are still those the pod is to serve. It
// runs with the lock held.
func samePorts(p *pod, s PodSandbox) func() {
	return func() {
		p.portsStale = len(p.ports) != len(s.Ports)
		for i := range min(len(p.ports), len(s.Ports)) {
			p.portsStale = p.portsStale || p.ports[i] != s.Ports[i]
		}
	}
}

// done books the outcome of a runtime call and works out what follows from it.
func (c *Controller) done(p *pod, what string, err error, well ...func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.busy--
	p.busy, p.cancel = false, nil
	switch {
	case err == nil:
		p.err, p.failures = "", 0
		for _, f := range well {
			if f != nil {
				f()
			}
		}
	case p.terminating && what != "stop pod":
		// The call was cancelled by the pod's end, which is due next.
	default:
		p.failures++
		wait := min(c.cfg.MaxRetry, c.cfg.MinRetry<<min(p.failures-1, 16))
		p.next = time.Now().Add(wait)
		p.err = what + ": " + err.Error()
		c.log.Warn("pod: "+what+" failed", "pod", p.key, "node", p.base.Spec.NodeName, "again in", wait, "err", err)
	}
	p.refresh()
	_ = c.sync() // keeps its error for Wait and logs it
}

func internalIPs(n *corev1.Node) (out []netip.Addr) {
	for _, a := range n.Status.Addresses {
		if ip, err := netip.ParseAddr(a.Address); err == nil && a.Type == corev1.NodeInternalIP {
			out = append(out, ip)
		}
	}
	return out
}
