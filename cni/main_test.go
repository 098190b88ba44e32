package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/braidnet/braid/internal/kernel/link"
	"github.com/braidnet/braid/internal/kernel/netns/nstest"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
)

// binary is the plugin, built once for all tests: what is tested is the
// program a runtime calls.
var binary string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "braid-cni")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		binary = filepath.Join(dir, "braid")
		if out, err := exec.Command("go", "build", "-o", binary, ".").CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "build the plugin: %v\n%s", err, out)
			return 1
		}
		return m.Run()
	}())
}

// host is a node with a configuration of the plugin, and the part of a
// container runtime that calls it.
type host struct {
	*nstest.NS
	t    testing.TB
	dir  string
	conf map[string]any
}

// newHost makes a node that forwards, as the agent would see to.
func newHost(t testing.TB) *host {
	t.Helper()
	h := &host{NS: nstest.New(t), t: t, dir: t.TempDir()}
	h.Forward(t)
	conf := `{"cniVersion": "1.1.0", "name": "braid", "type": "braid", "bridge": "braid0", "mtu": 1450, "ipam": {
		"ranges": [[{"subnet": "10.244.1.0/24"}], [{"subnet": "fd00:10:244:1::/64"}]], "dataDir": "` + h.dir + `"}}`
	if err := json.Unmarshal([]byte(conf), &h.conf); err != nil {
		t.Fatal(err)
	}
	if podMode == modeRouted {
		h.conf["mode"] = modeRouted
		delete(h.conf, "bridge")
	}
	return h
}

// podMode is the mode that newHost configures.
var podMode = modeBridge

// inBothModes runs a test with a bridge, and with routed pods.
func inBothModes(t *testing.T, test func(t *testing.T)) {
	for _, mode := range []string{modeBridge, modeRouted} {
		t.Run(mode, func(t *testing.T) {
			podMode = mode
			defer func() { podMode = modeBridge }()
			test(t)
		})
	}
}

// with is the configuration with some keys changed; nil removes one.
func (h *host) with(changes map[string]any) []byte {
	h.t.Helper()
	conf := map[string]any{}
	for _, m := range []map[string]any{h.conf, changes} {
		for k, v := range m {
			if conf[k] = v; v == nil {
				delete(conf, k)
			}
		}
	}
	data, err := json.Marshal(conf)
	if err != nil {
		h.t.Fatal(err)
	}
	return data
}

// attach is one interface of one container.
type attach struct{ id, netns, ifname string }

func (h *host) command(verb string, a attach, stdin []byte) (cmd *exec.Cmd, stdout, stderr *bytes.Buffer) {
	cmd = exec.Command(binary)
	cmd.Env = []string{"CNI_COMMAND=" + verb, "CNI_CONTAINERID=" + a.id, "CNI_NETNS=" + a.netns, "CNI_IFNAME=" + a.ifname,
		"CNI_PATH=" + filepath.Dir(binary), "CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=" + a.id + ";X=y"}
	stdout, stderr = new(bytes.Buffer), new(bytes.Buffer)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(stdin), stdout, stderr
	return cmd, stdout, stderr
}

// call runs a verb. A failure comes back as the error the plugin printed; a
// failure without one, or one that breaks the specification, ends the test.
func (h *host) call(verb string, a attach, stdin []byte) (string, *types.Error) {
	h.t.Helper()
	cmd, stdout, stderr := h.command(verb, a, stdin)
	err := h.Start(cmd)
	if err == nil {
		err = cmd.Wait()
	}
	if err == nil {
		return stdout.String(), nil
	}
	var exit *exec.ExitError
	failure := &types.Error{}
	if !errors.As(err, &exit) || json.Unmarshal(stdout.Bytes(), failure) != nil || failure.Msg == "" || failure.Code == 0 {
		h.t.Fatalf("%s %v: %v\nstdout: %s\nstderr: %s", verb, a, err, stdout, stderr)
	}
	return "", failure
}

// add calls ADD, which must succeed, and returns its result.
func (h *host) add(a attach) *types100.Result {
	h.t.Helper()
	out, failure := h.call("ADD", a, h.with(nil))
	if failure != nil {
		h.t.Fatalf("ADD %v: %v", a, failure)
	}
	return h.result(out)
}

func (h *host) result(out string) *types100.Result {
	h.t.Helper()
	r := &types100.Result{}
	if err := json.Unmarshal([]byte(out), r); err != nil {
		h.t.Fatalf("result is no result: %v\n%s", err, out)
	}
	return r
}

func (h *host) del(a attach) {
	h.t.Helper()
	if _, failure := h.call("DEL", a, h.with(nil)); failure != nil {
		h.t.Fatalf("DEL %v: %v", a, failure)
	}
}

// check calls CHECK with the result of ADD and returns the differences.
func (h *host) check(a attach, prev *types100.Result) *types.Error {
	h.t.Helper()
	prev.CNIVersion = "1.1.0"
	_, failure := h.call("CHECK", a, h.with(map[string]any{"prevResult": prev}))
	return failure
}

// reserved lists the reservations on disk.
func (h *host) reserved() []string {
	h.t.Helper()
	var list []string
	entries, err := os.ReadDir(filepath.Join(h.dir, "braid"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		h.t.Fatal(err)
	}
	for _, e := range entries {
		if name := e.Name(); name != "lock" && name != "owners" && !strings.HasPrefix(name, "last_reserved_ip.") {
			list = append(list, name)
		}
	}
	return list
}

// clean fails the test when anything of a pod is left on the node.
func (h *host) clean(when string) {
	h.t.Helper()
	if left := h.reserved(); len(left) > 0 {
		h.t.Errorf("%s: reservations left: %v", when, left)
	}
	if out := h.Exec(h.t, "ip", "-o", "link"); strings.Contains(out, ": brd") || strings.Contains(out, ": bwp") {
		h.t.Errorf("%s: links left:\n%s", when, out)
	}
	if out, err := h.Output("nft", "list", "ruleset"); err == nil && strings.Contains(out, "comment \"brd") {
		h.t.Errorf("%s: a pod is still guarded:\n%s", when, out)
	}
	if _, err := h.Output("ip", "link", "show", "braid0"); err != nil {
		return
	}
	if out := h.Exec(h.t, "ip", "neigh", "show", "dev", "braid0", "nud", "reachable"); out != "" {
		h.t.Errorf("%s: neighbours left:\n%s", when, out)
	}
}

// pod is a container's namespace and its attachment.
type pod struct {
	*nstest.NS
	attach
}

// newPod makes the namespace as runtimes do: nothing up, IPv6 off.
func newPod(t testing.TB, id string) *pod {
	t.Helper()
	ns := nstest.New(t)
	ns.Exec(t, "ip", "link", "set", "lo", "down")
	ns.Sysctl(t, "net/ipv6/conf/all/disable_ipv6", "1")
	return &pod{ns, attach{id, ns.Path(), "eth0"}}
}

// removable gives the namespace a path that can be removed, as runtimes have;
// the namespace ends with it. A link rather than a bind mount: a test that
// crashes leaves no mount on the machine.
func (p *pod) removable(t testing.TB) (remove func()) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "netns")
	if err := os.Symlink(p.Path(), path); err != nil {
		t.Fatal(err)
	}
	p.netns = path
	return func() {
		if err := errors.Join(os.Remove(path), p.Close()); err != nil {
			t.Fatal(err)
		}
	}
}

func (p *pod) hostVeth() string { return link.HostVethName(p.id, p.ifname) }
