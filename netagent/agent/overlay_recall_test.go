package agent

import (
	"context"
	"os"
	"strings"
	"testing"

	"github.com/braidnet/braid/internal/model"
)

// hold runs hold as the agent of a node does, until the test ends; done says that it has returned.
func (n *testNode) hold(t *testing.T) (done <-chan struct{}) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	loop := &overlayLoop{podNetwork: n.net}
	go func() {
		defer close(ended)
		_ = n.ns.Do(func() error { loop.hold(ctx); return nil }) // what goes wrong with the namespace shows in what it does
	}()
	t.Cleanup(func() { cancel(); <-ended })
	return ended
}

// An agent that starts while the cluster cannot be read keeps the overlay as the one before had it: it carries
// packets where the kernel does not, and repairs what others break. Then it follows the cluster.
func TestOverlayHeldWithoutCluster(t *testing.T) {
	for _, backend := range []string{"vxlan", "host-gw", "udp", "wireguard"} {
		t.Run(backend, func(t *testing.T) {
			n := newTestNet(t, backend)
			n.syncAll(t)
			n.mesh(t, 1400)
			a, lost := n.nodes[0], model.NewStore()
			a.start(t, lost, backend)
			_, _ = a.ns.Output("ip", "route", "del", "10.244.2.0/24") // gone already where the device went with the agent
			done := a.hold(t)
			n.mesh(t, 1400)
			a.ns.Exec(t, "ip", "-6", "route", "del", "fd00:10:244:2::/64")
			n.mesh(t, 1400)

			// The cluster can be read again, and n3 has left it.
			lost.Apply([]model.Update{model.Set(a.node), model.Set(n.nodes[1].node)})
			lost.MarkSynced()
			<-done
			if res := a.sync(t); res.Peers != 1 || strings.Contains(routesOf(t, a), "10.244.3.0") {
				t.Errorf("%d peers, routes:\n%s", res.Peers, routesOf(t, a))
			}
			if kept, err := os.ReadFile(a.memory); err != nil || strings.Contains(string(kept), `"n3"`) {
				t.Errorf("kept for the next agent: %s %v", kept, err)
			}
		})
	}
}

// What cannot be read is as good as nothing: the kernel stays as it is.
func TestOverlayHoldsNothingUnreadable(t *testing.T) {
	n := newTestNet(t, "vxlan")
	n.syncAll(t)
	a := n.nodes[0]
	before := state(t, a)
	const unknownSelf = `[{"name": "n2"}]`
	for _, text := range []string{"", "{", "[]", `[{"name": "n1", "podCIDRs": ["10.244.1.0/99"]}]`, unknownSelf} {
		if err := os.WriteFile(a.memory, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		a.start(t, model.NewStore(), "vxlan")
		count, err := a.net.memory.recall()
		if _, syncErr := a.trySync(); syncErr == nil || err == nil && count > 0 && text != unknownSelf {
			t.Errorf("%q: %d nodes, error %v, and Sync says %v", text, count, err, syncErr)
		}
		if after := state(t, a); after != before {
			t.Fatalf("%q: state changed:\n%s\nto\n%s", text, before, after)
		}
	}
	if err := os.Remove(a.memory); err != nil {
		t.Fatal(err)
	}
	a.start(t, model.NewStore(), "vxlan")
	<-a.hold(t) // returns at once
}
