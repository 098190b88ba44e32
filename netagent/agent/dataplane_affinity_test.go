package agent

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"testing"
	"time"

	"github.com/braidnet/braid/internal/desired"
	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/netagent/service"
	"github.com/braidnet/braid/netagent/service/nftables"
)

// TestAffinity checks session affinity, connection by connection.
func TestAffinity(t *testing.T) {
	f := newFeaturePlane(t, "nftables")
	for i := range dpFamilies {
		a := &dpFamilies[i]
		t.Run(a.family, func(t *testing.T) {
			t.Run("backends", func(t *testing.T) { f.checkAffinity(t, a) })
			t.Run("switch", func(t *testing.T) { f.checkAffinitySwitch(t, a) })
			t.Run("local", func(t *testing.T) { f.checkAffinityLocal(t, a) })
			t.Run("many clients", func(t *testing.T) { f.checkAffinityClients(t, a) })
			t.Run("timeout", func(t *testing.T) { f.checkAffinityTimeout(t, a) })
		})
	}
}

// sticky are the frontends of a service with affinity: a cluster IP and a node port.
func sticky(a *dpAddrs, keep time.Duration, backends ...service.Backend) []service.Frontend {
	out := []service.Frontend{
		dpFrontend("sticky", service.ClusterIP, model.TCP, a.moved, dpPort, backends...),
		dpFrontend("sticky", service.NodePort, model.TCP, a.any, dpNodePort+7, backends...),
	}
	for i := range out {
		out[i].Affinity = keep
	}
	return out
}

func stickyTargets(a *dpAddrs) []netip.AddrPort {
	return []netip.AddrPort{netip.AddrPortFrom(a.moved, dpPort), netip.AddrPortFrom(a.node, dpNodePort+7)}
}

func removeSticky(a *dpAddrs) (d service.Delta) {
	for _, f := range sticky(a, 0) {
		d.Delete = append(d.Delete, f.Key)
	}
	return d
}

// wantOne asks all targets by turns and wants one backend to answer them all, whose name it returns.
func (f *featurePlane) wantOne(t *testing.T, from *dpHost, targets ...netip.AddrPort) string {
	t.Helper()
	first := f.ask(t, from, targets[0]).name
	for i := range dpTries {
		if r := f.ask(t, from, targets[i%len(targets)]); r.name != first {
			t.Fatalf("%s asked %s: %s answered, %s before", from.name, targets[i%len(targets)], r.name, first)
		}
	}
	return first
}

// checkAffinity: every client stays, by whatever frontend of the service port it comes, until its backend leaves.
func (f *featurePlane) checkAffinity(t *testing.T, a *dpAddrs) {
	byName := map[string]service.Backend{"pod1": a.backend1(), "pod2": a.backend2()}
	other := map[string]string{"pod1": "pod2", "pod2": "pod1"}
	f.set(t, sticky(a, time.Hour, a.both()...)...)
	for _, from := range []*dpHost{f.client, f.pod1, f.node} {
		targets := stickyTargets(a)
		if from == f.node { // which has another source address for each target
			targets = targets[:1]
		}
		mine := f.wantOne(t, from, targets...)
		f.set(t, sticky(a, time.Hour, byName[other[mine]])...)
		if got := f.wantOne(t, from, targets...); got != other[mine] {
			t.Errorf("%s is served by %s, which left", from.name, got)
		}
		f.set(t, sticky(a, time.Hour, a.both()...)...) // it comes back, but the client has another now
		if got := f.wantOne(t, from, targets...); got != other[mine] {
			t.Errorf("%s went back to %s", from.name, got)
		}
		next := f.construct(t, testedPlanes[f.dp.Name()])
		all, net := dpState()
		f.must(t, "Replace after a restart", func() error { return next.Replace(append(all, sticky(a, time.Hour, a.both()...)...), net) })
		f.dp = next
		if got := f.wantOne(t, from, targets...); got != other[mine] {
			t.Errorf("after a restart %s went to %s", from.name, got)
		}
	}
	f.apply(t, removeSticky(a))
}

// checkAffinitySwitch turns affinity on and off, and changes its time, while clients come.
func (f *featurePlane) checkAffinitySwitch(t *testing.T, a *dpAddrs) {
	targets := stickyTargets(a)
	for _, keep := range []time.Duration{0, time.Minute, time.Hour, 0} {
		f.set(t, sticky(a, keep, a.both()...)...)
		for _, from := range []*dpHost{f.client, f.pod1} {
			if keep > 0 {
				f.wantOne(t, from, targets...)
				continue
			}
			for _, to := range targets {
				f.wantNames(t, from, to, "pod1", "pod2")
			}
		}
	}
	f.set(t, sticky(a, time.Minute, a.both()...)...)
	before := f.wantOne(t, f.client, targets...)
	f.set(t, sticky(a, time.Hour, a.both()...)...)
	if after := f.wantOne(t, f.client, targets...); after != before {
		t.Errorf("another time sent the client from %s to %s", before, after)
	}
	f.apply(t, removeSticky(a))
}

// checkAffinityLocal: frontends of one service port that have different backends share the memory, and none
// follows it to a backend that is not its own.
func (f *featurePlane) checkAffinityLocal(t *testing.T, a *dpAddrs) {
	fronts := sticky(a, time.Hour, a.both()...)
	lb := &fronts[1]
	lb.Masquerade, lb.Backends, lb.Inside = service.MasqueradeNone, []service.Backend{a.backend1()}, a.both()
	targets := stickyTargets(a)
	f.set(t, fronts[0])
	f.set(t, sticky(a, time.Hour, a.backend2())[0])
	f.wantOne(t, f.client, targets[0]) // pod2 is remembered
	f.set(t, fronts...)
	if got := f.wantOne(t, f.client, targets[0]); got != "pod2" {
		t.Fatalf("the client was sent from pod2 to %s", got)
	}
	for range 2 {
		if got := f.wantOne(t, f.client, targets[1], targets[0]); got != "pod1" {
			t.Errorf("a client outside asked a frontend with pod1 only, then the others: %s answered", got)
		}
	}
	if r := f.ask(t, f.client, targets[1]); r.client != a.client {
		t.Errorf("%s saw %s, want the client's own %s", r.name, r.client, a.client)
	}
	f.wantOne(t, f.pod1, targets...)
	f.wantOne(t, f.node, targets[1])
	f.apply(t, removeSticky(a))
}

// checkAffinityClients: clients are spread, and each stays.
func (f *featurePlane) checkAffinityClients(t *testing.T, a *dpAddrs) {
	targets := stickyTargets(a)
	f.set(t, sticky(a, time.Hour, a.both()...)...)
	has := map[netip.Addr]string{}
	from := a.client
	for range 40 {
		from = from.Next()
		f.client.addr(t, netip.PrefixFrom(from, a.localPods.Bits()), "eth0")
	}
	for round := range 4 {
		from := a.client
		for range 40 {
			from = from.Next()
			r, err := f.client.getAs(from, targets[round%2])
			if err != nil {
				t.Fatal(err)
			}
			if round > 0 && has[from] != r.name {
				t.Errorf("%s went from %s to %s", from, has[from], r.name)
			}
			has[from] = r.name
		}
	}
	seen := map[string]int{}
	for _, name := range has {
		seen[name]++
	}
	if seen["pod1"] == 0 || seen["pod2"] == 0 {
		t.Errorf("40 clients went to %v", seen)
	}
	f.apply(t, removeSticky(a))
}

var expires = regexp.MustCompile(`expires (\S+)`)

// remembered is how long the memory will keep the last of its elements; 0: there is none.
func (f *featurePlane) remembered(t *testing.T, a *dpAddrs, client netip.Addr) (left time.Duration) {
	t.Helper()
	table := "ip"
	if a.client.Is6() {
		table = "ip6"
	}
	lines := regexp.MustCompile(`(?s)`+regexp.QuoteMeta(client.String())+` \. [^,}]*?expires \S+`).FindAllString(f.node.Exec(t, "nft", "list", "map", table, "braid", "affinity"), -1)
	for _, line := range lines {
		d, err := time.ParseDuration(expires.FindStringSubmatch(line)[1])
		if err != nil {
			t.Fatal(err)
		}
		left = max(left, d)
	}
	return left
}

// checkAffinityTimeout: the time runs from the last connection, and then the client is a new one.
func (f *featurePlane) checkAffinityTimeout(t *testing.T, a *dpAddrs) {
	to := stickyTargets(a)[0]
	from := a.client // one that no other service has seen
	for range 80 {
		from = from.Next()
	}
	f.client.addr(t, netip.PrefixFrom(from, a.localPods.Bits()), "eth0")
	ask := func() string {
		t.Helper()
		r, err := f.client.getAs(from, to)
		if err != nil {
			t.Fatal(err)
		}
		return r.name
	}
	f.set(t, sticky(a, time.Hour, a.both()...)...)
	first := ask()
	before, low := f.remembered(t, a, from), time.Duration(0)
	wait(t, func() bool { low = f.remembered(t, a, from); return 0 < low && low < before-2*time.Second })
	if got := ask(); got != first {
		t.Errorf("the client went from %s to %s within the time", first, got)
	}
	if left := f.remembered(t, a, from); left <= low {
		t.Errorf("the memory was to last %s before another connection and %s after it", low, left)
	}
	f.set(t, sticky(a, 2*time.Second, a.both()...)...)
	ask()                       // which is also when another time begins to count
	for tries := 0; ; tries++ { // forgotten, the next choice is free: another one sooner or later
		wait(t, func() bool { return f.remembered(t, a, from) == 0 })
		if ask() != first {
			break
		}
		if tries == 30 {
			t.Fatalf("%s answers even to those whose time was up", first)
		}
	}
	f.apply(t, removeSticky(a))
}

func wait(t *testing.T, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !cond(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("waited in vain")
		}
	}
}

// TestNFTablesFullAffinity: who finds no room in the memory is balanced without.
func TestNFTablesFullAffinity(t *testing.T) {
	f := newFeaturePlane(t, "nftables")
	p := f.dp.(*nftablesPlane)
	a := &dpFamilies[0]
	f.set(t, sticky(a, time.Hour, a.both()...)...)
	var ops []desired.NFTOp
	size := 0
	for _, s := range nftables.Skeleton(desired.NFTIPv4, false).Sets {
		size = max(size, s.Dynamic)
	}
	for i := range size {
		key := fmt.Appendf(nil, "%08x", i)
		ops = append(ops, desired.NFTOp{Verb: desired.NFTAddElement, Family: desired.NFTIPv4, Table: nftables.TableName,
			Element: &desired.NFTElement{Set: "affinity", Key: string(key), Value: "123456789012"}})
	}
	if err := p.conn.Apply(ops); err != nil {
		t.Fatal(err)
	}
	for _, to := range stickyTargets(a) {
		f.wantNames(t, f.client, to, "pod1", "pod2")
	}
	ops = ops[:1]
	ops[0].Verb = desired.NFTDeleteElement
	if err := p.conn.Apply(ops); err != nil {
		t.Fatal(err)
	}
	f.wantOne(t, f.client, stickyTargets(a)...)
	// A listing of the table is no longer for it.
	have, err := p.read()
	if err != nil || slices.ContainsFunc(have[desired.NFTIPv4].Elements, func(e desired.NFTElement) bool { return e.Set == "affinity" }) {
		t.Errorf("the memory is listed with the table; error %v", errors.Join(err))
	}
}
