package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/braidnet/braid/test/bench/rig"
)

// The playground of nodeLocal: the asker and one responder are pods of n1, the other is one of n2, and a
// service stands before each responder.
const (
	labName  = "benchdns"
	labFiles = `apiVersion: v1
kind: Pod
metadata: {name: asker, namespace: default}
spec: {nodeName: n1, containers: [{name: asker, image: none}]}
`
	labPlace = `---
apiVersion: v1
kind: Pod
metadata: {name: PLACE, namespace: default}
spec: {nodeName: NODE, containers: [{name: dns, image: none}]}
---
apiVersion: v1
kind: Service
metadata: {name: PLACE, namespace: default}
spec: {clusterIP: ADDRESS, ports: [{port: 53, protocol: UDP}]}
`
	// By hand: where a service selects a pod, the playground listens in the pod itself.
	labEndpoint = `apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: PLACE, namespace: default, labels: {kubernetes.io/service-name: PLACE}}
addressType: IPv4
ports: [{name: "", port: 53, protocol: UDP}]
endpoints: [{addresses: [POD], conditions: {ready: true}}]
`
	perSecond = 5000
	askers    = 200
)

// places are where the asked server can be.
var places = []struct{ name, node, address, text string }{
	{"near", "n1", "10.96.7.1", "on the asker's node"},
	{"far", "n2", "10.96.7.2", "on another node (vxlan)"},
}

// path is what one run says about the way to a server and back.
type path struct {
	delays  []time.Duration
	busy    time.Duration // processor time of the whole machine per question
	entries [2]int        // that connection tracking has more of, on n1 and n2
}

// nodeLocal asks a server through a service's address, on the asker's own node and on another, and
// prints what the way costs. The server does next to nothing.
func nodeLocal(ctx context.Context, o *options, out io.Writer) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("--node-local makes network namespaces: run it as root")
	}
	lab := func(args ...string) *exec.Cmd {
		c := exec.CommandContext(ctx, filepath.Join(filepath.Dir(o.ours), "netagent"), append([]string{"lab", args[0], "--name", labName}, args[1:]...)...)
		c.Cancel = func() error { return c.Process.Signal(unix.SIGTERM) }
		return c
	}
	say := func(c *exec.Cmd) ([]byte, error) {
		text, err := c.Output()
		if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
			err = fmt.Errorf("%s: %w: %s%s", strings.Join(c.Args, " "), err, text, exit.Stderr)
		}
		return text, err
	}
	manifests := labFiles
	for _, p := range places {
		manifests += strings.NewReplacer("PLACE", p.name, "NODE", p.node, "ADDRESS", p.address).Replace(labPlace)
	}
	file, questions := filepath.Join(o.dir, "pods.yaml"), filepath.Join(o.dir, "questions")
	err = errors.Join(os.WriteFile(file, []byte(manifests), 0o644), os.WriteFile(questions, []byte("www.example.com A\n"), 0o644))
	if err != nil {
		return err
	}
	defer func() {
		ctx = context.Background() // also after an interrupt
		_, derr := say(lab("down"))
		err = errors.Join(err, derr)
	}()
	if _, err := say(lab("up", "--nodes", "2", "--family", "v4", file)); err != nil {
		return err
	}
	if err := connect(o, say, lab); err != nil {
		return err
	}
	for _, p := range places {
		server := lab("exec", p.name, "--", o.bare, "--listen", ":53")
		if err := server.Start(); err != nil {
			return err
		}
		defer func() { _ = server.Process.Signal(unix.SIGTERM); _ = server.Wait() }() // it may have ended
	}
	fmt.Fprintln(out, o.facts())
	results := map[string][]path{}
	for range o.rounds {
		for _, p := range places {
			r, err := onePath(func(args ...string) ([]byte, error) { return say(lab(append([]string{"exec"}, args...)...)) }, p.address, questions, o.span)
			if err != nil {
				return err
			}
			results[p.name] = append(results[p.name], r)
		}
	}
	fmt.Fprintf(out, "\n### The way to a server, %d questions per second from %d sockets\n\n| | p50, p99 | processor time of the machine per question | entries of connection tracking per socket, there and on the other node |\n|---|---|---|---|\n", perSecond, askers)
	for _, p := range places {
		list := results[p.name]
		slices.SortFunc(list, func(a, b path) int { return cmp.Compare(rig.Percentile(a.delays, 50), rig.Percentile(b.delays, 50)) })
		r := list[len(list)/2]
		fmt.Fprintf(out, "| %s | %s, %s | %.1f µs | %.1f, %.1f |\n", p.text, rig.Short(rig.Percentile(r.delays, 50)), rig.Short(rig.Percentile(r.delays, 99)),
			float64(r.busy)/1000, float64(r.entries[0])/askers, float64(r.entries[1])/askers)
	}
	return nil
}

// connect gives each service the responder of its place as its endpoint.
func connect(o *options, say func(*exec.Cmd) ([]byte, error), lab func(...string) *exec.Cmd) error {
	text, err := say(lab("pods", "-o", "json"))
	if err != nil {
		return err
	}
	var pods []struct {
		Name string
		IPs  []string
	}
	if err := json.Unmarshal(text, &pods); err != nil {
		return fmt.Errorf("pods of the playground: %w", err)
	}
	for _, p := range pods {
		if len(p.IPs) == 0 {
			return fmt.Errorf("pod %s has no address", p.Name)
		}
		if p.Name == "asker" {
			continue
		}
		file := filepath.Join(o.dir, p.Name+".yaml")
		text := strings.NewReplacer("PLACE", p.Name, "POD", p.IPs[0]).Replace(labEndpoint)
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			return err
		}
		if _, err := say(lab("apply", file)); err != nil {
			return err
		}
	}
	return nil
}

// answers asks until the server at address answers.
func answers(run func(args ...string) ([]byte, error), address, questions string) error {
	for deadline := time.Now().Add(time.Minute); ; {
		text, err := run("asker", "--", "dnsperf", "-s", address, "-d", questions, "-n", "1", "-t", "1")
		if err != nil {
			return err
		}
		if !strings.Contains(string(text), "completed:    0") {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s does not answer:\n%s", address, text)
		}
	}
}

// onePath asks once. run runs a command in a pod or node of the playground.
func onePath(run func(args ...string) ([]byte, error), address, questions string, span time.Duration) (r path, err error) {
	count := func(sign int) {
		for i, node := range []string{"node/n1", "node/n2"} {
			text, cerr := run(node, "--", "cat", "/proc/sys/net/netfilter/nf_conntrack_count")
			n, perr := strconv.Atoi(strings.TrimSpace(string(text)))
			err = errors.Join(err, cerr, perr)
			r.entries[i] += sign * n
		}
	}
	seconds := strconv.Itoa(max(1, int(span.Seconds())))
	ask := func(rate int) ([]byte, error) {
		return run("asker", "--", "dnsperf", "-s", address, "-d", questions, "-l", seconds, "-c", strconv.Itoa(askers), "-T", "1", "-q", "1000", "-v", "-Q", strconv.Itoa(rate))
	}
	if err := answers(run, address, questions); err != nil {
		return r, err
	}
	count(-1)
	before := idle()
	began := time.Now()
	text, aerr := ask(perSecond)
	passed := time.Since(began)*time.Duration(runtime.NumCPU()) - (idle() - before)
	count(+1)
	if r.delays, err = delays(text); err != nil || aerr != nil {
		return r, errors.Join(err, aerr)
	}
	if len(r.delays) == 0 {
		return r, fmt.Errorf("%s answered nothing", address)
	}
	r.busy = passed / time.Duration(len(r.delays))
	return r, nil
}

// idle is how long all processors together had nothing to do, since the start of the machine.
func idle() time.Duration {
	b, _ := os.ReadFile("/proc/stat")
	first, _, _ := strings.Cut(string(b), "\n")
	var ticks int
	for i, f := range strings.Fields(first) {
		if i == 4 || i == 5 { // idle, and waiting for a disk
			n, _ := strconv.Atoi(f)
			ticks += n
		}
	}
	return time.Duration(ticks) * time.Second / 100 // USER_HZ
}
