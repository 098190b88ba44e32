package agent

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/braidnet/braid/internal/desired"
	"github.com/braidnet/braid/internal/kernel/netns/nstest"
	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/netagent/overlay/peer"
)

// stepAll runs step until it changes nothing, and returns all that it did.
func stepAll(t *testing.T, k *keyring, c crossing) (all []string) {
	t.Helper()
	for {
		changes, err := k.step(c)
		if err != nil {
			t.Fatal(err)
		}
		if len(changes) == 0 {
			return all
		}
		all = append(all, changes...)
	}
}

func waitsFor(names ...string) func(peer.Phase, time.Time) []string {
	return func(peer.Phase, time.Time) []string { return names }
}

func phaseIs(t *testing.T, k *keyring, want peer.Phase) {
	t.Helper()
	if d := k.detour(); d.Phase != want {
		t.Fatalf("phase %q, want %q", d.Phase, want)
	}
}

func TestKeyringKeepsAndReplacesKeys(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state", "wireguard.key")
	sidePath := filepath.Join(filepath.Dir(path), "wireguard-detour.key")
	next := func() *keyring { return &keyring{path: path, settle: time.Hour} } // the next agent
	k := next()
	if changes := stepAll(t, k, crossing{}); len(changes) != 2 {
		t.Fatalf("changes %q, want two keys", changes)
	}
	first, detour := k.public(), k.detour()
	for _, file := range []string{path, sidePath} {
		if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
			t.Fatalf("%v, %v: want a file that only root reads", info, err)
		}
		if err := os.Chmod(file, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	k = next()
	if changes := stepAll(t, k, crossing{published: true}); !slices.Equal(k.public(), first) || k.detour() != detour || len(changes) != 0 {
		t.Errorf("a restart gives other keys, or %q", changes)
	}
	for _, file := range []string{path, sidePath} {
		if info, _ := os.Stat(file); info.Mode().Perm() != 0o600 {
			t.Errorf("%s: mode %v after it was opened to others", file, info.Mode())
		}
	}
	// The key gets old. While the key of the detour is in use it stays.
	old := time.Now().Add(-2 * time.Hour)
	if err := os.Chtimes(path, old, old); err != nil {
		t.Fatal(err)
	}
	k.maxAge = time.Hour
	if changes := stepAll(t, k, crossing{busy: true}); len(changes) != 1 || k.detour() != (peer.Detour{Key: detour.Key, Phase: peer.Leave}) || len(k.public()) != 2 || k.public()[0] != first[0] {
		t.Fatalf("%q, %v, %v", changes, k.detour(), k.public())
	}
	will := k.public()[1]
	for name, c := range map[string]crossing{"not for long enough": {published: true, waits: waitsFor()}} {
		if changes := stepAll(t, k, c); len(changes) != 0 {
			t.Errorf("%s: %q", name, changes)
		}
	}
	k.settle = time.Nanosecond
	if changes := stepAll(t, k, crossing{waits: waitsFor()}); len(changes) != 0 {
		t.Errorf("the cluster does not know the phase: %q", changes)
	}
	one := func(want peer.Phase) {
		t.Helper()
		k = &keyring{path: path, settle: time.Nanosecond, maxAge: time.Hour} // each agent goes on where the one before was killed
		changes, err := k.step(crossing{published: true, waits: waitsFor()})
		if err != nil || len(changes) != 1 || k.public()[0] != will || len(k.public()) != 1 {
			t.Fatalf("%q, %v, %v: want the next key, alone", changes, err, k.public())
		}
		phaseIs(t, k, want)
	}
	one(peer.Away)
	one(peer.Return)
	one(peer.Steady)
	if changes := stepAll(t, k, crossing{published: true, waits: waitsFor()}); len(changes) != 0 {
		t.Errorf("the key is new, and %q", changes)
	}
}

func TestKeyringWaits(t *testing.T) {
	k := &keyring{path: filepath.Join(t.TempDir(), "wireguard.key"), settle: time.Hour, maxAge: time.Nanosecond}
	stepAll(t, k, crossing{})
	phaseIs(t, k, peer.Leave)
	begun := func(ago time.Duration) {
		at := time.Now().Add(-ago)
		if err := os.Chtimes(k.sidePath(), at, at); err != nil {
			t.Fatal(err)
		}
	}
	late := crossing{published: true, waits: waitsFor("node b")}
	begun(2 * time.Hour)
	if changes := stepAll(t, k, late); len(changes) != 0 {
		t.Errorf("%q, though one does not come along", changes)
	}
	begun(9 * time.Hour)
	if changes := stepAll(t, k, late); len(changes) != 1 || !strings.Contains(changes[0], "without node b") {
		t.Errorf("%q, want it to go on and say without whom", changes)
	}
	phaseIs(t, k, peer.Away)
}

// TestKeyringAfterAKillBetweenItsFiles: the next key is in use, and the second file does not say so yet.
func TestKeyringAfterAKillBetweenItsFiles(t *testing.T) {
	k := &keyring{path: filepath.Join(t.TempDir(), "wireguard.key"), settle: time.Hour, maxAge: time.Nanosecond}
	stepAll(t, k, crossing{})
	next := k.side.next
	if err := os.WriteFile(k.path, []byte(next.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	k = &keyring{path: k.path, settle: time.Hour, maxAge: time.Hour}
	stepAll(t, k, crossing{})
	phaseIs(t, k, peer.Away)
	if list := k.public(); len(list) != 1 || list[0] != public(next) {
		t.Errorf("keys %v, want %v", list, public(next))
	}
}

func TestKeyringTakesOldAndBrokenFiles(t *testing.T) {
	dir := t.TempDir()
	k := &keyring{path: filepath.Join(dir, "wireguard.key")}
	inUse := newKey()
	if err := os.WriteFile(k.path, []byte(inUse.String()+"\n"+newKey().String()+"\n"), 0o600); err != nil {
		t.Fatal(err) // an older version was about to replace it
	}
	for _, side := range []string{"", "nonsense", newKey().String() + " leave", newKey().String() + " fly", newKey().String() + "\nleave x", "x\naway", newKey().String() + " away " + newKey().String()} {
		if err := os.WriteFile(k.sidePath(), []byte(side), 0o600); err != nil {
			t.Fatal(err)
		}
		if changes := stepAll(t, k, crossing{}); len(changes) != 1 || k.detour().Key == (desired.WGKey{}) {
			t.Errorf("%q: changes %q, want a new key for detours", side, changes)
		}
		phaseIs(t, k, peer.Steady)
		if list := k.public(); len(list) != 1 || list[0] != public(inUse) {
			t.Errorf("keys %v, want %v", list, public(inUse))
		}
	}
}

func TestKeyringRefusesABrokenFile(t *testing.T) {
	const secret = "c2VjcmV0c2VjcmV0"
	path := filepath.Join(t.TempDir(), "wireguard.key")
	for _, content := range []string{secret, strings.Repeat(desired.WGKey{1}.String()+"\n", 3)} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := (&keyring{path: path}).step(crossing{})
		if err == nil || !strings.Contains(err.Error(), path) || strings.Contains(err.Error(), secret) {
			t.Errorf("error %v: want one with the file and without its content", err)
		}
		if after, _ := os.ReadFile(path); string(after) != content {
			t.Error("the file was changed: its owner may still need it")
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
