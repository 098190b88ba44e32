package main

import (
	"errors"
	"fmt"
	"net"
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
	name    string
	overlay string                           // backend of our agent, or
	flannel string                           // backend of flannel, or
	hand    func(w *world, n int) [][]string // commands of ip and bridge
}

// subjects lists what can be measured. Those by hand are what the others are compared with.
func subjects() []subject {
	return []subject{
		{name: "host-gw by hand", hand: hostgw},
		{name: "vxlan by hand", hand: vxlan},
		{name: "braid host-gw", overlay: "host-gw"},
		{name: "braid vxlan", overlay: "vxlan"},
		{name: "braid udp", overlay: "udp"},
		{name: "flannel vxlan", flannel: "vxlan"},
		{name: "flannel udp", flannel: "udp"},
	}
}

func names() (out []string) {
	for _, s := range subjects() {
		out = append(out, s.name)
	}
	return out
}

func hostgw(_ *world, n int) [][]string {
	return [][]string{{"ip", "route", "add", cidr(other(n)), "via", nodeIP(other(n))}}
}

func vxlan(_ *world, n int) [][]string {
	peer, mac := other(n), func(n int) string { return fmt.Sprintf("02:00:00:00:00:%02d", n) }
	gateway := strings.TrimSuffix(cidr(peer), "/24")
	return [][]string{
		{"ip", "link", "add", "vx", "address", mac(n), "mtu", "1450", "type", "vxlan", "id", "1", "dstport", "8472", "dev", "eth0", "local", nodeIP(n), "nolearning"},
		{"ip", "link", "set", "vx", "up"},
		{"ip", "neigh", "add", gateway, "lladdr", mac(peer), "dev", "vx", "nud", "permanent"},
		{"bridge", "fdb", "append", mac(peer), "dev", "vx", "dst", nodeIP(peer)},
		{"ip", "route", "add", cidr(peer), "via", gateway, "dev", "vx", "onlink"},
	}
}

// start makes the subject work on node n of a world.
func (s subject) start(w *world, n int, o *options) error {
	node := w.nodes[n-1]
	switch {
	case s.hand != nil:
		for _, argv := range s.hand(w, n) {
			if err := run(node, argv...); err != nil {
				return err
			}
		}
		return nil
	case s.flannel != "":
		return w.daemon(node, fmt.Sprintf("flannel%d", n), o.flannel, "--dir", w.dir, "--name", fmt.Sprintf("n%d", n), "--subnet", cidr(n), s.flannel)
	}
	var yaml strings.Builder
	for k := 1; k <= 2; k++ {
		fmt.Fprintf(&yaml, "---\napiVersion: v1\nkind: Node\nmetadata: {name: n%d}\nspec: {podCIDR: %s, podCIDRs: [%s]}\nstatus: {addresses: [{type: InternalIP, address: %s}]}\n", k, cidr(k), cidr(k), nodeIP(k))
	}
	file := filepath.Join(w.dir, "nodes.yaml")
	if err := os.WriteFile(file, []byte(yaml.String()), 0o600); err != nil {
		return err
	}
	dir := filepath.Join(w.dir, fmt.Sprintf("n%d", n))
	return w.daemon(node, fmt.Sprintf("netagent%d", n), o.netagent, "run", "--node", fmt.Sprintf("n%d", n), "--manifests", file, "--overlay", s.overlay,
		"--service-mode", "none", "--ip-masq=false", "--cni-conf-dir", "", "--http", fmt.Sprintf("127.0.0.1:%d", 10249), "--run-dir", dir, "--state-dir", dir)
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
func (w *world) await() (err error) {
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		var c net.Conn
		if c, err = w.dial("tcp", discardPort, time.Second); err == nil {
			return c.Close()
		}
	}
	logs := []error{fmt.Errorf("no pod reaches the other: %w", err)}
	files, _ := filepath.Glob(filepath.Join(w.dir, "*.log"))
	for _, f := range files {
		b, _ := os.ReadFile(f)
		logs = append(logs, fmt.Errorf("%s: %s", filepath.Base(f), b[max(0, len(b)-1000):]))
	}
	return errors.Join(logs...)
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
