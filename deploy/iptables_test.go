package deploy

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"

	"github.com/braidnet/braid/internal/kernel/netns/nstest"
)

// TestServiceModeIPTables runs the agent with component iptables, out of the image and with no more rights
// than the component gives, on nodes whose kubelet uses the one or the other variant.
func TestServiceModeIPTables(t *testing.T) {
	requireBinaries(t)
	for _, variant := range []string{"nft", "legacy"} {
		t.Run(variant, func(t *testing.T) {
			b := newBox(t)
			iptables := func(args ...string) string { return b.iptables(t, variant, args...) }
			iptables("-t", "mangle", "-N", "KUBE-IPTABLES-HINT") // as the kubelet does
			b.ns.Exec(t, "ip", "route", "add", "default", "via", "192.0.2.254", "dev", "eth0")
			b.answer(t, "192.0.2.1:8080")

			pod := &withComponent(t, b.objects, "iptables").Spec.Template.Spec
			log, stop := b.start(t, pod, "netagent")
			agent := &pod.Containers[0]
			nstest.Wait(t, "the agent to be ready", func() error { return b.probe(agent, agent.ReadinessProbe) })
			b.found(t, pod, log, map[string]string{"service mode": "iptables  setting service-mode",
				"iptables variant": variant + "  other programs use it: it has their chain KUBE-IPTABLES-HINT"})
			if got := b.dial(t, "10.96.7.7:80"); got != "hello" {
				t.Errorf("service web answered %q", got)
			}
			rules := iptables("-t", "nat", "-S")
			if !strings.Contains(rules, "10.96.7.7") || !strings.Contains(rules, "default/web") {
				t.Errorf("no rules for service web in variant %s:\n%s", variant, rules)
			}
			if lock := filepath.Join(b.host, "run/xtables.lock"); variant == "legacy" {
				if info, err := os.Stat(lock); err != nil || !info.Mode().IsRegular() {
					t.Errorf("the node's lock: %v %v", info, err)
				}
			}
			if err := stop(); err != nil {
				t.Errorf("the agent ended with %v", err)
			}
			remove := &find[appsv1.DaemonSet](t, read(t, "remove.yaml"), "braid-remove").Spec.Template.Spec
			if out, err := b.run(t, remove, "cleanup"); err != nil || !strings.Contains(out, "("+variant+")") {
				t.Errorf("cleanup: %v\n%s", err, out)
			}
			if left := iptables("-t", "nat", "-S") + iptables("-S"); strings.Contains(left, "BRAID") {
				t.Errorf("left by removal:\n%s", left)
			}
			iptables("-t", "mangle", "-S", "KUBE-IPTABLES-HINT") // the kubelet's own stays
		})
	}
}

// Without the component, variant legacy is out of reach, and the agent says what to do. The default mode does
// not need it.
func TestLegacyWithoutTheComponent(t *testing.T) {
	requireBinaries(t)
	b := newBox(t)
	b.iptables(t, "legacy", "-t", "mangle", "-N", "KUBE-IPTABLES-HINT")
	pod := &find[appsv1.DaemonSet](t, b.objects, "netagent").Spec.Template.Spec
	out, err := b.run(t, pod, "netagent", "netagent", "run", "--service-mode", "iptables", "--run-dir", "/run/braid")
	for _, want := range []string{"variant legacy", "NET_RAW", "deploy/iptables"} {
		if err == nil || !strings.Contains(out, want) {
			t.Errorf("%v, want a word on %s:\n%s", err, want, out)
		}
	}
	log, _ := b.start(t, pod, "netagent")
	agent := &pod.Containers[0]
	nstest.Wait(t, "the agent to be ready", func() error { return b.probe(agent, agent.ReadinessProbe) })
	b.found(t, pod, log, map[string]string{"service mode": "nftables  the kernel can"})
	if !strings.Contains(log.String(), "not looked for what another service mode may have left") {
		t.Errorf("the log does not say what could not be looked at:\n%s", log)
	}
}

// iptables runs the machine's own tool on the node, with the node's lock.
func (b *box) iptables(t *testing.T, variant string, args ...string) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(b.host, "run"), 0o755); err != nil {
		t.Fatal(err)
	}
	lock := "XTABLES_LOCKFILE=" + filepath.Join(b.host, "run/xtables.lock")
	return b.ns.Exec(t, "env", append([]string{lock, "iptables-" + variant, "-w"}, args...)...)
}

// answer says hello to whoever connects to an address of the node.
func (b *box) answer(t *testing.T, addr string) {
	t.Helper()
	var l net.Listener
	b.ns.Run(t, func() (err error) {
		l, err = net.Listen("tcp", addr)
		return err
	})
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				fmt.Fprintln(c, "hello")
				c.Close()
			}
		}
	}()
}

// dial returns the line that an address answers.
func (b *box) dial(t *testing.T, addr string) (line string) {
	t.Helper()
	b.ns.Run(t, func() error {
		c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", addr)
		if err != nil {
			return err
		}
		defer c.Close()
		line, err = bufio.NewReader(c).ReadString('\n')
		return err
	})
	return strings.TrimSpace(line)
}
