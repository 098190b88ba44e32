package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"time"
)

// These words make this program process 1 of a place: the first just born, the second in its cgroup.
const (
	bornWord = "__born"
	initWord = "__init"
)

// job is a program of a place, as process 1 starts it.
type job struct {
	Name string   // its log is Name.log
	Argv []string // the first is a path
	Env  []string // beyond PATH
}

// request and response are what `up` and process 1 say to each other, one pair per connection.
type request struct {
	Start  *job
	Stop   string // name of a job to end: first asked, then killed
	Signal int    // with Stop: the signal to ask with
}

type response struct {
	Error string
	Jobs  map[string]jobState
}

// jobState is what process 1 knows of a job.
type jobState struct {
	PID    int // inside the place; 0 when it has ended
	Status string
}

// initer is process 1 of a place. When it is killed the kernel kills everything else there, which is what
// makes `down` certain.
type initer struct {
	place *placeSpec
	mu    sync.Mutex
	pids  map[int]string // running jobs
	jobs  map[string]jobState
	ended map[string]chan struct{}
}

// initMain runs process 1 of the place in a folder, and returns its exit status.
func initMain(word, dir string) int {
	p, err := readSpec(dir)
	switch {
	case err != nil:
	case word == bornWord:
		err = born(p)
	default:
		err = runInit(p)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "init:", err)
		return 1
	}
	return 0
}

func readSpec(dir string) (*placeSpec, error) {
	data, err := os.ReadFile(filepath.Join(dir, specFile))
	if err != nil {
		return nil, err
	}
	p := &placeSpec{}
	return p, json.Unmarshal(data, p)
}

// born enters the place's cgroup and begins anew: a cgroup namespace is entered by one thread, and of those
// only the one that executes a program goes on.
func born(p *placeSpec) error {
	runtime.LockOSThread()
	if err := joinCgroup(p.Cgroup); err != nil {
		return err
	}
	return syscall.Exec("/proc/self/exe", []string{os.Args[0], initWord, p.Dir}, os.Environ())
}

func runInit(p *placeSpec) error {
	children := make(chan os.Signal, 1)
	signal.Notify(children, syscall.SIGCHLD)
	// Bound before the mounts hide the folder; whoever connects waits until the place is ready.
	l, err := net.Listen("unix", filepath.Join(p.Dir, socketFile))
	if err != nil {
		return err
	}
	if err := p.prepare(); err != nil {
		return err
	}
	in := &initer{place: p, pids: map[int]string{}, jobs: map[string]jobState{}, ended: map[string]chan struct{}{}}
	go func() {
		for range children {
			in.reap()
		}
	}()
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		go in.serve(conn)
	}
}

// reap takes the exit status of jobs, and of the orphans that shims and kubelet leave to process 1.
func (in *initer) reap() {
	for {
		in.mu.Lock()
		var ws syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &ws, syscall.WNOHANG, nil)
		if name, ok := in.pids[pid]; ok && pid > 0 {
			delete(in.pids, pid)
			in.jobs[name] = jobState{Status: describe(ws)}
			close(in.ended[name])
		}
		in.mu.Unlock()
		if pid <= 0 && err != syscall.EINTR {
			return
		}
	}
}

func describe(ws syscall.WaitStatus) string {
	if ws.Signaled() {
		return "killed by " + ws.Signal().String()
	}
	return fmt.Sprintf("exit status %d", ws.ExitStatus())
}

func (in *initer) serve(conn net.Conn) {
	defer conn.Close()
	var req request
	var resp response
	err := json.NewDecoder(conn).Decode(&req)
	switch {
	case err != nil:
	case req.Start != nil:
		err = in.start(req.Start)
	case req.Stop != "":
		err = in.stop(req.Stop, syscall.Signal(req.Signal))
	}
	if err != nil {
		resp.Error = err.Error()
	}
	in.mu.Lock()
	resp.Jobs = in.jobs
	data, _ := json.Marshal(resp) // plain strings and numbers cannot fail
	in.mu.Unlock()
	_, _ = conn.Write(data) // whoever asked may be gone
}

func (in *initer) start(j *job) error {
	log, err := os.OpenFile(filepath.Join(in.place.Logs, j.Name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	defer null.Close()
	// Forking under the lock lets reap know the child before it can end.
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.jobs[j.Name].PID != 0 {
		return fmt.Errorf("%s runs already", j.Name)
	}
	pid, err := syscall.ForkExec(j.Argv[0], j.Argv, &syscall.ProcAttr{
		Dir: "/", Env: append([]string{"PATH=" + in.place.Path, "HOME=/root"}, j.Env...),
		Files: []uintptr{null.Fd(), log.Fd(), log.Fd()}, Sys: &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return fmt.Errorf("start %s: %w", j.Argv[0], err)
	}
	in.pids[pid], in.jobs[j.Name], in.ended[j.Name] = j.Name, jobState{PID: pid, Status: "running"}, make(chan struct{})
	return nil
}

// stopGrace is how long a job may take to end by itself.
const stopGrace = 10 * time.Second

func (in *initer) stop(name string, sig syscall.Signal) error {
	in.mu.Lock()
	pid, ended := in.jobs[name].PID, in.ended[name]
	in.mu.Unlock()
	if pid == 0 {
		return errors.New(name + " does not run")
	}
	if err := syscall.Kill(pid, sig); err != nil {
		return err
	}
	select {
	case <-ended:
		return nil
	case <-time.After(stopGrace):
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		return err
	}
	<-ended
	return nil
}
