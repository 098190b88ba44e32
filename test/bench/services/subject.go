package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/braidnet/braid/internal/kernel/netns"
)

// subject is a program that is measured, with its settings.
type subject struct {
	name string
	argv func(kubeconfig, dir string) []string
	ours bool
	// pauses says that it waits a second from one change of the rules to the next.
	pauses bool
}

// subjects lists what can be measured: our agent in both modes, and the peer in both modes, each with
// the smallest pause between two syncs that it can be given, and with the one that it has by itself.
func subjects(netagent, kubeProxy string) []subject {
	var out []subject
	for _, mode := range []string{"nftables", "iptables"} {
		out = append(out, subject{name: "braid " + mode, ours: true, argv: func(kubeconfig, dir string) []string {
			return []string{netagent, "run", "--node", nodeName, "--kubeconfig", kubeconfig, "--service-mode", mode, "--overlay", "none",
				"--cni-conf-dir", "", "--run-dir", filepath.Join(dir, "run"), "--state-dir", filepath.Join(dir, "state"),
				"--conntrack-max-per-core", "0"} // the size of the table belongs to the machine
		}})
	}
	for _, mode := range []string{"nftables", "iptables"} {
		for _, pause := range []string{"0s", "1s"} {
			out = append(out, subject{name: fmt.Sprintf("kube-proxy %s, %s", mode, pause), pauses: pause != "0s", argv: func(kubeconfig, _ string) []string {
				return []string{kubeProxy, "--kubeconfig", kubeconfig, "--hostname-override", nodeName, "--proxy-mode", mode,
					"--cluster-cidr", clusterCIDR.String(), "--conntrack-max-per-core", "0",
					"--iptables-min-sync-period", pause} // of nftables mode too, which has no flag of its own
			}})
		}
	}
	return out
}

// kubeconfig is what both programs find the API server by.
const kubeconfig = `apiVersion: v1
kind: Config
clusters: [{name: bench, cluster: {server: "%s"}}]
users: [{name: bench, user: {}}]
contexts: [{name: bench, context: {cluster: bench, user: bench}}]
current-context: bench
`

// process is a running subject.
type process struct {
	cmd   *exec.Cmd
	begun time.Time
	log   string
	done  chan struct{} // closed when it has ended
}

// birth runs functions on a thread that lives as long as this process. What dies with its parent
// dies with the thread that started it.
var birth = func() chan<- func() {
	c := make(chan func())
	go func() {
		runtime.LockOSThread()
		for f := range c {
			f()
		}
	}()
	return c
}()

// start starts a subject in a namespace. It is killed when this process ends, however that ends.
func (s subject) start(ns *netns.NS, url, dir string) (*process, error) {
	conf := filepath.Join(dir, "kubeconfig")
	if err := os.WriteFile(conf, fmt.Appendf(nil, kubeconfig, url), 0o600); err != nil {
		return nil, err
	}
	p := &process{log: filepath.Join(dir, "log"), done: make(chan struct{})}
	f, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	argv := s.argv(conf, dir)
	p.cmd = exec.Command(argv[0], argv[1:]...)
	p.cmd.Stdout, p.cmd.Stderr = f, f
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	birth <- func() { started <- ns.Do(p.cmd.Start) }
	p.begun = time.Now()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", s.name, err)
	}
	go func() {
		_ = p.cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// stop ends the process as a node's supervisor does.
func (p *process) stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(20 * time.Second):
		_ = p.cmd.Process.Kill()
		<-p.done
	}
}

// last is the end of what the process said.
func (p *process) last() string {
	b, _ := os.ReadFile(p.log)
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return strings.Join(lines[max(0, len(lines)-5):], "\n")
}

// ticks is how many of the kernel's clock ticks make a second, in /proc.
const ticks = 100

// cpu is the processor time that the process and all programs it ran have used.
func (p *process) cpu() (time.Duration, error) {
	sum, err := cpuOf(p.cmd.Process.Pid)
	if err != nil {
		return 0, err
	}
	for _, child := range children(p.cmd.Process.Pid) { // those that ended are in the parent's sum
		used, err := cpuOf(child)
		if err == nil { // it has not ended meanwhile
			sum += used
		}
	}
	return sum, nil
}

// children are the programs that a process has started and that run.
func children(pid int) (out []int) {
	lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid)) // the pattern is right
	for _, list := range lists {
		b, err := os.ReadFile(list)
		if err != nil {
			continue // the thread has ended
		}
		for _, word := range strings.Fields(string(b)) {
			if child, err := strconv.Atoi(word); err == nil {
				out = append(out, child)
			}
		}
	}
	return out
}

// cpuOf is the processor time of a process and of its children that ended.
func cpuOf(pid int) (time.Duration, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// Behind the name, which may hold anything, come state (field 3) and so on.
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	var sum time.Duration
	for _, number := range []int{14, 15, 16, 17} { // utime, stime, cutime, cstime
		if len(f) < number-2 {
			return 0, errors.New("/proc/PID/stat is short")
		}
		n, err := strconv.ParseInt(f[number-3], 10, 64)
		if err != nil {
			return 0, err
		}
		sum += time.Duration(n) * time.Second / ticks
	}
	return sum, nil
}

// memory is the resident memory now and at its highest, in MiB.
func (p *process) memory() (now, highest float64, err error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		return 0, 0, err
	}
	defer f.Close()
	for in := bufio.NewScanner(f); in.Scan(); {
		words := strings.Fields(in.Text())
		if len(words) < 2 {
			continue
		}
		kib, _ := strconv.ParseFloat(words[1], 64)
		switch words[0] {
		case "VmRSS:":
			now = kib / 1024
		case "VmHWM:":
			highest = kib / 1024
		}
	}
	return now, highest, nil
}
