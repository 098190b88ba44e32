package lab

import (
	"bytes"
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
	"testing"
	"time"

	"github.com/braidnet/braid/internal/kernel/netns/nstest"
)

// testLab is a lab with the stub programs, under a name of this test process.
type testLab struct {
	t    *testing.T
	name string
	bin  string
}

func newTestLab(t *testing.T, suffix string) *testLab {
	t.Helper()
	nstest.RequireRoot(t)
	l := &testLab{t, fmt.Sprintf("t%d%s", os.Getpid(), suffix), t.TempDir()}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, program := range []string{"netagent", "coredns", "braid"} {
		if err := os.Symlink(self, filepath.Join(l.bin, program)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(l.bin, "Corefile.example"), []byte(".:53 {\n}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := down(l.name, new(bytes.Buffer)); err != nil {
			t.Error(err)
		}
	})
	return l
}

// lab runs `netagent lab VERB --name NAME args…`, which must succeed.
func (l *testLab) lab(verb string, args ...string) string {
	l.t.Helper()
	out, err := l.command(verb, args...).CombinedOutput()
	if err != nil {
		log, _ := os.ReadFile(paths{l.name}.daemonLog())
		l.t.Fatalf("lab %s %v: %v\n%s\ndaemon log:\n%s", verb, args, err, out, log)
	}
	return string(out)
}

func (l *testLab) command(verb string, args ...string) *exec.Cmd {
	return exec.Command(filepath.Join(l.bin, "netagent"), append([]string{"lab", verb, "--name", l.name}, args...)...)
}

func (l *testLab) up(args ...string) string {
	l.t.Helper()
	return l.lab("up", append([]string{"--bin-dir", l.bin, "--nodes", "2", "--timeout", "60s"}, args...)...)
}

func (l *testLab) status() (s Status) {
	l.t.Helper()
	if err := json.Unmarshal([]byte(l.lab("status", "-o", "json")), &s); err != nil {
		l.t.Fatal(err)
	}
	return s
}

// trace lists everything of the lab that is on the machine.
func (l *testLab) trace(ids map[nsID]bool) (out []string) {
	l.t.Helper()
	p := paths{l.name}
	if exists(p.dir()) {
		out = append(out, p.dir())
	}
	spaces, err := p.namespaces()
	if err != nil {
		l.t.Fatal(err)
	}
	out = append(out, spaces...)
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		l.t.Fatal(err)
	}
	if strings.Contains(string(mounts), nsPrefix+l.name+"-") {
		out = append(out, "a mount")
	}
	living, err := inhabitants(ids)
	if err != nil {
		l.t.Fatal(err)
	}
	servers, err := daemons(p)
	if err != nil {
		l.t.Fatal(err)
	}
	for _, pid := range append(living, servers...) {
		out = append(out, "process "+strconv.Itoa(pid))
	}
	return out
}

// ids returns the lab's namespaces by identity and keeps them from ending before the test: the kernel
// would give the number of one that has ended to the next, which may be another test's.
func (l *testLab) ids() map[nsID]bool {
	l.t.Helper()
	p := paths{l.name}
	spaces, err := p.namespaces()
	if err != nil {
		l.t.Fatal(err)
	}
	for _, ns := range spaces {
		f, err := os.Open(nsPath(ns))
		if err != nil {
			l.t.Fatal(err)
		}
		l.t.Cleanup(func() { f.Close() })
	}
	ids, err := p.namespaceIDs()
	if err != nil {
		l.t.Fatal(err)
	}
	return ids
}

func (l *testLab) mustBeGone(ids map[nsID]bool) {
	l.t.Helper()
	if left := l.trace(ids); len(left) > 0 {
		l.t.Errorf("left after down: %v", left)
	}
}

func links(t *testing.T) (names []string) {
	t.Helper()
	all, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range all {
		names = append(names, i.Name)
	}
	return names
}

const twoPods = `
apiVersion: v1
kind: Pod
metadata: {name: a, namespace: shop}
spec: {containers: [{name: c, image: x, ports: [{containerPort: 80}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: b}
spec:
  dnsConfig: {options: [{name: ndots, value: "2"}]}
  containers: [{name: c, image: x, ports: [{containerPort: 80}]}]
`

func (l *testLab) manifest(text string) string {
	l.t.Helper()
	path := filepath.Join(l.t.TempDir(), "pods.yaml")
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		l.t.Fatal(err)
	}
	return path
}

func TestUpExecDown(t *testing.T) {
	l := newTestLab(t, "a")
	before := links(t)
	file := l.manifest(twoPods)
	if out := l.up(file); !strings.Contains(out, "node n2: CoreDNS answers") || !strings.Contains(out, "is up after") {
		t.Errorf("up does not show its progress:\n%s", out)
	}
	if during := links(t); !slices.Equal(during, before) {
		t.Errorf("links of the machine were %v and are %v", before, during)
	}
	if out, err := l.command("up", "--bin-dir", l.bin).CombinedOutput(); err == nil || !strings.Contains(string(out), "is up already") {
		t.Errorf("a second up of the name: %v, %s", err, out)
	}

	got := l.lab("exec", "-n", "shop", "a", "--", "cat", "/etc/resolv.conf", "/etc/hosts", "/proc/sys/kernel/hostname")
	for _, want := range []string{"nameserver 10.96.0.10\n", "search shop.svc.cluster.local svc.cluster.local cluster.local\n",
		"options ndots:5\n", "\ta\n", "\na\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("in pod a, %q is missing from:\n%s", want, got)
		}
	}
	if got := l.lab("exec", "b", "--", "cat", "/etc/resolv.conf"); !strings.Contains(got, "options ndots:2\n") {
		t.Errorf("dnsConfig of pod b is not in its resolv.conf:\n%s", got)
	}
	if got := l.lab("exec", "node/n2", "--", "ip", "-o", "addr", "show", "dev", nodeIf); !strings.Contains(got, "192.168.77.12/24") ||
		!strings.Contains(got, "fd77::12/64") {
		t.Errorf("addresses of node n2:\n%s", got)
	}
	err := l.command("exec", "shop/a", "--", "sh", "-c", "exit 7").Run()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 7 {
		t.Errorf("exec of `exit 7` ended with %v", err)
	}
	if s := l.status(); s.Phase != PhaseUp || s.PodsReady != 2 || len(s.Nodes) != 2 {
		t.Errorf("status: %+v", s)
	}

	ids := l.ids()
	l.lab("down")
	l.mustBeGone(ids)
	if out := l.lab("down"); !strings.Contains(out, "nothing to remove") {
		t.Errorf("a second down says %q", out)
	}
}

func TestOutsideAnswersNodes(t *testing.T) {
	l := newTestLab(t, "b")
	l.up("--nodes", "1")
	for _, host := range []string{ipv4.outside.String(), "[" + ipv6.outside.String() + "]"} {
		got := l.lab("exec", "node/n1", "--", "curl", "-sS", "--max-time", "5", "http://"+host+"/")
		if !strings.Contains(got, "name: outside\n") || !strings.Contains(got, "client: 192.168.77.11:") && !strings.Contains(got, "client: [fd77::11]:") {
			t.Errorf("outside %s answers:\n%s", host, got)
		}
	}
	if got := l.lab("exec", "node/n1", "--", "getent", "ahostsv4", "outside.example"); !strings.Contains(got, "203.0.113.10") {
		t.Errorf("outside.example resolves on the node to %q", got)
	}
}

func TestDownAfterKill(t *testing.T) {
	l := newTestLab(t, "c")
	l.up(l.manifest(twoPods))
	pid := recordedPID(paths{l.name}.daemonPID())
	if pid == 0 {
		t.Fatal("the daemon has no pid file")
	}
	ids := l.ids()
	if left := endAllWith(t, pid, syscall.SIGKILL); left {
		t.Fatal("the daemon survived SIGKILL")
	}
	if got := l.lab("exec", "b", "--", "hostname"); got != "b\n" {
		t.Errorf("exec without the daemon: %q", got)
	}
	out, err := l.command("status").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "daemon does not answer") {
		t.Errorf("status without the daemon: %v, %s", err, out)
	}
	l.lab("down")
	l.mustBeGone(ids)
}

// A lab is killed at whatever moment its underlay comes to be; the rest is half made.
func TestDownAfterKillInTheMiddle(t *testing.T) {
	l := newTestLab(t, "d")
	c := l.command("up", "--bin-dir", l.bin, "--nodes", "8")
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	nstest.Wait(t, "a node's namespace", func() error {
		_, err := os.Stat(nsPath(paths{l.name}.nodeNS("n2")))
		return err
	})
	_ = c.Process.Kill()
	_ = c.Wait()
	ids := l.ids()
	for _, pid := range must(daemons(paths{l.name})) {
		endAllWith(t, pid, syscall.SIGKILL)
	}
	l.lab("down")
	l.mustBeGone(ids)
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// endAllWith sends a signal and waits for the end.
func endAllWith(t *testing.T, pid int, sig syscall.Signal) (left bool) {
	t.Helper()
	if err := syscall.Kill(pid, sig); err != nil {
		t.Fatal(err)
	}
	return len(endAll([]int{pid}, 10*time.Second)) > 0
}

func TestTwoLabsAtOnce(t *testing.T) {
	one, two := newTestLab(t, "e"), newTestLab(t, "ee")
	one.up("--nodes", "1", one.manifest(twoPods))
	two.up("--nodes", "1")
	ids := one.ids()
	one.lab("down")
	one.mustBeGone(ids)
	if s := two.status(); s.Phase != PhaseUp || !s.Nodes[0].ready() {
		t.Errorf("the second lab after the first went down: %+v", s)
	}
}

func TestKillStartsAgain(t *testing.T) {
	l := newTestLab(t, "f")
	l.up("--nodes", "1", l.manifest(twoPods))
	for _, program := range []string{"netagent", "coredns"} {
		of := func() ProgramStatus {
			n := l.status().Nodes[0]
			if program == "netagent" {
				return n.Agent
			}
			return n.DNS
		}
		was := of()
		l.lab("kill", "node/n1/"+program)
		nstest.Wait(t, program+" to be ready again", func() error {
			if is := of(); is.PID == was.PID || !is.Ready || is.Restarts != 1 {
				return fmt.Errorf("was %+v, is %+v", was, is)
			}
			return nil
		})
	}
	l.lab("ready", "b", "false")
	if s := l.status(); s.PodsReady != 1 {
		t.Errorf("%d pods are ready after one was made unready, want 1", s.PodsReady)
	}
	if got := l.lab("pods", "-A"); !strings.Contains(got, "shop") || !strings.Contains(got, "b ") {
		t.Errorf("pods -A:\n%s", got)
	}
}

// A broken document must be named with its place, and must not keep the rest from running.
func TestUpNamesBrokenDocuments(t *testing.T) {
	l := newTestLab(t, "g")
	file := l.manifest(twoPods + "---\napiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec: {ports: [{port: 99999}]}\n")
	out, err := l.command("up", "--bin-dir", l.bin, "--nodes", "1", file).CombinedOutput()
	if err == nil || !strings.Contains(string(out), file+":17") {
		t.Errorf("up with a broken Service: %v, want the complaint to begin with %s:17\n%s", err, file, out)
	}
	if s := l.status(); s.Phase != PhaseUp || s.PodsReady != 2 {
		t.Errorf("status: %+v", s)
	}
}

// When a program does not start, up must end by itself, say which, and show its log.
func TestUpExplainsWhatIsNotReady(t *testing.T) {
	l := newTestLab(t, "h")
	broken := filepath.Join(l.bin, "coredns")
	if err := os.Remove(broken); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(broken, []byte("#!/bin/sh\necho the reason why >&2\nexit 1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	out, err := l.command("up", "--bin-dir", l.bin, "--nodes", "1", "--timeout", "2s").CombinedOutput()
	for _, want := range []string{"not ready after 2s", "node/n1/coredns: ended: exit status 1", "the reason why", paths{l.name}.log("n1", "coredns")} {
		if err == nil || !strings.Contains(string(out), want) {
			t.Errorf("up ended with %v; %q is missing from:\n%s", err, want, out)
		}
	}
}
