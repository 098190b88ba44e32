package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	networkingv1 "k8s.io/api/networking/v1"

	"github.com/braidnet/braid/test/bench/rig"
)

// measure prints a table for each part and size.
func measure(ctx context.Context, o *options) error {
	fmt.Println(rig.Facts("nft", "iptables"))
	var all []subject
	for _, s := range subjects(o) {
		if !o.subjects.MatchString(s.name) {
			continue
		}
		if err := s.kernel(); err != nil {
			fmt.Printf("\n%s cannot run here: %v\n", s.name, err)
			continue
		}
		all = append(all, s)
	}
	each := func(t *table, one func(subject, *table) error) error {
		defer t.print(os.Stdout)
		for _, s := range all {
			fmt.Fprintf(os.Stderr, "%s  %s: %s\n", time.Now().Format(time.TimeOnly), t.title, s.name)
			err := one(s, t)
			if errors.Is(err, errLimit) {
				fmt.Fprintln(os.Stderr, "gave up:", err)
				t.set(s.name, "gave up after", o.limit.String())
			} else if err != nil {
				return fmt.Errorf("%s: %s: %w", t.title, s.name, err)
			}
		}
		return nil
	}
	if o.parts.MatchString("changes") {
		for _, n := range o.policies {
			at := shape{policies: n, pods: o.pods, local: o.local}
			if err := each(newTable("Changes: "+at.String(), all), func(s subject, t *table) error { return o.changes(ctx, s, at, t) }); err != nil {
				return err
			}
		}
	}
	if o.parts.MatchString("cost") {
		if err := each(newTable("What packets and connections take", all), func(s subject, t *table) error { return o.cost(ctx, s, t) }); err != nil {
			return err
		}
	}
	if o.parts.MatchString("large") {
		return each(newTable("One large policy, until it is in force", all), func(s subject, t *table) error { return o.large(ctx, s, t) })
	}
	return nil
}

func (o *options) changes(ctx context.Context, s subject, at shape, t *table) error {
	r, took, err := newRun(ctx, o, s, at)
	if err != nil {
		return err
	}
	defer r.close()
	t.time(s.name, "start, until a policy is in force", took)
	if err := r.settle(); err != nil {
		return err
	}
	now, highest, err := r.proc.Memory()
	if err != nil {
		return err
	}
	t.memory(s.name, "", now, highest)
	got, err := r.change(o.trials)
	if err != nil {
		return err
	}
	t.changes(s.name, "", got)
	busy, cores, err := r.busy(ctx, o.rate, o.trials)
	if err != nil {
		return err
	}
	t.changes(s.name, fmt.Sprintf("%d pods/s come and go: ", o.rate), busy)
	t.put(s.name, fmt.Sprintf("%d pods/s come and go: processors", o.rate), cell{fmt.Sprintf("%.2f", cores), cores})
	if now, highest, err = r.proc.Memory(); err == nil {
		t.memory(s.name, " after that", now, highest)
	}
	return err
}

// cost compares a packet, and a connection, with those in a world without rules, in turn, so that what else the
// machine does meets both alike.
func (o *options) cost(ctx context.Context, s subject, t *table) error {
	for _, at := range []struct {
		name string
		shape
	}{
		{"no policy", shape{pods: 1}},
		{"1,000 policies, none of these pods", shape{policies: 1000, pods: o.pods, local: o.local}},
		{"1 isolates the server", shape{pods: 1, same: 1}},
		{"10 isolate the server", shape{pods: 1, same: 10}},
		{"1,000 isolate the server", shape{pods: 1, same: 1000}},
	} {
		r, _, err := newRun(ctx, o, s, at.shape)
		if err == nil {
			err = r.settle()
		}
		if err == nil {
			err = r.compare(o.rounds, func(what string, bare, here []time.Duration) {
				for _, p := range []int{50, 99} {
					b, h := rig.Percentile(bare, p), rig.Percentile(here, p)
					t.set(s.name, fmt.Sprintf("%s, %s, p%d", what, at.name, p), fmt.Sprintf("%s (%+.1f µs)", rig.Short(h), (h-b).Seconds()*1e6))
				}
			})
		}
		if r != nil && r.proc != nil {
			r.close()
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// compare times packets and connections here and in a world without rules.
func (r *run) compare(rounds int, tell func(what string, bare, here []time.Duration)) error {
	free, err := newWorld()
	if err != nil {
		return err
	}
	defer free.close()
	bare, err := newPair(free)
	if err != nil {
		return err
	}
	here, err := newPair(r.world)
	if err != nil {
		return err
	}
	for _, what := range []struct {
		name string
		one  func(pair) (time.Duration, error)
	}{{"packet and answer", pair.packet}, {"connection", pair.connection}} {
		var took [2][]time.Duration
		for i := range rounds {
			for j, p := range []pair{bare, here} {
				d, err := what.one(p)
				if err != nil {
					return err
				}
				if i >= rounds/20 { // warm
					took[j] = append(took[j], d)
				}
			}
		}
		tell(what.name, took[0], took[1])
	}
	return nil
}

// large makes policies of the server that are hard to translate: how long until they are in force, and until they are gone.
func (o *options) large(ctx context.Context, s subject, t *table) error {
	r, _, err := newRun(ctx, o, s, shape{policies: 100, pods: o.pods, local: o.local})
	if err != nil {
		return err
	}
	defer r.close()
	for _, x := range []struct {
		name  string
		peers []networkingv1.NetworkPolicyPeer
	}{
		{"10,000 blocks", blocks(10_000)},
		{"a block with 500 exceptions", []networkingv1.NetworkPolicyPeer{without("10.0.0.0/8", 500)}},
		{"everything but 1,000 blocks", []networkingv1.NetworkPolicyPeer{without("0.0.0.0/0", 1000)}},
	} {
		// The client is in an exception, or in none of the blocks.
		p := policyObject(home, "large", "app", "server", x.peers...)
		if err := r.settle(); err != nil {
			return err
		}
		event := time.Now()
		if err := r.world.api.Put(p); err != nil {
			return err
		}
		at, err := r.until(r.world.client, clientAddr, false)
		if err != nil {
			return err
		}
		t.time(s.name, x.name, at.Sub(event))
		event = time.Now()
		if err := r.world.api.Delete(p); err != nil {
			return err
		}
		if at, err = r.until(r.world.client, clientAddr, true); err != nil {
			return err
		}
		t.time(s.name, x.name+", deleted", at.Sub(event))
	}
	return nil
}

// blocks are peers, none of which holds a pod.
func blocks(n int) (out []networkingv1.NetworkPolicyPeer) {
	for i := range n {
		out = append(out, networkingv1.NetworkPolicyPeer{IPBlock: &networkingv1.IPBlock{CIDR: fmt.Sprintf("172.%d.%d.%d/32", 16+i>>14, i>>6&255, i<<2&255)}})
	}
	return out
}

// without is a block that excepts the pods of the node, and others.
func without(cidr string, n int) networkingv1.NetworkPolicyPeer {
	b := &networkingv1.IPBlock{CIDR: cidr, Except: []string{podCIDR.String()}}
	for i := range n - 1 {
		b.Except = append(b.Except, fmt.Sprintf("10.%d.%d.0/25", 100+i>>8, i&255))
	}
	return networkingv1.NetworkPolicyPeer{IPBlock: b}
}
