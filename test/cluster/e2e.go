package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// suiteRun is one run of upstream's end-to-end suite.
type suiteRun struct {
	Focus, Skip string // regular expressions on specs' full names
	Procs       int    // specs that run at once; those marked [Serial] run alone, at the end
	Timeout     time.Duration
	Verbose     bool // print what each spec does, not only what fails
}

// runE2E runs upstream's suite as somebody at the control plane would. Its report is e2e/junit_01.xml in the
// cluster's folder.
func runE2E(ctx context.Context, args []string) error {
	o := &options{}
	f := flags("e2e", o)
	run := &suiteRun{}
	f.IntVar(&run.Procs, "procs", 6, "how many specs run at once")
	f.DurationVar(&run.Timeout, "timeout", 2*time.Hour, "end after this time")
	f.StringVar(&run.Focus, "focus", "", "run the specs whose names match this regular expression")
	f.StringVar(&run.Skip, "skip", "", "but not those that match this one")
	f.BoolVar(&run.Verbose, "v", false, "print what each spec does")
	rest, err := parse(f, o, args)
	if err != nil {
		return err
	}
	if run.Focus == "" || len(rest) > 0 {
		return usageError{errors.New(`e2e: say which specs: --focus '\[sig-network\].*\[Conformance\]'`)}
	}
	run.Skip = strings.Trim(run.Skip+"|"+cannotRun, "|")
	if err := o.read(); err != nil {
		return err
	}
	if err := build(ctx, o, suite...); err != nil {
		return err
	}
	argv, err := o.suite(*run)
	if err != nil {
		return err
	}
	return attach(ctx, o, control, false, argv)
}

// cannotRun matches specs that never run: they break nodes for those after them.
const cannotRun = `\[Disruptive\]`

// report is where a run of the suite leaves its JUnit report.
func (o *options) report() string { return o.path("e2e", "junit_01.xml") }

// suite returns the command line of a run, and removes the report of the one before. Most specs wait rather
// than compute, so more of them run at once than there are processors; each process gets one, and an upper
// bound for its memory.
func (o *options) suite(r suiteRun) ([]string, error) {
	if err := os.Remove(o.report()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("remove the last report: %w", err)
	}
	argv := []string{
		"nice", "-n", "5", "env", "GOMAXPROCS=1", "GOMEMLIMIT=512MiB", "TMPDIR=" + o.path("e2e"),
		o.bin("ginkgo"), "--procs=" + strconv.Itoa(r.Procs), "--timeout=" + r.Timeout.String(), "--no-color",
		"--focus=" + r.Focus, "--skip=" + r.Skip,
	}
	if r.Verbose {
		argv = append(argv, "-v")
	} else {
		argv = append(argv, "--silence-skips")
	}
	argv = append(argv, o.bin("e2e.test"), "--", "--provider=local", "--kubeconfig="+o.kubeconfig(), "--e2e-verify-service-account=false",
		"--report-dir="+filepath.Dir(o.report()), "--num-nodes="+strconv.Itoa(o.Nodes), "--e2e-output-dir="+o.path("e2e"))
	return argv, os.MkdirAll(filepath.Dir(o.report()), 0o755)
}
