package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
)

// runE2E runs upstream's suite as somebody at the control plane would. Its report is e2e/junit_01.xml in the
// cluster's folder.
func runE2E(ctx context.Context, args []string) error {
	o := &options{}
	f := flags("e2e", o)
	focus := f.String("focus", "", "run the specs whose names match this regular expression")
	skip := f.String("skip", "", "but not those that match this one")
	rest, err := parse(f, o, args)
	if err != nil {
		return err
	}
	if *focus == "" || len(rest) > 0 {
		return usageError{errors.New(`e2e: say which specs: --focus '\[sig-network\].*\[Conformance\]'`)}
	}
	data, err := os.ReadFile(o.path(optionsFile))
	if err != nil {
		return fmt.Errorf("there is no cluster %s: `up` starts one: %w", o.Name, err)
	}
	if err := json.Unmarshal(data, o); err != nil {
		return err
	}
	if err := build(ctx, o, suite); err != nil {
		return err
	}
	argv := []string{
		o.bin(suite.name), "--provider=local", "--kubeconfig=" + o.kubeconfig(), "--e2e-verify-service-account=false",
		"--report-dir=" + o.path("e2e"), "--ginkgo.focus=" + *focus, "--ginkgo.no-color", "--ginkgo.v",
		"--ginkgo.skip=" + strings.Trim(*skip+"|"+cannotRun, "|"),
	}
	return attach(ctx, o, control, false, argv)
}

// cannotRun matches specs that never run: they break nodes for those after them.
const cannotRun = `\[Disruptive\]`
