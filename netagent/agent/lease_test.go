package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
)

// fakeNodes is the part of an API server that leases need: whole reads, one write at a time, refused when
// it names an old resourceVersion or changes pod CIDRs that are there, as Kubernetes' validation does.
type fakeNodes struct {
	mu      sync.Mutex
	version int
	list    map[string]*leaseNode
}

func newFakeNodes(names ...string) *fakeNodes {
	f := &fakeNodes{list: map[string]*leaseNode{}}
	for _, n := range names {
		f.version++
		node := &leaseNode{}
		node.Metadata.Name, node.Metadata.ResourceVersion = n, fmt.Sprint(f.version)
		node.Metadata.Annotations = map[string]string{}
		f.list[n] = node
	}
	return f
}

type fakeAPI struct {
	*fakeNodes
	node string
}

func (f *fakeNodes) nodes(context.Context) (out []leaseNode, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	data, _ := json.Marshal(f.list)
	all := map[string]leaseNode{}
	err = json.Unmarshal(data, &all)
	for _, n := range all {
		out = append(out, n)
	}
	return out, err
}

func (a *fakeAPI) patch(_ context.Context, body []byte) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	var p struct {
		Metadata struct {
			ResourceVersion string
			Annotations     map[string]*string
		}
		Spec struct{ PodCIDRs []string }
	}
	if err := json.Unmarshal(body, &p); err != nil {
		return err
	}
	n := a.list[a.node]
	if v := p.Metadata.ResourceVersion; v != "" && v != n.Metadata.ResourceVersion {
		return errors.New("409 Conflict")
	}
	if len(p.Spec.PodCIDRs) > 0 {
		if len(n.Spec.PodCIDRs) > 0 {
			return errors.New("422 podCIDRs: may not be changed")
		}
		n.Spec.PodCIDRs = p.Spec.PodCIDRs
	}
	for k, v := range p.Metadata.Annotations {
		delete(n.Metadata.Annotations, k)
		if v != nil {
			n.Metadata.Annotations[k] = *v
		}
	}
	a.version++
	n.Metadata.ResourceVersion = fmt.Sprint(a.version)
	return nil
}

func testLease(f *fakeNodes, node string, from ...string) *lease {
	l := &lease{api: &fakeAPI{fakeNodes: f, node: node}, node: node, pause: pauseFor,
		bits: func(is4 bool) int { return map[bool]int{true: 24, false: 64}[is4] }}
	for _, p := range from {
		l.from = append(l.from, netip.MustParsePrefix(p))
	}
	return l
}

// As many nodes as there are blocks start at once, and some restart in the middle: each gets its own.
func TestLeasesAreNeverShared(t *testing.T) {
	var names []string
	for i := range 32 {
		names = append(names, fmt.Sprintf("n%d", i))
	}
	f := newFakeNodes(names...)
	var wg sync.WaitGroup
	for i, name := range names {
		wg.Go(func() {
			l := testLease(f, name, "10.244.0.0/19", "fd00:10:244::/59")
			if i%4 == 0 { // an agent that was killed after its claim
				if err := l.annotate(t.Context(), []netip.Prefix{netip.MustParsePrefix("10.244.0.0/24"), netip.MustParsePrefix("fd00:10:244::/64")}); err != nil {
					t.Error(err)
				}
			}
			for range 50 { // as the agent's loop does
				if _, err := l.take(t.Context()); err == nil {
					return
				} else if !strings.Contains(err.Error(), "attempts") && !strings.Contains(err.Error(), "no free block") && !strings.Contains(err.Error(), "409") {
					t.Errorf("%s: %v", name, err)
					return
				}
				_ = pauseFor(t.Context(), 2)
			}
			t.Errorf("%s got none", name)
		})
	}
	wg.Wait()
	owner := map[string]string{}
	for name, n := range f.list {
		if len(n.Spec.PodCIDRs) != 2 || n.Metadata.Annotations[claimAnnotation] != "" {
			t.Errorf("%s has %v and claims %q", name, n.Spec.PodCIDRs, n.Metadata.Annotations[claimAnnotation])
		}
		for _, c := range n.Spec.PodCIDRs {
			if other := owner[c]; other != "" {
				t.Errorf("%s is of %s and %s", c, other, name)
			}
			owner[c] = name
		}
	}
}

func TestLeaseTakesNothingWhereTheClusterGives(t *testing.T) {
	f := newFakeNodes("a", "b")
	f.list["a"].Spec.PodCIDRs = []string{"10.9.0.0/24"}
	got, err := testLease(f, "a", "10.244.0.0/16").take(t.Context())
	if err != nil || len(got) != 1 || got[0].String() != "10.9.0.0/24" {
		t.Errorf("%v, %v: want what it has", got, err)
	}
	f.list["a"].Metadata.Annotations[claimAnnotation] = "nonsense, 10.244.0.0/16,\x00/8,10.244.0.1/99"
	if _, err := testLease(f, "b", "10.244.0.0/16").take(t.Context()); err == nil || !strings.Contains(err.Error(), "no free block") || !strings.Contains(err.Error(), "node a has or claims 10.244.0.0/16") {
		t.Errorf("%v: want a word on the range that another node claims as a whole", err)
	}
	// Where all is taken by shares that are right, nobody is to blame.
	full := newFakeNodes("a", "b", "c")
	full.list["a"].Spec.PodCIDRs, full.list["b"].Spec.PodCIDRs = []string{"10.244.0.0/24"}, []string{"10.244.1.0/24"}
	if _, err := testLease(full, "c", "10.244.0.0/23").take(t.Context()); err == nil || !strings.Contains(err.Error(), "2 ranges are taken; delete Nodes") {
		t.Errorf("%v: want the number of ranges", err)
	}
	if _, err := testLease(f, "c", "10.244.0.0/16").take(t.Context()); err == nil || !strings.Contains(err.Error(), "no Node c") {
		t.Errorf("%v: want a word on the missing Node", err)
	}
}

// FuzzClaim reads what any node may claim.
func FuzzClaim(f *testing.F) {
	f.Add("10.244.0.0/24,fd00::/64")
	f.Add(",,\x00/::1%eth0/64")
	f.Fuzz(func(t *testing.T, text string) {
		n := leaseNode{}
		n.Metadata.Annotations = map[string]string{claimAnnotation: text}
		n.Spec.PodCIDRs = []string{text}
		for _, p := range n.held() {
			if !p.IsValid() || p != p.Masked() {
				t.Fatalf("%q gives %v", text, p)
			}
		}
	})
}
