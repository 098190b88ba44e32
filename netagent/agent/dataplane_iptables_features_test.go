package agent

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/braidnet/braid/internal/kernel/ipt"
	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/netagent/service"
)

// iptablesVariant is the constructor for one kind of tools.
func iptablesVariant(v ipt.Variant) func(*slog.Logger) (service.Dataplane, error) {
	return func(log *slog.Logger) (service.Dataplane, error) { return newIPTablesVariant(log, v, "asked for") }
}

// eachIPTables runs a test on each kind of tools that this machine has.
func eachIPTables(t *testing.T, test func(t *testing.T, l *dpLab, dp service.Dataplane)) {
	for _, variant := range ipt.Variants {
		t.Run(string(variant), func(t *testing.T) {
			needVariant(t, variant)
			l := newDPLab(t)
			test(t, l, l.construct(t, iptablesVariant(variant)))
		})
	}
}

func needVariant(t *testing.T, v ipt.Variant) {
	t.Helper()
	if _, err := ipt.Find(true, v); err != nil {
		t.Skipf("skipped: %v", err)
	}
	if v == ipt.Legacy {
		t.Setenv("XTABLES_LOCKFILE", filepath.Join(t.TempDir(), "lock")) // the machine's own lock is not ours to take
	}
}

// TestPacketsIPTablesLegacy is TestPackets on the tools that it does not choose.
func TestPacketsIPTablesLegacy(t *testing.T) {
	needVariant(t, ipt.Legacy)
	for seed := range *packetSeeds {
		t.Run(fmt.Sprintf("seed-%d", seed), func(t *testing.T) { runPackets(t, seed, iptablesVariant(ipt.Legacy)) })
	}
}

// vip is a service address that dpState does not use.
func (a *dpAddrs) vip(n int) netip.Addr {
	v := a.moved
	for range n {
		v = v.Next()
	}
	return v
}

// services is the range that service addresses come from.
func (a *dpAddrs) services() netip.Prefix {
	p, _ := a.web.Prefix(a.web.BitLen() - 8)
	return p
}

// state puts frontends beside those of dpState, with all that Net can say.
func (l *dpLab) state(t *testing.T, dp service.Dataplane, frontends func(a *dpAddrs) []service.Frontend) ([]service.Frontend, service.Net) {
	t.Helper()
	all, net := dpState()
	for i := range dpFamilies {
		a := &dpFamilies[i]
		net.Services = append(net.Services, a.services())
		all = append(all, frontends(a)...)
	}
	l.must(t, "Replace", func() error { return dp.Replace(all, net) })
	l.wantAdopted(t, dp.(*iptablesPlane), all, net)
	return all, net
}

// wantAdopted: an agent that starts with the same state finds nothing to write.
func (l *dpLab) wantAdopted(t *testing.T, before *iptablesPlane, all []service.Frontend, net service.Net) {
	t.Helper()
	dp := l.construct(t, iptablesVariant(before.variant))
	for _, f := range dp.(*iptablesPlane).families {
		f.restore = func(input string) error {
			t.Errorf("a restart writes for %s:\n%s", f.name, input)
			return f.tool.Restore(input)
		}
	}
	l.must(t, "Replace after a restart", func() error { return dp.Replace(all, net) })
}

// wantSilence: no answer at all, not even a refusal.
func (l *dpLab) wantSilence(t *testing.T, from *dpHost, to netip.AddrPort) {
	t.Helper()
	if r, err := from.exchange("tcp", to, silence); !isTimeout(err) {
		t.Errorf("%s asked %s: %+v, error %v, want silence\n%s", from.name, to, r, err, l.rules(t))
	}
}

func (l *dpLab) wantRefusal(t *testing.T, from *dpHost, to netip.AddrPort) {
	t.Helper()
	if r, err := from.get(to); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("%s asked %s: %+v, error %v, want connection refused\n%s", from.name, to, r, err, l.rules(t))
	}
}

// wantClients asks again and again; want says for each that answers which address it must have seen, and
// all must answer.
func (l *dpLab) wantClients(t *testing.T, from *dpHost, to netip.AddrPort, want map[string]netip.Addr) {
	t.Helper()
	seen := map[string]bool{}
	for range dpTries {
		r := l.ask(t, from, to)
		if r.client != want[r.name] {
			t.Fatalf("%s asked %s: %s saw %s, want %v", from.name, to, r.name, r.client, want)
		}
		seen[r.name] = true
	}
	if len(seen) != len(want) {
		t.Errorf("%s asked %s: %v answered, want %v", from.name, to, seen, want)
	}
}

func TestIPTablesExternalTrafficPolicyLocal(t *testing.T) {
	const hereNP, elsewhereNP, nowhereNP = 30090, 30091, 30092
	eachIPTables(t, func(t *testing.T, l *dpLab, dp service.Dataplane) {
		local := func(f service.Frontend, inside ...service.Backend) service.Frontend {
			f.Masquerade, f.Inside = service.MasqueradeNone, inside
			if len(inside) > 0 {
				f.Empty = service.Drop
			}
			return f
		}
		l.state(t, dp, func(a *dpAddrs) []service.Frontend {
			return []service.Frontend{
				local(dpFrontend("here", service.NodePort, model.TCP, a.any, hereNP, a.backend1()), a.both()...),
				local(dpFrontend("here", service.LoadBalancerIP, model.TCP, a.vip(1), dpPort, a.backend1()), a.both()...),
				local(dpFrontend("elsewhere", service.NodePort, model.TCP, a.any, elsewhereNP), a.backend2()),
				local(dpFrontend("elsewhere", service.ExternalIP, model.TCP, a.vip(2), dpPort), a.backend2()),
				local(dpFrontend("nowhere", service.NodePort, model.TCP, a.any, nowhereNP)),
				local(dpFrontend("nowhere", service.LoadBalancerIP, model.TCP, a.vip(3), dpPort)),
			}
		})
		for i := range dpFamilies {
			a := &dpFamilies[i]
			at := func(addr netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(addr, port) }
			for _, to := range []netip.AddrPort{at(a.node, hereNP), at(a.vip(1), dpPort)} {
				l.wantClients(t, l.client, to, map[string]netip.Addr{"pod1": a.client})
				l.wantClients(t, l.pod1, to, map[string]netip.Addr{"pod1": a.podGW1, "pod2": a.pod1})
				l.wantClients(t, l.node, to, map[string]netip.Addr{"pod1": a.podGW1, "pod2": a.podGW2})
			}
			for _, to := range []netip.AddrPort{at(a.node, elsewhereNP), at(a.vip(2), dpPort)} {
				l.wantSilence(t, l.client, to)
				l.wantClients(t, l.pod1, to, map[string]netip.Addr{"pod2": a.pod1})
				l.wantClients(t, l.node, to, map[string]netip.Addr{"pod2": a.podGW2})
			}
			for _, to := range []netip.AddrPort{at(a.node, nowhereNP), at(a.vip(3), dpPort)} {
				for _, from := range []*dpHost{l.client, l.pod1, l.node} {
					l.wantRefusal(t, from, to)
				}
			}
		}
	})
}

func TestIPTablesSources(t *testing.T) {
	eachIPTables(t, func(t *testing.T, l *dpLab, dp service.Dataplane) {
		for i := range dpFamilies { // a load balancer's address that the node has itself
			l.node.addr(t, netip.PrefixFrom(dpFamilies[i].vip(5), dpFamilies[i].client.BitLen()), "lo")
		}
		l.state(t, dp, func(a *dpAddrs) []service.Frontend {
			filtered := func(n int, sources []netip.Addr, b ...service.Backend) service.Frontend {
				f := dpFrontend("filtered", service.LoadBalancerIP, model.TCP, a.vip(n), dpPort, b...)
				f.Filtered = true
				for _, s := range sources {
					f.Sources = append(f.Sources, netip.PrefixFrom(s, s.BitLen()))
				}
				return f
			}
			client := []netip.Addr{a.client}
			local := filtered(4, client, a.backend1())
			local.Masquerade, local.Inside = service.MasqueradeNone, a.both()
			return []service.Frontend{
				filtered(1, client, a.both()...),
				filtered(2, nil, a.both()...),
				filtered(3, client),
				local,
				filtered(5, client, a.both()...),
				filtered(6, []netip.Addr{a.pod1, a.node}, a.both()...),
			}
		})
		for i := range dpFamilies {
			a := &dpFamilies[i]
			at := func(n int) netip.AddrPort { return netip.AddrPortFrom(a.vip(n), dpPort) }
			for _, n := range []int{1, 5} {
				l.wantNames(t, l.client, at(n), "pod1", "pod2")
			}
			for n := 1; n <= 5; n++ {
				l.wantSilence(t, l.pod1, at(n))
				l.wantSilence(t, l.node, at(n))
			}
			l.wantSilence(t, l.client, at(2))
			l.wantRefusal(t, l.client, at(3))
			l.wantClients(t, l.client, at(4), map[string]netip.Addr{"pod1": a.client})
			l.wantSilence(t, l.client, at(6))
			l.wantNames(t, l.pod1, at(6), "pod1", "pod2")
		}
	})
}

func TestIPTablesServiceRanges(t *testing.T) {
	eachIPTables(t, func(t *testing.T, l *dpLab, dp service.Dataplane) {
		all, net := l.state(t, dp, func(a *dpAddrs) []service.Frontend {
			l.node.addr(t, netip.PrefixFrom(a.vip(9), a.client.BitLen()), "lo")
			return nil
		})
		for i := range dpFamilies {
			a := &dpFamilies[i]
			for _, from := range []*dpHost{l.client, l.pod1, l.node} {
				for _, known := range []netip.Addr{a.web, a.none, a.dropped} {
					l.wantRefusal(t, from, netip.AddrPortFrom(known, 81))
				}
				if from == l.node {
					continue // the kernel tells a local sender of datagrams "operation not permitted"
				}
				if _, err := from.datagram(netip.AddrPortFrom(a.web, dpPort)); !errors.Is(err, syscall.ECONNREFUSED) {
					t.Errorf("%s asked %s by UDP: error %v, want connection refused", from.name, a.web, err)
				}
			}
			for _, from := range []*dpHost{l.client, l.pod1, l.node} {
				l.wantSilence(t, from, netip.AddrPortFrom(a.vip(1), dpPort))
			}
			// The node is reached by an address of its own, wherever that lies.
			l.wantNames(t, l.client, netip.AddrPortFrom(a.vip(9), dpNodePort), "pod1", "pod2")
			l.wantRefusal(t, l.client, netip.AddrPortFrom(a.vip(9), dpPort))
		}

		// The last frontend of an address takes its refusal along; without the range nothing is said about it.
		a := &dpFamilies[0]
		gone := service.Delta{Net: &net}
		for _, f := range all {
			if f.Addr == a.none {
				gone.Delete = append(gone.Delete, f.Key)
			}
		}
		l.must(t, "Apply", func() error { return dp.Apply(gone) })
		l.wantSilence(t, l.client, netip.AddrPortFrom(a.none, dpPort))
		if rules := l.rules(t); strings.Contains(rules, a.none.String()+"/") || strings.Contains(rules, "daddr "+a.none.String()) {
			t.Errorf("rules still name %s, whose service is gone", a.none)
		}
	})
}

func TestIPTablesNodePortAddresses(t *testing.T) {
	eachIPTables(t, func(t *testing.T, l *dpLab, dp service.Dataplane) {
		_, net := l.state(t, dp, func(*dpAddrs) []service.Frontend { return nil })
		for i := range dpFamilies {
			a := &dpFamilies[i]
			served, other := netip.AddrPortFrom(a.node, dpNodePort), netip.AddrPortFrom(a.podGW1, dpNodePort)
			l.wantNames(t, l.client, served, "pod1", "pod2")
			l.wantNames(t, l.client, other, "pod1", "pod2")
			some := net
			some.NodePorts = []netip.Prefix{netip.PrefixFrom(a.node, a.localPods.Bits()).Masked()}
			l.must(t, "Apply", func() error { return dp.Apply(service.Delta{Net: &some}) })
			l.wantNames(t, l.client, served, "pod1", "pod2")
			l.wantNames(t, l.node, served, "pod1", "pod2")
			l.wantRefusal(t, l.client, other)
			// In the range, but not of this node.
			if r, err := l.node.get(netip.AddrPortFrom(a.client, dpNodePort)); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("the node asked the client's port %d: %+v, error %v", dpNodePort, r, err)
			}
			some.NodePorts = []netip.Prefix{netip.PrefixFrom(a.loopback, 8).Masked()}
			l.must(t, "Apply", func() error { return dp.Apply(service.Delta{Net: &some}) })
			l.wantRefusal(t, l.node, netip.AddrPortFrom(a.loopback, dpNodePort))
			l.must(t, "Apply", func() error { return dp.Apply(service.Delta{Net: &net}) })
		}
	})
}

// TestIPTablesForwardPolicy: on a host that forwards nothing (Docker sets that), what is masqueraded for a
// service passes, and nothing else does because of us.
func TestIPTablesForwardPolicy(t *testing.T) {
	eachIPTables(t, func(t *testing.T, l *dpLab, dp service.Dataplane) {
		l.state(t, dp, func(*dpAddrs) []service.Frontend { return nil })
		for _, tool := range []string{"iptables-", "ip6tables-"} {
			l.node.Exec(t, tool+string(dp.(*iptablesPlane).variant), "-P", "FORWARD", "DROP")
		}
		for i := range dpFamilies {
			a := &dpFamilies[i]
			l.wantNames(t, l.client, netip.AddrPortFrom(a.node, dpNodePort), "pod1", "pod2")
			l.wantNames(t, l.client, netip.AddrPortFrom(a.web, dpPort), "pod1", "pod2")
			l.wantSilence(t, l.client, netip.AddrPortFrom(a.pod1, dpTarget))
		}
	})
}

// TestIPTablesAffinity: a client stays with its backend on all frontends of a service port, over rewritten
// chains and restarts, until the backend leaves or the time is over.
func TestIPTablesAffinity(t *testing.T) {
	const stickyNP, timeout = 30093, 3 * time.Second
	frontends := func(a *dpAddrs, affinity time.Duration, b ...service.Backend) []service.Frontend {
		list := []service.Frontend{
			dpFrontend("sticky", service.ClusterIP, model.TCP, a.vip(1), dpPort, b...),
			dpFrontend("sticky", service.NodePort, model.TCP, a.any, stickyNP, b...),
		}
		for i := range list {
			list[i].Affinity = affinity
		}
		return list
	}
	eachIPTables(t, func(t *testing.T, l *dpLab, dp service.Dataplane) {
		all, net := l.state(t, dp, func(a *dpAddrs) []service.Frontend { return frontends(a, time.Hour, a.both()...) })
		apply := func(set ...service.Frontend) {
			t.Helper()
			l.must(t, "Apply", func() error { return dp.Apply(service.Delta{Set: set}) })
		}
		for i := range dpFamilies {
			a := &dpFamilies[i]
			vip, np := netip.AddrPortFrom(a.vip(1), dpPort), netip.AddrPortFrom(a.node, stickyNP)
			one := map[string]service.Backend{"pod1": a.backend1(), "pod2": a.backend2()}
			mine := map[*dpHost]string{}
			for _, from := range []*dpHost{l.client, l.pod1, l.pod2, l.node} {
				mine[from] = l.ask(t, from, vip).name
				l.wantNames(t, from, vip, mine[from])
				if from != l.node { // whose address is another for each frontend
					l.wantNames(t, from, np, mine[from])
				}
			}
			third := service.Backend{AddrPort: netip.AddrPortFrom(a.pod2, dpTarget+1)}
			apply(frontends(a, time.Hour, append(a.both(), third)...)...)
			l.wantNames(t, l.client, vip, mine[l.client])
			apply(frontends(a, time.Hour, a.both()...)...)
			l.must(t, "Replace", func() error { return dp.Replace(all, net) })
			l.wantNames(t, l.client, np, mine[l.client])

			other := "pod1"
			if mine[l.client] == other {
				other = "pod2"
			}
			apply(frontends(a, time.Hour, one[other])...)
			l.wantNames(t, l.client, vip, other)
			apply(frontends(a, time.Hour, a.both()...)...) // back, but forgotten
			l.wantNames(t, l.client, vip, other)
			l.wantNames(t, l.client, np, other)
			apply(frontends(a, 0, a.both()...)...)
			l.wantNames(t, l.client, vip, "pod1", "pod2")
		}
		for i := range dpFamilies {
			apply(frontends(&dpFamilies[i], timeout, dpFamilies[i].both()...)...)
		}
		l.checkAffinityTime(t, timeout)
	})
}

// checkAffinityTime: each new connection begins the time anew, and when it is over the choice is free.
func (l *dpLab) checkAffinityTime(t *testing.T, timeout time.Duration) {
	t.Helper()
	last, first := map[string]string{}, time.Now()
	for asked := first; time.Since(first) < 2*timeout; {
		for i := range dpFamilies {
			a := &dpFamilies[i]
			name := l.ask(t, l.client, netip.AddrPortFrom(a.vip(1), dpPort)).name
			if was := last[a.family]; was != "" && was != name && time.Since(asked) < timeout {
				t.Fatalf("%s: went to %s and, %s later, to %s", a.family, was, time.Since(asked), name)
			}
			last[a.family] = name
		}
		asked = time.Now()
		time.Sleep(timeout / 10)
	}
	free := map[string]bool{}
	for range 20 { // that a free choice falls twenty times on the same has a chance of 2^-20
		time.Sleep(timeout + time.Second) // nothing but the passing of this time is to be seen
		for i := range dpFamilies {
			a := &dpFamilies[i]
			name := l.ask(t, l.client, netip.AddrPortFrom(a.vip(1), dpPort)).name
			free[a.family] = free[a.family] || name != last[a.family]
		}
		if free[dpFamilies[0].family] && free[dpFamilies[1].family] {
			return
		}
	}
	t.Errorf("after %s without a connection clients are still held: %s", timeout, fmt.Sprint(free))
}

// TestIPTablesInputPolicy: a host that takes in nothing but what it asked for takes in health checks of services.
func TestIPTablesInputPolicy(t *testing.T) {
	eachIPTables(t, func(t *testing.T, l *dpLab, dp service.Dataplane) {
		all, net := l.state(t, dp, func(*dpAddrs) []service.Frontend { return nil })
		for _, tool := range []string{"iptables-", "ip6tables-"} {
			tool += string(dp.(*iptablesPlane).variant)
			l.node.Exec(t, tool, "-A", "INPUT", "-m", "conntrack", "--ctstate", "ESTABLISHED,RELATED", "-j", "ACCEPT")
			l.node.Exec(t, tool, "-A", "INPUT", "-p", "ipv6-icmp", "-j", "ACCEPT") // neighbours are found by it
			l.node.Exec(t, tool, "-P", "INPUT", "DROP")
		}
		l.node.serve(t)
		at := func(a *dpAddrs) netip.AddrPort { return netip.AddrPortFrom(a.node, dpTarget) }
		for i := range dpFamilies {
			l.wantSilence(t, l.client, at(&dpFamilies[i]))
		}
		net.HealthPorts = []uint16{dpTarget}
		l.must(t, "Apply", func() error { return dp.Apply(service.Delta{Net: &net}) })
		for i := range dpFamilies {
			l.wantNames(t, l.client, at(&dpFamilies[i]), "node")
		}
		net.HealthPorts = nil
		l.must(t, "Replace", func() error { return dp.Replace(all, net) })
		for i := range dpFamilies {
			l.wantSilence(t, l.client, at(&dpFamilies[i]))
		}
	})
}
