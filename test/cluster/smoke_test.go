package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// smokeSpecs are upstream's specs that TestSmoke runs: names, services by each way to them, and the slices
// behind, in about a minute.
var smokeSpecs = []string{
	"[sig-network] DNS should provide DNS for the cluster [Conformance]",
	"[sig-network] DNS should provide DNS for services [Conformance]",
	"[sig-network] Services should serve a basic endpoint from pods [Conformance]",
	"[sig-network] Services should serve endpoints on same port and different protocols [Conformance]",
	"[sig-network] Services should be able to create a functioning NodePort service [Conformance]",
	"[sig-network] Services should have session affinity work for service with type clusterIP [LinuxOnly] [Conformance]",
	"[sig-network] Services should allow pods to hairpin back to themselves through services",
	"[sig-network] EndpointSlice should create and delete EndpointSlices for a Service with a selector that matches no pods [Conformance]",
	"[sig-network] EndpointSlice should support a Service with multiple ports specified in multiple EndpointSlices [Conformance]",
	"[sig-network] HostPort validates that there is no conflict between pods with same hostPort but different hostIP and protocol [LinuxOnly] [Conformance]",
	"[sig-network] Networking Granular Checks: Pods should function for node-pod communication: udp [LinuxOnly] [NodeConformance] [Conformance]",
}

// defaultBudget is how long TestSmoke may build what the cache lacks. $BRAID_CLUSTER_BUDGET overrides it.
const defaultBudget = 5 * time.Minute

// TestSmoke brings up a real cluster with the images in bin/images and lets upstream's suite judge it. It is
// skipped, with a line that says why, where that cannot be done in time.
func TestSmoke(t *testing.T) {
	if testing.Short() {
		t.Skip("a real cluster is not short")
	}
	o, err := upOptions([]string{"--name", "smoke", "--images", "bin/images/netagent.tar,bin/images/coredns.tar"})
	if err != nil && os.Getenv("CI") == "true" {
		t.Fatal(err) // no root, or what `make test` prepares is missing
	}
	if err != nil {
		t.Skipf("no real cluster: %v", err)
	}
	if _, err := os.Stat(filepath.Join(cgroupRoot, "cgroup.controllers")); err == nil {
		t.Skip("no real cluster: this machine has cgroups of version 2 alone, and nodes want those of version 1")
	}
	budget, err := time.ParseDuration(envOr("BRAID_CLUSTER_BUDGET", defaultBudget.String()))
	if err != nil {
		t.Fatalf("BRAID_CLUSTER_BUDGET: %v", err)
	}
	if cost, missing := o.buildTime(append(programs(), suite...)); cost > budget {
		t.Skipf("no real cluster: %s must be built first, about %s, and $BRAID_CLUSTER_BUDGET is %s: `go run -C test/cluster . build` builds them",
			strings.Join(missing, ", "), cost, budget)
	}
	// The test's own program cannot be process 1 of a place.
	cluster := filepath.Join(t.TempDir(), "cluster")
	execute(t, "go", "build", "-o", cluster, ".")
	execute(t, cluster, "down", "--name", "smoke")
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the cluster's logs were in %s; run it again by hand to keep it", o.State)
		}
		execute(t, cluster, "down", "--name", "smoke")
	})
	execute(t, cluster, "up", "--name", "smoke", "--images", strings.Join(o.Images, ","))
	execute(t, cluster, "e2e", "--name", "smoke", "--timeout", "15m", "--focus", exactly(smokeSpecs))
	outcomes := must(parseJUnit(must(os.ReadFile(o.report()))))
	if len(outcomes) != len(smokeSpecs) {
		t.Errorf("%d specs ran, want %d", len(outcomes), len(smokeSpecs))
	}
	for _, r := range outcomes {
		if r.State != statePassed {
			t.Errorf("%s: %s: %s", r.Spec, r.State, r.Why)
		}
	}
}

// execute runs a program, and fails the test with what it prints.
func execute(t *testing.T, argv ...string) {
	t.Helper()
	out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		t.Errorf("%s: %v\n%s", strings.Join(argv, " "), err, lastLines(string(out), 60))
	}
}

func lastLines(s string, n int) string {
	lines := strings.Split(s, "\n")
	if len(lines) <= n {
		return s
	}
	return fmt.Sprintf("(%d lines before)\n%s", len(lines)-n, strings.Join(lines[len(lines)-n:], "\n"))
}
