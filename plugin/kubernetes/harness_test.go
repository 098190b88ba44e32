package kubernetes

import (
	"context"
	"net/netip"
	"testing"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/plugin"
	"github.com/coredns/coredns/plugin/pkg/dnstest"
	"github.com/coredns/coredns/plugin/test"
	"github.com/coredns/coredns/request"
	"github.com/miekg/dns"

	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/internal/names"
	nt "github.com/braidnet/braid/internal/names/namestest"
	"github.com/braidnet/braid/plugin/kubernetes/stores"
)

// cluster is the state the tables of this package ask about.
func cluster() []model.Object {
	return []model.Object{
		nt.Namespace("default"), nt.Namespace("prod"), nt.Namespace("hidden"), nt.Namespace("kube-system"),
		nt.Service("default/kubernetes", "10.96.0.1", "https/TCP/443"),
		nt.Service("kube-system/kube-dns", "10.96.0.10", "dns/UDP/53 dns-tcp/TCP/53"),
		nt.Service("prod/web", "10.96.1.1 fd00:10:96::1", "http/TCP/80"),
		nt.Slice("prod/web-4", "web", "http/TCP/8080", nt.Ready("10.244.1.5", "", "web-x")),
		nt.Service("prod/multi", "10.96.1.2", "http/TCP/80 https/TCP/443"),
		nt.Service("prod/noport", "10.96.1.3", ""),
		nt.Headless("prod/db", "sql/TCP/5432"),
		nt.Slice("prod/db-4", "db", "sql/TCP/5432", nt.Ready("10.244.1.6", "db-0", "db-0"), nt.Ready("10.244.2.6", "db-1", "db-1"), nt.NotReady("10.244.3.6")),
		nt.Slice("prod/db-6", "db", "sql/TCP/5432", nt.Ready("fd00:10:244:1::6", "db-0", "db-0")),
		nt.Headless("prod/plain", "x/TCP/1"),
		nt.Slice("prod/plain-4", "plain", "x/TCP/1", nt.Ready("10.244.1.7", "", "plain-a"), nt.Ready("10.244.1.8", "", "plain-b")),
		nt.Slice("prod/plain-6", "plain", "x/TCP/1", nt.Ready("fd00:10:244:2::", "", "plain-c")),
		nt.Headless("prod/down", "x/TCP/1"),
		nt.Slice("prod/down-4", "down", "x/TCP/1", nt.NotReady("10.244.1.9")),
		nt.Slice("prod/foreign", "", "x/TCP/1", nt.Ready("10.244.9.9", "", "")),
		nt.External("prod/out", "www.example.net"),
		nt.External("prod/out-v4", "192.0.2.1"),
		nt.External("prod/in", "web.prod.svc.cluster.local"),
		nt.External("prod/in2", "in.prod.svc.cluster.local"),
		nt.External("prod/dangling", "none.prod.svc.cluster.local"),
		nt.External("prod/loop-a", "loop-b.prod.svc.cluster.local"),
		nt.External("prod/loop-b", "loop-a.prod.svc.cluster.local."),
		nt.External("prod/gone", "gone.example.net"),
		nt.Service("hidden/web", "10.96.2.1", "http/TCP/80"),
		nt.Pod("prod/db-0", "10.244.1.6 fd00:10:244:1::6"),
	}
}

// fakeUpstream answers for two names outside the cluster.
type fakeUpstream struct{ asked []string }

func (f *fakeUpstream) Lookup(_ context.Context, _ request.Request, name string, typ uint16) (*dns.Msg, error) {
	f.asked = append(f.asked, name+" "+dns.TypeToString[typ])
	m := new(dns.Msg)
	switch {
	case name == "www.example.net." && typ == dns.TypeA:
		m.Answer = []dns.RR{test.A("www.example.net. 60 IN A 192.0.2.80")}
	case name == "www.example.net.":
		m.Ns = []dns.RR{test.SOA("example.net. 60 IN SOA ns.example.net. root.example.net. 1 2 3 4 5")}
	default:
		m.Rcode = dns.RcodeNameError
		m.Ns = []dns.RR{test.SOA("example.net. 60 IN SOA ns.example.net. root.example.net. 1 2 3 4 5")}
	}
	return m, nil
}

// newPlugin returns the plugin that a Corefile stanza describes, over a store.
func newPlugin(t testing.TB, stanza string, store *model.Store) *Kubernetes {
	t.Helper()
	cfg, err := parse(caddy.NewTestController("dns", stanza))
	if err != nil {
		t.Fatal(err)
	}
	index := names.New()
	store.Subscribe(index.Apply)
	k := &Kubernetes{cfg: cfg, upstream: &fakeUpstream{}, Next: nextPlugin}
	k.live.Store(&live{lease: &stores.Lease{Store: store, Index: index}, local: []netip.Addr{netip.MustParseAddr("10.244.0.53")}})
	return k
}

// nextPlugin refuses: a query that falls through is known by that.
var nextPlugin = plugin.HandlerFunc(func(context.Context, dns.ResponseWriter, *dns.Msg) (int, error) {
	return dns.RcodeRefused, nil
})

// ask sends one query through the plugin. A query that fell through gives nil.
func ask(t testing.TB, k *Kubernetes, m *dns.Msg) *dns.Msg {
	t.Helper()
	w := dnstest.NewRecorder(&test.ResponseWriter{})
	rcode, err := k.ServeDNS(context.Background(), w, m)
	if err != nil {
		t.Fatalf("%s: %v", m.Question[0].String(), err)
	}
	if rcode == dns.RcodeRefused {
		return nil
	}
	if w.Msg == nil {
		t.Fatalf("%s: nothing was written, rcode %d", m.Question[0].String(), rcode)
	}
	if _, err := w.Msg.Pack(); err != nil {
		t.Fatalf("%s: the answer has no wire form: %v", m.Question[0].String(), err)
	}
	return w.Msg
}

func check(t *testing.T, k *Kubernetes, cases []test.Case) {
	t.Helper()
	for _, tc := range cases {
		got := ask(t, k, tc.Msg())
		title := tc.Qname + " " + dns.TypeToString[tc.Qtype]
		if tc.Rcode == fellThrough {
			if got != nil {
				t.Errorf("%s did not fall through:\n%s", title, got)
			}
			continue
		}
		if got == nil {
			t.Errorf("%s fell through", title)
			continue
		}
		if !got.Authoritative {
			t.Errorf("%s: the answer is not authoritative", title)
		}
		if err := test.CNAMEOrder(got); err != nil && got.Rcode != dns.RcodeServerFailure { // a loop has no order
			t.Errorf("%s: %v", title, err)
		}
		if err := test.SortAndCheck(got, tc); err != nil {
			t.Errorf("%s: %v\n%s", title, err, got)
		}
	}
}

// fellThrough is what a case expects of a query that the next plugin gets.
const fellThrough = -1

func records(texts ...string) (out []dns.RR) {
	for _, s := range texts {
		rr, err := dns.NewRR(s)
		if err != nil {
			panic(s + ": " + err.Error())
		}
		out = append(out, rr)
	}
	return out
}

func answer(qname string, typ uint16, rrs ...string) test.Case {
	return test.Case{Qname: qname, Qtype: typ, Answer: records(rrs...)}
}

func srvAnswer(qname string, rrs []string, extra ...string) test.Case {
	return test.Case{Qname: qname, Qtype: dns.TypeSRV, Answer: records(rrs...), Extra: records(extra...)}
}

const soaText = "cluster.local. 5 IN SOA ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 5"

func nodata(qname string, types ...uint16) (out []test.Case) {
	for _, typ := range types {
		out = append(out, test.Case{Qname: qname, Qtype: typ, Ns: records(soaText)})
	}
	return out
}

func nxdomain(qname string, types ...uint16) (out []test.Case) {
	for _, typ := range types {
		out = append(out, test.Case{Qname: qname, Qtype: typ, Rcode: dns.RcodeNameError, Ns: records(soaText)})
	}
	return out
}
