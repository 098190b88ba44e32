package enforce

import (
	"context"
	"errors"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/braidnet/braid/internal/kernel/ipt"
	"github.com/braidnet/braid/internal/kernel/link"
	"github.com/braidnet/braid/internal/kernel/netns/nstest"
	"github.com/braidnet/braid/netagent/agent/tools"
	"github.com/braidnet/braid/netagent/policy"
	"github.com/braidnet/braid/netagent/policy/nftables"
)

// restart puts another agent in the place of the one that is there, which leaves the kernel as it is. With a variant it
// is made to think that the node's programs use that one.
func (l *lab) restart(mode string, v ipt.Variant) {
	l.t.Helper()
	old := l.Enforcer
	if v == ipt.Legacy {
		l.node.Exec(l.t, "sh", "-c", "iptables-legacy -t mangle -N KUBE-KUBELET-CANARY || true")
	}
	old.Close()
	l.cfg.Mode = mode
	l.start()
	if p, ok := l.plane.(*iptablesPlane); ok && p.variant != v {
		l.t.Fatalf("variant %s (%s), want %s", p.variant, p.why, v)
	}
	// It hears of the cluster as the one before did.
	l.compiler, l.flows.compiler = old.compiler, old.compiler
	l.compiler.Flush()
}

func iptablesLab(t *testing.T, v ipt.Variant) *lab {
	l := newLab(t)
	l.restart("iptables", v)
	return l.attached()
}

// TestPolicyIPTables: pods live by their policies, whatever somebody does to rules and sets, and all goes at the end.
func TestPolicyIPTables(t *testing.T) {
	for _, v := range ipt.Variants {
		t.Run(string(v), func(t *testing.T) {
			t.Parallel()
			l := iptablesLab(t, v)
			conn, err := l.dial("a", "10.0.0.3:80")
			if err != nil {
				t.Fatal(err)
			}
			deny := allowing("web", "b", "192.0.2.0/24")
			l.change(deny)
			l.reaches(false, "isolated")
			l.node.Run(t, func() error { _, err := l.flows.step(t.Context()); return err })
			nstest.Wait(t, "the end of a connection that is forbidden now", func() error {
				_ = conn.SetDeadline(time.Now().Add(10 * time.Millisecond))
				_, _ = conn.Write([]byte("x"))
				if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
					return errors.New("still there")
				}
				return nil
			})
			l.change(allowing("web", "b", "10.0.0.0/24"))
			l.reaches(true, "allowed by address")
			plane := l.plane.(*iptablesPlane)
			if err := l.node.Do(func() error { _, err := plane.replace(l.compiler.All()); return err }); err != nil {
				t.Fatal(err)
			}
			l.change(deny)
			base := "iptables-" + string(v)
			for _, damage := range []string{base + " -F", base + " -I FORWARD 1 -j ACCEPT", "for s in $(ipset list -n | grep -- -to-); do ipset flush $s; done", base + " -F BRAIDPOL-FORWARD",
				base + " -F; " + base + " -X; ip6" + strings.TrimPrefix(base, "ip") + " -F; ip6" + strings.TrimPrefix(base, "ip") + " -X; ipset destroy"} {
				l.node.Exec(t, "sh", "-c", damage)
				plane.whole = plane.whole.Add(-time.Minute / 2) // of what is allowed to wait
				l.mustStep()
				l.reaches(false, "after "+damage)
				l.change(allowing("web", "b", "10.0.0.0/24"))
				l.reaches(true, "allowed after "+damage)
				l.change(deny)
			}
			l.reaches(false, "isolated again")
			l.node.Run(t, func() error {
				totals, err := l.counts.sum(l.plane)
				if n := totals[counted{policy: deny.Key, direction: policy.Ingress}]; n == 0 {
					t.Errorf("nothing was counted as denied: %v", totals)
				}
				return err
			})
			l.node.Run(t, func() error { _, err := Remove(); return err })
			l.reaches(true, "after everything was removed")
			left := l.node.Exec(t, base+"-save") + l.node.Exec(t, "ipset", "save")
			if strings.Contains(left, "BRAIDPOL") || strings.Contains(left, "braid4") || strings.Contains(left, "braid6") {
				t.Errorf("left:\n%s", left)
			}
		})
	}
}

// TestPolicyModesChange: while an agent in another mode, or with another variant of the tools, takes over, what is denied
// is denied at every moment, and what is allowed is allowed but for a packet in thousands; of the mode before nothing is left.
// TestHarmDuringAWrite: rules that somebody takes away while the agent writes are missed at once.
func TestHarmDuringAWrite(t *testing.T) {
	for _, v := range ipt.Variants {
		for _, harm := range []string{" -F", " -F BRAIDPOL-FORWARD", " -D INPUT 1"} {
			t.Run(string(v)+harm, func(t *testing.T) {
				t.Parallel()
				l := iptablesLab(t, v)
				plane := l.plane.(*iptablesPlane)
				for range 2 { // the second time where writes are not counted: a comparison that writes nothing
					plane.whole = plane.whole.Add(-2 * time.Second)
					l.mustStep()
				}
				if plane.eyes.look(); plane.eyes.foreign || plane.eyes.gone {
					t.Errorf("our own writes look like others': %+v", plane.eyes)
				}
				harmed := false
				plane.restore = func(tool *ipt.Tool, input string) error {
					err := tool.Restore(input)
					if !harmed {
						harmed = true
						l.node.Exec(t, "sh", "-c", "iptables-"+string(v)+harm)
					}
					return err
				}
				l.change(allowing("web", "b", "192.0.2.0/24"))
				if !harmed || !plane.due(plane.whole.Add(max(Audit, tools.RepairShare*plane.took))) {
					t.Fatalf("nobody looks at what was done during a write of ours: %+v", plane.eyes)
				}
				plane.whole = plane.whole.Add(-time.Minute / 2)
				l.mustStep()
				l.reaches(false, "after the repair")
			})
		}
	}
}

func TestPolicyModesChange(t *testing.T) {
	l := isolatedLab(t)
	back := l.listen("a", "10.0.0.2:81")
	go func() {
		for {
			c, err := back.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	deny := allowing("web", "b", "192.0.2.0/24")
	l.change(deny)
	ctx, cancel := context.WithCancel(t.Context())
	type tally struct {
		tried, let, cut int
		err             error
	}
	result := make(chan tally)
	go func() {
		var n tally
		for ctx.Err() == nil {
			n.tried++
			_ = l.pods["a"].Do(func() error {
				if c, err := net.DialTimeout("tcp4", "10.0.0.3:80", 2*time.Second); err == nil {
					n.let++
					c.Close()
				}
				return nil
			})
			_ = l.pods["b"].Do(func() error {
				c, err := net.DialTimeout("tcp4", "10.0.0.2:81", 2*time.Second)
				if err != nil {
					n.cut++
					n.err = err
					return nil
				}
				return c.Close()
			})
		}
		result <- n
	}()
	for _, to := range []struct {
		mode    string
		variant ipt.Variant
		left    map[string]bool // word → is it in what the node has
	}{
		{"iptables", ipt.NFT, map[string]bool{"table ip " + nftables.TableName: false, "BRAIDPOL-FORWARD": true}},
		{"nftables", "", map[string]bool{"table ip " + nftables.TableName: true, "BRAIDPOL-FORWARD": false, "braid4-": false}},
		{"iptables", ipt.Legacy, map[string]bool{"table ip " + nftables.TableName: false, "-A BRAIDPOL-FORWARD": true}},
		{"auto", "", map[string]bool{"table ip " + nftables.TableName: true, "BRAIDPOL-FORWARD": false, "braid4-": false}},
	} {
		l.restart(to.mode, to.variant)
		nstest.Wait(t, "the end of the mode before", func() error { // the kernel takes a moment to give tables free
			l.mustStep()
			if !l.others.done {
				return errors.New(l.others.failed)
			}
			return nil
		})
		has := l.node.Exec(t, "nft", "list", "tables") + l.node.Exec(t, "iptables-nft-save") + l.node.Exec(t, "iptables-legacy-save") + l.node.Exec(t, "ipset", "save")
		for word, want := range to.left {
			if strings.Contains(has, word) != want {
				t.Errorf("mode %s %s: %q is there: %v, in\n%s", to.mode, to.variant, word, !want, has)
			}
		}
		l.reaches(false, "in mode "+to.mode)
	}
	cancel()
	n := <-result
	t.Logf("%d rounds, %d denied connections let through, %d allowed ones refused", n.tried, n.let, n.cut)
	// The kernel does not change rules and the members of maps in the same moment for a packet that is among them, so that one
	// in many thousands may be refused.
	if n.let > 0 || 500*n.cut > n.tried || n.tried == 0 {
		t.Errorf("of %d rounds %d let a denied connection through and %d refused an allowed one (%v)", n.tried, n.let, n.cut, n.err)
	}
}

// TestPastIPTables: what a pod sends past the node's IP stack, to another pod's hardware address, meets the policies too.
// A bridge whose frames are not shown to iptables is put right.
func TestPastIPTables(t *testing.T) {
	l := iptablesLab(t, ipt.NFT)
	l.node.Sysctl(t, "net/bridge/bridge-nf-call-iptables", "0")
	l.node.Exec(t, "ip", "link", "set", "braid0", "type", "bridge", "nf_call_iptables", "0", "nf_call_ip6tables", "0")
	l.change(allowing("web", "b", "192.0.2.0/24"))
	var mac []string
	if out := l.pods["b"].Exec(t, "ip", "-o", "link", "show", "eth0"); true {
		_, after, _ := strings.Cut(out, "link/ether ")
		mac = strings.Fields(after)
	}
	l.pods["a"].Exec(t, "ip", "route", "add", "10.0.0.3", "dev", "eth0")
	l.pods["a"].Exec(t, "ip", "neigh", "replace", "10.0.0.3", "lladdr", mac[0], "dev", "eth0")
	l.reaches(false, "past the node")
	l.change(allowing("web", "b", "10.0.0.0/24"))
	l.reaches(true, "past the node, and allowed")
	var changed bool
	l.node.Run(t, func() (err error) { changed, err = link.EnsureBridgeFiltered(l.links, "braid0"); return err })
	if changed {
		t.Error("the bridge was not shown to iptables")
	}
}
