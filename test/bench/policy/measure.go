package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	networkingv1 "k8s.io/api/networking/v1"

	"github.com/braidnet/braid/internal/kernel/netns"
	"github.com/braidnet/braid/test/bench/bulkapi"
	"github.com/braidnet/braid/test/bench/process"
	"github.com/braidnet/braid/test/bench/rig"
)

// run is one subject in one world.
type run struct {
	*options
	world   *world
	cluster *cluster
	proc    *process.Process
	dir     string
}

// newRun starts a subject in a world of its own, and returns how long it took until a policy was in force.
func newRun(ctx context.Context, o *options, s subject, at shape) (r *run, took time.Duration, err error) {
	if err := ctx.Err(); err != nil {
		return nil, 0, err
	}
	r = &run{options: o}
	defer func() {
		if err != nil {
			r.close()
		}
	}()
	if r.world, err = newWorld(); err != nil {
		return r, 0, err
	}
	if r.cluster, err = fill(r.world.api, at); err != nil {
		return r, 0, err
	}
	deny := trial("start", "nobody")
	if at.same == 0 {
		if err = r.world.api.Put(deny); err != nil {
			return r, 0, err
		}
	}
	if r.dir, err = os.MkdirTemp("", "bench-policy-"); err != nil {
		return r, 0, err
	}
	for from, source := range map[*netns.NS]netip.Addr{r.world.client: clientAddr, r.world.far: wireFar} { // what is refused later is so by policy
		if _, err = await(from, source, serverAddr, true, o.limit, nil); err != nil {
			return r, 0, fmt.Errorf("before the start: %w", err)
		}
	}
	if r.proc, err = s.start(r.world.node, r.world.api.URL(), r.dir); err != nil {
		return r, 0, err
	}
	if at.same > 0 { // who is isolated is reached by one more policy
		in, err := r.until(r.world.far, wireFar, false)
		if err == nil {
			_, err = r.until(r.world.client, clientAddr, true)
		}
		return r, in.Sub(r.proc.Begun), err
	}
	in, err := r.until(r.world.client, clientAddr, false)
	if err != nil {
		return r, 0, err
	}
	if err = r.world.api.Delete(deny); err == nil {
		_, err = r.until(r.world.client, clientAddr, true)
	}
	return r, in.Sub(r.proc.Begun), err
}

func (r *run) close() {
	if r.proc != nil {
		r.proc.Stop()
	}
	if r.world != nil {
		r.world.close()
	}
	os.RemoveAll(r.dir)
}

// until waits until a pod reaches the server, or no more.
func (r *run) until(from *netns.NS, source netip.Addr, allowed bool) (time.Time, error) {
	at, err := await(from, source, serverAddr, allowed, r.limit, r.proc.Done)
	if err != nil {
		err = fmt.Errorf("%w (%s)", err, r.proc.Last())
	}
	return at, err
}

// trial isolates the server for all but pods of the bench's own namespace with a role.
func trial(name, role string) *networkingv1.NetworkPolicy {
	return policyObject(home, name, "app", "server", selects(nil, map[string]string{"role": role}))
}

// changes are how long changes of one kind took until a packet met them.
type changes map[string][]time.Duration

func (c changes) time(kind string, event time.Time, at time.Time, err error) error {
	if err != nil {
		return fmt.Errorf("%s: %w", kind, err)
	}
	c[kind] = append(c[kind], at.Sub(event))
	return nil
}

// kinds of changes, in the order of tables.
var kinds = []string{"policy created", "policy deleted", "peer gets a label", "peer loses it", "pod elsewhere appears"}

// change makes a number of changes of each kind, one after the other.
func (r *run) change(trials int) (changes, error) {
	out := changes{}
	api, w := r.world.api, r.world
	for i, begin := 0, time.Now(); i < trials && (i < 3 || time.Since(begin) < r.budget); i++ {
		policy := trial("trial", "yes")
		event := time.Now()
		if err := api.Put(policy); err != nil {
			return nil, err
		}
		at, err := r.until(w.client, clientAddr, false)
		if err := out.time(kinds[0], event, at, err); err != nil {
			return nil, err
		}
		for i, role := range []string{"yes", "no"} {
			event = time.Now()
			if err := api.Put(r.cluster.client(role)); err != nil {
				return nil, err
			}
			at, err = r.until(w.client, clientAddr, role == "yes")
			if err := out.time(kinds[2+i], event, at, err); err != nil {
				return nil, err
			}
		}
		if err := r.appear(out); err != nil {
			return nil, err
		}
		event = time.Now()
		if err := api.Delete(policy); err != nil {
			return nil, err
		}
		at, err = r.until(w.client, clientAddr, true)
		if err := out.time(kinds[1], event, at, err); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// appear makes a pod on another node whose role is allowed, and lets it go again.
func (r *run) appear(out changes) error {
	r.cluster.next++
	ip := rig.Offset(farRange, 1<<22+r.cluster.next)
	pod := podObject(home, fmt.Sprintf("new-%d", r.cluster.next), "node-7", ip, uid('q', r.cluster.next), map[string]string{"app": "client", "role": "yes"})
	event := time.Now()
	if err := r.world.api.Put(pod); err != nil {
		return err
	}
	at, err := r.until(r.world.far, ip, true)
	if err := out.time(kinds[4], event, at, err); err != nil {
		return err
	}
	return r.world.api.Delete(pod)
}

// churn makes and deletes pods of other nodes, all of them peers of some policy, until ctx ends.
func (r *run) churn(ctx context.Context, perSecond int) (n int, err error) {
	tick := time.NewTicker(time.Second / time.Duration(perSecond))
	defer tick.Stop()
	var live []bulkapi.Object
	for first := r.cluster.pods + 1; ; n++ {
		select {
		case <-ctx.Done():
			return n, r.world.api.Delete(live...)
		case <-tick.C:
		}
		if n%2 == 1 { // the one before
			if err := r.world.api.Delete(live[0]); err != nil {
				return n, err
			}
			live = live[1:]
			continue
		}
		pod := r.cluster.pod(first + n)
		if err := r.world.api.Put(pod); err != nil {
			return n, err
		}
		live = append(live, pod)
	}
}

// busy makes changes while pods come and go, and returns the processor time per second as well.
func (r *run) busy(ctx context.Context, perSecond int, trials int) (changes, float64, error) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	before, err := r.proc.CPU()
	if err != nil {
		return nil, 0, err
	}
	begin, ended := time.Now(), make(chan error, 1)
	go func() {
		_, err := r.churn(ctx, perSecond)
		ended <- err
	}()
	out, err := r.change(trials)
	for least := begin.Add(r.churnFor); err == nil && time.Now().Before(least); {
		time.Sleep(100 * time.Millisecond)
	}
	after, cerr := r.proc.CPU()
	span := time.Since(begin)
	stop()
	return out, (after - before).Seconds() / span.Seconds(), errors.Join(err, cerr, <-ended)
}

// settle waits until the process does next to nothing.
func (r *run) settle() error {
	const quiet, most = 20 * time.Millisecond, 30 * time.Second // of processor time in a second
	for begin := time.Now(); time.Since(begin) < most; {
		before, err := r.proc.CPU()
		if err != nil {
			return err
		}
		time.Sleep(time.Second)
		after, err := r.proc.CPU()
		if err != nil || after-before <= quiet {
			return err
		}
	}
	return nil
}
