package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/braidnet/braid/internal/desired"
	"github.com/braidnet/braid/netagent/install"
	"github.com/braidnet/braid/netagent/overlay"
	"github.com/braidnet/braid/netagent/overlay/peer"
)

// keySettle is how long each phase of a change of keys is published at least: longer than it takes all other agents to
// hear of it, also those that audit only.
const keySettle = 35 * time.Second

// keyPatience is how many times as long a node waits for others that do not come along, such as those that are down.
const keyPatience = 8

// keyring keeps this node's private keys of WireGuard in two files that only root reads: the key in use, and what a change
// of it needs: the key of the detour, the phase, and the key that comes next. The time of a file is that of its last
// change. Each is written as a whole, so a power cut leaves the old state or the new one.
type keyring struct {
	path   string        // of the key in use; the other file is beside it
	maxAge time.Duration // of a key, until the next one comes; 0 = for ever
	settle time.Duration // of each phase

	mu    sync.Mutex
	key   desired.WGKey // private, in use; zero before there is one
	side  sideKeys
	since time.Time // when the key was made
	at    time.Time // when the phase began
}

// sideKeys is what the second file holds.
type sideKeys struct {
	detour, next desired.WGKey // private; next is zero unless the phase is Leave
	phase        peer.Phase
}

// crossing is what a keyring has to know before it goes on with a change.
type crossing struct {
	published bool // that the cluster knows what public and detour say
	busy      bool // that the key of the detour is in use, by this node or others
	waits     func(phase peer.Phase, since time.Time) []string
}

// step makes keys where there are none, and goes on with a change of them as far as it may.
func (k *keyring) step(c crossing) (changes []string, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.load(); err != nil {
		return nil, err
	}
	if k.key == (desired.WGKey{}) {
		if err := k.use(newKey()); err != nil {
			return nil, err
		}
		changes = append(changes, "made a WireGuard key: this node had none")
	}
	side, why := k.side, ""
	phase := time.Since(k.at)
	may := func() bool {
		if !c.published || phase < k.settle {
			return false
		}
		late := c.waits(k.side.phase, k.at)
		if len(late) > 0 && phase < keyPatience*k.settle {
			return false
		}
		if len(late) > 0 {
			why = fmt.Sprintf(", without %s: what is sent to and from there now may be lost", strings.Join(late, ", "))
		}
		return true
	}
	switch {
	case side.detour == (desired.WGKey{}):
		side, why = sideKeys{detour: newKey()}, "made a WireGuard key for detours"
	case side.phase == peer.Steady && k.maxAge > 0 && time.Since(k.since) >= k.maxAge:
		if !c.busy { // it is nobody's session, so nobody loses one
			side.detour = newKey()
		}
		side.phase, side.next, why = peer.Leave, newKey(), fmt.Sprintf("replacing the WireGuard key, which is older than %s: others are to use the detour", k.maxAge)
	case side.phase == peer.Leave && side.next == k.key: // the agent before ended in between
		side.phase, side.next, why = peer.Away, desired.WGKey{}, "replacing the WireGuard key: the next one is in use"
	case side.phase == peer.Leave && may():
		if err := k.use(side.next); err != nil {
			return changes, err
		}
		side.phase, side.next, why = peer.Away, desired.WGKey{}, "replacing the WireGuard key: use the next one"+why
	case side.phase == peer.Away && may():
		side.phase, why = peer.Return, "replacing the WireGuard key: others are to use the next one"+why
	case side.phase == peer.Return && may():
		side.phase, why = peer.Steady, "replaced the WireGuard key"+why
	}
	if side != k.side {
		changes = append(changes, why)
		err = k.keepSide(side)
	}
	return changes, err
}

// private returns the keys that devices are to have.
func (k *keyring) private() (key, detour desired.WGKey) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.key, k.side.detour
}

// public returns the public keys to publish, the one in use first; nothing before there are keys. The next one comes
// with it, so that agents of older versions, which know of no detour, have it in time.
func (k *keyring) public() (list []desired.WGKey) {
	k.mu.Lock()
	defer k.mu.Unlock()
	_ = k.load() // an error is told by step, which comes soon
	for _, key := range []desired.WGKey{k.key, k.side.next} {
		if key != (desired.WGKey{}) && !slices.Contains(list, public(key)) {
			list = append(list, public(key))
		}
	}
	return list
}

// detour is what to publish of the detour; nothing before there is one.
func (k *keyring) detour() (d peer.Detour) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if _ = k.load(); k.side.detour != (desired.WGKey{}) {
		d = peer.Detour{Key: public(k.side.detour), Phase: k.side.phase}
	}
	return d
}

// annotations are what this node's Node is to say of its keys; empty before there are any.
func (k *keyring) annotations() map[string]string {
	out, words := map[string]string{}, []string{}
	for _, key := range k.public() {
		words = append(words, key.String())
	}
	if len(words) > 0 {
		out[overlay.KeyAnnotation] = strings.Join(words, " ")
	}
	if d := k.detour(); d.Key != (desired.WGKey{}) {
		out[overlay.DetourAnnotation] = overlay.DetourText(d)
	}
	return out
}

// due is how long until current has something to do; 0 when it has not.
func (k *keyring) due() time.Duration {
	if k.maxAge == 0 {
		return 0
	}
	return min(k.settle, k.maxAge)/2 + time.Millisecond
}

// load reads both files. A broken one of the key in use is an error, since its owner may still need it. What the other one
// holds is of use for some minutes at most: a broken one is as none.
func (k *keyring) load() error {
	words, since, err := readKeys(k.path)
	if err != nil {
		return fmt.Errorf("read this node's WireGuard key: %w", err)
	}
	k.key, k.since = desired.WGKey{}, since
	for i, word := range words {
		key, err := desired.ParseWGKey(word)
		if err != nil || i > 1 { // the text of the error would hold what may be a key
			return fmt.Errorf("%s:%d: not a WireGuard key: remove the file, and this node gets a new one", k.path, i+1)
		}
		if i == 0 { // a second one is of an older version, which had begun to replace the first
			k.key = key
		}
	}
	words, at, err := readKeys(k.sidePath())
	if err != nil {
		return fmt.Errorf("read this node's WireGuard key for detours: %w", err)
	}
	k.side, k.at = readSide(words), at
	return nil
}

// readSide reads the words of the second file: KEY, KEY leave NEXT, KEY away, or KEY return.
func readSide(words []string) (s sideKeys) {
	want := 1
	if len(words) > 1 {
		s.phase, want = peer.Phase(words[1]), 2
	}
	if s.phase == peer.Leave {
		want = 3
	}
	if len(words) != want || !slices.Contains([]peer.Phase{peer.Steady, peer.Leave, peer.Away, peer.Return}, s.phase) {
		return sideKeys{}
	}
	var err, more error
	s.detour, err = desired.ParseWGKey(words[0])
	if want == 3 {
		s.next, more = desired.ParseWGKey(words[2])
	}
	if err != nil || more != nil {
		return sideKeys{}
	}
	return s
}

func (k *keyring) sidePath() string { return strings.TrimSuffix(k.path, ".key") + "-detour.key" }

// use makes a key the one in use.
func (k *keyring) use(key desired.WGKey) error {
	if err := writeKeys(k.path, key.String()+"\n"); err != nil {
		return err
	}
	k.key, k.since = key, time.Now()
	return nil
}

func (k *keyring) keepSide(s sideKeys) error {
	text := s.detour.String() + "\n" + string(s.phase)
	if s.next != (desired.WGKey{}) {
		text += " " + s.next.String()
	}
	if err := writeKeys(k.sidePath(), strings.TrimSpace(text)+"\n"); err != nil {
		return err
	}
	k.side, k.at = s, time.Now()
	return nil
}

// readKeys returns the words of a file and when it was changed; nothing when there is none. It closes the file to others.
func readKeys(path string) (words []string, at time.Time, err error) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, time.Time{}, nil
	}
	var data []byte
	if err == nil {
		data, err = os.ReadFile(path)
	}
	if err != nil {
		return nil, time.Time{}, err
	}
	if info.Mode().Perm() != 0o600 {
		if err := os.Chmod(path, 0o600); err != nil {
			return nil, time.Time{}, fmt.Errorf("close %s to others: %w", path, err)
		}
	}
	return strings.Fields(string(data)), info.ModTime(), nil
}

func writeKeys(path, text string) error {
	err := os.MkdirAll(filepath.Dir(path), 0o755)
	if err == nil {
		err = install.Replace(path, []byte(text), 0o600)
	}
	if err != nil {
		return fmt.Errorf("keep this node's WireGuard key: %w", err)
	}
	return nil
}

func newKey() desired.WGKey {
	key, err := wgtypes.GeneratePrivateKey()
	if err != nil {
		panic(err) // the machine has no randomness: crypto/rand ends the program by itself then
	}
	return desired.WGKey(key)
}

func public(key desired.WGKey) desired.WGKey { return desired.WGKey(wgtypes.Key(key).PublicKey()) }
