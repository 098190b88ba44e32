package agent

import (
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/braidnet/braid/cni/antispoof"
	"github.com/braidnet/braid/cni/hostport"
	"github.com/braidnet/braid/cni/tables"
	"github.com/braidnet/braid/internal/kernel/netns/nstest"
)

// ruleNode is a node with pods that have rules of the CNI plugin.
type ruleNode struct {
	*nstest.NS
	run   string
	rules *podRules
}

func newRuleNode(t *testing.T) *ruleNode {
	t.Helper()
	n := &ruleNode{NS: nstest.New(t), run: t.TempDir()}
	n.start(t)
	n.Exec(t, "ip", "link", "add", "braid0", "type", "bridge")
	return n
}

// start is what an agent does that starts.
func (n *ruleNode) start(t *testing.T) {
	t.Helper()
	n.Run(t, func() (err error) { n.rules, err = newPodRules(n.run, slog.New(slog.DiscardHandler)); return err })
	t.Cleanup(n.rules.close)
}

// pod is what an ADD leaves: a link and its rules.
func (n *ruleNode) pod(t *testing.T, link, addr string, port uint16) {
	t.Helper()
	n.Exec(t, "ip", "link", "add", link, "type", "veth", "peer", "name", "p"+link[3:])
	owner, addrs := tables.Owner{Link: link, Pod: "default/" + link}, []netip.Addr{netip.MustParseAddr(addr)}
	store := hostport.Store{Log: slog.New(slog.DiscardHandler), Alive: n.rules.alive}
	n.Run(t, func() error {
		if err := store.Add(owner, []hostport.Mapping{{Host: hostport.Port{Protocol: hostport.TCP, Number: port}, Container: 80}}, addrs); err != nil {
			return err
		}
		return antispoof.Guard(antispoof.Pod{Owner: owner, MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, Addrs: addrs})
	})
}

// step makes steps until one changes nothing, and returns what they changed.
func (n *ruleNode) step(t *testing.T) (changes string) {
	t.Helper()
	for {
		var done []string
		n.Run(t, func() error {
			out, err := n.rules.step(t.Context())
			done = out.Changes
			return err
		})
		if len(done) == 0 {
			return changes
		}
		changes += strings.Join(done, "\n") + "\n"
	}
}

func (n *ruleNode) ruleset(t *testing.T) string {
	t.Helper()
	return n.Exec(t, "nft", "list", "ruleset")
}

func TestFlushedPodRulesComeBack(t *testing.T) {
	n := newRuleNode(t)
	if changes := n.step(t); changes != "" || n.ruleset(t) != "" {
		t.Errorf("on a node without pods: %s%s", changes, n.ruleset(t))
	}
	n.pod(t, "brd0000000000a", "10.244.1.2", 8000)
	n.pod(t, "brd0000000000b", "10.244.1.3", 8001)
	n.pod(t, "brd0000000000c", "fd00::4", 8002)
	if changes := n.step(t); changes != "" {
		t.Errorf("with everything in order: %s", changes)
	}
	whole := n.ruleset(t)
	for _, damage := range []string{"flush ruleset", "delete table ip6 braid-hostports", "flush chain bridge braid-antispoof from-pod", "flush table ip braid-hostports"} {
		n.Exec(t, "nft", damage)
		changes := n.step(t)
		if got := n.ruleset(t); !sameLines(got, whole) || !strings.Contains(changes, "anew") {
			t.Errorf("after %q, %q:\n%s\nwant\n%s", damage, changes, got, whole)
		}
	}
	// What is flushed together with a pod that goes stays away, and so does what a pod left.
	n.Exec(t, "nft", "flush", "ruleset")
	n.Exec(t, "ip", "link", "del", "brd0000000000b")
	n.step(t)
	if got := n.ruleset(t); strings.Contains(got, "brd0000000000b") || strings.Count(got, `comment "brd0000000000a default`) != 4 {
		t.Errorf("after a pod went with the flush:\n%s", got)
	}
	n.Exec(t, "ip", "link", "del", "brd0000000000a")
	n.Exec(t, "nft", "add", "table", "ip", "somebody")
	if changes := n.step(t); !strings.Contains(changes, "removed what belonged to brd0000000000a") || strings.Contains(n.ruleset(t), "brd0000000000a") {
		t.Errorf("a pod that went without DEL: %s\n%s", changes, n.ruleset(t))
	}
	var before, after uint32
	read := func(into *uint32) {
		n.Run(t, func() (err error) { *into, err = n.rules.conn.Generation(); return err })
	}
	read(&before)
	n.step(t)
	if read(&after); before != after {
		t.Errorf("a step with nothing to do changed the ruleset")
	}
}

// sameLines compares rulesets whose tables and elements may be listed in another order.
func sameLines(a, b string) bool {
	count := func(s string) map[string]int {
		m := map[string]int{}
		for _, line := range strings.Split(s, "\n") {
			m[strings.Trim(strings.TrimPrefix(strings.TrimSpace(line), "elements = { "), ", }")]++
		}
		return m
	}
	x, y := count(a), count(b)
	for line, n := range y {
		if x[line] != n {
			return false
		}
	}
	return len(x) == len(y)
}

// TestLoopbackIsGuardedAgain: the flush came while no agent ran, and the bridge still routes loopback addresses.
func TestLoopbackIsGuardedAgain(t *testing.T) {
	n := newRuleNode(t)
	n.Run(t, func() error { return os.WriteFile("/proc/sys/net/ipv4/conf/braid0/route_localnet", []byte("1"), 0) })
	if changes := n.step(t); !strings.Contains(changes, "made nftables table ip braid-hostports anew") {
		t.Errorf("changes %q", changes)
	}
	if got := n.ruleset(t); !strings.Contains(got, `iif != "lo" ip daddr 127.0.0.0/8 drop`) {
		t.Errorf("no guard:\n%s", got)
	}
}

// TestTablesOfAnotherVersionAreLeftAlone: while plugin and agent are not of one version, the plugin's word counts.
func TestTablesOfAnotherVersionAreLeftAlone(t *testing.T) {
	n := newRuleNode(t)
	n.pod(t, "brd0000000000a", "10.244.1.2", 8000)
	n.step(t)
	n.Exec(t, "nft", "delete", "table", "ip", "braid-hostports")
	n.Exec(t, "nft", `add table ip braid-hostports { comment "Braid host ports, layout of the future"; }`)
	if changes := n.step(t); changes != "" || !strings.Contains(n.ruleset(t), "layout of the future") {
		t.Errorf("changes %q\n%s", changes, n.ruleset(t))
	}
}

// What is flushed while no agent runs is put back by the next one, but not what belongs to links that went
// meanwhile, nor what a file says that nobody can read.
func TestPodRulesFlushedWithoutAgent(t *testing.T) {
	n := newRuleNode(t)
	n.pod(t, "brd0000000000a", "10.244.1.2", 8000)
	n.pod(t, "brd0000000000b", "10.244.1.3", 8001)
	n.step(t)
	whole := n.ruleset(t)
	n.Exec(t, "nft", "flush", "ruleset")
	n.start(t)
	if n.step(t) == "" || n.ruleset(t) != whole {
		t.Errorf("after a flush and a start:\n%s\nwant\n%s", n.ruleset(t), whole)
	}
	n.Exec(t, "nft", "flush", "ruleset")
	n.Exec(t, "ip", "link", "del", "brd0000000000b")
	n.start(t)
	n.step(t)
	if now := n.ruleset(t); !strings.Contains(now, "8000") || strings.Contains(now, "8001") {
		t.Errorf("after a flush, the end of a pod and a start:\n%s", now)
	}
	n.Exec(t, "nft", "flush", "ruleset")
	if err := os.WriteFile(filepath.Join(n.run, podRulesFile), []byte("what is this"), 0o600); err != nil {
		t.Fatal(err)
	}
	n.start(t)
	if changes := n.step(t); changes != "" || n.ruleset(t) != "" {
		t.Errorf("with a broken file: %s%s", changes, n.ruleset(t))
	}
	n.pod(t, "brd0000000000c", "10.244.1.4", 8002) // and it goes on from here
	n.step(t)
	n.Exec(t, "nft", "flush", "ruleset")
	n.start(t)
	if n.step(t); !strings.Contains(n.ruleset(t), "8002") {
		t.Errorf("after a broken file nothing is kept:\n%s", n.ruleset(t))
	}
}
