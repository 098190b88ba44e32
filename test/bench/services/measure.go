package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"
)

// measure measures all subjects at one size after the other, and prints each size's table when it is
// complete.
func measure(ctx context.Context, o *options) error {
	printFacts(os.Stdout)
	all := append(o.chosen(true), o.chosen(false)...)
	for _, at := range o.shapes {
		t := newTable("Services × endpoints: "+at.String(), all)
		for _, s := range all {
			if err := oneShape(ctx, s, at, o.limits, t); err != nil {
				return fmt.Errorf("%s at %s: %w", s.name, at, err)
			}
		}
		t.print(os.Stdout)
	}
	for _, at := range o.connects {
		t := newTable("Time to connect, services × endpoints: "+at.String(), all)
		for _, s := range all {
			if err := oneConnect(ctx, s, at, o.limits, t); err != nil {
				return fmt.Errorf("%s at %s: %w", s.name, at, err)
			}
		}
		t.print(os.Stdout)
	}
	return nil
}

// begin starts a subject and notes how long that took. It returns nil when that was longer than the limit.
func begin(ctx context.Context, s subject, at shape, l limits, t *table) (*run, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	fmt.Fprintf(os.Stderr, "%s  %s: %s\n", time.Now().Format(time.TimeOnly), at, s.name)
	r, err := newRun(s, at, l)
	if err != nil {
		return nil, err
	}
	took, err := r.cold()
	if errors.Is(err, errLimit) {
		t.over(s, "start on an empty kernel", l.cold)
		err = noteMemory(r, t) // it has read the cluster, if not written it
		r.close()
		return nil, err
	}
	if err == nil {
		t.time(s, "start on an empty kernel", took)
		err = r.settle()
	}
	if err != nil {
		r.close()
		return nil, err
	}
	return r, nil
}

// noteMemory notes the memory of the subject alone, without the tools that it runs.
func noteMemory(r *run, t *table) error {
	now, highest, err := r.proc.memory()
	if err != nil {
		return err
	}
	t.memory(r.subject, "memory, MiB", now)
	t.memory(r.subject, "memory at its highest, MiB", highest)
	return nil
}

func oneShape(ctx context.Context, s subject, at shape, l limits, t *table) error {
	r, err := begin(ctx, s, at, l, t)
	if r == nil || err != nil {
		return err
	}
	defer r.close()
	if err := noteMemory(r, t); err != nil {
		return err
	}
	used, err := r.proc.cpu()
	if err != nil {
		return err
	}
	t.time(s, "processor time of the start", used)
	if took, err := r.restart(); errors.Is(err, errLimit) {
		t.over(s, "start with rules in place", l.cold)
	} else if err != nil {
		return err
	} else {
		t.time(s, "start with rules in place", took)
	}
	for _, single := range []struct {
		name string
		do   func() (delays, error)
	}{{"one endpoint replaced", r.changeEndpoints}, {"one service added", r.addServices}} {
		if err := r.settle(); err != nil {
			return err
		}
		d, err := single.do()
		if err != nil {
			return err
		}
		t.delays(s, single.name, d, l)
	}
	return many(ctx, r, t)
}

// many measures many changes: one after the other, and at once.
func many(ctx context.Context, r *run, t *table) error {
	for _, rate := range r.limits.rates {
		if err := ctx.Err(); err != nil {
			return err
		}
		name := fmt.Sprintf("rolling update, %d/s", rate)
		got, err := r.rolling(rate)
		if err != nil {
			return err
		}
		if got.late {
			t.over(r.subject, name+": packet, p50", r.limits.cold)
			continue
		}
		t.time(r.subject, name+": packet, p50", percentile(got.packet, 50))
		t.time(r.subject, name+": packet, p99", percentile(got.packet, 99))
		t.time(r.subject, name+": behind at the end", got.behind)
		t.time(r.subject, name+": processor time for 1,000 changes", got.cpu)
	}
	if err := r.settle(); err != nil {
		return err
	}
	took, err := r.nodeLoss()
	if errors.Is(err, errLimit) {
		t.over(r.subject, "1 % of endpoints replaced at once", r.limits.cold)
		return nil
	}
	if err == nil {
		t.time(r.subject, "1 % of endpoints replaced at once", took)
	}
	return err
}

func oneConnect(ctx context.Context, s subject, at shape, l limits, t *table) error {
	r, err := begin(ctx, s, at, l, t)
	if r == nil || err != nil {
		return err
	}
	defer r.close()
	direct, through, err := r.latencies()
	if err != nil {
		return err
	}
	for _, p := range []int{50, 99} {
		base := percentile(direct, p)
		t.plain(s, fmt.Sprintf("a pod directly, p%d", p), base)
		for i, which := range []string{"first", "middle", "last"} {
			took := percentile(through[i], p)
			t.time(s, fmt.Sprintf("%s service, p%d", which, p), took)
			if p == 50 {
				t.time(s, which+" service, p50, beyond a pod directly", max(0, took-base))
			}
		}
	}
	return nil
}
