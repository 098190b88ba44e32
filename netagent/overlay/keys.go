package overlay

import (
	"fmt"
	"slices"
	"strings"

	"github.com/braidnet/braid/internal/desired"
	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/netagent/overlay/peer"
	"github.com/braidnet/braid/netagent/overlay/wireguard"
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

// DetourAnnotation on a Node holds the public key of its detour, and a word while its key is being replaced: leave, away or
// return, as in package peer.
const DetourAnnotation = "braid.network/wireguard-detour"

// PublicDetour reads that annotation. The error says what is wrong with it; the node has no detour then.
func PublicDetour(n *model.Node) (d peer.Detour, err error) {
	words := strings.Fields(n.Annotations[DetourAnnotation])
	if len(words) == 0 {
		return d, nil
	}
	key, err := desired.ParseWGKey(words[0])
	if err != nil {
		return d, fmt.Errorf("annotation %s: %w", DetourAnnotation, err)
	}
	d.Key = key
	if len(words) > 1 {
		d.Phase = peer.Phase(words[1])
	}
	if len(words) > 2 || len(words) > 1 && !slices.Contains([]peer.Phase{peer.Leave, peer.Away, peer.Return}, d.Phase) {
		return peer.Detour{}, fmt.Errorf("annotation %s: %.60q after the key: expected nothing, or leave, away or return", DetourAnnotation, strings.Join(words[1:], " "))
	}
	return d, nil
}

// DetourText is what PublicDetour reads.
func DetourText(d peer.Detour) string {
	return strings.TrimSpace(d.Key.String() + " " + string(d.Phase))
}

// detours gives every peer its detour. It is a convenience of its node: a key that somebody else claims too, of either
// kind, is no detour's, and harms nobody's reach.
func (c *check) detours() {
	claims := map[desired.WGKey]int{}
	for _, n := range c.nodes {
		d, err := PublicDetour(n)
		if err != nil && n != c.in.Self { // this node writes its own anew
			c.note(n, "what is sent while its key is replaced may be lost: %v", err)
		}
		c.ways[n] = d
		claims[d.Key]++
		keys, _ := PublicKeys(n)
		for _, k := range keys {
			claims[k]++
		}
	}
	for _, n := range c.nodes {
		if d := c.ways[n]; d.Key != (desired.WGKey{}) && claims[d.Key] > 1 {
			if n != c.in.Self {
				c.note(n, "what is sent while its key is replaced may be lost: its key %s of annotation %s is that of another node too, or of its own other annotation", d.Key, DetourAnnotation)
			}
			delete(c.ways, n)
		}
	}
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

// Ways says how far each peer is with keys that are being replaced; nothing unless Input.Backend is wireguard.
func Ways(in Input) []wireguard.Way {
	_, self, peers, notes := prepare(in)
	if in.Backend != "wireguard" || blocked(notes) {
		return nil
	}
	return wireguard.Ways(self, peers)
}
