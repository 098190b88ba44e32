package iptables

import (
	"slices"
	"strings"
)

// leafMax is how many rules a dispatch chain may hold before it splits by the next four bits: then it
// has at most sixteen rules again, one for each value.
const leafMax = 16

// tree dispatches on a string of nibbles (address, protocol, port) through chains of few rules each.
// Its shape depends only on the keys in it, never on the order they came in: after a restart the
// same frontends give the same chains. A put or del touches the chains on one path only.
type tree struct {
	top     *node
	touched map[string]struct{} // paths of chains whose rules may have changed
}

// node covers all keys that start with path.
type node struct {
	path  string            // nibbles, each a byte 0..15
	count int               // rules below
	kids  *[16]*node        // nil for a leaf
	rules map[string]string // leaf: key -> rule
}

func newTree() *tree {
	t := &tree{touched: map[string]struct{}{}}
	t.top = newLeaf("")
	t.touch(t.top)
	return t
}

func newLeaf(path string) *node { return &node{path: path, rules: map[string]string{}} }

func (t *tree) touch(n *node) { t.touched[n.path] = struct{}{} }

// touchKids marks the chains below n: whether they exist depends on how many siblings they have.
func (t *tree) touchKids(n *node) {
	if n.kids == nil {
		return
	}
	for _, k := range n.kids {
		if k != nil {
			t.touch(k)
		}
	}
}

// put sets the rule of a key. All keys of a tree have the same length.
func (t *tree) put(key, rule string) { t.insert(t.top, key, rule) }

// insert returns how many keys were added, and whether any chain may differ: an endpoint that comes
// or goes leaves the dispatch to its frontend as it was.
func (t *tree) insert(n *node, key, rule string) (added int, changed bool) {
	if n.kids == nil {
		was, ok := n.rules[key]
		if ok && was == rule {
			return 0, false
		}
		if !ok {
			added = 1
		}
		t.touch(n)
		n.rules[key] = rule
		if n.count += added; n.count > leafMax {
			t.split(n)
		}
		return added, true
	}
	at := key[len(n.path)]
	if n.kids[at] == nil {
		n.kids[at] = newLeaf(key[:len(n.path)+1])
		t.touchKids(n)
	}
	added, changed = t.insert(n.kids[at], key, rule)
	n.count += added
	if changed {
		t.touch(n)
	}
	return added, changed
}

// split turns a leaf into an inner node.
func (t *tree) split(n *node) {
	rules := n.rules
	n.rules, n.kids, n.count = nil, new([16]*node), 0
	for key, rule := range rules {
		t.insert(n, key, rule)
	}
}

// del removes a key; removing an absent one does nothing.
func (t *tree) del(key string) { t.remove(t.top, key) }

func (t *tree) remove(n *node, key string) (removed int) {
	if n.kids == nil {
		if _, ok := n.rules[key]; !ok {
			return 0
		}
		delete(n.rules, key)
		n.count--
		t.touch(n)
		return 1
	}
	at := key[len(n.path)]
	kid := n.kids[at]
	if kid == nil || t.remove(kid, key) == 0 {
		return 0
	}
	n.count--
	t.touch(n)
	if kid.count > 0 && n.count > leafMax {
		return 1
	}
	t.touchKids(n)
	if kid.count == 0 {
		n.kids[at] = nil
	}
	if n.count <= leafMax {
		merge(n)
	}
	return 1
}

// merge turns an inner node into a leaf again. Its kids are leaves: each holds no more than it does.
func merge(n *node) {
	n.rules = make(map[string]string, n.count)
	for _, k := range n.kids {
		if k == nil {
			continue
		}
		for key, rule := range k.rules {
			n.rules[key] = rule
		}
	}
	n.kids = nil
}

// branch skips the inner nodes with a single kid: they would be chains of one rule.
func branch(n *node) *node {
	for n.kids != nil {
		var only *node
		for _, k := range n.kids {
			switch {
			case k == nil:
			case only != nil:
				return n
			default:
				only = k
			}
		}
		n = only
	}
	return n
}

// flush calls update for every path that was touched since the last flush, with the node whose rules
// its chain holds, or nil when the path has no chain (any more).
func (t *tree) flush(update func(path string, n *node)) {
	for path := range t.touched {
		update(path, t.find(path))
	}
	if len(t.touched) > 0 {
		t.touched = map[string]struct{}{} // clear would cost what it once held
	}
}

// find returns what the chain of a path holds, nil when there is no such chain.
func (t *tree) find(path string) *node {
	b := branch(t.top)
	for at := ""; at != path; {
		if b.kids == nil || len(path) <= len(b.path) || !strings.HasPrefix(path, b.path) {
			return nil
		}
		kid := b.kids[path[len(b.path)]]
		if kid == nil {
			return nil
		}
		at, b = kid.path, branch(kid)
		if !strings.HasPrefix(path, at) {
			return nil
		}
	}
	return b
}

// each visits the rules of a leaf, sorted by key, or the kids of an inner node.
func (n *node) each(rule func(string), jump func(path string)) {
	if n.kids != nil {
		for _, k := range n.kids {
			if k != nil {
				jump(k.path)
			}
		}
		return
	}
	keys := make([]string, 0, len(n.rules))
	for k := range n.rules {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, k := range keys {
		rule(n.rules[k])
	}
}
