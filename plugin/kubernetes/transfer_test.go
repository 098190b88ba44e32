//go:build !minimal

package kubernetes

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/coredns/coredns/plugin/transfer"
	"github.com/miekg/dns"

	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/internal/names"
	nt "github.com/braidnet/braid/internal/names/namestest"
)

var _ transfer.Transferer = (*Kubernetes)(nil)

func transferred(t *testing.T, k *Kubernetes, zone string, serial uint32) (out []dns.RR) {
	t.Helper()
	ch, err := k.Transfer(zone, serial)
	if err != nil {
		t.Fatal(err)
	}
	for rrs := range ch {
		out = append(out, rrs...)
	}
	return out
}

func zonal() []model.Object {
	e := nt.Ready("10.244.5.1", "", "")
	e.Zone = "East"
	return append(cluster(), nt.Headless("prod/placed", "x/TCP/1"), nt.Slice("prod/placed-4", "placed", "x/TCP/1", e))
}

// A copy of the zone must answer as the zone does: each record is what a query for it gets, and every
// query of the tables has its records in the copy.
func TestTransferIsWhatQueriesGet(t *testing.T) {
	imported := nt.Slice("prod/far-1", "", "x/TCP/1", nt.Ready("10.9.0.1", "far-0", ""))
	imported.Import, imported.Cluster = model.Key{Namespace: "prod", Name: "far"}, "east"
	objects := append(zonal(), nt.Import("prod/far", "", "x/TCP/1"), nt.Import("prod/set", "10.98.0.1", "http/TCP/80"), imported)
	k := newPlugin(t, "kubernetes cluster.local clusterset.local 10.96.0.0/16 in-addr.arpa {\npods verified\nzonal\nmulticluster clusterset.local\n}", nt.Store(objects...))
	for zone, contains := range map[string][]string{
		"cluster.local.": {
			"cluster.local. 5 IN NS ns.dns.cluster.local.", "ns.dns.cluster.local. 5 IN A 10.244.0.53", `dns-version.cluster.local. 28800 IN TXT "1.1.0"`,
			"web.prod.svc.cluster.local. 5 IN A 10.96.1.1", "web.prod.svc.cluster.local. 5 IN AAAA fd00:10:96::1", "_http._tcp.web.prod.svc.cluster.local. 5 IN SRV 0 50 80 web.prod.svc.cluster.local.",
			"10-244-1-5.web.prod.svc.cluster.local. 5 IN A 10.244.1.5", "db-0.db.prod.svc.cluster.local. 5 IN AAAA fd00:10:244:1::6", "out.prod.svc.cluster.local. 5 IN CNAME www.example.net.",
			"10-244-1-6.prod.pod.cluster.local. 5 IN A 10.244.1.6", "east.pin._zone.placed.prod.svc.cluster.local. 5 IN A 10.244.5.1", "east.prefer._zone.placed.prod.svc.cluster.local. 5 IN A 10.244.5.1",
			"web.hidden.svc.cluster.local. 5 IN A 10.96.2.1", "multi.prod.svc.cluster.local. 5 IN SRV 0 50 443 multi.prod.svc.cluster.local.",
		},
		"clusterset.local.":   {"far-0.east.far.prod.svc.clusterset.local. 5 IN A 10.9.0.1", "set.prod.svc.clusterset.local. 5 IN A 10.98.0.1"},
		"96.10.in-addr.arpa.": {"1.1.96.10.in-addr.arpa. 5 IN PTR web.prod.svc.cluster.local."},
		"in-addr.arpa.":       {"6.1.244.10.in-addr.arpa. 5 IN PTR db-0.db.prod.svc.cluster.local.", "1.1.96.10.in-addr.arpa. 5 IN PTR web.prod.svc.cluster.local."},
	} {
		rrs := transferred(t, k, zone, 0)
		if len(rrs) < 3 || rrs[0].Header().Rrtype != dns.TypeSOA || rrs[len(rrs)-1].String() != rrs[0].String() {
			t.Fatalf("%s: a transfer begins and ends with the SOA:\n%v", zone, rrs)
		}
		var texts []string
		seen := map[string]bool{}
		for _, rr := range rrs[:len(rrs)-1] {
			text := strings.ReplaceAll(rr.String(), "\t", " ")
			if texts = append(texts, text); seen[text] {
				t.Errorf("%s: sent twice: %s", zone, text)
			}
			seen[text] = true
			if strings.Contains(text, " 96.10.in-addr.arpa.") && zone == "in-addr.arpa." {
				continue // the longer zone answers
			}
			name := rr.Header().Name
			if zone == "in-addr.arpa." && strings.HasSuffix(name, ".96.10.in-addr.arpa.") {
				continue // queries for it are the longer zone's
			}
			m := ask(t, k, new(dns.Msg).SetQuestion(name, rr.Header().Rrtype))
			if m == nil || !slices.ContainsFunc(m.Answer, func(a dns.RR) bool { return a.String() == rr.String() }) {
				t.Errorf("%s: a query does not get what the transfer sends: %s\n%v", zone, text, m)
			}
		}
		for _, want := range contains {
			if !slices.Contains(texts, want) {
				t.Errorf("%s: not transferred: %s\n%s", zone, want, strings.Join(texts, "\n"))
			}
		}
	}
}

func TestTransferRefusals(t *testing.T) {
	store := model.NewStore()
	nt.Apply(store, nt.Namespace("prod"), nt.Service("prod/web", "10.96.0.1", ""))
	k := newPlugin(t, "kubernetes cluster.local", store)
	if _, err := k.Transfer("cluster.local.", 0); err == nil || !strings.Contains(err.Error(), notSynced) {
		t.Errorf("half a zone may be copied: %v", err)
	}
	store.MarkSynced()
	for _, zone := range []string{"prod.svc.cluster.local.", "example.org."} {
		if _, err := k.Transfer(zone, 0); !errors.Is(err, transfer.ErrNotAuthoritative) {
			t.Errorf("Transfer(%s): %v", zone, err)
		}
	}
	serial := k.index().Serial(0)
	for at, want := range map[uint32]int{serial: 1, serial + 5: 1} {
		if got := transferred(t, k, "cluster.local.", at); len(got) != want {
			t.Errorf("a copy with serial %d of %d was sent %d records, want the SOA alone", at, serial, len(got))
		}
	}
	if got := transferred(t, k, "cluster.local.", serial-1); len(got) < 3 {
		t.Errorf("an old copy was sent %d records, want all", len(got))
	}
	nt.Apply(store, nt.Service("prod/web", "10.96.0.2", ""))
	if now := k.index().Serial(0); now <= serial {
		t.Errorf("serial %d after a change, %d was handed out before", now, serial)
	}
}

func TestTransferShowsNoHiddenNamespace(t *testing.T) {
	k := newPlugin(t, "kubernetes cluster.local in-addr.arpa {\nnamespaces prod\n}", nt.Store(cluster()...))
	for _, zone := range k.cfg.zones {
		for _, rr := range transferred(t, k, zone, 0) {
			if strings.Contains(rr.String(), "hidden") || strings.Contains(rr.String(), "kube-system") {
				t.Errorf("%s shows %s", zone, rr)
			}
		}
	}
}

// toldOf records notifications.
type toldOf chan string

func (n toldOf) Notify(zone string) error {
	n <- zone
	return nil
}

func TestChangesAreAnnounced(t *testing.T) {
	store := model.NewStore()
	k := newPlugin(t, "kubernetes cluster.local clusterset.local {\nmulticluster clusterset.local\n}", store)
	l := *k.live.Load()
	ctx, quit := context.WithCancel(context.Background())
	defer quit()
	l.ctx, l.quit = ctx, quit
	k.live.Store(&l)
	told := make(toldOf)
	k.announce(told, k.announced())
	nt.Apply(store, nt.Namespace("prod"))
	store.MarkSynced()
	for range 2 { // the first state, whatever it is
		if zone := <-told; zone != "cluster.local." && zone != "clusterset.local." {
			t.Errorf("told of %s", zone)
		}
	}
	for _, class := range []names.ZoneClass{names.ClusterZone, names.SetZone} {
		k.index().HandOut(class) // who was told asks for the SOA
	}
	nt.Apply(store, nt.Service("prod/web", "10.96.0.1", ""))
	if zone := <-told; zone != "cluster.local." {
		t.Errorf("told of %s after a change of the cluster's zone", zone)
	}
	nt.Apply(store, nt.Import("prod/far", "10.98.0.1", ""))
	if zone := <-told; zone != "clusterset.local." {
		t.Errorf("told of %s after a change of the set's zone", zone)
	}
}
