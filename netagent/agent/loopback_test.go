package agent

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/braidnet/braid/internal/kernel/ipt"
	"github.com/braidnet/braid/internal/kernel/sysctl"
	"github.com/braidnet/braid/netagent/service"
)

// TestLoopbackNodePorts: a program of the node reaches node ports on 127.0.0.1, and a neighbour that sends to
// 127.0.0.1 reaches nothing (CVE-2020-8558), neither what listens there nor the node ports.
func TestLoopbackNodePorts(t *testing.T) {
	modes := map[string]func(*slog.Logger) (service.Dataplane, error){"legacy": iptablesVariant(ipt.Legacy)}
	for mode, construct := range testedPlanes {
		modes[mode] = construct
	}
	for mode, construct := range modes {
		t.Run(mode, func(t *testing.T) {
			if mode == "legacy" {
				needVariant(t, ipt.Legacy)
			}
			checkLoopbackNodePorts(t, construct)
		})
	}
}

func checkLoopbackNodePorts(t *testing.T, construct func(*slog.Logger) (service.Dataplane, error)) {
	l := newDPLab(t)
	dp := l.construct(t, construct)
	all, net := dpState()
	net.Loopback = true
	l.must(t, "Replace", func() error { return dp.Replace(all, net) })
	var r *loopbackRoutes
	l.must(t, "open", func() (err error) { r, err = newLoopbackRoutes(slog.Default()); return err })
	t.Cleanup(r.close)
	step := func() { l.must(t, "step", func() error { _, err := r.step(context.Background()); return err }) }
	step()
	if got := l.routesLoopback(t); len(got) > 0 {
		t.Fatalf("%v route loopback addresses before the guard is in force", got)
	}
	r.replaced(all)
	step()
	if got := l.routesLoopback(t); !slices.Equal(got, []string{"pod1", "pod2"}) {
		t.Fatalf("%v route loopback addresses, want those that lead to backends", got)
	}

	a := &dpFamilies[0]
	port := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), dpNodePort)
	l.wantNames(t, l.node, port, "pod1", "pod2")
	l.wantClients(t, l.node, port, map[string]netip.Addr{"pod1": a.podGW1, "pod2": a.podGW2})
	secret := listenSecret(t, l.node)
	l.pod1.Exec(t, "sysctl", "-qw", "net.ipv4.conf.eth0.route_localnet=1")
	l.pod1.Exec(t, "ip", "addr", "del", "127.0.0.1/8", "dev", "lo")
	l.pod1.Exec(t, "ip", "route", "add", "127.0.0.0/8", "via", a.podGW1.String())
	l.wantSilence(t, l.pod1, secret)
	l.wantSilence(t, l.pod1, port)
	l.removeGuard(t, dp)
	if r, err := l.pod1.get(secret); err != nil || r.name != "secret" {
		t.Fatalf("without the guard the neighbour reads %v, %v: the test does not see what it is for", r, err)
	}

	l.must(t, "repair", func() error { return dp.Replace(all, net) })
	l.wantSilence(t, l.pod1, secret)
	l.must(t, "off", func() error { _, err := setLoopback(nil); return err })
	if got := l.routesLoopback(t); len(got) > 0 {
		t.Errorf("%v still route loopback addresses", got)
	}
	net.Loopback = false
	l.must(t, "Apply", func() error { return dp.Apply(service.Delta{Net: &net}) })
	l.wantRefusal(t, l.node, port)
	if rules := l.rules(t); strings.Contains(strings.ToUpper(rules), "LOOPBACK {") || strings.Contains(rules, "BRAID-LOOPBACK") {
		t.Errorf("the guard stayed:\n%s", rules)
	}
}

// routesLoopback lists the devices of the node that route loopback addresses.
func (l *dpLab) routesLoopback(t *testing.T) (names []string) {
	t.Helper()
	l.must(t, "read sysctls", func() error {
		all, err := sysctl.List("net/ipv4/conf")
		for _, name := range all {
			if v, err := sysctl.Get("net/ipv4/conf/" + name + "/route_localnet"); err == nil && v != "0" {
				names = append(names, name)
			}
		}
		return err
	})
	return names
}

// listenSecret has a program listen on a loopback address, as those do that trust whoever gets there.
func listenSecret(t *testing.T, h *dpHost) netip.AddrPort {
	t.Helper()
	var l net.Listener
	h.Run(t, func() (err error) { l, err = net.Listen("tcp", "127.0.0.1:0"); return err })
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write([]byte("secret 127.0.0.1"))
			c.Close()
		}
	}()
	return netip.MustParseAddrPort(l.Addr().String())
}

// removeGuard does by hand what must not happen.
func (l *dpLab) removeGuard(t *testing.T, dp service.Dataplane) {
	t.Helper()
	p, ok := dp.(*iptablesPlane)
	switch {
	case !ok:
		l.node.Exec(t, "nft", "flush", "chain", "ip", "braid", "loopback")
	default:
		l.node.Exec(t, "iptables-"+string(p.variant), "-t", "raw", "-F", "BRAID-LOOPBACK")
	}
}
