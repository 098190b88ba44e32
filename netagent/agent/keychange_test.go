package agent

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/braidnet/braid/internal/desired"
	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/netagent/overlay/peer"
	"github.com/braidnet/braid/netagent/overlay/wireguard"
)

// agents runs Sync of every node again and again, and publishes what each has to say, as agents do.
type agents struct {
	net  *testNet
	mu   []sync.Mutex // of each node: nobody else touches it while its agent is at work
	stop chan struct{}
	once sync.Once
	wg   sync.WaitGroup
	done atomic.Int64 // keys that were replaced

	said    sync.Mutex
	changes []string // what was done, and when, for whoever looks for the cause of a failure
}

func (n *testNet) run(t *testing.T) *agents {
	t.Helper()
	a := &agents{net: n, mu: make([]sync.Mutex, len(n.nodes)), stop: make(chan struct{})}
	for i := range n.nodes {
		a.wg.Go(func() {
			tick := time.NewTicker(50 * time.Millisecond)
			defer tick.Stop()
			for {
				select {
				case <-a.stop:
					return
				case <-tick.C:
					a.turn(t, i)
				}
			}
		})
	}
	t.Cleanup(func() { a.end(t) })
	return a
}

// end has no agent at work any more.
func (a *agents) end(t *testing.T) {
	a.once.Do(func() { close(a.stop) })
	a.wg.Wait()
	if t.Failed() {
		t.Log(strings.Join(a.changes, "\n"))
	}
}

func (a *agents) turn(t *testing.T, i int) {
	a.mu[i].Lock()
	defer a.mu[i].Unlock()
	node := a.net.nodes[i]
	res, err := node.trySync()
	if err != nil {
		t.Errorf("%s: %v", node.name, err)
	}
	for _, c := range res.Changes {
		a.said.Lock()
		a.changes = append(a.changes, time.Now().Format("05.000 ")+node.name+" "+c)
		a.said.Unlock()
		if strings.HasPrefix(c, "replaced the WireGuard key") {
			a.done.Add(1)
		}
		if strings.Contains(c, "may be lost") {
			t.Errorf("%s: %s", node.name, c)
		}
	}
	node.publish(t)
	a.net.store.Apply([]model.Update{model.Set(node.node)})
}

// age makes the keys of nodes old, so that they are replaced.
func (a *agents) age(t *testing.T, nodes ...int) {
	t.Helper()
	old := time.Now().Add(-2 * time.Hour)
	for _, i := range nodes {
		a.mu[i].Lock()
		if err := os.Chtimes(a.net.nodes[i].keys.path, old, old); err != nil {
			t.Fatal(err)
		}
		a.mu[i].Unlock()
	}
}

// wait waits until so many keys were replaced, and no device of a detour is left.
func (a *agents) wait(t *testing.T, keys int64) {
	t.Helper()
	longWait(t, fmt.Sprintf("%d keys to be replaced", keys), func() error {
		if n := a.done.Load(); n < keys {
			return fmt.Errorf("%d are", n)
		}
		for _, node := range a.net.nodes {
			if _, err := node.ns.Output("ip", "link", "show", wireguard.Detour); err == nil {
				return fmt.Errorf("%s has %s", node.name, wireguard.Detour)
			}
		}
		return nil
	})
}

func longWait(t *testing.T, what string, cond func() error) {
	t.Helper()
	var err error
	for end := time.Now().Add(3 * time.Minute); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if err = cond(); err == nil {
			return
		}
	}
	t.Fatalf("waited in vain for %s: %v", what, err)
}

// keyNet is a testNet whose nodes stay in each phase so long, and wait eight times as long for others: longer than
// WireGuard takes to ask again, 5 seconds.
func keyNet(t *testing.T, phase time.Duration) *testNet {
	t.Helper()
	n := newTestNet(t, "wireguard")
	for _, node := range n.nodes {
		node.keys.maxAge, node.keys.settle = time.Hour, phase
	}
	n.syncAll(t)
	n.mesh(t, 1440)
	return n
}

// TestWireGuardKeysAreReplacedWithoutLoss replaces the keys of one node, of two at once, and of all, while all pods send to
// each other: nothing is lost, and no connection breaks.
func TestWireGuardKeysAreReplacedWithoutLoss(t *testing.T) {
	t.Parallel()
	n := keyNet(t, 2*time.Second)
	first := map[desired.WGKey]bool{}
	for _, node := range n.nodes {
		first[node.keys.public()[0]] = true
	}
	s, a := n.stream(t), n.run(t)
	a.age(t, 0)
	a.wait(t, 1)
	a.age(t, 1, 2)
	a.wait(t, 3)
	a.age(t, 0, 1, 2)
	a.wait(t, 6)
	s.stop(t, func(string) bool { return false })
	for i, node := range n.nodes {
		a.mu[i].Lock()
		heard, err := node.net.wg.main.dev.Heard()
		for key := range heard {
			if first[key] {
				t.Errorf("%s knows an old key", node.name)
			}
		}
		if len(heard) != 2 || err != nil {
			t.Errorf("%s knows %d keys, %v: want one for each other node", node.name, len(heard), err)
		}
		if out := node.ns.Exec(t, "tc", "filter", "show", "dev", wireguard.Device, "egress"); out != "" {
			t.Errorf("%s: a filter was left: %s", node.name, out)
		}
		a.mu[i].Unlock()
	}
}

// TestWireGuardKeysAfterAKill kills the agent of n1 in each phase. What goes on between the others is not harmed, and where
// the kernel serves WireGuard nothing is.
func TestWireGuardKeysAfterAKill(t *testing.T) {
	t.Parallel()
	n := keyNet(t, 3*time.Second)
	s, a := n.stream(t), n.run(t)
	a.age(t, 0, 1)
	killed := n.nodes[0]
	var user bool
	for _, phase := range []peer.Phase{peer.Leave, peer.Away, peer.Return} {
		longWait(t, "phase "+string(phase), func() error {
			if d := killed.keys.detour(); d.Phase != phase {
				return fmt.Errorf("it is %q", d.Phase)
			}
			return nil
		})
		a.mu[0].Lock()
		user = killed.net.wg.main.user()
		killed.keys = &keyring{path: killed.keys.path, maxAge: time.Hour, settle: killed.keys.settle}
		killed.start(t, n.store, "wireguard")
		a.mu[0].Unlock()
	}
	a.wait(t, 2)
	a.end(t)
	s.stop(t, func(name string) bool { return user && strings.Contains(name, killed.name) })
	n.mesh(t, 1440)
}

// TestWireGuardDetourIsRepaired: somebody flushes what leads packets by the detour, or takes its device away.
func TestWireGuardDetourIsRepaired(t *testing.T) {
	t.Parallel()
	n := keyNet(t, time.Hour) // the change lasts
	old := time.Now().Add(-2 * time.Hour)
	if err := os.Chtimes(n.nodes[0].keys.path, old, old); err != nil {
		t.Fatal(err)
	}
	all := func() (changes []string) {
		for _, node := range n.nodes {
			changes = append(changes, node.sync(t).Changes...)
			node.publish(t)
			n.store.Apply([]model.Update{model.Set(node.node)})
		}
		return changes
	}
	steered := func() error {
		all()
		for _, node := range n.nodes {
			if out := node.ns.Exec(t, "tc", "filter", "show", "dev", wireguard.Device, "egress"); strings.Count(out, "Egress Redirect to device "+wireguard.Detour) != 2 {
				return fmt.Errorf("%s: %s", node.name, out)
			}
		}
		return nil
	}
	longWait(t, "the detour", steered)
	n.mesh(t, 1440)
	if changes := all(); len(changes) != 0 {
		t.Errorf("another Sync changed %q", changes)
	}
	for _, harm := range [][]string{
		{"tc", "qdisc", "del", "dev", wireguard.Device, "clsact"},
		{"tc", "qdisc", "del", "dev", wireguard.Detour, "clsact"},
		{"ip", "link", "del", wireguard.Detour},
		{"ip", "link", "del", wireguard.Device},
		{"ip", "link", "set", wireguard.Detour, "down"},
	} {
		n.nodes[0].ns.Exec(t, harm[0], harm[1:]...)
		longWait(t, strings.Join(harm, " ")+" to be repaired", steered)
		n.mesh(t, 1440)
	}
}
