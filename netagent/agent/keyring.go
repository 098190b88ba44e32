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
)

// keySettle is how long a new key is published before it is used: longer than it takes all other agents to
// hear of it, also those that audit only.
const keySettle = 35 * time.Second

// keyring keeps this node's private keys of WireGuard in a file that only root reads: one a line, in
// base64, first the one in use and then the one that will be next. The file's time is that of its last
// change. It is written as a whole, so a power cut leaves the old keys or the new ones.
//
// A key is changed in three steps, each of which other nodes see: the next one is published beside the one
// in use, and others accept it; after settle this node uses it; the old one is gone. Sessions that were
// made with the old key go on receiving meanwhile.
type keyring struct {
	path   string
	maxAge time.Duration // of a key, until the next one comes; 0 = for ever
	settle time.Duration

	mu   sync.Mutex
	keys []desired.WGKey // private
}

// current returns the private key to use, made when there is none, and moves on with a change of keys.
// published are the public keys that the cluster knows of this node.
func (k *keyring) current(published []desired.WGKey) (key desired.WGKey, changes []string, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	since, err := k.load()
	if err != nil {
		return key, nil, err
	}
	keys := slices.Clone(k.keys)
	age := time.Since(since)
	switch {
	case len(keys) == 0:
		keys, changes = []desired.WGKey{newKey()}, []string{"made a WireGuard key: this node had none"}
	case len(keys) == 1 && k.maxAge > 0 && age >= k.maxAge:
		keys, changes = append(keys, newKey()), []string{fmt.Sprintf("made the next WireGuard key: the one in use is older than %s", k.maxAge)}
	case len(keys) > 1 && age >= k.settle && slices.Contains(published, public(keys[1])):
		keys, changes = keys[1:], []string{"use the next WireGuard key: the other nodes know it"}
	}
	if changes != nil {
		if err := k.save(keys); err != nil {
			return key, nil, err
		}
		k.keys = keys
	}
	return keys[0], changes, nil
}

// public returns the public keys to publish, the one in use first; nothing before there are keys.
func (k *keyring) public() (list []desired.WGKey) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.keys == nil {
		_, _ = k.load() // an error is told by current, which comes soon
	}
	for _, key := range k.keys {
		list = append(list, public(key))
	}
	return list
}

// due is how long until current has something to do; 0 when it has not.
func (k *keyring) due() time.Duration {
	if k.maxAge == 0 {
		return 0
	}
	return min(k.settle, k.maxAge)/2 + time.Millisecond
}

func (k *keyring) load() (since time.Time, err error) {
	info, err := os.Stat(k.path)
	if errors.Is(err, fs.ErrNotExist) {
		k.keys = nil
		return time.Time{}, nil
	}
	var data []byte
	if err == nil {
		data, err = os.ReadFile(k.path)
	}
	if err != nil {
		return time.Time{}, fmt.Errorf("read this node's WireGuard key: %w", err)
	}
	var keys []desired.WGKey
	for i, word := range strings.Fields(string(data)) {
		key, err := desired.ParseWGKey(word)
		if err != nil { // the text of the error would hold what may be a key
			return time.Time{}, fmt.Errorf("%s:%d: not a WireGuard key: remove the file, and this node gets a new one", k.path, i+1)
		}
		keys = append(keys, key)
	}
	if len(keys) > 2 {
		return time.Time{}, fmt.Errorf("%s: %d keys, expected one or two: remove the file, and this node gets a new one", k.path, len(keys))
	}
	if info.Mode().Perm() != 0o600 {
		if err := os.Chmod(k.path, 0o600); err != nil {
			return time.Time{}, fmt.Errorf("close %s to others: %w", k.path, err)
		}
	}
	k.keys = keys
	return info.ModTime(), nil
}

func (k *keyring) save(keys []desired.WGKey) error {
	if err := os.MkdirAll(filepath.Dir(k.path), 0o755); err != nil {
		return fmt.Errorf("keep this node's WireGuard key: %w", err)
	}
	var b strings.Builder
	for _, key := range keys {
		b.WriteString(key.String() + "\n")
	}
	if err := install.Replace(k.path, []byte(b.String()), 0o600); err != nil {
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
