package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
)

// gc calls GC with the pods to keep.
func (h *host) gc(keep ...attach) *types.Error {
	h.t.Helper()
	list := []types.GCAttachment{}
	for _, a := range keep {
		list = append(list, types.GCAttachment{ContainerID: a.id, IfName: a.ifname})
	}
	_, failure := h.call("GC", attach{}, h.with(map[string]any{"cni.dev/valid-attachments": list}))
	return failure
}

func TestGCFreesWhatIsNotListed(t *testing.T) { inBothModes(t, testGCFreesWhatIsNotListed) }

func testGCFreesWhatIsNotListed(t *testing.T) {
	h := newPortHost(t)
	keep, lost, gone := h.run("keep", "8000:8080/tcp"), h.run("lost", "8001:8080/tcp", "8001:8080/udp"), newPod(t, "gone")
	remove := gone.removable(t)
	h.add(gone.attach)
	remove()
	// Another network of this plugin, of whose pods this one's GC is told nothing.
	h.conf["name"] = "other"
	h.conf["ipam"].(map[string]any)["ranges"] = []any{[]any{map[string]string{"subnet": "10.9.0.0/24"}}}
	other := h.run("other", "9000:8080/tcp")
	h.conf["name"] = "braid"

	for _, broken := range []any{nil, 7, []any{map[string]string{"containerID": "keep"}}} {
		if _, failure := h.call("GC", attach{}, h.with(map[string]any{"cni.dev/valid-attachments": broken})); failure == nil || failure.Code != types.ErrInvalidNetworkConfig {
			t.Errorf("GC with attachments %v: %v", broken, failure)
		}
	}
	if n := len(h.reserved()); n != 6 {
		t.Errorf("%d reservations after GCs that were refused, want 6", n)
	}
	for range 2 {
		if failure := h.gc(keep.attach); failure != nil {
			t.Fatal(failure)
		}
		if got := fmt.Sprint(h.reserved()); got != "[10.244.1.2 fd00:10:244:1::2]" {
			t.Errorf("reserved after GC: %s", got)
		}
		if out := h.Exec(t, "ip", "-o", "link"); strings.Contains(out, lost.hostVeth()) || strings.Contains(out, gone.hostVeth()) {
			t.Errorf("links left:\n%s", out)
		}
		refused(t, h.client, "tcp", join(nodeAddr4, 8001))
		want(t, h.client, "tcp", "", join(nodeAddr4, 8000), "keep", "")
		want(t, h.client, "tcp", "", join(nodeAddr4, 9000), "other", "")
	}
	h.conf["mtu"] = "big" // broken since
	if _, failure := h.call("GC", attach{}, h.with(map[string]any{"cni.dev/valid-attachments": []any{}})); failure != nil {
		t.Errorf("GC with a broken configuration: %v", failure)
	}
	h.Exec(t, "ip", "link", "show", other.hostVeth())
	if n := h.portElements(); len(h.reserved()) != 0 || n != 2 {
		t.Errorf("%d elements, reservations %v", n, h.reserved())
	}
}

// TestGCGoesOnAfterAnError: what cannot be removed is named and keeps its reservation, and the others go.
func TestGCGoesOnAfterAnError(t *testing.T) {
	h := newHost(t)
	var pods []*pod
	for _, name := range []string{"first", "second", "third"} {
		p := newPod(t, name)
		h.add(p.attach)
		pods = append(pods, p)
	}
	// Something else has the name of the first one's link.
	h.Exec(t, "ip", "link", "del", pods[0].hostVeth())
	h.Exec(t, "ip", "link", "add", "other", "type", "bridge")
	h.Exec(t, "ip", "link", "set", "other", "name", pods[0].hostVeth())
	if failure := h.gc(); failure == nil || !strings.Contains(failure.Error(), "first/eth0") {
		t.Errorf("GC: %v", failure)
	}
	if got := fmt.Sprint(h.reserved()); got != "[10.244.1.2 fd00:10:244:1::2]" {
		t.Errorf("reserved: %s", got)
	}
	h.Exec(t, "ip", "link", "del", pods[0].hostVeth())
	if failure := h.gc(); failure != nil {
		t.Error(failure)
	}
	h.clean("after GC")
}

func TestGCOfReservationsNobodyOwns(t *testing.T) {
	h := newHost(t)
	p := newPod(t, "pod")
	h.add(p.attach)
	old, older := strings.Repeat("a", 64), strings.Repeat("b", 64)
	for addr, content := range map[string]string{"10.244.1.7": "", "10.244.1.8": old, "10.244.1.9": older, "reservation.new": "po"} {
		if err := os.WriteFile(filepath.Join(h.dir, "braid", addr), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if failure := h.gc(p.attach, attach{id: old, ifname: "eth0"}); failure != nil {
		t.Fatal(failure)
	}
	if got := fmt.Sprint(h.reserved()); got != "[10.244.1.2 10.244.1.8 fd00:10:244:1::2]" {
		t.Errorf("reserved: %s", got)
	}
}

// TestKilledAtAnyStep kills ADD, DEL and GC before each system call that could change something, one after the
// other, and has DEL or GC clear up. However far they came, they must leave nothing, and nothing of others must go.
func TestKilledAtAnyStep(t *testing.T) { inBothModes(t, testKilledAtAnyStep) }

func testKilledAtAnyStep(t *testing.T) {
	h := newPortHost(t)
	stay := h.run("stay", "8000:8080/tcp")
	gc := h.with(map[string]any{"cni.dev/valid-attachments": []types.GCAttachment{{ContainerID: stay.id, IfName: stay.ifname}}})
	verbs := []string{"ADD", "DEL", "GC"}
	if podMode == modeRouted {
		verbs = verbs[:2] // GC does what DEL does
	}
	for _, verb := range verbs {
		steps := 0
		for killed := true; killed; steps++ {
			p := newPod(t, "pod")
			conf := h.with(map[string]any{"runtimeConfig": map[string]any{
				"portMappings": []any{map[string]any{"hostPort": 8001, "containerPort": 8080, "protocol": "tcp"}, map[string]any{"hostPort": 8001, "containerPort": 8080, "protocol": "udp"}},
				"bandwidth":    map[string]any{"ingressRate": 8_000_000, "egressRate": 8_000_000},
			}})
			if verb != "ADD" {
				if _, failure := h.call("ADD", p.attach, conf); failure != nil {
					t.Fatalf("ADD before %s, step %d: %v", verb, steps, failure)
				}
			}
			if verb == "GC" {
				conf = gc
			}
			killed = h.killedAt(verb, p.attach, conf, steps+1)
			if steps%2 == 0 {
				h.del(p.attach)
			} else if failure := h.gc(stay.attach); failure != nil {
				t.Fatalf("GC after %s was killed at step %d: %v", verb, steps, failure)
			}
			out := h.Exec(t, "ip", "-o", "link")
			guarded := strings.Contains(h.Exec(t, "nft", "list", "ruleset"), p.hostVeth())
			if n := h.portElements(); n != 4 || len(h.reserved()) != 2 || guarded || strings.Contains(out, p.hostVeth()) || strings.Contains(out, ": bwp") {
				t.Fatalf("%s killed at step %d: %d elements, reservations %v, links\n%s", verb, steps, n, h.reserved(), out)
			}
		}
		t.Logf("%s: %d steps", verb, steps)
		if steps < 10 {
			t.Errorf("%s was killed at %d steps only: this test shows little", verb, steps)
		}
	}
	want(t, h.client, "tcp", "", join(nodeAddr4, 8000), "stay", "")
}

// killedAt runs a verb and kills it when it is about to make the n-th system call of those that change
// something. It says whether it came to that.
func (h *host) killedAt(verb string, a attach, conf []byte, n int) bool {
	h.t.Helper()
	cmd, stdout, stderr := h.command(verb, a, conf)
	const calls = "sendto,sendmsg,write,fsync,mkdirat,openat,renameat,unlinkat,setns"
	cmd.Path, cmd.Args = lookPath(h.t, "strace"), []string{"strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=" + calls,
		"-e", fmt.Sprintf("inject=%s:signal=KILL:when=%d", calls, n), binary}
	cmd.Env = append(cmd.Env, "GOMAXPROCS=1") // strace counts by thread
	err := h.Start(cmd)
	if err == nil {
		err = cmd.Wait()
	}
	var exit *exec.ExitError
	if err != nil && (!errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL) {
		h.t.Fatalf("%s under strace: %v\n%s%s", verb, err, stdout, stderr)
	}
	return err != nil
}

func lookPath(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func TestStatus(t *testing.T) {
	h := newHost(t)
	ready := filepath.Join(t.TempDir(), "ready")
	h.conf["readyFile"] = ready
	status := func() *types.Error {
		_, failure := h.call("STATUS", attach{}, h.with(nil))
		return failure
	}
	if failure := status(); failure == nil || failure.Code != errNotAvailable || !strings.Contains(failure.Msg, "agent") {
		t.Errorf("without the ready file: %v", failure)
	}
	if err := os.WriteFile(ready, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if failure := status(); failure != nil {
		t.Errorf("before the first pod: %v", failure)
	}
	h.add(newPod(t, "pod").attach)
	if failure := status(); failure != nil {
		t.Errorf("with a pod: %v", failure)
	}
	h.Sysctl(t, "net/ipv6/conf/all/forwarding", "0")
	if failure := status(); failure == nil || failure.Code != errLimited || !strings.Contains(failure.Details, "net/ipv6/conf/all/forwarding") {
		t.Errorf("without forwarding: %v", failure)
	}
	delete(h.conf, "readyFile")
	if failure := status(); failure != nil {
		t.Errorf("without forwarding, and without an agent, so that ADD sees to it: %v", failure)
	}
	h.conf["readyFile"] = ready
	h.Forward(t)
	h.conf["bridge"] = "lo"
	if failure := status(); failure == nil || failure.Code != errNotAvailable || !strings.Contains(failure.Details, "not a bridge") {
		t.Errorf("with a bridge that is none: %v", failure)
	}
	h.conf["bridge"] = "braid0"
	h.conf["ipam"].(map[string]any)["dataDir"] = ready + "/below/a/file"
	if failure := status(); failure == nil || failure.Code != errNotAvailable || !strings.Contains(failure.Msg, "reserved") {
		t.Errorf("with a folder that cannot be: %v", failure)
	}
	h.conf["ipam"] = map[string]any{}
	if failure := status(); failure == nil || failure.Code != types.ErrInvalidNetworkConfig {
		t.Errorf("without ranges: %v", failure)
	}
	h.conf["cniVersion"] = "1.0.0"
	if failure := status(); failure == nil || failure.Code != types.ErrIncompatibleCNIVersion {
		t.Errorf("of version 1.0.0: %v", failure)
	}
}
