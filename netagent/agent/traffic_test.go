package agent

import (
	"log/slog"
	"net/netip"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/netagent/service"
	"github.com/braidnet/braid/netagent/status"
)

// TestTraffic: in each service mode connections, packets and bytes are counted once, in both directions, by the
// frontend that the client asked for, and not before anybody asked for counting.
func TestTraffic(t *testing.T) {
	for mode := range testedPlanes {
		t.Run(mode, func(t *testing.T) {
			f := newFeaturePlane(t, mode)
			var c *traffic
			f.must(t, "open", func() (err error) { c, err = newTraffic(slog.Default()); return err })
			t.Cleanup(c.close)
			all, _ := dpState()
			f.must(t, "replaced", func() error { c.replaced(all); return c.failed })
			for i := range dpFamilies {
				a := &dpFamilies[i]
				t.Run(a.family, func(t *testing.T) { f.checkTraffic(t, c, a) })
			}
			written := c.write.Written()
			f.must(t, "replaced again", func() error { c.replaced(all); return c.failed })
			if n := c.write.Written() - written; n > 0 {
				t.Errorf("%d messages were written though nothing changed", n)
			}
			r := prometheus.NewPedanticRegistry()
			r.MustRegister(c)
			got, err := r.Gather()
			if err != nil {
				t.Fatal(err)
			}
			for _, family := range got {
				want := 6 // cluster IP, node port and UDP, both families
				if family.GetName() != "braid_service_connections_total" {
					want *= 2 // directions
				}
				if n := len(family.GetMetric()); n != want {
					t.Errorf("%d series of %s, want %d, those of the frontends that were used", n, family.GetName(), want)
				}
			}
			listing := f.node.Exec(t, "nft", "list", "table", "ip", "braid-traffic")
			if !strings.Contains(listing, `10.96.0.10 . tcp . 80 counter packets 15 bytes 900 comment "default/web:p cluster IP"`) {
				t.Errorf("the listing does not say of web what was counted:\n%s", listing)
			}
			checkListing(t, listing+f.node.Exec(t, "nft", "list", "table", "ip6", "braid-traffic"))
			f.checkTrafficChanges(t, c)
			var removed []string
			f.must(t, "clean up", func() (err error) { removed, err = trafficRemains{}.Cleanup(); return err })
			if len(removed) != 2 {
				t.Errorf("removed %v", removed)
			}
		})
	}
}

// count returns what a frontend has counted by now.
func (c *traffic) count(t *testing.T, k service.Key) status.Traffic {
	t.Helper()
	c.at = c.at.Add(-trafficAge)
	all, err := c.all()
	if err != nil {
		t.Fatal(err)
	}
	return all[k]
}

func (f *featurePlane) checkTraffic(t *testing.T, c *traffic, a *dpAddrs) {
	key := func(kind service.Kind, p model.Protocol, addr netip.Addr, port uint16) service.Key {
		return service.Key{Kind: kind, Protocol: p, Addr: addr, Port: port}
	}
	for _, tc := range []struct {
		what string
		key  service.Key
		from *dpHost
		to   netip.Addr
	}{
		{"a client to a cluster IP", key(service.ClusterIP, model.TCP, a.web, dpPort), f.client, a.web},
		{"a pod to a cluster IP", key(service.ClusterIP, model.TCP, a.web, dpPort), f.pod1, a.web},
		{"the node to a cluster IP", key(service.ClusterIP, model.TCP, a.web, dpPort), f.node, a.web},
		{"a client to a node port", key(service.NodePort, model.TCP, a.any, dpNodePort), f.client, a.node},
		{"the node to its node port", key(service.NodePort, model.TCP, a.any, dpNodePort), f.node, a.podGW1},
		{"a datagram", key(service.ClusterIP, model.UDP, a.udp, dpPort), f.client, a.udp},
	} {
		before := c.count(t, tc.key)
		const n = 5
		for range n {
			ask := tc.from.get
			if tc.key.Protocol == model.UDP {
				ask = tc.from.datagram
			}
			if _, err := ask(netip.AddrPortFrom(tc.to, tc.key.Port)); err != nil {
				t.Fatal(tc.what, err)
			}
		}
		got := c.count(t, tc.key)
		got.Connections -= before.Connections
		got.PacketsIn, got.PacketsOut = got.PacketsIn-before.PacketsIn, got.PacketsOut-before.PacketsOut
		got.BytesIn, got.BytesOut = got.BytesIn-before.BytesIn, got.BytesOut-before.BytesOut
		least, header := uint64(n), uint64(28)
		if tc.key.Protocol == model.TCP {
			least, header = 3*n, 40 // a handshake and an end
		}
		if got.Connections != n || got.PacketsIn < least || got.PacketsOut < min(least, 2*n) || got.PacketsIn > 4*least ||
			got.BytesIn < header*got.PacketsIn || got.BytesOut < header*got.PacketsOut {
			t.Errorf("%s: %d times counted as %+v", tc.what, n, got)
		}
		if tc.key.Protocol == model.UDP && (got.PacketsIn != n || got.PacketsOut != n) {
			t.Errorf("%s: %d of them and as many answers counted as %+v", tc.what, n, got)
		}
	}
	direct := c.count(t, key(service.ClusterIP, model.TCP, a.web, dpPort))
	if _, err := f.client.get(netip.AddrPortFrom(a.pod1, dpTarget)); err != nil {
		t.Fatal(err)
	}
	if got := c.count(t, key(service.ClusterIP, model.TCP, a.web, dpPort)); got != direct {
		t.Errorf("a connection to the backend itself was counted: %+v after %+v", got, direct)
	}
}

// checkTrafficChanges: a backend that comes or goes leaves the numbers, another service at the address begins at zero,
// and what somebody else took away is back with the next comparison.
func (f *featurePlane) checkTrafficChanges(t *testing.T, c *traffic) {
	a := &dpFamilies[0]
	web := dpFrontend("web", service.ClusterIP, model.TCP, a.web, dpPort, a.backend1())
	before := c.count(t, web.Key)
	apply := func(d service.Delta) {
		t.Helper()
		f.must(t, "applied", func() error { c.applied(d); return c.failed })
	}
	apply(service.Delta{Set: []service.Frontend{web}})
	if got := c.count(t, web.Key); got != before || got.Connections == 0 {
		t.Errorf("after a change of backends %+v, before it %+v", got, before)
	}
	heir := web
	heir.Origin = dpOrigin("heir")
	apply(service.Delta{Set: []service.Frontend{heir}})
	if got := c.count(t, web.Key); got != (status.Traffic{}) {
		t.Errorf("another service at the address begins with %+v", got)
	}
	apply(service.Delta{Delete: []service.Key{web.Key}})
	f.node.Exec(t, "nft", "delete", "table", "ip", "braid-traffic")
	f.must(t, "replaced", func() error { c.replaced([]service.Frontend{heir}); return c.failed })
	if _, err := f.client.get(netip.AddrPortFrom(a.web, dpPort)); err != nil {
		t.Fatal(err)
	}
	if got := c.count(t, web.Key); got.Connections != 1 {
		t.Errorf("after a repair and one connection %+v", got)
	}
}
