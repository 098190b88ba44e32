package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"
)

// fault is something that goes wrong, or is done, on a running cluster, and what has to hold meanwhile and
// after.
type fault struct {
	name, help string
	run        func(r *rig) error
}

// faults are in the order in which they run; each leaves the cluster as it found it.
func faults() []fault {
	return []fault{
		{"apply", "server-side apply twice, apply -k, and back: no conflict, nothing changed", faultApply},
		{"rbac", "the service accounts use exactly what they are granted, by the audit log", faultRBAC},
		{"agents", "agent pods deleted one after another, all at once, and killed", faultAgents},
		{"coredns", "CoreDNS pods deleted one after another, and all at once", faultCoreDNS},
		{"flush", "rules, routes, neighbours and a device taken away by somebody else", faultFlush},
		{"upgrade", "both images changed for others of another tag, and back", faultUpgrade},
		{"apiserver", "API server, scheduler and controllers gone for --api-down", faultAPIServer},
		{"backlog", "500 objects changed behind the agents' backs, policies among them; etcd compacted, watches lost", faultBacklog},
		{"alone", "rules flushed, then a node lost, both without an API server", faultAlone},
		{"stale-node", "a Node deleted while the other agents are down", faultStaleNode},
		{"node-lost", "a node lost at once, and back with its disk", faultNodeLost},
		{"node-empty", "a node lost at once, and back with an empty disk", faultNodeEmpty},
		{"remove", "removal as docs/operations.md says leaves nothing, and installation after it works", faultRemove},
	}
}

// rig is what faults work with.
type rig struct {
	ctx     context.Context
	o       *options
	api     *api
	traffic *traffic
	apiDown time.Duration
	failed  int
}

func runFaults(ctx context.Context, args []string) error {
	o := &options{}
	f := flags("faults", o)
	only := f.String("only", "", "run these only, separated by commas")
	apiDown := f.Duration("api-down", 30*time.Second, "how long the API server is gone in fault apiserver")
	if rest, err := parse(f, o, args); err != nil || len(rest) > 0 {
		for _, x := range faults() {
			fmt.Printf("  %-12s %s\n", x.name, x.help)
		}
		return errors.Join(err, usageError{errors.New("faults: --only NAME,… of those above")})
	}
	data, err := os.ReadFile(o.path(optionsFile))
	if err != nil {
		return fmt.Errorf("there is no cluster %s: `up` starts one: %w", o.Name, err)
	}
	if err := json.Unmarshal(data, o); err != nil {
		return err
	}
	chosen, err := choose(faults(), *only)
	if err != nil {
		return err
	}
	a, err := o.api()
	if err != nil {
		return err
	}
	r := &rig{ctx: ctx, o: o, api: a, apiDown: *apiDown}
	if err := stopTraffic(ctx, o); err != nil {
		return err
	}
	if r.traffic, err = startTraffic(ctx, o, a); err == nil {
		err = r.all(chosen)
	}
	if err := errors.Join(err, stopTraffic(context.WithoutCancel(ctx), o)); err != nil {
		return err
	}
	if r.failed > 0 {
		return fmt.Errorf("%d verdicts are WRONG", r.failed)
	}
	return nil
}

func choose(all []fault, only string) ([]fault, error) {
	if only == "" {
		return all, nil
	}
	var out []fault
	for name := range strings.SplitSeq(only, ",") {
		i := slices.IndexFunc(all, func(f fault) bool { return f.name == name })
		if i < 0 {
			return nil, usageError{fmt.Errorf("there is no fault %q", name)}
		}
		out = append(out, all[i])
	}
	return out, nil
}

func (r *rig) all(list []fault) error {
	for _, f := range list {
		fmt.Printf("— %s: %s\n", f.name, f.help)
		begin := time.Now()
		if err := r.rest("before it"); err != nil {
			return fmt.Errorf("%s: %w", f.name, err)
		}
		if err := f.run(r); err != nil {
			return fmt.Errorf("%s: %w\n%s", f.name, err, r.o.explain(r.ctx))
		}
		if err := r.rest("after it"); err != nil {
			return fmt.Errorf("%s: %w", f.name, err)
		}
		fmt.Printf("      %s took %.0fs\n", f.name, time.Since(begin).Seconds())
	}
	return nil
}

// verdict prints one judgement.
func (r *rig) verdict(ok bool, format string, a ...any) {
	word := "ok   "
	if !ok {
		word = "WRONG"
		r.failed++
	}
	fmt.Printf("%s  %s\n", word, fmt.Sprintf(format, a...))
}

func (r *rig) note(format string, a ...any) { fmt.Printf("      %s\n", fmt.Sprintf(format, a...)) }

// leftBehind forgets the traffic so far: it is of what was done before.
func (r *rig) leftBehind() error {
	_, err := r.traffic.take(r.ctx)
	return err
}

// heard is what became of everything that was sent since the last time, and what servers accepted that they should not have.
func (r *rig) heard() (t tally, failures, accepted []string, err error) {
	all, err := r.traffic.take(r.ctx)
	if err != nil {
		return t, nil, nil, err
	}
	t, failures = sum(all)
	accepted, err = r.traffic.walls.accepted(r.ctx, r.o)
	return t, failures, accepted, err
}

// judgeTraffic judges everything that was sent since the last time: no connection may have failed, none that policies
// forbid may have got through, and no question may have stayed without an answer.
func (r *rig) judgeTraffic(during string) error {
	t, failures, accepted, err := r.heard()
	if err != nil {
		return err
	}
	r.verdict(t.broken() == 0 && t.whole() && len(accepted) == 0, "%s: %s · accepted by servers of these %d", during, t, len(accepted))
	failures = append(failures, accepted...)
	for _, f := range failures {
		r.note("%s", f)
	}
	return nil
}

// quiet is how long traffic is watched where nothing goes on.
const quiet = 3 * time.Second

// rest waits until traffic has been undisturbed for a while, and says so: what comes then is due to what is
// done then.
func (r *rig) rest(when string) error {
	var t tally
	var failures []string
	err := await(r.ctx, "undisturbed traffic", time.Minute, func() error {
		if err := errors.Join(r.leftBehind(), pause(r.ctx, quiet)); err != nil {
			return err
		}
		all, err := r.traffic.take(r.ctx)
		if err != nil {
			return err
		}
		if t, failures = sum(all); len(failures) > 0 || !t.whole() {
			return fmt.Errorf("%s\n%s", t, strings.Join(failures, "\n"))
		}
		return nil
	})
	if err != nil {
		r.verdict(false, "%s: %v", when, err)
		return r.newTraffic()
	}
	r.note("%s, %s undisturbed: %s", when, quiet, t)
	return nil
}

// pause lets traffic run for a while.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}
