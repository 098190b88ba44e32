package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/braidnet/braid/test/bench/process"
)

// limits bound what one cell may cost.
type limits struct {
	cold    time.Duration // of a start
	trials  int           // single changes that are timed
	budget  time.Duration // for all trials of a cell
	rolling time.Duration // how long a rolling update lasts
	rates   []int         // its changes per second
}

// minTrials are made even when the budget is used up.
const minTrials = 3

// run is one subject at one shape.
type run struct {
	world   *world
	cluster *cluster
	subject subject
	proc    *process.Process
	dir     string
	probe   *probe
	limits  limits
	random  *rand.Rand
}

func newRun(s subject, at shape, l limits) (*run, error) {
	w, err := newWorld()
	if err != nil {
		return nil, err
	}
	r := &run{world: w, subject: s, limits: l, probe: &probe{client: w.client, every: 500 * time.Microsecond, port: servicePort, spread: at.endpoints}, random: rand.New(rand.NewPCG(1, 2))}
	if r.cluster, err = fill(w.api, at); err == nil {
		r.dir, err = os.MkdirTemp("", "bench-services-")
	}
	if err != nil {
		r.close()
		return nil, err
	}
	return r, nil
}

func (r *run) close() {
	if r.proc != nil {
		r.proc.Stop()
	}
	r.world.close()
	os.RemoveAll(r.dir)
}

func (r *run) start() (err error) {
	if r.proc, err = r.subject.start(r.world.node, r.world.api.URL(), r.dir); err == nil {
		r.probe.ended = r.proc.Done
	}
	return err
}

// sample is the services that must answer before all rules count as in force: nobody tells which one a
// program writes last.
func (r *run) sample() []int {
	n := r.cluster.services
	out := []int{n - 1, 0, n / 2}
	for range 16 {
		out = append(out, r.random.IntN(n))
	}
	return out
}

// cold starts the subject and returns how long it took until everything was in force.
func (r *run) cold() (time.Duration, error) {
	if err := r.start(); err != nil {
		return 0, err
	}
	var last time.Time
	for _, i := range r.sample() {
		came, err := r.await(vip(i), r.limits.cold-time.Since(r.proc.Begun), byAny)
		if err != nil {
			return 0, err
		}
		last = came
	}
	return last.Sub(r.proc.Begun), nil
}

// restart ends the subject, changes the last service meanwhile, and returns how long the next start took
// until that was in force.
func (r *run) restart() (time.Duration, error) {
	r.proc.Stop()
	last := r.cluster.services - 1
	pod, err := r.cluster.change(last)
	if err != nil {
		return 0, err
	}
	if err := r.start(); err != nil {
		return 0, err
	}
	came, err := r.await(vip(last), r.limits.cold, by(pod))
	return came.Sub(r.proc.Begun), err
}

func (r *run) await(to netip.Addr, limit time.Duration, wanted func(outcome) bool) (time.Time, error) {
	came, err := r.probe.await(to, limit, wanted)
	if errors.Is(err, errEnded) {
		err = fmt.Errorf("%w: %s", err, r.proc.Last())
	}
	return came, err
}

// settle waits until the process does next to nothing, so that what is left of a start is not counted
// with what comes next.
func (r *run) settle() error {
	const quiet, most = 20 * time.Millisecond, time.Minute // of processor time in a second
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

// delays are how long after an event it was in the kernel, and a packet found it.
type delays struct {
	kernel, packet []time.Duration
	late           bool // a trial took longer than the limit
}

// changes times single changes: what does the change of trial n and returns where to look, and for what.
func (r *run) changes(what func(n int) (netip.Addr, func(outcome) bool, error)) (d delays, err error) {
	begin := time.Now()
	for n := range r.limits.trials {
		if n >= minTrials && time.Since(begin) > r.limits.budget {
			break
		}
		time.Sleep(time.Duration(r.random.IntN(100)) * time.Millisecond)
		watch, err := watchCommits(r.world.node)
		if err != nil {
			return d, err
		}
		event := time.Now()
		to, wanted, err := what(n)
		if err != nil {
			return d, err
		}
		packet, err := r.await(to, r.limits.cold, wanted)
		seen, werr := watch.end()
		if errors.Is(err, errLimit) {
			d.late = true
			return d, nil
		}
		if err = errors.Join(err, werr); err != nil {
			return d, err
		}
		d.packet = append(d.packet, packet.Sub(event))
		d.kernel = append(d.kernel, lastBefore(seen, packet).Sub(event))
	}
	return d, nil
}

// lastBefore is the commit that a packet found: the last one seen before it. One that nobody had looked
// for yet is not later than the packet.
func lastBefore(seen []time.Time, packet time.Time) time.Time {
	i := slices.IndexFunc(seen, func(t time.Time) bool { return t.After(packet) })
	if i < 0 {
		i = len(seen)
	}
	if i == 0 {
		return packet
	}
	return seen[i-1]
}

// addServices times services that are new.
func (r *run) addServices() (delays, error) {
	return r.changes(func(int) (netip.Addr, func(outcome) bool, error) {
		i := r.cluster.services
		r.cluster.services++
		return vip(i), byAny, r.cluster.add(i)
	})
}

// changeEndpoints times endpoints that take another's place, in services here and there.
func (r *run) changeEndpoints() (delays, error) {
	return r.changes(func(int) (netip.Addr, func(outcome) bool, error) {
		i := r.random.IntN(r.cluster.services)
		pod, err := r.cluster.change(i)
		return vip(i), by(pod), err
	})
}
