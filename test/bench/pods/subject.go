package main

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/braidnet/braid/internal/kernel/netns"
)

// subject is a way to join the pods of two nodes.
type subject struct {
	name string
	kind string // host-gw, vxlan, udp or wireguard
	hand func(w *world, n int, o *options) error
	// flannel's, or else, where hand is nil too, our agent's
	flannel bool
}

// subjects lists what can be measured. Those by hand are what the others are compared with.
func subjects() []subject {
	return []subject{
		{name: "host-gw by hand", kind: "host-gw", hand: hostgw},
		{name: "vxlan by hand", kind: "vxlan", hand: vxlan},
		{name: "tracked vxlan by hand", kind: "vxlan", hand: tracked},
		{name: "wireguard by hand", kind: "wireguard", hand: wireguard},
		{name: "braid host-gw", kind: "host-gw"},
		{name: "braid vxlan", kind: "vxlan"},
		{name: "braid udp", kind: "udp"},
		{name: "braid wireguard", kind: "wireguard"},
		{name: "flannel vxlan", kind: "vxlan", flannel: true},
		{name: "flannel udp", kind: "udp", flannel: true},
	}
}

func names() (out []string) {
	for _, s := range subjects() {
		out = append(out, s.name)
	}
	return out
}

// start makes the subject work on node n of a world.
func (s subject) start(w *world, n int, o *options) error {
	node, name := w.nodes[n-1], fmt.Sprintf("n%d", n)
	switch {
	case s.hand != nil:
		return s.hand(w, n, o)
	case s.flannel:
		return w.daemon(node, "flannel-"+name, o.flannel, "--dir", w.dir, "--name", name, "--subnet", w.cidrOf(n), s.kind)
	}
	if err := w.manifests([2]string{}); err != nil {
		return err
	}
	dir := filepath.Join(w.dir, name)
	err := w.daemon(node, "netagent-"+name, o.netagent, "run", "--node", name, "--manifests", w.dir+"/nodes.yaml", "--overlay", s.kind,
		"--service-mode", "none", "--ip-masq=false", "--cni-conf-dir", "", "--http", "127.0.0.1:10249", "--run-dir", dir, "--state-dir", dir)
	if err == nil && s.kind == "wireguard" && n == 2 {
		err = w.introduce()
	}
	return err
}

// manifests writes the Nodes that the agents read, with what is to stand in their annotations, as JSON.
func (w *world) manifests(annotations [2]string) error {
	var yaml strings.Builder
	for n := 1; n <= 2; n++ {
		fmt.Fprintf(&yaml, "---\napiVersion: v1\nkind: Node\nmetadata: {name: n%d, annotations: %s}\nspec: {podCIDR: %q, podCIDRs: [%[3]q]}\nstatus: {addresses: [{type: InternalIP, address: %q}]}\n",
			n, cmp.Or(annotations[n-1], "{}"), w.cidrOf(n), w.nodeIP(n))
	}
	file := filepath.Join(w.dir, "nodes.yaml")
	if err := os.WriteFile(file+".new", []byte(yaml.String()), 0o600); err != nil {
		return err
	}
	return os.Rename(file+".new", file)
}

// introduce gives each Node the annotations that its agent wants to have there: its key.
func (w *world) introduce() error {
	var list [2]string
	for i := range list {
		file := filepath.Join(w.dir, fmt.Sprintf("n%d", i+1), "node-annotations.json")
		if err := await(patience, func() error {
			b, err := os.ReadFile(file)
			list[i] = string(b)
			return err
		}); err != nil {
			return fmt.Errorf("an agent asks for no annotations: %w", err)
		}
	}
	return w.manifests(list)
}

// birth runs functions on a thread that lives as long as this process: what dies with its parent dies with
// the thread that started it.
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

// daemon starts a program in a namespace. It is killed when this process ends, however that ends.
func (w *world) daemon(ns *netns.NS, name string, argv ...string) error {
	log, err := os.Create(filepath.Join(w.dir, name+".log"))
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	birth <- func() { started <- ns.Do(cmd.Start) }
	if err := <-started; err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	w.daemons = append(w.daemons, cmd)
	return nil
}

// await waits until a connection goes from pod to pod.
func (w *world) await() error {
	err := await(patience, func() error {
		c, err := w.dial("tcp", discardPort, time.Second)
		if err == nil {
			err = c.Close()
		}
		return err
	})
	if err == nil {
		return nil
	}
	logs := []error{fmt.Errorf("no pod reaches the other: %w", err)}
	files, _ := filepath.Glob(filepath.Join(w.dir, "*.log"))
	for _, f := range files {
		b, _ := os.ReadFile(f)
		logs = append(logs, fmt.Errorf("%s: %s", filepath.Base(f), b[max(0, len(b)-1000):]))
	}
	return errors.Join(logs...)
}

const patience = 20 * time.Second // for programs to start

// await repeats try until it succeeds, and returns its last error when that takes too long.
func await(limit time.Duration, try func() error) (err error) {
	for deadline := time.Now().Add(limit); ; time.Sleep(50 * time.Millisecond) {
		if err = try(); err == nil || time.Now().After(deadline) {
			return err
		}
	}
}

func run(ns *netns.NS, argv ...string) error {
	var out []byte
	err := ns.Do(func() (err error) {
		out, err = exec.Command(argv[0], argv[1:]...).CombinedOutput()
		return err
	})
	if err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, out)
	}
	return nil
}
