package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/braidnet/braid/test/bench/rig"
)

// measure measures all subjects at one size after the other, and prints each size's table when it is
// complete, or as far as it came.
func measure(ctx context.Context, o *options) error {
	fmt.Println(rig.Facts("nft", "iptables"))
	m := &measurement{ctx: ctx, limits: o.limits, slow: map[string]shape{}}
	all := append(o.chosen(true), o.chosen(false)...)
	for i, at := range o.shapes {
		if err := m.table("Services × endpoints: ", at, o.at(all, i == 0), m.shape); err != nil {
			return err
		}
	}
	for _, at := range o.connects {
		if err := m.table("Time to connect, services × endpoints: ", at, o.at(all, false), m.connect); err != nil {
			return err
		}
	}
	return nil
}

// at chooses the subjects for a size. The pause of one second is in the way of nothing but changes: it
// is measured at the first size only, or with -full.
func (o *options) at(all []subject, first bool) (out []subject) {
	for _, s := range all {
		if first || o.full || !s.pauses {
			out = append(out, s)
		}
	}
	return out
}

// measurement is one run of this program.
type measurement struct {
	ctx    context.Context
	limits limits
	slow   map[string]shape // subjects that were not ready within the limit, and at which size
}

func (m *measurement) table(title string, at shape, all []subject, one func(subject, shape, *table) error) error {
	t := newTable(title+at.String(), all)
	defer t.print(os.Stdout)
	for _, s := range all {
		if err := one(s, at, t); err != nil {
			return fmt.Errorf("%s at %s: %w", s.name, at, err)
		}
	}
	return nil
}

// begin starts a subject and notes how long that took. It returns nil when that was longer than the limit.
// A subject that was too slow at a size is not tried with more services.
func (m *measurement) begin(s subject, at shape, t *table) (*run, error) {
	if err := m.ctx.Err(); err != nil {
		return nil, err
	}
	if was, ok := m.slow[s.name]; ok && at.services >= was.services && at.endpoints >= was.endpoints {
		t.set(s, "start on an empty kernel", cell{text: fmt.Sprintf("> %s at %s", m.limits.cold, was)})
		return nil, nil
	}
	fmt.Fprintf(os.Stderr, "%s  %s: %s\n", time.Now().Format(time.TimeOnly), at, s.name)
	r, err := newRun(s, at, m.limits)
	if err != nil {
		return nil, err
	}
	took, err := r.cold()
	if errors.Is(err, errLimit) {
		t.over(s, "start on an empty kernel", m.limits.cold)
		m.slow[s.name] = at
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
	now, highest, err := r.proc.Memory()
	if err != nil {
		return err
	}
	t.memory(r.subject, "memory, MiB", now)
	t.memory(r.subject, "memory at its highest, MiB", highest)
	return nil
}

func (m *measurement) shape(s subject, at shape, t *table) error {
	r, err := m.begin(s, at, t)
	if r == nil || err != nil {
		return err
	}
	defer r.close()
	if err := noteMemory(r, t); err != nil {
		return err
	}
	used, err := r.proc.CPU()
	if err != nil {
		return err
	}
	t.time(s, "processor time of the start", used)
	if took, err := r.restart(); errors.Is(err, errLimit) {
		t.over(s, "start with rules in place", m.limits.cold)
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
		t.delays(s, single.name, d, m.limits)
	}
	return many(m.ctx, r, t)
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
		t.time(r.subject, name+": packet, p50", rig.Percentile(got.packet, 50))
		t.time(r.subject, name+": packet, p99", rig.Percentile(got.packet, 99))
		t.time(r.subject, name+": behind at the end", got.behind)
		t.time(r.subject, name+": processor time for 1,000 changes", got.cpu)
	}
	if err := r.settle(); err != nil {
		return err
	}
	took, err := r.nodeLoss()
	switch {
	case errors.Is(err, errLimit):
		t.over(r.subject, "1 % of endpoints replaced at once", r.limits.cold)
	case err != nil:
		return err
	default:
		t.time(r.subject, "1 % of endpoints replaced at once", took)
	}
	now, _, err := r.proc.Memory()
	if err == nil {
		t.memory(r.subject, "memory after all changes, MiB", now)
	}
	return err
}

func (m *measurement) connect(s subject, at shape, t *table) error {
	r, err := m.begin(s, at, t)
	if r == nil || err != nil {
		return err
	}
	defer r.close()
	bare, through, err := r.latencies()
	if err != nil {
		return err
	}
	for _, p := range []int{50, 99} {
		base := rig.Percentile(bare, p)
		t.plain(s, fmt.Sprintf("a pod without any rules, p%d", p), base)
		for i, which := range []string{"first", "middle", "last"} {
			took := rig.Percentile(through[i], p)
			t.time(s, fmt.Sprintf("%s service, p%d", which, p), took)
			if p == 50 {
				t.time(s, which+" service, p50, beyond that", max(0, took-base))
			}
		}
	}
	return nil
}
