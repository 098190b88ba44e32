package agent

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/braidnet/braid/internal/desired"
	"github.com/braidnet/braid/internal/kernel/netns/nstest"
	"github.com/braidnet/braid/internal/model"
)

func mustKey(t *testing.T, k *keyring, published []desired.WGKey) (desired.WGKey, []string) {
	t.Helper()
	key, changes, err := k.current(published)
	if err != nil {
		t.Fatal(err)
	}
	return key, changes
}

func TestKeyringKeepsAndReplacesKeys(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state", "wireguard.key")
	k := &keyring{path: path, settle: time.Hour}
	first, changes := mustKey(t, k, nil)
	if len(changes) != 1 || first == (desired.WGKey{}) {
		t.Fatalf("key %v, changes %q", first, changes)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("%v, %v: want a file that only root reads", info, err)
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	k = &keyring{path: path, settle: time.Hour} // the next agent
	if again, changes := mustKey(t, k, nil); again != first || len(changes) != 0 {
		t.Errorf("a restart gives another key, or %q", changes)
	}
	if info, _ := os.Stat(path); info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v after it was opened to others", info.Mode())
	}
	// The key gets old: the next one is published, and used once it is known and has been for long enough.
	k.maxAge = time.Nanosecond
	if key, changes := mustKey(t, k, nil); key != first || len(changes) != 1 || len(k.public()) != 2 {
		t.Fatalf("%q, %d public keys: want a second one beside the first", changes, len(k.public()))
	}
	next := k.public()[1]
	if key, changes := mustKey(t, k, k.public()); key != first || len(changes) != 0 {
		t.Errorf("used before it settled: %q", changes)
	}
	k.settle = 0
	if key, _ := mustKey(t, k, k.public()[:1]); key != first {
		t.Error("used before the cluster knows it")
	}
	if key, changes := mustKey(t, k, k.public()); public(key) != next || len(changes) != 1 || len(k.public()) != 1 {
		t.Errorf("%q: want the next key alone", changes)
	}
}

func TestKeyringRefusesABrokenFile(t *testing.T) {
	const secret = "c2VjcmV0c2VjcmV0"
	path := filepath.Join(t.TempDir(), "wireguard.key")
	for _, content := range []string{secret, strings.Repeat(desired.WGKey{1}.String()+"\n", 3)} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		_, _, err := (&keyring{path: path}).current(nil)
		if err == nil || !strings.Contains(err.Error(), path) || strings.Contains(err.Error(), secret) {
			t.Errorf("error %v: want one with the file and without its content", err)
		}
		if after, _ := os.ReadFile(path); string(after) != content {
			t.Error("the file was changed: its owner may still need it")
		}
	}
}

// TestWireGuardKeyIsReplaced changes the key of n1 step by step, as its agent and the others' do, and pods
// reach each other at each.
func TestWireGuardKeyIsReplaced(t *testing.T) {
	n := newTestNet(t, "wireguard")
	n.syncAll(t)
	n.mesh(t, 1440)
	a := n.nodes[0]
	old := a.keys.public()[0]
	tell := func(what string) {
		a.publish(t)
		n.store.Apply([]model.Update{model.Set(a.node)})
		n.syncAll(t)
		n.mesh(t, 1440)
		for _, node := range n.nodes {
			if again := node.sync(t); len(again.Changes) != 0 {
				t.Errorf("%s: %s: second Sync changed %q", what, node.name, again.Changes)
			}
		}
	}
	a.keys.maxAge, a.keys.settle = time.Nanosecond, time.Hour
	a.sync(t)
	a.keys.maxAge = 0
	tell("the next key is published")
	a.keys.settle = 0
	res := a.sync(t)
	if !strings.Contains(fmt.Sprint(res.Changes), "private key") || a.keys.public()[0] == old {
		t.Fatalf("changes %q: want the next key in use", res.Changes)
	}
	tell("the old key is gone")
	for _, node := range n.nodes[1:] {
		shakes, err := node.net.wg.dev.Handshakes()
		if _, still := shakes[old]; still || err != nil || len(shakes) != 2 {
			t.Errorf("%s knows %v, %v: want two peers and not the old key", node.name, shakes, err)
		}
	}
}

// What is between the nodes carries nothing that anybody could read, and a stranger's packets go nowhere.
func TestWireGuardEncrypts(t *testing.T) {
	n := newTestNet(t, "wireguard")
	n.syncAll(t)
	n.underlay.Exec(t, "nft", `table bridge seen {
 chain wire { type filter hook forward priority 0;
  ether type ip ip saddr 10.244.0.0/16 counter comment "plain"
  ether type ip udp dport 51820 counter comment "encrypted"
 }
}`)
	n.mesh(t, 1440)
	out := n.underlay.Exec(t, "nft", "list", "table", "bridge", "seen")
	for line := range strings.Lines(out) {
		plain, crypt := strings.Contains(line, `"plain"`), strings.Contains(line, `"encrypted"`)
		if none := strings.Contains(line, "packets 0"); plain && !none || crypt && none {
			t.Errorf("on the wire: %s", line)
		}
	}
	// n3's key is taken back: what it sends is not heard any more.
	other := *n.nodes[2].node
	other.Annotations = nil
	n.store.Apply([]model.Update{model.Set(&other)})
	n.nodes[0].sync(t)
	nstest.Wait(t, "n1 not to hear n3", func() error {
		if _, err := n.nodes[2].pod.Output("ping", "-n", "-c", "1", "-W", "1", n.nodes[0].podIPs[0]); err == nil {
			return fmt.Errorf("it answers")
		}
		return nil
	})
}
