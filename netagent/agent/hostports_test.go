package agent

import (
	"errors"
	"log/slog"
	"net/netip"
	"syscall"
	"testing"

	"github.com/braidnet/braid/cni/hostport"
	"github.com/braidnet/braid/cni/tables"
)

// TestHostPortsBesideServices: host ports work in every service mode, in whichever order the rules of
// both came, and take nothing that is a service's (CVE-2019-9946).
func TestHostPortsBesideServices(t *testing.T) {
	for name, construct := range testedPlanes {
		for _, servicesFirst := range []bool{false, true} {
			t.Run(name+map[bool]string{true: " first", false: " second"}[servicesFirst], func(t *testing.T) {
				l := newDPLab(t)
				all, net := dpState()
				services := func() {
					dp := l.construct(t, construct)
					l.must(t, "Replace", func() error { return dp.Replace(all, net) })
				}
				if servicesFirst {
					services()
				}
				l.addHostPorts(t)
				if !servicesFirst {
					services()
				}
				for i := range dpFamilies {
					l.checkHostPorts(t, &dpFamilies[i])
				}
			})
		}
	}
}

// addHostPorts gives pod1 a port of its own, and ports of services besides: the number of a node port, and
// an address and port of a service, which happens to be an address of the node too.
func (l *dpLab) addHostPorts(t *testing.T) {
	t.Helper()
	mappings := []hostport.Mapping{
		{Host: hostport.Port{Protocol: hostport.TCP, Number: 8000}, Container: dpTarget},
		{Host: hostport.Port{Protocol: hostport.TCP, Number: dpNodePort}, Container: 1},
	}
	var pod []netip.Addr
	for _, a := range dpFamilies {
		mappings = append(mappings, hostport.Mapping{Host: hostport.Port{Addr: a.web, Protocol: hostport.TCP, Number: dpPort}, Container: 1})
		pod = append(pod, a.pod1)
		l.node.addr(t, netip.PrefixFrom(a.web, a.web.BitLen()), "lo")
	}
	store := hostport.Store{Log: slog.New(slog.DiscardHandler)}
	l.must(t, "host ports", func() error {
		return store.Add(tables.Owner{Link: "brd00000000001", Pod: "default/pod1"}, mappings, pod)
	})
}

func (l *dpLab) checkHostPorts(t *testing.T, a *dpAddrs) {
	port := netip.AddrPortFrom(a.node, 8000)
	for _, c := range []struct {
		from *dpHost
		saw  netip.Addr
	}{
		{l.client, a.client}, // not the node's: who comes from outside is known to the pod
		{l.pod2, a.pod2},
		{l.pod1, a.podGW1}, // itself: the answer has to come back through the node
		{l.node, a.node},
	} {
		if r := l.ask(t, c.from, port); r.name != "pod1" || r.client != c.saw {
			t.Errorf("%s asked host port %s: %s answered and saw %s, want pod1 and %s", c.from.name, port, r.name, r.client, c.saw)
		}
	}
	for _, from := range []*dpHost{l.client, l.node, l.pod1} {
		l.wantNames(t, from, netip.AddrPortFrom(a.web, dpPort), "pod1", "pod2")
		l.wantNames(t, from, netip.AddrPortFrom(a.node, dpNodePort), "pod1", "pod2")
	}
	gateways := map[string]netip.Addr{"pod1": a.podGW1, "pod2": a.podGW2}
	for range dpTries { // the services' masquerading is as before
		if r := l.ask(t, l.client, netip.AddrPortFrom(a.node, dpNodePort)); r.client != gateways[r.name] {
			t.Fatalf("a node port beside host ports: %s saw %s, want %s", r.name, r.client, gateways[r.name])
		}
	}
	if _, err := l.client.get(netip.AddrPortFrom(a.node, 8001)); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a port that nobody has: %v, want connection refused", err)
	}
}
