// Package kernel runs the real netagent in a network namespace and looks at what the kernel holds.
package kernel

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/braidnet/braid/internal/kernel/netns/nstest"
)

const cluster = `apiVersion: v1
kind: Node
metadata: {name: n1}
spec: {podCIDRs: [10.244.1.0/24, "fd00:10:244:1::/64"]}
status: {addresses: [{type: InternalIP, address: 192.0.2.1}, {type: InternalIP, address: "fd77::1"}]}
---
apiVersion: v1
kind: Node
metadata: {name: n2}
spec: {podCIDRs: [10.244.2.0/24, "fd00:10:244:2::/64"]}
status: {addresses: [{type: InternalIP, address: 192.0.2.2}, {type: InternalIP, address: "fd77::2"}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {clusterIP: 10.96.0.80, clusterIPs: [10.96.0.80, "fd00:10:96::50"], type: NodePort, ports: [{port: 80, nodePort: 30080}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{port: 8080, name: ""}]
endpoints: [{addresses: [10.244.1.5]}, {addresses: [10.244.2.5]}]
`

// node is a namespace that looks like a machine, with rules and links of somebody else on it.
type node struct {
	*nstest.NS
	dir string
}

func newNode(t *testing.T) *node {
	t.Helper()
	n := &node{nstest.New(t), t.TempDir()}
	other := nstest.New(t)
	nstest.Veth(t, n.NS, "eth0", other, "eth0")
	for _, a := range []string{"192.0.2.1/24", "fd77::1/64"} {
		n.Exec(t, "ip", "addr", "add", a, "dev", "eth0")
	}
	n.Exec(t, "ip", "route", "add", "198.51.100.0/24", "via", "192.0.2.9")
	n.Exec(t, "ip", "link", "add", "docker0", "type", "bridge")
	n.Exec(t, "nft", "add", "table", "inet", "theirs")
	n.Exec(t, "iptables", "-N", "THEIRS")
	n.Exec(t, "iptables", "-A", "FORWARD", "-s", "10.9.9.9", "-j", "ACCEPT")
	n.write(t, cluster)
	return n
}

func (n *node) write(t *testing.T, text string) {
	t.Helper()
	dir := filepath.Join(n.dir, "cluster")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "cluster.yaml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func binary(t *testing.T) string {
	t.Helper()
	path, err := filepath.Abs("../../bin/netagent")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("%v: run `make build` first", err)
	}
	return path
}

func (n *node) dirs() []string {
	return []string{"--run-dir", filepath.Join(n.dir, "run"), "--state-dir", filepath.Join(n.dir, "state"), "--cni-conf-dir", filepath.Join(n.dir, "cni")}
}

// agent starts netagent and returns when it says that all is in force.
func (n *node) agent(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(binary(t), append(append([]string{"run", "--node", "n1", "--manifests", filepath.Join(n.dir, "cluster")}, n.dirs()...), args...)...)
	log, err := os.OpenFile(filepath.Join(n.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	if err := n.Start(cmd); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	nstest.Wait(t, "the agent's status to be good", func() error {
		out, err := n.Output(binary(t), "status", "--run-dir", filepath.Join(n.dir, "run"))
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	return cmd
}

// kernel is everything of the namespace that an agent could have made, as text. Counters and the
// order in which sets are listed say nothing about it.
func (n *node) kernel(t *testing.T) string {
	t.Helper()
	var out strings.Builder
	for _, cmd := range []string{"nft -a list tables", "nft list table ip braid", "nft list table ip6 braid", "iptables-save", "ip6tables-save",
		"ip -o link", "ip route show table all proto 66", "ip -6 route show table all proto 66", "bridge fdb show dev braid.vx4"} {
		words := strings.Fields(cmd)
		text, err := n.Output(words[0], words[1:]...)
		if err != nil {
			continue // what is not there is an answer too
		}
		for _, line := range strings.Split(text, "\n") {
			if !strings.HasPrefix(line, "#") && !strings.HasPrefix(line, ":") {
				out.WriteString(line + "\n")
			}
		}
	}
	return out.String()
}

func (n *node) wantForeign(t *testing.T) {
	t.Helper()
	k := n.kernel(t) + n.Exec(t, "ip", "route")
	for _, theirs := range []string{"table inet theirs", "docker0", "198.51.100.0/24", "-A FORWARD -s 10.9.9.9/32 -j ACCEPT"} {
		if !strings.Contains(k, theirs) {
			t.Errorf("%q belongs to somebody else and is gone:\n%s", theirs, k)
		}
	}
}

func end(t *testing.T, cmd *exec.Cmd, sig syscall.Signal) {
	t.Helper()
	if err := cmd.Process.Signal(sig); err != nil {
		t.Fatal(err)
	}
	err := cmd.Wait()
	if sig == syscall.SIGTERM && err != nil {
		t.Errorf("SIGTERM must end the agent well: %v", err)
	}
}

// TestAgentLeavesTheKernelAndCleanupTakesOnlyOurs: in both modes, an agent that is told to stop or is
// killed leaves the kernel as it is, the next one changes nothing, and cleanup removes ours alone.
func TestAgentLeavesTheKernelAndCleanupTakesOnlyOurs(t *testing.T) {
	for _, mode := range []string{"nftables", "iptables"} {
		t.Run(mode, func(t *testing.T) {
			n := newNode(t)
			cmd := n.agent(t, "--service-mode", mode)
			before := n.kernel(t)
			if !strings.Contains(before, "default/web") || !strings.Contains(before, "10.244.2.0/24 via 10.244.2.0 dev braid.vx4") {
				t.Fatalf("the agent says it is ready, and the kernel does not have it:\n%s", before)
			}
			if _, err := os.Stat(filepath.Join(n.dir, "cni", "10-braid.conflist")); err != nil {
				t.Error(err)
			}
			for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
				end(t, cmd, sig)
				if after := n.kernel(t); after != before {
					t.Errorf("after %s the kernel differs:\n%s\nbefore:\n%s", sig, after, before)
				}
				cmd = n.agent(t, "--service-mode", mode)
				if after := n.kernel(t); after != before {
					t.Errorf("a restart after %s changed the kernel:\n%s\nbefore:\n%s", sig, after, before)
				}
			}
			end(t, cmd, syscall.SIGKILL)
			n.Exec(t, "nft", "add", "table", "ip6", "braid-hostports") // as the CNI plugin makes them
			n.Exec(t, "nft", "add", "table", "bridge", "braid-antispoof")
			out := n.Exec(t, binary(t), append([]string{"cleanup", "--yes"}, n.dirs()...)...)
			for _, want := range []string{"10-braid.conflist", "/run/ready", "braid.vx4", "braid.vx6", "nftables table ip6 braid-hostports", "nftables table bridge braid-antispoof"} {
				if !strings.Contains(out, want) {
					t.Errorf("cleanup does not say that it removed %s:\n%s", want, out)
				}
			}
			if after := n.kernel(t); strings.Contains(strings.ToLower(after), "braid") || strings.Contains(after, "10.244.2") {
				t.Errorf("cleanup left:\n%s", after)
			}
			n.wantForeign(t)
			if out := n.Exec(t, binary(t), append([]string{"cleanup", "--yes"}, n.dirs()...)...); !strings.Contains(out, "nothing of Braid's was here") {
				t.Errorf("a second cleanup: %s", out)
			}
		})
	}
}

// TestModeSwitchLeavesOneTranslation: the rules of the other mode go when ours are in force.
func TestModeSwitchLeavesOneTranslation(t *testing.T) {
	n := newNode(t)
	end(t, n.agent(t, "--service-mode", "iptables"), syscall.SIGTERM)
	cmd := n.agent(t, "--service-mode", "nftables")
	if k := n.kernel(t); strings.Contains(k, "BRAID-") || !strings.Contains(k, "table ip braid\n") {
		t.Errorf("after iptables to nftables:\n%s", k)
	}
	end(t, cmd, syscall.SIGTERM)
	n.agent(t, "--service-mode", "iptables")
	if k := n.kernel(t); !strings.Contains(k, "BRAID-") || strings.Contains(k, "table ip braid\n") {
		t.Errorf("after nftables to iptables:\n%s", k)
	}
	n.wantForeign(t)
}

// TestStatusSaysWhatIsWrong: a node that the cluster does not know, then a broken file.
func TestStatusSaysWhatIsWrong(t *testing.T) {
	n := newNode(t)
	n.agent(t)
	n.write(t, strings.Replace(cluster, "port: 80,", "port: eighty,", 1))
	nstest.Wait(t, "the problem in the status", func() error {
		out, err := n.Output(binary(t), "status", "--run-dir", filepath.Join(n.dir, "run"))
		if err != nil || !strings.Contains(out, "cluster.yaml:16:") || !strings.Contains(out, "port") {
			return fmt.Errorf("%v: %s", err, out)
		}
		return nil
	})
	if k := n.kernel(t); !strings.Contains(k, "10.96.0.80") {
		t.Errorf("a broken document took its last good version away:\n%s", k)
	}
	n.write(t, strings.ReplaceAll(cluster, "name: n1", "name: n9"))
	nstest.Wait(t, "the missing node in the status", func() error {
		out, err := n.Output(binary(t), "status", "--run-dir", filepath.Join(n.dir, "run"))
		if err == nil || !strings.Contains(out, "FAILING") || !strings.Contains(out, "n1") {
			return fmt.Errorf("status says %v: %s", err, out)
		}
		return nil
	})
}
