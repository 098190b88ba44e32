// Command services measures service proxies side by side: our node agent and kube-proxy, each in both
// of its modes, real programs on a real kernel that watch the same API server. It prints Markdown.
//
// Every program gets namespaces of its own: a node between a client and pods. What counts is packets: a
// rule is in force when a connection reaches the pod that it should.
//
//	go run ./test/bench/services --shapes 1000x1 --subjects 'braid|nftables'
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// options are the flags.
type options struct {
	netagent, kubeProxy string
	shapes, connects    []shape
	subjects            *regexp.Regexp
	limits              limits
	full                bool
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	o, err := parse(os.Args[1:])
	if err == nil {
		err = measure(ctx, o)
	}
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func parse(args []string) (*options, error) {
	o := &options{}
	f := flag.NewFlagSet("services", flag.ContinueOnError)
	f.BoolVar(&o.full, "full", false, "all sizes, and hours of patience with slow programs")
	shapes := f.String("shapes", "", "sizes of clusters, as SERVICESxENDPOINTS, separated by commas (default 1000x1)")
	connect := f.String("connects", "", "sizes of clusters for the time that connections take; SERVICESxENDPOINTSa has affinity (default 1x1,1000x1)")
	which := f.String("subjects", "", "regular expression of what to measure: "+strings.Join(names(), ", "))
	f.StringVar(&o.netagent, "netagent", "bin/netagent", "our agent")
	f.StringVar(&o.kubeProxy, "kube-proxy", "", "the peer (default: built from its module)")
	f.DurationVar(&o.limits.cold, "limit", time.Minute, "time after which a start, or the wait for a change, is given up")
	f.IntVar(&o.limits.trials, "trials", 50, "single changes that are timed for each figure")
	f.DurationVar(&o.limits.budget, "budget", 20*time.Second, "time for all trials of a figure")
	pods := f.Int("pods", 0, "Pod objects of other nodes beside each cluster's services")
	rates := f.String("rates", "1,10,100", "changes per second of rolling updates, separated by commas; none = no such updates")
	f.DurationVar(&o.limits.rolling, "rolling", 5*time.Second, "how long each rolling update lasts")
	if err := f.Parse(args); err != nil {
		return nil, err
	}
	if f.NArg() > 0 {
		return nil, fmt.Errorf("%q is no flag; see --help", f.Arg(0))
	}
	defaults := [2]string{"1000x1", "1x1,1000x1"}
	if o.full {
		defaults = [2]string{"1000x1,10000x1,44000x1,5000x50", "1x1,1000x1,10000x1,50000x1,1x1a,1x1000a"}
		o.limits.cold, o.limits.budget = max(o.limits.cold, 30*time.Minute), max(o.limits.budget, 2*time.Minute)
	}
	for i, text := range []string{*shapes, *connect} {
		list, err := parseShapes(text, defaults[i])
		if err != nil {
			return nil, err
		}
		*[]*[]shape{&o.shapes, &o.connects}[i] = list
	}
	for i := range o.shapes {
		o.shapes[i].pods = *pods
	}
	var err error
	if o.limits.rates, err = parseRates(*rates); err != nil {
		return nil, err
	}
	if o.subjects, err = regexp.Compile(*which); err != nil {
		return nil, fmt.Errorf("subjects: %w", err)
	}
	if os.Geteuid() != 0 {
		return nil, errors.New("needs root for network namespaces")
	}
	return o, o.programs()
}

// parseShapes reads sizes such as 1000x1 and 1x1000a; "none" is no size.
func parseShapes(text, otherwise string) (out []shape, err error) {
	if text == "" {
		text = otherwise
	}
	if text == "none" {
		return nil, nil
	}
	for one := range strings.SplitSeq(text, ",") {
		digits, affinity := strings.CutSuffix(one, "a")
		a, b, ok := strings.Cut(digits, "x")
		s := shape{affinity: affinity}
		var aerr, berr error
		s.services, aerr = strconv.Atoi(a)
		s.endpoints, berr = strconv.Atoi(b)
		if !ok || aerr != nil || berr != nil || s.services < 1 || s.endpoints < 1 || s.services*s.endpoints > changedPods/2 {
			return nil, fmt.Errorf("size %q: use SERVICESxENDPOINTS, such as 1000x1, with an a behind it for affinity", one)
		}
		out = append(out, s)
	}
	return out, nil
}

// parseRates reads numbers of changes per second; "none" is no number.
func parseRates(text string) (out []int, err error) {
	if text == "none" {
		return nil, nil
	}
	for one := range strings.SplitSeq(text, ",") {
		n, err := strconv.Atoi(one)
		if err != nil || n < 1 || n > 1000 {
			return nil, fmt.Errorf("rates: %q: use numbers from 1 to 1000", one)
		}
		out = append(out, n)
	}
	return out, nil
}

func names() (out []string) {
	for _, s := range subjects("", "") {
		out = append(out, s.name)
	}
	return out
}

// programs finds the programs, and builds the peer when it is wanted and no place was given.
func (o *options) programs() (err error) {
	if o.netagent, err = filepath.Abs(o.netagent); err != nil {
		return err
	}
	if _, err := os.Stat(o.netagent); err != nil {
		return fmt.Errorf("our agent: %w; run `make build` first, in the repository's root", err)
	}
	if o.kubeProxy == "" && len(o.chosen(false)) > 0 {
		cmd := exec.Command("go", "run", "-C", "test/cluster", ".", "build", "kube-proxy")
		cmd.Stderr = os.Stderr
		out, err := cmd.Output()
		if err != nil {
			return fmt.Errorf("build kube-proxy: %w", err)
		}
		lines := strings.Split(strings.TrimSpace(string(out)), "\n")
		o.kubeProxy = lines[len(lines)-1]
	}
	return nil
}

// chosen are the subjects to measure, ours or the peer's.
func (o *options) chosen(ours bool) (out []subject) {
	for _, s := range subjects(o.netagent, o.kubeProxy) {
		if s.ours == ours && o.subjects.MatchString(s.name) {
			out = append(out, s)
		}
	}
	return out
}
