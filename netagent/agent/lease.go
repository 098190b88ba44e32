package agent

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/braidnet/braid/netagent/overlay"
)

// claimAnnotation on a Node names the pod CIDRs that its agent is about to take, separated by commas.
const claimAnnotation = "braid.network/pod-cidr-claim"

// lease takes pod CIDRs for this node where the cluster gives nodes none.
//
// The node first claims free ones in an annotation of its own Node, and then asks for all Nodes anew. Who
// finds no other that has or claims what overlaps puts them into spec.podCIDRs and takes the claim away, in
// one write; who finds one takes the claim back and tries others. Of two nodes that claim the same, the one
// that asks later sees the other's claim, so that never both go on; at worst neither does, and they try again
// with blocks that differ.
type lease struct {
	api   nodeAPI
	node  string
	from  []netip.Prefix // at most one per family, in the order of spec.podCIDRs
	bits  func(is4 bool) int
	pause func(ctx context.Context, attempt int) error // between attempts
}

// nodeAPI is what a lease needs of the API server; both go to the cluster's newest state.
type nodeAPI interface {
	nodes(ctx context.Context) ([]leaseNode, error)
	patch(ctx context.Context, body []byte) error // this node's
}

// validateLease names what keeps a node from taking pod CIDRs.
func (c *Config) validateLease() error {
	if !c.AllocateNodeCIDRs {
		return nil
	}
	from, err := prefixes(c.DetectLocal.ClusterCIDR)
	switch {
	case c.Manifests != "":
		return fmt.Errorf("allocate-node-cidrs: with manifests there is no API server to keep nodes from taking the same: write spec.podCIDRs into them")
	case err != nil:
		return fmt.Errorf("cluster-cidr: %w", err)
	case len(from) == 0 || len(from) > 2 || len(from) == 2 && from[0].Addr().Is4() == from[1].Addr().Is4():
		return fmt.Errorf("cluster-cidr: %q: to allocate-node-cidrs out of, give one range, or one for each family", c.DetectLocal.ClusterCIDR)
	}
	for _, p := range from {
		if bits := c.nodeMask(p.Addr().Is4()); bits < p.Bits() || bits > p.Addr().BitLen()-2 {
			return fmt.Errorf("node-cidr-mask-size: %d does not fit into %s: use %d to %d", bits, p, p.Bits(), p.Addr().BitLen()-2)
		}
	}
	return nil
}

// nodeMask is the length of a node's pod CIDR of a family, in bits.
func (c *Config) nodeMask(is4 bool) int {
	if is4 {
		return c.NodeMask4
	}
	return c.NodeMask6
}

// leaseNode is the part of a Node that matters here. What other nodes wrote is not trusted: what is no
// prefix is passed over.
type leaseNode struct {
	Metadata struct {
		Name            string            `json:"name"`
		ResourceVersion string            `json:"resourceVersion"`
		Annotations     map[string]string `json:"annotations"`
	} `json:"metadata"`
	Spec struct {
		PodCIDRs []string `json:"podCIDRs"`
	} `json:"spec"`
}

// held returns what a node has or claims.
func (n leaseNode) held() []netip.Prefix {
	return append(validPrefixes(n.Spec.PodCIDRs), n.claim()...)
}

func (n leaseNode) claim() []netip.Prefix {
	return validPrefixes(strings.Split(n.Metadata.Annotations[claimAnnotation], ","))
}

func validPrefixes(words []string) (out []netip.Prefix) {
	for _, w := range words {
		if p, err := netip.ParsePrefix(strings.TrimSpace(w)); err == nil {
			out = append(out, p.Masked())
		}
	}
	return out
}

// attempts bounds how often a lease is tried before the loop that asked for it hears of it.
const attempts = 20

// take gives the node pod CIDRs, unless it has some, and returns them.
func (l *lease) take(ctx context.Context) (got []netip.Prefix, err error) {
	for attempt := range attempts {
		if attempt > 0 {
			if err := l.pause(ctx, attempt); err != nil {
				return nil, err
			}
		}
		self, taken, err := l.look(ctx)
		if err != nil {
			return nil, err
		}
		if has := validPrefixes(self.Spec.PodCIDRs); len(has) > 0 {
			return has, nil // the cluster gave it some meanwhile
		}
		want, err := l.pick(taken, attempt)
		if err != nil {
			return nil, err
		}
		if err := l.annotate(ctx, want); err != nil {
			return nil, err
		}
		self, taken, err = l.look(ctx)
		if err != nil {
			return nil, err
		}
		if slices.ContainsFunc(want, func(w netip.Prefix) bool { return slices.ContainsFunc(taken.prefixes(), w.Overlaps) }) {
			if err := l.annotate(ctx, nil); err != nil {
				return nil, err
			}
			continue
		}
		return want, l.commit(ctx, self, want)
	}
	return nil, fmt.Errorf("no pod CIDR of %v after %d attempts: other nodes took each first; it is tried again", l.from, attempts)
}

// holder is a range and the node that has or claims it.
type holder struct {
	prefix netip.Prefix
	node   string
}

type holders []holder

func (h holders) prefixes() []netip.Prefix {
	list := make([]netip.Prefix, len(h))
	for i := range h {
		list[i] = h[i].prefix
	}
	return list
}

// greedy names the nodes that hold more than a block of bits length of a range, the largest share first.
func (h holders) greedy(from netip.Prefix, bits int) string {
	large := slices.DeleteFunc(slices.Clone(h), func(e holder) bool {
		return !e.prefix.Overlaps(from) || e.prefix.Bits() >= bits
	})
	slices.SortStableFunc(large, func(a, b holder) int {
		return cmp.Or(a.prefix.Bits()-b.prefix.Bits(), strings.Compare(a.node, b.node))
	})
	var words []string
	for i, e := range large {
		if i == 3 {
			words = append(words, fmt.Sprintf("and %d more", len(large)-i))
			break
		}
		words = append(words, fmt.Sprintf("node %s has or claims %s", e.node, e.prefix))
	}
	return strings.Join(words, ", ")
}

// look returns this node, and what all others have or claim.
func (l *lease) look(ctx context.Context) (self leaseNode, taken holders, err error) {
	all, err := l.api.nodes(ctx)
	if err != nil {
		return self, nil, err
	}
	found := false
	for _, n := range all {
		if n.Metadata.Name == l.node {
			self, found = n, true
		} else {
			for _, p := range n.held() {
				taken = append(taken, holder{p, n.Metadata.Name})
			}
		}
	}
	if !found {
		return self, nil, fmt.Errorf("the cluster has no Node %s", l.node)
	}
	return self, taken, nil
}

func (l *lease) pick(taken holders, attempt int) (want []netip.Prefix, err error) {
	for _, from := range l.from {
		bits := l.bits(from.Addr().Is4())
		p, ok := overlay.FreeBlock(from, bits, taken.prefixes(), l.node, attempt)
		if greedy := taken.greedy(from, bits); !ok && greedy != "" {
			return nil, fmt.Errorf("cluster-cidr %s has no free block of length %d: %s, more than a node's share: look at spec.podCIDRs and annotation %s there",
				from, bits, greedy, claimAnnotation)
		} else if !ok {
			return nil, fmt.Errorf("cluster-cidr %s has no free block of length %d: %d ranges are taken; delete Nodes that are gone, or give a larger range",
				from, bits, len(taken))
		}
		want = append(want, p)
	}
	return want, nil
}

// annotate writes the claim, or takes it away.
func (l *lease) annotate(ctx context.Context, claim []netip.Prefix) error {
	var value any
	if len(claim) > 0 {
		value = join(claim)
	}
	return l.write(ctx, map[string]any{"metadata": map[string]any{"annotations": map[string]any{claimAnnotation: value}}})
}

// commit makes the claim this node's pod CIDRs, if nobody has changed the Node since it was read.
func (l *lease) commit(ctx context.Context, self leaseNode, want []netip.Prefix) error {
	var list []string
	for _, p := range want {
		list = append(list, p.String())
	}
	return l.write(ctx, map[string]any{
		"metadata": map[string]any{"resourceVersion": self.Metadata.ResourceVersion, "annotations": map[string]any{claimAnnotation: nil}},
		"spec":     map[string]any{"podCIDR": list[0], "podCIDRs": list},
	})
}

func (l *lease) write(ctx context.Context, patch map[string]any) error {
	body, err := json.Marshal(patch)
	if err != nil {
		return err
	}
	return l.api.patch(ctx, body)
}

func join(list []netip.Prefix) string {
	words := make([]string, len(list))
	for i, p := range list {
		words[i] = p.String()
	}
	return strings.Join(words, ",")
}

// pauseFor waits between attempts, longer each time, and not all nodes alike.
func pauseFor(ctx context.Context, attempt int) error {
	d := time.Duration(attempt) * 20 * time.Millisecond
	d += time.Duration(time.Now().UnixNano() % int64(d))
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
