package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	specFile   = "place.json"
	socketFile = "init.sock"
	pidFile    = "init.pid"
)

// placeSpec is what process 1 of a place has to know.
type placeSpec struct {
	Name   string
	Dir    string // on the machine; hidden inside a node
	Node   bool   // has a file system of its own
	Bin    string // folder of the programs on the machine
	Logs   string // as the place sees it
	Path   string
	Cgroup string // below the root of each hierarchy
}

// nodeBin is where a node finds the cluster's programs: its own /var hides the cache.
const nodeBin = "/opt/kubernetes/bin"

const systemPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

func (o *options) spec(place string) *placeSpec {
	p := &placeSpec{Name: place, Dir: o.path(place), Node: place != control, Bin: o.bin(""), Cgroup: o.cgroup() + "/" + place}
	p.Logs, p.Path = filepath.Join(p.Dir, "log"), p.Bin+":"+systemPath
	if p.Node {
		p.Logs, p.Path = "/var/log", nodeBin+":"+systemPath
	}
	return p
}

// log is where the machine finds a job's log.
func (o *options) log(place, job string) string {
	if place == control {
		return o.path(place, "log", job+".log")
	}
	return o.path(place, "var", "log", job+".log")
}

// nodeDirs are the folders that make a node's file system different from the machine's, below the node's own.
var nodeDirs = []string{
	"opt/kubernetes/bin", "opt/cni/bin", "etc", "etc-work", "run/lock", "run/netns", "tmp", "cgroup", "var/tmp",
	"var/log/pods", "var/log/containers", "var/lib/kubelet/manifests", "var/lib/containerd", "var/lib/cni",
}

// openPlace starts process 1 of a place inside its network namespace, with fresh mount, process and host
// name namespaces.
func openPlace(o *options, place string) error {
	p := o.spec(place)
	dirs := []string{"log"}
	if p.Node {
		dirs = nodeDirs
	}
	for _, d := range dirs {
		if err := os.MkdirAll(filepath.Join(p.Dir, d), 0o755); err != nil {
			return err
		}
	}
	if p.Node {
		// What programs find through these is one folder on an ordinary machine too.
		if err := os.Symlink("/run", filepath.Join(p.Dir, "var/run")); err != nil && !os.IsExist(err) {
			return err
		}
	}
	data, err := json.MarshalIndent(p, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(p.Dir, specFile), data, 0o644); err != nil {
		return err
	}
	log, err := os.Create(filepath.Join(p.Dir, "init.log"))
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(o.path("bin", "cluster"), bornWord, p.Dir)
	cmd.Dir, cmd.Stdout, cmd.Stderr, cmd.Env = "/", log, log, []string{"PATH=" + p.Path}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWUTS}
	if err := within(o.nsName(place), cmd.Start); err != nil {
		return fmt.Errorf("start process 1 of %s: %w", place, err)
	}
	return os.WriteFile(filepath.Join(p.Dir, pidFile), []byte(strconv.Itoa(cmd.Process.Pid)), 0o644)
}

// prepare gives the calling process's place its host name and file system.
func (p *placeSpec) prepare() error {
	if err := unix.Sethostname([]byte(p.Name)); err != nil {
		return fmt.Errorf("set the host name: %w", err)
	}
	steps := []mount{{target: "/", flags: unix.MS_REC | unix.MS_PRIVATE}}
	if p.Node {
		more, err := p.nodeMounts()
		if err != nil {
			return err
		}
		steps = append(steps, more...)
	}
	steps = append(steps, mount{source: "proc", target: "/proc", kind: "proc"})
	if p.Node {
		// Last, since it hides this place's folder. Containers' mounts have to propagate from here.
		steps = append(steps, mount{source: p.in("var"), target: "/var", flags: unix.MS_BIND | unix.MS_REC},
			mount{target: "/", flags: unix.MS_REC | unix.MS_SHARED})
	}
	for _, m := range steps {
		if err := m.do(); err != nil {
			return err
		}
	}
	return nil
}

func (p *placeSpec) in(dir string) string { return filepath.Join(p.Dir, dir) }

// nodeMounts make /sys that of the node's network and cgroup, and /etc, /opt, /run and /tmp the node's own.
// A sysfs shows the network namespace it was mounted in.
func (p *placeSpec) nodeMounts() ([]mount, error) {
	// The kubelet watches every hierarchy in the list of mounts. Those that somebody mounted a second time
	// outside /sys, for a chroot say, would be hidden by the node's folders and fail it.
	strays, err := hierarchies(false)
	if err != nil {
		return nil, err
	}
	var out []mount
	for _, dir := range strays {
		out = append(out, mount{target: dir, unmount: true, optional: true}) // gone with its parent, perhaps
	}
	before, after, err := cgroupMounts(p.Cgroup, p.in("cgroup"))
	if err != nil {
		return nil, err
	}
	out = append(out, before...)
	out = append(out, mount{target: "/sys", unmount: true}, mount{source: "sysfs", target: "/sys", kind: "sysfs"})
	out = append(out, after...)
	const tree = unix.MS_BIND | unix.MS_REC
	return append(out,
		mount{source: "bpf", target: "/sys/fs/bpf", kind: "bpf", optional: true},
		mount{source: p.Bin, target: p.in("opt/kubernetes/bin"), flags: unix.MS_BIND},
		mount{source: "overlay", target: "/etc", kind: "overlay", data: "lowerdir=/etc,upperdir=" + p.in("etc") + ",workdir=" + p.in("etc-work")},
		mount{source: p.in("opt"), target: "/opt", flags: tree},
		mount{source: p.in("run"), target: "/run", flags: tree},
		mount{source: p.in("tmp"), target: "/tmp", flags: tree},
	), nil
}

// mount is one step of making a file system.
type mount struct {
	source, target, kind, data string
	flags                      uintptr
	unmount, link              bool // take away; make a symbolic link to source instead
	mkdir                      bool // make the target first
	optional                   bool // without it is as well
}

func (m mount) do() error {
	var err error
	if m.mkdir {
		err = os.MkdirAll(m.target, 0o755)
	}
	switch {
	case err != nil:
	case m.unmount:
		err = unix.Unmount(m.target, unix.MNT_DETACH)
	case m.link:
		err = os.Symlink(m.source, m.target)
	default:
		err = unix.Mount(m.source, m.target, m.kind, m.flags, m.data)
	}
	if err != nil && !m.optional {
		return fmt.Errorf("mount %s %q at %s (unmount %t): %w", m.kind, m.source, m.target, m.unmount, err)
	}
	return nil
}

// ask sends one request to process 1 of a place, and waits for it while it is still preparing.
func ask(ctx context.Context, o *options, place string, req request) (map[string]jobState, error) {
	var conn net.Conn
	err := await(ctx, "process 1 of "+place, 20*time.Second, func() error {
		pid, ok := initPID(o, place)
		if !ok {
			text, _ := os.ReadFile(o.path(place, "init.log")) // empty says as much
			return final{fmt.Errorf("process 1 of %s does not run (it was %d): %s", place, pid, strings.TrimSpace(string(text)))}
		}
		var err error
		conn, err = net.Dial("unix", o.path(place, socketFile))
		return err
	})
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	var resp response
	if err := errors.Join(json.NewEncoder(conn).Encode(req), json.NewDecoder(conn).Decode(&resp)); err != nil {
		return nil, fmt.Errorf("ask process 1 of %s: %w", place, err)
	}
	if resp.Error != "" {
		return resp.Jobs, fmt.Errorf("%s: %s", place, resp.Error)
	}
	return resp.Jobs, nil
}

// start starts a program in a place.
func start(ctx context.Context, o *options, place string, j job) error {
	_, err := ask(ctx, o, place, request{Start: &j})
	return err
}

// alive returns an error that ends a wait when one of a place's jobs does not run any more.
func alive(ctx context.Context, o *options, place string, jobs ...string) error {
	all, err := ask(ctx, o, place, request{})
	if err != nil {
		return final{err}
	}
	for _, name := range jobs {
		if s := all[name]; s.PID == 0 {
			return final{fmt.Errorf("%s of %s: %s\n%s", name, place, s.Status, tail(o.log(place, name)))}
		}
	}
	return nil
}

// tail returns the last lines of a log.
func tail(path string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	return path + ":\n  " + strings.Join(lines[max(0, len(lines)-12):], "\n  ")
}

// initPID returns process 1 of a place by its number on the machine, and whether it lives: it must still be
// in the place's network, since a recorded number may be somebody else's by now.
func initPID(o *options, place string) (int, bool) {
	data, err := os.ReadFile(o.path(place, pidFile))
	if err != nil {
		return 0, false
	}
	pid, err := strconv.Atoi(string(data))
	if err != nil {
		return 0, false
	}
	living, err := inhabitants([]string{o.nsName(place)})
	return pid, err == nil && slices.Contains(living, pid)
}

// command returns a command that runs inside a place: in its network only (files stay the machine's), or
// wholly.
func (o *options) command(ctx context.Context, place string, whole bool, argv ...string) (*exec.Cmd, error) {
	pid, ok := initPID(o, place)
	if !ok {
		return nil, fmt.Errorf("%s of cluster %s does not run: `up` starts a cluster, `status` shows it", place, o.Name)
	}
	args := []string{"--target", strconv.Itoa(pid), "--net"}
	if whole {
		args = append(args, "--mount", "--pid", "--uts", "--wd=/")
	}
	cmd := exec.CommandContext(ctx, "nsenter", append(append(args, "--"), argv...)...)
	cmd.Env = append(os.Environ(), "PATH="+o.spec(place).Path, "KUBECONFIG="+o.kubeconfig())
	return cmd, nil
}

// output runs a command inside a place and returns what it prints.
func (o *options) output(ctx context.Context, place string, whole bool, argv ...string) (string, error) {
	cmd, err := o.command(ctx, place, whole, argv...)
	if err != nil {
		return "", err
	}
	return run(cmd)
}

func run(cmd *exec.Cmd) (string, error) {
	var errText strings.Builder
	cmd.Stderr = &errText
	out, err := cmd.Output()
	if err != nil {
		return string(out), fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, strings.TrimSpace(errText.String()))
	}
	return string(out), nil
}

// kubectl runs kubectl as administrator and returns what it prints.
func (o *options) kubectl(ctx context.Context, args ...string) (string, error) {
	return o.output(ctx, control, false, append([]string{o.bin("kubectl")}, args...)...)
}
