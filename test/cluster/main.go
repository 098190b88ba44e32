// Command cluster runs a real Kubernetes cluster on one Linux machine with Braid as its network: etcd, the
// control plane, and nodes of containerd and kubelet, built from their modules. The control plane and each
// node live in network, mount and process namespaces of their own. Nothing is mocked, and the machine's own
// interfaces, routes, firewall rules and folders stay as they are.
//
// It is a Go module of its own, so that Braid never links Kubernetes. From the repository's root:
//
//	go run -C test/cluster . up --nodes 2
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"syscall"
)

// command is one word of the command line.
type command struct {
	name, args, help string
	run              func(ctx context.Context, args []string) error
}

func commands() []command {
	return []command{
		{"up", "[--nodes 2] [--family v4|v6|dual] …", "start a cluster; up --help lists the settings", runUp},
		{"down", "[--name test]", "remove every trace of it, whatever state it is in", runDown},
		{"build", "[--cache DIR] [PROGRAM…]", "build the programs and test images into the cache folder, or just some programs", runBuild},
		{"load", "FILE…", "load image archives into every node", runLoad},
		{"check", "", "run a Deployment and a Service, and ask from a pod for name, service and pods", runCheck},
		{"faults", "[--only NAME,…]", "break things under traffic, and judge what users would notice", runFaults},
		{"timings", "", "measure how soon pods run and nodes are Ready", runTimings},
		{"e2e", "--focus REGEXP [--skip REGEXP]", "run upstream's end-to-end specs", runE2E},
		{"conformance", "[--only braid|stock|v4|dual] [--focus REGEXP]", "run upstream's network specs and write docs/conformance.md", runConformance},
		{"kubectl", "ARGS…", "run kubectl as administrator, in the control plane's network", runKubectl},
		{"exec", "control|NODE COMMAND…", "run a command inside a node, or in the control plane's network", runExec},
		{"status", "", "what runs where", runStatus},
	}
}

func main() {
	if len(os.Args) == 3 && (os.Args[1] == bornWord || os.Args[1] == initWord) {
		os.Exit(initMain(os.Args[1], os.Args[2]))
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(mainExit(ctx, os.Args[1:]))
}

// mainExit runs one command and returns the exit status: that of a program which ran in our place, 2 for a
// wrong command line, or 1.
func mainExit(ctx context.Context, args []string) int {
	all := commands()
	if len(args) == 0 || slices.Contains([]string{"help", "-h", "--help"}, args[0]) {
		usage(all)
		return 0
	}
	i := slices.IndexFunc(all, func(c command) bool { return c.name == args[0] })
	if i < 0 {
		fmt.Fprintf(os.Stderr, "unknown command %q\n", args[0])
		usage(all)
		return 2
	}
	err := all[i].run(ctx, args[1:])
	var exit *exec.ExitError
	var wrong usageError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit) && err == error(exit):
		return exit.ExitCode()
	case errors.As(err, &wrong):
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	fmt.Fprintln(os.Stderr, "error:", err)
	return 1
}

func usage(all []command) {
	fmt.Fprintln(os.Stderr, "A real Kubernetes cluster on this machine, with Braid as its network.")
	for _, c := range all {
		fmt.Fprintf(os.Stderr, "  %-42s %s\n", strings.TrimSpace(c.name+" "+c.args), c.help)
	}
}
