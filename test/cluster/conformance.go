package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// conformance is one call of the command.
type conformance struct {
	o     *options
	run   suiteRun
	only  list // words of networks and families; empty = all
	focus *regexp.Regexp
	skip  *regexp.Regexp
	specs []string
}

// runConformance brings up one cluster after the other, runs upstream's [sig-network] specs on each, and
// writes docs/conformance.md.
func runConformance(ctx context.Context, args []string) error {
	c, err := conformanceOptions(args)
	if err != nil {
		return err
	}
	if err := build(ctx, c.o, append(programs(), suite...)...); err != nil {
		return err
	}
	if c.specs, err = c.o.listSpecs(ctx); err != nil {
		return err
	}
	for _, r := range rounds() {
		chosen := r.choose(c.specs, c.focus, c.skip)
		if len(chosen) == 0 || !c.wants(r) {
			continue
		}
		fmt.Printf("%s, %s, %d nodes: %d specs\n", title(r.Network), r.Family, r.Nodes, len(chosen))
		if err := c.round(ctx, r, chosen); err != nil {
			return fmt.Errorf("%s on %s: %w", r.Network, r.Family, err)
		}
	}
	return c.publish()
}

func conformanceOptions(args []string) (*conformance, error) {
	c := &conformance{o: &options{}}
	f := flags("conformance", c.o)
	var images list
	f.Var(&images, "images", "archives with Braid's images")
	f.Var(&c.only, "only", "run only these networks and kinds of clusters: braid, stock, v4, dual")
	focus := f.String("focus", "", "of the specs, run only those whose names match this regular expression")
	skip := f.String("skip", "^$", "but not those that match this one")
	f.IntVar(&c.run.Procs, "procs", 6, "how many specs run at once")
	f.DurationVar(&c.run.Timeout, "timeout", 90*time.Minute, "end the specs of a cluster after this time")
	rest, err := parse(f, c.o, args)
	if err != nil {
		return nil, err
	}
	for _, w := range c.only {
		if !slices.Contains([]string{networkBraid, networkStock, "v4", "dual"}, w) {
			return nil, usageError{fmt.Errorf("--only %q: use braid, stock, v4, dual", w)}
		}
	}
	var wrong error
	c.focus, err = regexp.Compile(*focus)
	c.skip, wrong = regexp.Compile(*skip)
	if err = errors.Join(err, wrong); err != nil {
		return nil, usageError{err}
	}
	for _, name := range append(images, rest...) {
		path, err := c.o.userFile(name)
		if err != nil {
			return nil, err
		}
		c.o.Images = append(c.o.Images, path)
	}
	return c, runcPresent()
}

// wants says whether --only lets a round through. Of networks and of families it names those that run; of
// which it names none, all do.
func (c *conformance) wants(r round) bool {
	lets := func(word string, all ...string) bool {
		named := slices.ContainsFunc(all, func(w string) bool { return slices.Contains(c.only, w) })
		return !named || slices.Contains(c.only, word)
	}
	return lets(r.Network, networkBraid, networkStock) && lets(r.Family, "v4", "dual")
}

// conformanceSettings are the agents': services may have the external addresses that upstream's specs give them,
// and policies are enforced, in the specs that have none too.
var conformanceSettings = []string{"external-ips: 203.0.113.0/24", "policy: enforce"}

// round runs specs on a cluster of their own, and records what they came to.
func (c *conformance) round(ctx context.Context, r round, chosen []string) error {
	o := *c.o
	o.Network, o.Nodes, o.Zones, o.Balancer = r.Network, r.Nodes, r.Zones, true
	if err := o.setFamilies(r.Family); err != nil {
		return err
	}
	if r.Network == networkBraid {
		o.Settings = conformanceSettings
		var err error
		if o.Deploy, err = o.userFile("deploy/braid.yaml"); err != nil {
			return err
		}
	}
	facts, err := c.facts(r)
	if err != nil {
		return err
	}
	// A cluster that an earlier call left behind when it was killed.
	if err := o.remove(ctx); err != nil {
		return err
	}
	if err := begin(ctx, &o); err != nil {
		return err
	}
	run := c.run
	run.Focus, run.Skip = exactly(chosen), "^$"
	argv, err := o.suite(run)
	if err != nil {
		return err
	}
	cmd, err := o.command(ctx, control, false, argv...)
	if err != nil {
		return err
	}
	// The suite ends with an error when a spec failed: the report tells.
	logged, suiteErr := c.logged(cmd, r)
	data, err := os.ReadFile(o.report())
	if err != nil {
		return fmt.Errorf("the suite left no report (its output is in %s): %w", logged, errors.Join(suiteErr, err))
	}
	outcomes, err := parseJUnit(data)
	if err != nil {
		return err
	}
	if err := c.keep(r, facts, outcomes); err != nil {
		return err
	}
	return o.remove(context.WithoutCancel(ctx))
}

// logged runs the suite with its output in a file beside the cluster's folder, which `down` leaves.
func (c *conformance) logged(cmd *exec.Cmd, r round) (string, error) {
	name := fmt.Sprintf("%s-%s-%s-%d.log", c.o.State, r.Network, r.Family, r.Nodes)
	f, err := os.Create(name)
	if err != nil {
		return name, err
	}
	defer f.Close()
	fmt.Println("output of the suite:", name)
	cmd.Stdout, cmd.Stderr = f, f
	return name, cmd.Run()
}

// keep merges outcomes into the record of their kind, and says which specs failed.
func (c *conformance) keep(r round, facts map[string]string, outcomes []outcome) error {
	dir := filepath.Join(c.o.Root, "test/cluster")
	rec, err := readRecord(dir, r.Network, r.Family)
	if err != nil {
		return err
	}
	count := map[string]int{}
	for _, o := range outcomes {
		count[o.State]++
		if o.State == stateFailed {
			fmt.Printf("FAILED  %s\n        %s\n", o.Spec, o.Why)
		}
	}
	fmt.Printf("%d passed, %d failed, %d skipped\n", count[statePassed], count[stateFailed], count[stateSkipped])
	rec.merge(outcomes)
	rec.Facts = facts
	return rec.write(dir)
}

// facts are what a reader needs to judge a result: versions and the machine.
func (c *conformance) facts(r round) (map[string]string, error) {
	var un unix.Utsname
	_ = unix.Uname(&un) // cannot fail with a valid pointer
	out := map[string]string{
		"Kubernetes": kubernetesVersion, "etcd": etcdVersion, "containerd": containerdVersion,
		"kernel":     "Linux " + unix.ByteSliceToString(un.Release[:]),
		"processors": fmt.Sprintf("%d × %s", runtime.NumCPU(), runtime.GOARCH),
		"last run":   time.Now().UTC().Format(time.DateOnly),
	}
	out["network"] = "CNI plugins " + pluginsVersion + ", kube-proxy " + kubernetesVersion + ", CoreDNS " + coreDNSVersion
	if r.Network == networkBraid {
		// The images hold this program too.
		version, err := run(exec.Command(filepath.Join(c.o.Root, "bin/netagent"), "--version"))
		if err != nil {
			return nil, fmt.Errorf("which Braid is this? `make images` makes the program and its image: %w", err)
		}
		out["network"] = "Braid " + strings.TrimSpace(strings.TrimPrefix(version, "netagent "))
	}
	return out, nil
}

// publish writes the page from all records, and fails when a spec failed with Braid.
func (c *conformance) publish() error {
	records, err := readRecords(filepath.Join(c.o.Root, "test/cluster"))
	if err != nil {
		return err
	}
	list := filepath.Join(c.o.Root, "test/cluster", specsFile)
	if err := os.WriteFile(list, []byte(strings.Join(c.specs, "\n")+"\n"), 0o644); err != nil {
		return err
	}
	page := filepath.Join(c.o.Root, "docs/conformance.md")
	if err := os.WriteFile(page, []byte(renderReport(c.specs, records)), 0o644); err != nil {
		return err
	}
	fmt.Println("wrote docs/conformance.md")
	failed := 0
	for _, r := range collect(c.specs, records) {
		if r.braid.State == stateFailed {
			failed++
		}
	}
	if failed > 0 {
		return fmt.Errorf("%d specs fail with Braid: docs/conformance.md names them", failed)
	}
	return nil
}

// readRecords reads the records of both networks, single-stack and dual-stack.
func readRecords(dir string) ([]*record, error) {
	var out []*record
	for _, network := range []string{networkBraid, networkStock} {
		for _, family := range []string{"v4", "dual"} {
			r, err := readRecord(dir, network, family)
			if err != nil {
				return nil, err
			}
			out = append(out, r)
		}
	}
	return out, nil
}
