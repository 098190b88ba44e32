// Package process runs the programs that are measured, each in a network namespace, and reads what they use.
package process

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

const kubeconfig = `apiVersion: v1
kind: Config
clusters: [{name: bench, cluster: {server: "%s"}}]
users: [{name: bench, user: {}}]
contexts: [{name: bench, context: {cluster: bench, user: bench}}]
current-context: bench
`

// Kubeconfig writes what a program finds an API server by, given its URL, into dir, and returns the file's name.
func Kubeconfig(dir, url string) (file string, err error) {
	file = filepath.Join(dir, "kubeconfig")
	return file, os.WriteFile(file, fmt.Appendf(nil, kubeconfig, url), 0o600)
}

// Process is a running program.
type Process struct {
	Begun time.Time
	Done  chan struct{} // closed when it has ended

	cmd *exec.Cmd
	log string
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

// Start starts a program in a namespace, with its output in dir. It is killed when this process ends, however that ends.
func Start(ns *netns.NS, dir string, argv ...string) (*Process, error) {
	p := &Process{log: filepath.Join(dir, "log"), Done: make(chan struct{})}
	f, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	p.cmd = exec.Command(argv[0], argv[1:]...)
	p.cmd.Stdout, p.cmd.Stderr = f, f
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	birth <- func() { started <- ns.Do(p.cmd.Start) }
	p.Begun = time.Now()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", argv[0], err)
	}
	go func() {
		_ = p.cmd.Wait()
		close(p.Done)
	}()
	return p, nil
}

// Stop ends the process as a node's supervisor does.
func (p *Process) Stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.Done:
	case <-time.After(20 * time.Second):
		_ = p.cmd.Process.Kill()
		<-p.Done
	}
}

// Last is the end of what the process said.
func (p *Process) Last() string {
	b, _ := os.ReadFile(p.log)
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return strings.Join(lines[max(0, len(lines)-5):], "\n")
}

// ticks is how many of the kernel's clock ticks make a second, in /proc.
const ticks = 100

// CPU is the processor time that the process and all programs it ran have used.
func (p *Process) CPU() (time.Duration, error) {
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

// Memory is the resident memory now and at its highest, in MiB.
func (p *Process) Memory() (now, highest float64, err error) {
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
