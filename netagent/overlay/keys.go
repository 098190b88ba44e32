package overlay

import (
	"fmt"
	"slices"
	"strings"

	"github.com/braidnet/braid/internal/desired"
	"github.com/braidnet/braid/internal/model"
)

// KeyAnnotation on a Node holds its public keys of WireGuard, separated by spaces: first the one in use,
// then the one that will be next, if any.
const KeyAnnotation = "braid.network/wireguard-public-key"

// maxKeys is how many keys a Node may have: one in use and one that comes.
const maxKeys = 2

// PublicKeys reads a Node's public keys. The error says what is wrong with the annotation; what it holds
// is not used then.
func PublicKeys(n *model.Node) (keys []desired.WGKey, err error) {
	words := strings.Fields(n.Annotations[KeyAnnotation])
	if len(words) > maxKeys {
		return nil, fmt.Errorf("annotation %s: %d keys, at most %d are used", KeyAnnotation, len(words), maxKeys)
	}
	for _, w := range words {
		k, err := desired.ParseWGKey(w)
		if err != nil {
			return nil, fmt.Errorf("annotation %s: %w", KeyAnnotation, err)
		}
		if slices.Contains(keys, k) {
			return nil, fmt.Errorf("annotation %s: one key twice", KeyAnnotation)
		}
		keys = append(keys, k)
	}
	return keys, nil
}

// publicKeys gives every peer its keys. A key that two nodes claim is nobody's: which of them has the
// private one cannot be told. This node's own key is no peer's.
func (c *check) publicKeys() {
	owners := map[desired.WGKey][]*model.Node{}
	for _, n := range c.nodes {
		keys, err := PublicKeys(n)
		switch {
		case err != nil && n != c.in.Self: // this node writes its own anew
			c.note(n, "its pods are not reached: %v", err)
		case len(keys) == 0 && n != c.in.Self:
			c.note(n, "its pods are not reached: it has no annotation %s yet: does its agent run with overlay wireguard, and may it write to its Node?", KeyAnnotation)
		}
		c.keys[n] = keys
		for _, k := range keys {
			owners[k] = append(owners[k], n)
		}
	}
	for _, n := range c.nodes {
		for _, k := range c.keys[n] {
			if i := slices.IndexFunc(owners[k], func(o *model.Node) bool { return o != n }); i >= 0 && n != c.in.Self {
				c.note(n, "its pods are not reached: its public key %s is that of node %s too", k, owners[k][i].Name)
				delete(c.keys, n)
				break
			}
		}
	}
}
