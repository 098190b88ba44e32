package agent

import (
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/braidnet/braid/internal/desired"
	"github.com/braidnet/braid/internal/kernel/netns/nstest"
	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/netagent/service"
	"github.com/braidnet/braid/netagent/service/nftables"
)

// nftablesIn makes an nftables dataplane in a namespace.
func nftablesIn(t *testing.T, ns *nstest.NS) *nftablesPlane {
	t.Helper()
	var dp service.Dataplane
	ns.Run(t, func() (err error) { dp, err = newNFTables(slog.New(slog.DiscardHandler)); return err })
	return dp.(*nftablesPlane)
}

func mustReplace(t *testing.T, p *nftablesPlane, all []service.Frontend, net service.Net) {
	t.Helper()
	if err := p.Replace(all, net); err != nil {
		t.Fatal(err)
	}
}

// contents lists what the kernel holds, for each family, so that states which balance alike are equal.
func contents(t *testing.T, p *nftablesPlane) (out []string) {
	t.Helper()
	have, err := p.read()
	if err != nil {
		t.Fatal(err)
	}
	for f, c := range have {
		for _, e := range c.Elements {
			key := e.Key
			if strings.HasSuffix(e.Set, "slots") {
				key = key[:len(key)-4]
			}
			out = append(out, fmt.Sprintf("%s %s %x-%x : %x %s %q", f, e.Set, key, e.End, e.Value, e.Goto, e.Comment))
		}
	}
	for f, c := range have {
		for name := range c.Rules {
			if strings.Contains(name, "sources-") { // these go with their last frontend, other chains need not
				out = append(out, fmt.Sprintf("%s chain %s", f, name))
			}
		}
	}
	slices.Sort(out)
	return out
}

// TestNFTablesListing: an administrator who lists the ruleset finds it readable, each part saying what
// it is for. The text is that of one version of nft.
func TestNFTablesListing(t *testing.T) {
	ns := nstest.New(t)
	all, net := dpEverything()
	mustReplace(t, nftablesIn(t, ns), all, net)
	got := ns.Exec(t, "nft", "list", "ruleset")
	ns.Exec(t, "nft", "-j", "list", "ruleset") // other programs read it so
	if version := ns.Exec(t, "nft", "--version"); !strings.Contains(version, "v1.0.6 ") {
		t.Skipf("the golden file is the text of nft v1.0.6, this is %s", version)
	}
	const golden = "testdata/nftables.golden"
	if os.Getenv("UPDATE_GOLDEN") != "" {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("nft list ruleset prints another text (UPDATE_GOLDEN=1 accepts it):\n%s", got)
	}
	checkListing(t, got)
}

// checkListing has nft look at a listing as at something to be loaded. What nft prints it takes again, but for rules with
// keys that it has no words for: a number, or the port of a connection, in a concatenation.
func checkListing(t *testing.T, text string) {
	t.Helper()
	lines := strings.Split(text, "\n")
	known := slices.DeleteFunc(slices.Clone(lines), func(l string) bool {
		return strings.Contains(l, "numgen ") || strings.Contains(l, "@affinity {") || strings.Contains(l, " . ct original proto-dst @")
	})
	if len(known) < len(lines)*9/10 {
		t.Errorf("nft has no words for more than a tenth of the listing")
	}
	text = strings.Join(known, "\n")
	file := filepath.Join(t.TempDir(), "listing")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	nstest.New(t).Exec(t, "nft", "--check", "-f", file)
}

// TestNFTablesAdoption: what is right is not written again, by the same agent or by the next one,
// and what an earlier version or somebody else made of the table is replaced.
func TestNFTablesAdoption(t *testing.T) {
	ns := nstest.New(t)
	all, net := dpState()
	first := nftablesIn(t, ns)
	mustReplace(t, first, all, net)
	want, written := contents(t, first), first.conn.Written()
	mustReplace(t, first, all, net)
	slices.Reverse(all)
	next := nftablesIn(t, ns)
	mustReplace(t, next, all, net)
	if n := first.conn.Written() - written + next.conn.Written(); n != 0 {
		t.Errorf("%d messages were written though nothing changed", n)
	}
	for _, harm := range [][]string{
		{"flush", "table", "ip", "braid"},
		{"delete", "table", "ip6", "braid"},
		{"add", "rule", "ip", "braid", "services", "counter"},
		{"add", "chain", "ip", "braid", "extra"},
		{"flush", "map", "ip6", "braid", "slots"},
		{"add", "element", "ip", "braid", "dropped", "{ 10.96.0.10 . tcp . 80 }"},
	} {
		ns.Exec(t, "nft", harm...)
		mustReplace(t, next, all, net)
		if got := contents(t, next); !slices.Equal(got, want) {
			t.Errorf("after nft %s the elements are\n%s\nwant\n%s", strings.Join(harm, " "), strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
		written := next.conn.Written()
		if mustReplace(t, next, all, net); next.conn.Written() != written {
			t.Errorf("nft %s is not mended by one Replace", strings.Join(harm, " "))
		}
	}
	ns.Exec(t, "nft", "flush", "map", "ip", "braid", "slots")
	if err := next.Apply(service.Delta{Delete: []service.Key{all[0].Key, all[len(all)-1].Key}}); err == nil {
		t.Error("deleting slots that somebody deleted before was no error")
	}
	if err := next.Apply(service.Delta{}); err == nil {
		t.Error("Apply after a failed Apply was no error, though nobody knows what the kernel holds")
	}
	mustReplace(t, next, all, net)
	if got := contents(t, next); !slices.Equal(got, want) {
		t.Errorf("after an error and Replace the elements are\n%s", strings.Join(got, "\n"))
	}
}

// TestNFTablesRandomChanges: the kernel holds after many changes what it holds when written at once.
func TestNFTablesRandomChanges(t *testing.T) {
	live, scratch := nftablesIn(t, nstest.New(t)), nftablesIn(t, nstest.New(t))
	rng := rand.New(rand.NewPCG(7, 8))
	fronts := map[service.Key]service.Frontend{}
	net := service.Net{}
	mustReplace(t, live, nil, net)
	for step := range 150 {
		var d service.Delta
		f := randomFrontend(rng)
		if _, there := fronts[f.Key]; there && rng.IntN(3) == 0 {
			delete(fronts, f.Key)
			d.Delete = []service.Key{f.Key}
		} else {
			fronts[f.Key] = f
			d.Set = []service.Frontend{f}
		}
		if rng.IntN(5) == 0 {
			net.ClusterPods = nil
			for range rng.IntN(5) {
				net.ClusterPods = append(net.ClusterPods, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, byte(rng.IntN(8))}), 22+rng.IntN(3)).Masked())
			}
			d.Net = &net
		}
		if err := live.Apply(d); err != nil {
			t.Fatalf("step %d, %+v: %v", step, d, err)
		}
		if step%10 > 0 {
			continue
		}
		var all []service.Frontend
		for _, f := range fronts {
			all = append(all, f)
		}
		if _, err := scratch.Cleanup(); err != nil {
			t.Fatal(err)
		}
		mustReplace(t, scratch, all, net)
		if got, want := contents(t, live), contents(t, scratch); !slices.Equal(got, want) {
			t.Fatalf("step %d: the kernel holds\n%s\nwant\n%s", step, strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	}
}

func randomFrontend(rng *rand.Rand) service.Frontend {
	a := dpFamilies[rng.IntN(len(dpFamilies))]
	kind := service.Kind(1 + rng.IntN(4))
	addr := []netip.Addr{a.web, a.none}[rng.IntN(2)]
	if kind == service.NodePort {
		addr = a.any
	}
	var backends []service.Backend
	for next := a.pod1; len(backends) < rng.IntN(6); next = next.Next() {
		backends = append(backends, service.Backend{AddrPort: netip.AddrPortFrom(next, dpTarget), Local: rng.IntN(2) == 0})
	}
	f := dpFrontend("web", kind, model.TCP, addr, uint16(80+rng.IntN(2)), backends...)
	f.Affinity = time.Duration(rng.IntN(3)) * time.Minute
	if rng.IntN(3) == 0 {
		f.Masquerade, f.Inside = service.MasqueradeNone, backends
		f.Backends = slices.DeleteFunc(slices.Clone(backends), func(b service.Backend) bool { return !b.Local })
	}
	if rng.IntN(3) == 0 {
		f.Filtered = true
		for range rng.IntN(3) {
			f.Sources = append(f.Sources, netip.PrefixFrom(addr, rng.IntN(addr.BitLen())).Masked())
		}
	}
	return f
}

// TestNFTablesChurn opens connections without pause while the backends of their service change, and
// wants every one to succeed; and balances over three.
func TestNFTablesChurn(t *testing.T) {
	l := newDPLab(t)
	dp := nftablesIn(t, l.node.NS)
	all, net := dpState()
	mustReplace(t, dp, all, net)
	third := func(a *dpAddrs) service.Backend {
		return service.Backend{AddrPort: netip.AddrPortFrom(a.client, dpTarget)}
	}
	var wg sync.WaitGroup
	var stop atomic.Bool
	var opened [4]atomic.Int64
	for i := range opened {
		from, a := []*dpHost{l.client, l.pod1}[i%2], &dpFamilies[i/2]
		wg.Go(func() {
			for n := 0; !stop.Load(); n++ {
				to := netip.AddrPortFrom(a.web, dpPort)
				if n%2 == 1 {
					to = netip.AddrPortFrom(a.node, dpNodePort)
				}
				if _, err := from.get(to); err != nil {
					t.Errorf("%s to %s, connection %d: %v", from.name, to, n, err)
					return
				}
				opened[i].Add(1)
			}
		})
	}
	defer wg.Wait()
	defer stop.Store(true)
	few := func() bool {
		least := int64(150)
		for i := range opened {
			least = min(least, opened[i].Load())
		}
		return !t.Failed() && least < 150
	}
	rng := rand.New(rand.NewPCG(9, 10))
	for changes := 0; changes < 100 || few(); changes++ {
		var d service.Delta
		for i := range dpFamilies {
			a := &dpFamilies[i]
			pool := []service.Backend{a.backend1(), a.backend2(), third(a)}
			rng.Shuffle(len(pool), func(i, j int) { pool[i], pool[j] = pool[j], pool[i] })
			pool = pool[:1+rng.IntN(len(pool))]
			d.Set = append(d.Set,
				dpFrontend("web", service.ClusterIP, model.TCP, a.web, dpPort, pool...),
				dpFrontend("web", service.NodePort, model.TCP, a.any, dpNodePort, pool...))
		}
		if err := dp.Apply(d); err != nil {
			t.Fatal(err)
		}
	}
	stop.Store(true)
	wg.Wait()
	for i := range dpFamilies {
		a := &dpFamilies[i]
		f := dpFrontend("web", service.ClusterIP, model.TCP, a.web, dpPort, append(a.both(), third(a))...)
		if err := dp.Apply(service.Delta{Set: []service.Frontend{f}}); err != nil {
			t.Fatal(err)
		}
		l.wantNames(t, l.client, netip.AddrPortFrom(a.web, dpPort), "client", "pod1", "pod2")
	}
}

// TestNFTablesEstablished: connections live on over a restart of the agent, a table made anew, and
// the end of their endpoint in the service.
func TestNFTablesEstablished(t *testing.T) {
	l := newDPLab(t)
	const port = 7 // echo
	var listener net.Listener
	l.pod2.Run(t, func() (err error) { listener, err = net.Listen("tcp", fmt.Sprint(":", port)); return err })
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			go func() { defer c.Close(); _, _ = io.Copy(c, c) }()
		}
	}()
	all, pods := dpState()
	var echoes []service.Frontend
	for _, a := range dpFamilies {
		echoes = append(echoes, dpFrontend("echo", service.ClusterIP, model.TCP, a.moved, port, service.Backend{AddrPort: netip.AddrPortFrom(a.pod2, port)}))
	}
	dp := nftablesIn(t, l.node.NS)
	mustReplace(t, dp, append(echoes, all...), pods)
	var conns []net.Conn
	for _, from := range []*dpHost{l.client, l.pod1, l.node} {
		for _, a := range dpFamilies {
			from.Run(t, func() error {
				c, err := net.Dial("tcp", netip.AddrPortFrom(a.moved, port).String())
				if err == nil {
					conns = append(conns, c)
					t.Cleanup(func() { c.Close() })
				}
				return err
			})
		}
	}
	alive := func(after string) {
		t.Helper()
		for _, c := range conns {
			buf := make([]byte, 5)
			_, err := c.Write([]byte("hello"))
			if err == nil {
				_, err = io.ReadFull(c, buf)
			}
			if err != nil || string(buf) != "hello" {
				t.Errorf("after %s, %s to %s: %q, %v", after, c.LocalAddr(), c.RemoteAddr(), buf, err)
			}
		}
	}
	alive("the start")
	mustReplace(t, nftablesIn(t, l.node.NS), append(echoes, all...), pods)
	alive("a restart")
	l.node.Exec(t, "nft", "flush", "table", "ip", "braid")
	l.node.Exec(t, "nft", "flush", "table", "ip6", "braid")
	mustReplace(t, dp, append(echoes, all...), pods)
	alive("a repair")
	for i := range echoes {
		echoes[i].Backends = nil
	}
	if err := dp.Apply(service.Delta{Set: echoes}); err != nil {
		t.Fatal(err)
	}
	alive("the last endpoint left")
}

// TestNFTablesMark: only our bit of the packet mark is used, and it is cleared.
func TestNFTablesMark(t *testing.T) {
	l := newDPLab(t)
	all, net := dpState()
	mustReplace(t, nftablesIn(t, l.node.NS), all, net)
	l.node.Exec(t, "nft", `
		add table inet marks
		add counter inet marks right
		add counter inet marks wrong
		add chain inet marks before { type filter hook prerouting priority raw; }
		add rule inet marks before meta mark set 0x80000001
		add chain inet marks behind { type filter hook postrouting priority 300; }
		add rule inet marks behind tcp dport 8080 meta mark 0x80000001 counter name right
		add rule inet marks behind tcp dport 8080 meta mark != 0x80000001 counter name wrong`)
	for i := range dpFamilies {
		l.wantNames(t, l.client, netip.AddrPortFrom(dpFamilies[i].web, dpPort), "pod1", "pod2")
		l.wantNames(t, l.client, netip.AddrPortFrom(dpFamilies[i].node, dpNodePort), "pod1", "pod2")
	}
	if right := l.node.Exec(t, "nft", "list", "counter", "inet", "marks", "right"); strings.Contains(right, "packets 0 ") {
		t.Errorf("no packet kept its mark: %s", right)
	}
	if wrong := l.node.Exec(t, "nft", "list", "counter", "inet", "marks", "wrong"); !strings.Contains(wrong, "packets 0 ") {
		t.Errorf("packets left with another mark: %s", wrong)
	}
}

// TestNFTablesProbe: asking whether the kernel can do it leaves nothing behind.
func TestNFTablesProbe(t *testing.T) {
	ns := nstest.New(t)
	p := nftablesIn(t, ns)
	if !slices.Equal(p.families, nftables.Families) {
		t.Errorf("families %v", p.families)
	}
	if got := ns.Exec(t, "nft", "list", "ruleset"); got != "" {
		t.Errorf("the probe left\n%s", got)
	}
	bad := probe(desired.NFTIPv4)
	bad = slices.DeleteFunc(bad, func(op desired.NFTOp) bool { return op.Verb == desired.NFTAddTable })
	err := p.conn.Check(bad)
	if err == nil || !strings.Contains(err.Error(), "chain choose-2 of table ip braid-probe") {
		t.Errorf("a probe that fails says %v", err)
	}
}
