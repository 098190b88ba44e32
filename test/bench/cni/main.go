// Command cni measures how long a container runtime waits for the network of a pod: ADD and DEL of our
// plugin and of the chain bridge, host-local, portmap that others use, one after the other and many at once,
// and what the plugin takes to start. It prints Markdown.
//
// Each subject has a node of its own, a network namespace, and is called by the library that runtimes
// call plugins with. Subjects take turns.
//
//	go run ./test/bench/cni --rounds 20 --burst 100
//
// Where the chain begins with flannel's own plugin, which calls bridge, --flannel names one that was built from
// github.com/flannel-io/cni-plugin.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/braidnet/braid/test/bench/rig"
)

// options are the flags.
type options struct {
	ours, flannel string
	rounds, burst int
	bursts        int
	dir           string // of what is made on the way
}

func main() {
	o, err := parse(os.Args[1:])
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err == nil {
		err = compare(o)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func parse(args []string) (*options, error) {
	o := &options{}
	f := flag.NewFlagSet("cni", flag.ContinueOnError)
	f.StringVar(&o.ours, "plugin", "bin/braid", "our plugin")
	f.StringVar(&o.flannel, "flannel", "", "flannel's CNI plugin, to stand at the head of the chain; without it the chain begins with bridge")
	f.IntVar(&o.rounds, "rounds", 50, "pods that come and go one after the other")
	f.IntVar(&o.burst, "burst", 100, "pods that come at once")
	f.IntVar(&o.bursts, "bursts", 3, "times that they do")
	if err := f.Parse(args); err != nil {
		return nil, err
	}
	if f.NArg() > 0 || o.rounds < 1 || o.burst < 1 || o.burst > 200 || o.bursts < 1 {
		return nil, errors.New("see --help; at most 200 pods come at once")
	}
	if os.Geteuid() != 0 {
		return nil, errors.New("it makes network namespaces: run it as root")
	}
	if _, err := os.Stat(o.ours); err != nil {
		return nil, fmt.Errorf("our plugin: %w; run `make build` first, in the repository's root", err)
	}
	if o.flannel != "" {
		if _, err := os.Stat(o.flannel); err != nil {
			return nil, fmt.Errorf("--flannel: %w; build it from github.com/flannel-io/cni-plugin", err)
		}
	}
	return o, nil
}

// peers are the plugins of the reference chain, by where their module has them.
var peers = []string{"ipam/host-local", "main/bridge", "meta/portmap"}

// build puts our plugin and its peers into a folder, made alike: without tables for debuggers.
func (o *options) build() error {
	for name, from := range map[string]string{"braid": o.ours, "flannel": o.flannel} {
		if from == "" {
			continue
		}
		data, err := os.ReadFile(from)
		if err == nil {
			err = os.WriteFile(filepath.Join(o.dir, name), data, 0o755)
		}
		if err != nil {
			return err
		}
	}
	for _, p := range peers {
		out, err := exec.Command("go", "build", "-C", "test/oracle", "-ldflags", "-s -w", "-o", filepath.Join(o.dir, filepath.Base(p)),
			"github.com/containernetworking/plugins/plugins/"+p).CombinedOutput()
		if err != nil {
			return fmt.Errorf("build %s: %w: %s", p, err, strings.TrimSpace(string(out)))
		}
	}
	return nil
}

func compare(o *options) (err error) {
	if o.dir, err = os.MkdirTemp("", "braid-bench-cni-"); err != nil {
		return err
	}
	defer os.RemoveAll(o.dir)
	if err := o.build(); err != nil {
		return err
	}
	fmt.Printf("%s; %d pods one after the other, then %d at once, %d times\n", rig.Facts(), o.rounds, o.burst, o.bursts)
	if err := starts(o); err != nil {
		return err
	}
	chain := &subject{name: "bridge, host-local, portmap", plugins: reference}
	if o.flannel != "" {
		chain = &subject{name: "flannel, bridge, host-local, portmap", plugins: flannel}
	}
	for _, ports := range []bool{false, true} {
		all := []*subject{{name: chain.name, plugins: chain.plugins}, {name: "braid", plugins: ours},
			{name: "braid, routed", plugins: func(dir string) []any { return routed(ours(dir)) }}}
		for _, s := range all {
			if err := s.start(o, ports); err != nil {
				return fmt.Errorf("%s: %w", s.name, err)
			}
		}
		if err := measure(context.Background(), o, all); err != nil {
			return err
		}
		printTable(all, ports)
		for _, s := range all {
			s.stop()
		}
	}
	return nil
}

// measure lets pods come and go, one subject after the other.
func measure(ctx context.Context, o *options, all []*subject) error {
	for i := range o.rounds + 1 {
		for _, s := range all {
			if err := s.single(ctx, i > 0); err != nil { // the first makes bridge and tables
				return fmt.Errorf("%s: %w", s.name, err)
			}
		}
	}
	for range o.bursts {
		for _, s := range all {
			if err := s.burst(ctx, o.burst); err != nil {
				return fmt.Errorf("%s, %d pods at once: %w", s.name, o.burst, err)
			}
		}
	}
	return nil
}

func printTable(all []*subject, ports bool) {
	what := "without a host port"
	if ports {
		what = "with a host port each"
	}
	fmt.Printf("\n### %s\n\np50, p99 in milliseconds, and what they are of the reference's\n\n| | ADD | DEL | ADD, at once | DEL, at once |\n|---|---|---|---|---|\n", what)
	for _, s := range all {
		fmt.Printf("| %s |", s.name)
		for k := range s.times {
			p50, p99 := rig.Percentile(s.times[k], 50), rig.Percentile(s.times[k], 99)
			fmt.Printf(" %.1f, %.1f (%.2f, %.2f) |", ms(p50), ms(p99), float64(p50)/float64(rig.Percentile(all[0].times[k], 50)), float64(p99)/float64(rig.Percentile(all[0].times[k], 99)))
		}
		fmt.Println()
	}
}

func ms(d time.Duration) float64 { return d.Seconds() * 1000 }
