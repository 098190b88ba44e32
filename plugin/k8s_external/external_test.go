package k8s_external

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/plugin"
	"github.com/coredns/coredns/plugin/pkg/dnstest"
	"github.com/coredns/coredns/plugin/test"
	"github.com/coredns/coredns/plugin/transfer"
	"github.com/coredns/coredns/request"
	"github.com/miekg/dns"

	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/internal/names"
	nt "github.com/braidnet/braid/internal/names/namestest"
	"github.com/braidnet/braid/plugin/kubernetes"
)

var (
	_ transfer.Transferer = (*External)(nil)
	_ cluster             = (*kubernetes.Kubernetes)(nil)
)

// fake is a kubernetes plugin over an index.
type fake struct {
	index  *names.Index
	ready  bool
	hidden string
}

func (f *fake) Ready() bool                { return f.ready }
func (f *fake) Index() *names.Index        { return f.index }
func (f *fake) View() names.View           { return names.View{} }
func (f *fake) TTL() uint32                { return 30 }
func (f *fake) Exposed(ns string) bool     { return ns != f.hidden && f.index.HasNamespace(ns) }
func (f *fake) Pointed(ns string) bool     { return ns != f.hidden }
func (f *fake) Local() []netip.Addr        { return []netip.Addr{netip.MustParseAddr("10.244.0.53")} }
func (f *fake) OwnServices() []names.Owner { return f.index.Owners(f.Local()[0]) }

// outside knows lb.example.net.
type outside struct{}

func (outside) Lookup(_ context.Context, _ request.Request, name string, typ uint16) (*dns.Msg, error) {
	if name != "lb.example.net." {
		return nil, errors.New("unknown")
	}
	m := new(dns.Msg)
	if typ == dns.TypeA {
		m.Answer = records("lb.example.net. 60 IN A 192.0.2.80")
	}
	return m, nil
}

func records(texts ...string) (out []dns.RR) {
	for _, s := range texts {
		rr, err := dns.NewRR(s)
		if err != nil {
			panic(err)
		}
		out = append(out, rr)
	}
	return out
}

func loadBalancer(key string, hosts []string, addrs ...string) *model.Service {
	s := nt.Service(key, "10.96.0.1", "http/TCP/80 https/TCP/443")
	for i, a := range addrs {
		if i == 0 {
			s.ExternalIPs = append(s.ExternalIPs, netip.MustParseAddr(a))
		} else {
			s.Ingress = append(s.Ingress, model.Ingress{Addr: netip.MustParseAddr(a)})
		}
	}
	for _, h := range hosts {
		s.Ingress = append(s.Ingress, model.Ingress{Hostname: h})
	}
	return s
}

func objects() []model.Object {
	return []model.Object{
		nt.Namespace("prod"), nt.Namespace("hidden"),
		loadBalancer("prod/web", nil, "192.0.2.1", "2001:db8::1"),
		loadBalancer("prod/host", []string{"lb.example.net"}),
		loadBalancer("prod/lost", []string{"lost.example.net"}),
		loadBalancer("hidden/web", nil, "192.0.2.9"),
		nt.Service("prod/inner", "10.96.0.9", "http/TCP/80"),
		nt.Headless("prod/db", "sql/TCP/5432"),
		nt.Slice("prod/db-1", "db", "sql/TCP/5432", nt.Ready("10.244.1.6", "db-0", ""), nt.Ready("10.244.1.7", "", "")),
	}
}

func newExternal(t *testing.T, stanza string, list ...model.Object) *External {
	t.Helper()
	cfg, err := parse(caddy.NewTestController("dns", stanza))
	if err != nil {
		t.Fatal(err)
	}
	index := names.New()
	nt.Store(list...).Subscribe(index.Apply)
	refuse := plugin.HandlerFunc(func(context.Context, dns.ResponseWriter, *dns.Msg) (int, error) { return dns.RcodeRefused, nil })
	return &External{Next: refuse, cfg: cfg, upstream: outside{}, cluster: &fake{index: index, ready: true, hidden: "hidden"}}
}

func ask(t *testing.T, e *External, m *dns.Msg) *dns.Msg {
	t.Helper()
	w := dnstest.NewRecorder(&test.ResponseWriter{})
	rcode, err := e.ServeDNS(context.Background(), w, m)
	if err != nil {
		t.Fatal(err)
	}
	if rcode == dns.RcodeRefused {
		return nil
	}
	return w.Msg
}

const soa = "example.org. 5 IN SOA ns1.dns.example.org. hostmaster.dns.example.org. 1 7200 1800 86400 5"

func check(t *testing.T, e *External, cases ...test.Case) {
	t.Helper()
	for _, tc := range cases {
		got := ask(t, e, tc.Msg())
		if got == nil {
			t.Errorf("%s %s fell through", tc.Qname, dns.Type(tc.Qtype))
			continue
		}
		if tc.Answer == nil && tc.Ns == nil {
			tc.Ns = records(soa)
		}
		if err := test.SortAndCheck(got, tc); err != nil {
			t.Errorf("%s %s: %v\n%s", tc.Qname, dns.Type(tc.Qtype), err, got)
		}
	}
}

func TestAnswers(t *testing.T) {
	e := newExternal(t, "k8s_external example.org in-addr.arpa", objects()...)
	ok := func(name string, typ uint16, rrs ...string) test.Case {
		return test.Case{Qname: name, Qtype: typ, Answer: records(rrs...)}
	}
	no := func(name string, typ uint16) test.Case {
		return test.Case{Qname: name, Qtype: typ, Rcode: dns.RcodeNameError}
	}
	webSRV := test.Case{Qname: "_https._tcp.web.prod.example.org.", Qtype: dns.TypeSRV,
		Answer: records("_https._tcp.web.prod.example.org. 30 IN SRV 0 50 443 web.prod.example.org."),
		Extra:  records("web.prod.example.org. 5 IN A 192.0.2.1", "web.prod.example.org. 5 IN AAAA 2001:db8::1")}
	hostSRV := test.Case{Qname: "host.prod.example.org.", Qtype: dns.TypeSRV,
		Answer: records("host.prod.example.org. 30 IN SRV 0 50 443 lb.example.net.", "host.prod.example.org. 30 IN SRV 0 50 80 lb.example.net."),
		Extra:  records("lb.example.net. 60 IN A 192.0.2.80")}
	check(t, e,
		ok("web.prod.example.org.", dns.TypeA, "web.prod.example.org. 5 IN A 192.0.2.1"),
		ok("WEB.prod.Example.org.", dns.TypeAAAA, "WEB.prod.Example.org. 5 IN AAAA 2001:db8::1"),
		ok("_http._tcp.web.prod.example.org.", dns.TypeA, "_http._tcp.web.prod.example.org. 5 IN A 192.0.2.1"),
		webSRV, hostSRV,
		ok("host.prod.example.org.", dns.TypeA, "host.prod.example.org. 30 IN CNAME lb.example.net.", "lb.example.net. 60 IN A 192.0.2.80"),
		ok("host.prod.example.org.", dns.TypeCNAME, "host.prod.example.org. 30 IN CNAME lb.example.net."),
		ok("lost.prod.example.org.", dns.TypeA, "lost.prod.example.org. 30 IN CNAME lost.example.net."),
		ok("1.2.0.192.in-addr.arpa.", dns.TypePTR, "1.2.0.192.in-addr.arpa. 5 IN PTR web.prod.example.org."),
		test.Case{Qname: "9.2.0.192.in-addr.arpa.", Qtype: dns.TypePTR, Rcode: dns.RcodeNameError, Ns: records("in-addr.arpa. 5 IN SOA ns1.dns.in-addr.arpa. hostmaster.dns.in-addr.arpa. 1 7200 1800 86400 5")},
		test.Case{Qname: "web.prod.example.org.", Qtype: dns.TypeTXT}, test.Case{Qname: "prod.example.org.", Qtype: dns.TypeA},
		test.Case{Qname: "web.prod.example.org.", Qtype: dns.TypePTR},
		no("inner.prod.example.org.", dns.TypeA), no("web.hidden.example.org.", dns.TypeA), no("none.prod.example.org.", dns.TypeA), no("none.example.org.", dns.TypeA),
		no("db.prod.example.org.", dns.TypeA), no("a.b.c.web.prod.example.org.", dns.TypeA), no("_ftp._tcp.web.prod.example.org.", dns.TypeSRV),
	)
	if ask(t, e, new(dns.Msg).SetQuestion("example.com.", dns.TypeA)) != nil {
		t.Error("another zone was answered")
	}
}

func TestHeadless(t *testing.T) {
	e := newExternal(t, "k8s_external example.org {\nheadless\nttl 60\napex ns\n}", objects()...)
	check(t, e,
		test.Case{Qname: "db.prod.example.org.", Qtype: dns.TypeA, Answer: records("db.prod.example.org. 60 IN A 10.244.1.6", "db.prod.example.org. 60 IN A 10.244.1.7")},
		test.Case{Qname: "db-0.db.prod.example.org.", Qtype: dns.TypeA, Answer: records("db-0.db.prod.example.org. 60 IN A 10.244.1.6")},
		test.Case{Qname: "10-244-1-7.db.prod.example.org.", Qtype: dns.TypeSRV, Answer: records("10-244-1-7.db.prod.example.org. 30 IN SRV 0 100 5432 10-244-1-7.db.prod.example.org."),
			Extra: records("10-244-1-7.db.prod.example.org. 60 IN A 10.244.1.7")},
		test.Case{Qname: "ns1.ns.example.org.", Qtype: dns.TypeA, Answer: records("ns1.ns.example.org. 60 IN A 10.244.0.53")},
	)
}

func TestApex(t *testing.T) {
	e := newExternal(t, "k8s_external example.org", objects()...)
	check(t, e,
		test.Case{Qname: "example.org.", Qtype: dns.TypeSOA, Answer: records(soa)},
		test.Case{Qname: "Example.org.", Qtype: dns.TypeNS, Answer: records("example.org. 5 IN NS ns1.dns.example.org."), Extra: records("ns1.dns.Example.org. 5 IN A 10.244.0.53")},
		test.Case{Qname: "example.org.", Qtype: dns.TypeA}, test.Case{Qname: "dns.example.org.", Qtype: dns.TypeA}, test.Case{Qname: "ns1.dns.example.org.", Qtype: dns.TypeAAAA},
		test.Case{Qname: "ns1.dns.example.org.", Qtype: dns.TypeA, Answer: records("ns1.dns.example.org. 5 IN A 10.244.0.53")},
		test.Case{Qname: "ns2.dns.example.org.", Qtype: dns.TypeA, Rcode: dns.RcodeNameError}, test.Case{Qname: "x.ns1.dns.example.org.", Qtype: dns.TypeA, Rcode: dns.RcodeNameError},
	)
	own := loadBalancer("prod/dns", nil, "192.0.2.53")
	e = newExternal(t, "k8s_external example.org", append(objects(), own, nt.Slice("prod/dns-1", "dns", "http/TCP/53", nt.Ready("10.244.0.53", "", "")))...)
	check(t, e, test.Case{Qname: "ns1.dns.example.org.", Qtype: dns.TypeA, Answer: records("ns1.dns.example.org. 5 IN A 192.0.2.53")})
}

func TestUnsyncedAndFallthrough(t *testing.T) {
	e := newExternal(t, "k8s_external example.org {\nfallthrough\n}", objects()...)
	if got := ask(t, e, new(dns.Msg).SetQuestion("none.prod.example.org.", dns.TypeA)); got != nil {
		t.Errorf("did not fall through: %v", got)
	}
	if got := ask(t, e, new(dns.Msg).SetQuestion("web.prod.example.org.", dns.TypeTXT)); got == nil {
		t.Error("an empty answer fell through")
	}
	e.cluster.(*fake).ready = false
	m := new(dns.Msg).SetQuestion("none.prod.example.org.", dns.TypeA)
	m.SetEdns0(1232, false)
	if got := ask(t, e, m); got == nil || got.Rcode != dns.RcodeServerFailure || !strings.Contains(got.String(), "cluster state not synced") {
		t.Errorf("before the first state: %v", got)
	}
	check(t, e, test.Case{Qname: "web.prod.example.org.", Qtype: dns.TypeA, Answer: records("web.prod.example.org. 5 IN A 192.0.2.1")}, test.Case{Qname: "example.org.", Qtype: dns.TypeA})
	if _, err := e.Transfer("example.org.", 0); err == nil {
		t.Error("half a zone may be copied")
	}
}

func TestTransferIsWhatQueriesGet(t *testing.T) {
	e := newExternal(t, "k8s_external example.org 192.0.2.0/24 {\nheadless\n}", objects()...)
	var all []string
	for _, zone := range e.cfg.zones {
		ch, err := e.Transfer(zone, 0)
		if err != nil {
			t.Fatal(err)
		}
		var rrs []dns.RR
		for list := range ch {
			rrs = append(rrs, list...)
		}
		if last := len(rrs) - 1; last < 1 || rrs[0].Header().Rrtype != dns.TypeSOA || rrs[0].String() != rrs[last].String() {
			t.Fatalf("%s: a transfer begins and ends with the SOA: %v", zone, rrs)
		}
		for _, rr := range rrs {
			all = append(all, strings.ReplaceAll(rr.String(), "\t", " "))
			m := ask(t, e, new(dns.Msg).SetQuestion(rr.Header().Name, rr.Header().Rrtype))
			if !slices.ContainsFunc(m.Answer, func(a dns.RR) bool { return a.String() == rr.String() }) {
				t.Errorf("a query does not get what the transfer sends: %s\n%v", rr, m)
			}
		}
	}
	for _, want := range []string{"web.prod.example.org. 5 IN AAAA 2001:db8::1", "_https._tcp.web.prod.example.org. 30 IN SRV 0 50 443 web.prod.example.org.", "host.prod.example.org. 30 IN CNAME lb.example.net.",
		"web.prod.example.org. 30 IN SRV 0 25 443 web.prod.example.org.", "db-0.db.prod.example.org. 5 IN A 10.244.1.6", "_sql._tcp.db.prod.example.org. 30 IN SRV 0 50 5432 db-0.db.prod.example.org.",
		"1.2.0.192.in-addr.arpa. 5 IN PTR web.prod.example.org.", "ns1.dns.example.org. 5 IN A 10.244.0.53"} {
		if !slices.Contains(all, want) {
			t.Errorf("not transferred: %s\n%s", want, strings.Join(all, "\n"))
		}
	}
	if text := strings.Join(all, "\n"); strings.Contains(text, "hidden") {
		t.Errorf("a hidden namespace is transferred:\n%s", text)
	}
	serial := e.cluster.Index().Serial(names.ExternalZone)
	if serial == 0 {
		t.Error("the serial is 0 although there are services")
	}
	ch, err := e.Transfer("example.org.", serial)
	if err != nil {
		t.Fatal(err)
	}
	if n := len(<-ch); n != 1 {
		t.Errorf("an up-to-date copy is sent %d records", n)
	}
	if rest, open := <-ch; open {
		t.Errorf("an up-to-date copy is sent more: %v", rest)
	}
	if _, err := e.Transfer("prod.example.org.", 0); !errors.Is(err, transfer.ErrNotAuthoritative) {
		t.Errorf("a part of the zone: %v", err)
	}
}

func TestErrors(t *testing.T) {
	for text, want := range map[string]string{
		"k8s_external example.org {\nttl 3601\n}":         `Testfile:2 - Error during parsing: ttl: found "3601", want a number of seconds from 0 to 3600`,
		"k8s_external example.org {\nttl\n}":              `Testfile:2 - Error during parsing: ttl: found nothing, want a number of seconds from 0 to 3600`,
		"k8s_external example.org {\napex\n}":             `Testfile:2 - Error during parsing: apex: found nothing, want a label such as dns`,
		"k8s_external example.org {\n\nheadles\n}":        `Testfile:3 - Error during parsing: unknown property "headles"; accepted: apex, fallthrough, headless, ttl`,
		"k8s_external example..org":                       `Testfile:1 - Error during parsing: zone: found "example..org", want a domain name or an address range such as 10.0.0.0/8`,
		"k8s_external example.org {\nfallthrough a..b\n}": `Testfile:2 - Error during parsing: fallthrough: found "a..b", want zones`,
		"k8s_external": `Testfile:1 - Error during parsing: zones: found none, want at least one, here or in front of the server block`,
	} {
		if _, err := parse(caddy.NewTestController("dns", text)); err == nil || err.Error() != want {
			t.Errorf("%q:\n got %v\nwant %s", text, err, want)
		}
	}
}
