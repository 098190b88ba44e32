package cluster

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

// fakeRuntime gives pods addresses of their node's CIDRs and makes nothing.
type fakeRuntime struct {
	mu    sync.Mutex
	next  map[string]int
	live  map[string]PodSandbox // "ns/name"
	fail  map[string]error      // Start of "ns/name" fails with this
	block map[string]chan struct{}
	calls []string // "start ns/name"
	most  int      // calls at the same time
	now   int
	grown chan struct{} // closed and replaced at each call
}

func newFake() *fakeRuntime {
	return &fakeRuntime{next: map[string]int{}, live: map[string]PodSandbox{}, fail: map[string]error{},
		block: map[string]chan struct{}{}, grown: make(chan struct{})}
}

func (f *fakeRuntime) enter(what string, p PodSandbox) (leave func()) {
	f.mu.Lock()
	f.calls = append(f.calls, what+" "+p.Namespace+"/"+p.Name)
	f.now++
	f.most = max(f.most, f.now)
	close(f.grown)
	f.grown = make(chan struct{})
	gate := f.block[p.Namespace+"/"+p.Name]
	f.mu.Unlock()
	if gate != nil {
		<-gate
	}
	f.mu.Lock()
	return func() {
		f.now--
		f.mu.Unlock()
	}
}

func (f *fakeRuntime) Start(ctx context.Context, p PodSandbox) ([]netip.Addr, error) {
	defer f.enter("start", p)()
	key := p.Namespace + "/" + p.Name
	if err := errors.Join(f.fail[key], ctx.Err()); err != nil {
		return nil, err
	}
	if _, twice := f.live[key]; twice {
		return nil, fmt.Errorf("%s is started twice", key)
	}
	f.live[key] = p
	var node int
	fmt.Sscanf(p.Node, "n%d", &node)
	if p.HostNetwork {
		return []netip.Addr{netip.MustParseAddr(fmt.Sprintf("192.168.77.%d", 10+node))}, nil
	}
	f.next[p.Node]++
	n := f.next[p.Node] + 1
	return []netip.Addr{
		netip.AddrFrom4([4]byte{10, 244, byte(node), byte(n)}),
		netip.MustParseAddr(fmt.Sprintf("fd00:10:244:%d::%x", node, n)),
	}, nil
}

func (f *fakeRuntime) Stop(_ context.Context, p PodSandbox) error {
	defer f.enter("stop", p)()
	delete(f.live, p.Namespace+"/"+p.Name)
	return nil
}

func (f *fakeRuntime) SetPorts(_ context.Context, p PodSandbox) error {
	defer f.enter("ports", p)()
	f.live[p.Namespace+"/"+p.Name] = p
	return nil
}

func (f *fakeRuntime) setFail(key string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fail[key] = err
}

// waitCall returns once the runtime has been called so.
func (f *fakeRuntime) waitCall(t *testing.T, call string) {
	t.Helper()
	ctx := bound(t)
	for {
		f.mu.Lock()
		made, grown := slices.Contains(f.calls, call), f.grown
		f.mu.Unlock()
		if made {
			return
		}
		select {
		case <-grown:
		case <-ctx.Done():
			t.Fatalf("no call %q: %v", call, f.calls)
		}
	}
}

func testNodes(n int) (out []*corev1.Node) {
	for i := 1; i <= n; i++ {
		o := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("n%d", i), Labels: map[string]string{
			corev1.LabelHostname: fmt.Sprintf("n%d", i)}}}
		o.Spec.PodCIDRs = []string{fmt.Sprintf("10.244.%d.0/24", i), fmt.Sprintf("fd00:10:244:%d::/64", i)}
		o.Spec.PodCIDR = o.Spec.PodCIDRs[0]
		o.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: fmt.Sprintf("192.168.77.%d", 10+i)}}
		out = append(out, o)
	}
	return out
}

var (
	cidr4 = netip.MustParsePrefix("10.96.0.0/16")
	cidr6 = netip.MustParsePrefix("fd00:10:96::/112")
	dns4  = netip.MustParseAddr("10.96.0.10")
)

// playground is a controller that runs over a fake runtime.
type playground struct {
	*Controller
	fake *fakeRuntime
	dir  string
}

func newPlayground(t *testing.T, nodes int, change ...func(*Config)) *playground {
	t.Helper()
	fake := newFake()
	cfg := Config{StateDir: filepath.Join(t.TempDir(), "cluster"), Nodes: testNodes(nodes), Runtime: fake,
		ServiceCIDRs: []netip.Prefix{cidr4, cidr6}, DNSIPs: []netip.Addr{dns4}, MinRetry: time.Millisecond, MaxRetry: 5 * time.Millisecond}
	for _, f := range change {
		f(&cfg)
	}
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	return &playground{c, fake, cfg.StateDir}
}

// bound is a context that ends a test which hangs.
func bound(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func (p *playground) settle(t *testing.T) {
	t.Helper()
	if err := p.Wait(bound(t), nil); err != nil {
		t.Fatal(err)
	}
}

// apply applies manifests that must be right, and waits for the pods.
func (p *playground) apply(t *testing.T, manifests string) Report {
	t.Helper()
	r := p.applyOnly(t, manifests)
	p.settle(t)
	return r
}

func (p *playground) applyOnly(t *testing.T, manifests string) Report {
	t.Helper()
	r, err := p.Apply(t.Context(), "test.yaml", []byte(manifests))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// until waits for a condition on the pods.
func (p *playground) until(t *testing.T, what string, cond func([]PodStatus) bool) {
	t.Helper()
	ctx := bound(t)
	for {
		p.mu.Lock()
		changed := p.changed
		p.mu.Unlock()
		if cond(p.Pods()) {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			t.Fatalf("waited in vain for %s: %+v", what, p.Pods())
		}
	}
}

func (p *playground) podNames() (out []string) {
	for _, s := range p.Pods() {
		out = append(out, s.Name)
	}
	return out
}

func (p *playground) pod(t *testing.T, name string) PodStatus {
	t.Helper()
	for _, s := range p.Pods() {
		if s.Name == name {
			return s
		}
	}
	t.Fatalf("no pod %s among %v", name, p.podNames())
	return PodStatus{}
}

// read decodes one file of the folder.
func read[T any](t *testing.T, p *playground, name string) *T {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(p.dir, name))
	if err != nil {
		t.Fatal(err)
	}
	out := new(T)
	if err := yaml.UnmarshalStrict(data, out); err != nil {
		t.Fatalf("%s: %v\n%s", name, err, data)
	}
	return out
}

// files lists the folder; a file that is neither an object nor gone in a moment is an error.
func (p *playground) files(t *testing.T, kind string) (out []string) {
	t.Helper()
	entries, err := os.ReadDir(p.dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".yaml") {
			t.Errorf("%s is left in the folder", e.Name())
		}
		if strings.HasPrefix(e.Name(), kind+".") {
			out = append(out, e.Name())
		}
	}
	return out
}

// endpoints reads all EndpointSlices of a service from the folder, one line per endpoint and port:
// "10.244.1.2:80/http ready serving n1 web-0".
func (p *playground) endpoints(t *testing.T, ns, service string) []string {
	t.Helper()
	found := map[string]bool{}
	for _, f := range p.files(t, "endpointslice") {
		s := read[discoveryv1.EndpointSlice](t, p, f)
		if s.Namespace != ns || s.Labels[discoveryv1.LabelServiceName] != service {
			continue
		}
		for _, e := range s.Endpoints {
			line := endpointText(e)
			for _, port := range s.Ports {
				full := fmt.Sprintf("%s port %d/%s", line, *port.Port, *port.Name)
				if found[full] {
					t.Errorf("endpoint listed twice: %s", full)
				}
				found[full] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(found))
}

func endpointText(e discoveryv1.Endpoint) string {
	words := []string{e.Addresses[0]}
	for _, c := range []struct {
		is   *bool
		word string
	}{{e.Conditions.Ready, "ready"}, {e.Conditions.Serving, "serving"}, {e.Conditions.Terminating, "terminating"}} {
		if c.is != nil && *c.is {
			words = append(words, c.word)
		}
	}
	if e.Hostname != nil {
		words = append(words, "host="+*e.Hostname)
	}
	return strings.Join(words, " ")
}

func equal(t *testing.T, what string, got, want []string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s:\n got  %s\n want %s", what, strings.Join(got, "\n      "), strings.Join(want, "\n      "))
	}
}
