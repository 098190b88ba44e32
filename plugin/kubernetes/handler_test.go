package kubernetes

import (
	"slices"
	"strings"
	"testing"

	"github.com/coredns/coredns/plugin/test"
	"github.com/miekg/dns"

	"github.com/braidnet/braid/internal/model"
	nt "github.com/braidnet/braid/internal/names/namestest"
)

const (
	tA, tAAAA, tSRV, tTXT     = dns.TypeA, dns.TypeAAAA, dns.TypeSRV, dns.TypeTXT
	tCNAME, tPTR, tNS, tSOA   = dns.TypeCNAME, dns.TypePTR, dns.TypeNS, dns.TypeSOA
	tMX, tHTTPS, tANY, tAXFRT = dns.TypeMX, dns.TypeHTTPS, dns.TypeANY, dns.TypeAXFR
)

const allZones = "kubernetes cluster.local in-addr.arpa ip6.arpa"

func TestServiceNames(t *testing.T) {
	check(t, newPlugin(t, allZones, nt.Store(cluster()...)), slices.Concat([]test.Case{
		answer("kubernetes.default.svc.cluster.local.", tA, "kubernetes.default.svc.cluster.local. 5 IN A 10.96.0.1"),
		answer("web.prod.svc.cluster.local.", tA, "web.prod.svc.cluster.local. 5 IN A 10.96.1.1"),
		answer("web.prod.svc.cluster.local.", tAAAA, "web.prod.svc.cluster.local. 5 IN AAAA fd00:10:96::1"),
		answer("noport.prod.svc.cluster.local.", tA, "noport.prod.svc.cluster.local. 5 IN A 10.96.1.3"),
		answer("_http._tcp.web.prod.svc.cluster.local.", tA, "_http._tcp.web.prod.svc.cluster.local. 5 IN A 10.96.1.1"),
		// An endpoint of a service with cluster IPs has a name too.
		answer("10-244-1-5.web.prod.svc.cluster.local.", tA, "10-244-1-5.web.prod.svc.cluster.local. 5 IN A 10.244.1.5"),
		// Mixed case comes back as it was asked.
		answer("WEB.Prod.svc.CLUSTER.local.", tA, "WEB.Prod.svc.CLUSTER.local. 5 IN A 10.96.1.1"),
	},
		nodata("kubernetes.default.svc.cluster.local.", tAAAA, tTXT, tMX, tCNAME, tNS, tSOA, tHTTPS, tANY, tPTR),
		nodata("prod.svc.cluster.local.", tA, tSRV, tTXT),
		nodata("_tcp.web.prod.svc.cluster.local.", tA, tTXT, tSRV),
		nodata("noport.prod.svc.cluster.local.", tSRV),
		nxdomain("none.prod.svc.cluster.local.", tA, tAAAA, tSRV, tTXT, tMX, tCNAME, tPTR, tNS, tSOA),
		nxdomain("web.none.svc.cluster.local.", tA),
		nxdomain("none.svc.cluster.local.", tA, tTXT),
		nxdomain("google.com.cluster.local.", tA, tAAAA),
		nxdomain("web.cluster.local.", tA),
		nxdomain("_udp.web.prod.svc.cluster.local.", tSRV),
		nxdomain("x._http._tcp.web.prod.svc.cluster.local.", tA),
		nxdomain("10-244-1-9.web.prod.svc.cluster.local.", tA),
	))
}

func TestHeadlessNames(t *testing.T) {
	check(t, newPlugin(t, allZones, nt.Store(cluster()...)), slices.Concat([]test.Case{
		answer("db.prod.svc.cluster.local.", tA, "db.prod.svc.cluster.local. 5 IN A 10.244.1.6", "db.prod.svc.cluster.local. 5 IN A 10.244.2.6"),
		answer("db.prod.svc.cluster.local.", tAAAA, "db.prod.svc.cluster.local. 5 IN AAAA fd00:10:244:1::6"),
		answer("db-0.db.prod.svc.cluster.local.", tA, "db-0.db.prod.svc.cluster.local. 5 IN A 10.244.1.6"),
		answer("DB-0.db.prod.svc.cluster.local.", tAAAA, "DB-0.db.prod.svc.cluster.local. 5 IN AAAA fd00:10:244:1::6"),
		answer("10-244-1-7.plain.prod.svc.cluster.local.", tA, "10-244-1-7.plain.prod.svc.cluster.local. 5 IN A 10.244.1.7"),
		answer("fd00-10-244-2--0.plain.prod.svc.cluster.local.", tAAAA, "fd00-10-244-2--0.plain.prod.svc.cluster.local. 5 IN AAAA fd00:10:244:2::"),
	},
		nodata("db-1.db.prod.svc.cluster.local.", tAAAA, tTXT),
		nodata("_tcp.db.prod.svc.cluster.local.", tA),
		nxdomain("10-244-1-6.db.prod.svc.cluster.local.", tA), // it has a hostname
		nxdomain("10-244-3-6.db.prod.svc.cluster.local.", tA), // not ready
		nxdomain("plain-a.plain.prod.svc.cluster.local.", tA),
		nxdomain("down.prod.svc.cluster.local.", tA, tSRV),
	))
}

func TestServiceRecords(t *testing.T) {
	dbTargets := []string{
		"db-0.db.prod.svc.cluster.local. 5 IN A 10.244.1.6",
		"db-0.db.prod.svc.cluster.local. 5 IN AAAA fd00:10:244:1::6",
		"db-1.db.prod.svc.cluster.local. 5 IN A 10.244.2.6",
	}
	check(t, newPlugin(t, allZones, nt.Store(cluster()...)), slices.Concat([]test.Case{
		srvAnswer("_https._tcp.kubernetes.default.svc.cluster.local.",
			[]string{"_https._tcp.kubernetes.default.svc.cluster.local. 5 IN SRV 0 100 443 kubernetes.default.svc.cluster.local."},
			"kubernetes.default.svc.cluster.local. 5 IN A 10.96.0.1"),
		srvAnswer("https.tcp.kubernetes.default.svc.cluster.local.",
			[]string{"https.tcp.kubernetes.default.svc.cluster.local. 5 IN SRV 0 100 443 kubernetes.default.svc.cluster.local."},
			"kubernetes.default.svc.cluster.local. 5 IN A 10.96.0.1"),
		// Both families count in the weight.
		srvAnswer("_http._tcp.web.prod.svc.cluster.local.",
			[]string{"_http._tcp.web.prod.svc.cluster.local. 5 IN SRV 0 50 80 web.prod.svc.cluster.local."},
			"web.prod.svc.cluster.local. 5 IN A 10.96.1.1", "web.prod.svc.cluster.local. 5 IN AAAA fd00:10:96::1"),
		srvAnswer("multi.prod.svc.cluster.local.",
			[]string{"multi.prod.svc.cluster.local. 5 IN SRV 0 50 443 multi.prod.svc.cluster.local.", "multi.prod.svc.cluster.local. 5 IN SRV 0 50 80 multi.prod.svc.cluster.local."},
			"multi.prod.svc.cluster.local. 5 IN A 10.96.1.2"),
		srvAnswer("_sql._tcp.db.prod.svc.cluster.local.",
			[]string{"_sql._tcp.db.prod.svc.cluster.local. 5 IN SRV 0 33 5432 db-0.db.prod.svc.cluster.local.", "_sql._tcp.db.prod.svc.cluster.local. 5 IN SRV 0 33 5432 db-1.db.prod.svc.cluster.local."},
			dbTargets...),
		srvAnswer("db-1.db.prod.svc.cluster.local.",
			[]string{"db-1.db.prod.svc.cluster.local. 5 IN SRV 0 100 5432 db-1.db.prod.svc.cluster.local."}, dbTargets[2]),
		// The target keeps the objects' names and takes the zone as it was asked.
		srvAnswer("_HTTPS._tcp.Kubernetes.default.svc.Cluster.Local.",
			[]string{"_HTTPS._tcp.Kubernetes.default.svc.Cluster.Local. 5 IN SRV 0 100 443 kubernetes.default.svc.Cluster.Local."},
			"kubernetes.default.svc.Cluster.Local. 5 IN A 10.96.0.1"),
	},
		nxdomain("_ftp._tcp.web.prod.svc.cluster.local.", tSRV, tA),
		nodata("out.prod.svc.cluster.local.", tSRV),
	))
}

func TestReverse(t *testing.T) {
	reverseOf := func(addr string) string {
		name, err := dns.ReverseAddr(addr)
		if err != nil {
			t.Fatal(err)
		}
		return name
	}
	ptr := func(addr, target string) test.Case {
		name := reverseOf(addr)
		return answer(name, tPTR, name+" 5 IN PTR "+target)
	}
	arpa := records("in-addr.arpa. 5 IN SOA ns.dns.in-addr.arpa. hostmaster.in-addr.arpa. 1 7200 1800 86400 5")
	check(t, newPlugin(t, allZones, nt.Store(cluster()...)), []test.Case{
		ptr("10.96.0.10", "kube-dns.kube-system.svc.cluster.local."),
		ptr("fd00:10:96::1", "web.prod.svc.cluster.local."),
		ptr("10.244.1.6", "db-0.db.prod.svc.cluster.local."),
		ptr("10.244.1.7", "10-244-1-7.plain.prod.svc.cluster.local."),
		ptr("fd00:10:244:2::", "fd00-10-244-2--0.plain.prod.svc.cluster.local."),
		{Qname: reverseOf("10.96.0.10"), Qtype: tA, Ns: arpa},
		{Qname: reverseOf("10.244.9.9"), Qtype: tPTR, Rcode: dns.RcodeNameError, Ns: arpa}, // a slice of no service
		{Qname: reverseOf("10.244.3.6"), Qtype: tPTR, Rcode: dns.RcodeNameError, Ns: arpa}, // not ready
		{Qname: "96.10.in-addr.arpa.", Qtype: tPTR, Rcode: dns.RcodeNameError, Ns: arpa},
		{Qname: "web.prod.svc.in-addr.arpa.", Qtype: tA, Rcode: dns.RcodeNameError, Ns: arpa},
	})
	check(t, newPlugin(t, allZones+" {\nfallthrough in-addr.arpa\n}", nt.Store(cluster()...)), append([]test.Case{
		{Qname: reverseOf("8.8.8.8"), Qtype: tPTR, Rcode: fellThrough},
		ptr("10.96.0.1", "kubernetes.default.svc.cluster.local."),
	}, nxdomain("none.prod.svc.cluster.local.", tA)...))
}

func TestExternalNames(t *testing.T) {
	k := newPlugin(t, allZones, nt.Store(cluster()...))
	in := "in.prod.svc.cluster.local. 5 IN CNAME web.prod.svc.cluster.local."
	web := "web.prod.svc.cluster.local. 5 IN A 10.96.1.1"
	example := records("example.net. 60 IN SOA ns.example.net. root.example.net. 1 2 3 4 5")
	check(t, k, slices.Concat([]test.Case{
		answer("out.prod.svc.cluster.local.", tCNAME, "out.prod.svc.cluster.local. 5 IN CNAME www.example.net."),
		answer("out.prod.svc.cluster.local.", tA, "out.prod.svc.cluster.local. 5 IN CNAME www.example.net.", "www.example.net. 60 IN A 192.0.2.80"),
		// The other family is not there: the CNAME stays, and the SOA of the target says how long.
		{Qname: "out.prod.svc.cluster.local.", Qtype: tAAAA, Answer: records("out.prod.svc.cluster.local. 5 IN CNAME www.example.net."), Ns: example},
		answer("in.prod.svc.cluster.local.", tA, in, web),
		answer("in2.prod.svc.cluster.local.", tA, in, "in2.prod.svc.cluster.local. 5 IN CNAME in.prod.svc.cluster.local.", web),
		{Qname: "dangling.prod.svc.cluster.local.", Qtype: tA, Rcode: dns.RcodeNameError, Ns: records(soaText),
			Answer: records("dangling.prod.svc.cluster.local. 5 IN CNAME none.prod.svc.cluster.local.")},
		{Qname: "gone.prod.svc.cluster.local.", Qtype: tA, Rcode: dns.RcodeNameError, Ns: example,
			Answer: records("gone.prod.svc.cluster.local. 5 IN CNAME gone.example.net.")},
		{Qname: "loop-a.prod.svc.cluster.local.", Qtype: tA, Rcode: dns.RcodeServerFailure, Ns: records(soaText),
			Answer: records("loop-a.prod.svc.cluster.local. 5 IN CNAME loop-b.prod.svc.cluster.local.", "loop-b.prod.svc.cluster.local. 5 IN CNAME loop-a.prod.svc.cluster.local.")},
	},
		nodata("out.prod.svc.cluster.local.", tTXT, tMX, tHTTPS),
		nxdomain("out-v4.prod.svc.cluster.local.", tA),
		nxdomain("_http._tcp.out.prod.svc.cluster.local.", tSRV, tA),
	))
	asked := k.upstream.(*fakeUpstream).asked
	want := []string{"www.example.net. A", "www.example.net. AAAA", "gone.example.net. A"}
	if !slices.Equal(asked, want) {
		t.Errorf("upstream was asked %q, want %q", asked, want)
	}
}

func TestDanglingExternalNameFallsThrough(t *testing.T) {
	k := newPlugin(t, allZones+" {\nfallthrough\n}", nt.Store(cluster()...))
	ask(t, k, test.Case{Qname: "dangling.prod.svc.cluster.local.", Qtype: tA}.Msg())
	if asked := k.upstream.(*fakeUpstream).asked; !slices.Equal(asked, []string{"none.prod.svc.cluster.local. A"}) {
		t.Errorf("the rest of the chain was asked %q, want the missing target", asked)
	}
}

func TestPodNames(t *testing.T) {
	store := nt.Store(cluster()...)
	v4 := answer("10-244-1-6.prod.pod.cluster.local.", tA, "10-244-1-6.prod.pod.cluster.local. 5 IN A 10.244.1.6")
	v6 := answer("fd00-10-244-1--6.prod.pod.cluster.local.", tAAAA, "fd00-10-244-1--6.prod.pod.cluster.local. 5 IN AAAA fd00:10:244:1::6")
	other := answer("192-0-2-1.prod.pod.cluster.local.", tA, "192-0-2-1.prod.pod.cluster.local. 5 IN A 192.0.2.1")
	// In-tree answers SRV too, with port 0; labels in front of the address do not show in the target.
	srv := srvAnswer("x.10-244-1-6.Prod.pod.CLUSTER.local.", []string{"x.10-244-1-6.Prod.pod.CLUSTER.local. 5 IN SRV 0 100 0 10-244-1-6.prod.pod.CLUSTER.local."},
		"10-244-1-6.prod.pod.CLUSTER.local. 5 IN A 10.244.1.6")
	t.Run("disabled", func(t *testing.T) {
		check(t, newPlugin(t, allZones, store), slices.Concat(
			nxdomain("10-244-1-6.prod.pod.cluster.local.", tA), nxdomain("prod.pod.cluster.local.", tA), nodata("pod.cluster.local.", tA, tTXT)))
	})
	t.Run("insecure", func(t *testing.T) {
		check(t, newPlugin(t, allZones+" {\npods insecure\n}", store), slices.Concat([]test.Case{v4, v6, other, srv},
			nodata("10-244-1-6.prod.pod.cluster.local.", tAAAA, tTXT),
			nodata("prod.pod.cluster.local.", tA),
			nxdomain("db-0.prod.pod.cluster.local.", tA),
			nxdomain("10-244-1-6.none.pod.cluster.local.", tA)))
	})
	t.Run("verified", func(t *testing.T) {
		check(t, newPlugin(t, allZones+" {\npods verified\n}", store), slices.Concat([]test.Case{v4, v6, srv},
			nodata("10-244-1-6.prod.pod.cluster.local.", tAAAA),
			nxdomain("192-0-2-1.prod.pod.cluster.local.", tA),
			nxdomain("10-244-1-6.default.pod.cluster.local.", tA)))
	})
}

func TestApex(t *testing.T) {
	k := newPlugin(t, allZones, nt.Store(cluster()...))
	version := answer("dns-version.cluster.local.", tTXT, `dns-version.cluster.local. 28800 IN TXT "1.1.0"`)
	nsDefault := test.Case{Qname: "cluster.local.", Qtype: tNS, Answer: records("cluster.local. 5 IN NS ns.dns.cluster.local."), Extra: records("ns.dns.cluster.local. 5 IN A 10.244.0.53")}
	mixed := test.Case{Qname: "CLUSTER.local.", Qtype: tNS, Answer: records("CLUSTER.local. 5 IN NS ns.dns.CLUSTER.local."), Extra: records("ns.dns.CLUSTER.local. 5 IN A 10.244.0.53")}
	check(t, k, slices.Concat([]test.Case{
		version, nsDefault, mixed,
		answer("cluster.local.", tSOA, soaText),
		answer("ns.dns.cluster.local.", tA, "ns.dns.cluster.local. 5 IN A 10.244.0.53"),
		answer("ns.dns.CLUSTER.local.", tA, "ns.dns.CLUSTER.local. 5 IN A 10.244.0.53"),
	},
		nodata("cluster.local.", tA, tAAAA, tTXT, tSRV, tMX, tHTTPS),
		nodata("svc.cluster.local.", tA, tTXT, tNS, tSOA),
		nodata("dns.cluster.local.", tA, tTXT),
		nodata("ns.dns.cluster.local.", tAAAA, tTXT, tNS),
		nodata("dns-version.cluster.local.", tA),
		nxdomain("dns-versions.cluster.local.", tTXT),
	))
	// With a service in front of this server, NS names that.
	store := nt.Store(append(cluster(), nt.Slice("kube-system/kube-dns-4", "kube-dns", "dns/UDP/53", nt.Ready("10.244.0.53", "", "coredns")))...)
	check(t, newPlugin(t, allZones, store), []test.Case{
		{Qname: "cluster.local.", Qtype: tNS, Answer: records("cluster.local. 5 IN NS kube-dns.kube-system.svc.cluster.local."),
			Extra: records("kube-dns.kube-system.svc.cluster.local. 5 IN A 10.96.0.10")},
		answer("ns.dns.cluster.local.", tA, "ns.dns.cluster.local. 5 IN A 10.96.0.10"),
	})
	// With a headless one, NS names the endpoints that share our slice, and no others.
	store = nt.Store(append(cluster(), nt.Headless("kube-system/dns", "dns/UDP/53"),
		nt.Slice("kube-system/dns-a", "dns", "dns/UDP/53", nt.Ready("10.244.0.53", "a", ""), nt.Ready("10.244.0.54", "b", "")),
		nt.Slice("kube-system/dns-b", "dns", "dns/UDP/53", nt.Ready("10.244.0.55", "c", "")))...)
	check(t, newPlugin(t, allZones, store), []test.Case{
		{Qname: "cluster.local.", Qtype: tNS,
			Answer: records("cluster.local. 5 IN NS a.dns.kube-system.svc.cluster.local.", "cluster.local. 5 IN NS b.dns.kube-system.svc.cluster.local."),
			Extra:  records("a.dns.kube-system.svc.cluster.local. 5 IN A 10.244.0.53", "b.dns.kube-system.svc.cluster.local. 5 IN A 10.244.0.54")},
	})
}

func TestViews(t *testing.T) {
	store := nt.Store(cluster()...)
	t.Run("namespaces", func(t *testing.T) {
		k := newPlugin(t, allZones+" {\nnamespaces prod\nnamespaces default\n}", store)
		check(t, k, slices.Concat(
			[]test.Case{answer("web.prod.svc.cluster.local.", tA, "web.prod.svc.cluster.local. 5 IN A 10.96.1.1")},
			nxdomain("web.hidden.svc.cluster.local.", tA), nxdomain("hidden.svc.cluster.local.", tA)))
		if got := k.pointers(store.Get(model.Ref{Kind: model.KindService, Key: model.Key{Namespace: "hidden", Name: "web"}}).(*model.Service).ClusterIPs[0]); got != nil {
			t.Errorf("PTR shows a hidden namespace: %q", got)
		}
	})
	t.Run("endpoint_pod_names", func(t *testing.T) {
		check(t, newPlugin(t, allZones+" {\nendpoint_pod_names\n}", store), slices.Concat([]test.Case{
			answer("plain-a.plain.prod.svc.cluster.local.", tA, "plain-a.plain.prod.svc.cluster.local. 5 IN A 10.244.1.7"),
			answer("db-0.db.prod.svc.cluster.local.", tA, "db-0.db.prod.svc.cluster.local. 5 IN A 10.244.1.6"),
		}, nxdomain("10-244-1-7.plain.prod.svc.cluster.local.", tA)))
	})
	t.Run("noendpoints", func(t *testing.T) {
		check(t, newPlugin(t, allZones+" {\nnoendpoints\n}", store), slices.Concat([]test.Case{
			answer("web.prod.svc.cluster.local.", tA, "web.prod.svc.cluster.local. 5 IN A 10.96.1.1"),
			{Qname: "6.1.244.10.in-addr.arpa.", Qtype: tPTR, Rcode: dns.RcodeNameError,
				Ns: records("in-addr.arpa. 5 IN SOA ns.dns.in-addr.arpa. hostmaster.in-addr.arpa. 1 7200 1800 86400 5")},
		}, nxdomain("db.prod.svc.cluster.local.", tA), nxdomain("10-244-1-5.web.prod.svc.cluster.local.", tA)))
	})
	t.Run("ignore empty_service", func(t *testing.T) {
		check(t, newPlugin(t, allZones+" {\nignore empty_service\n}", store), slices.Concat([]test.Case{
			answer("web.prod.svc.cluster.local.", tA, "web.prod.svc.cluster.local. 5 IN A 10.96.1.1"),
		}, nxdomain("multi.prod.svc.cluster.local.", tA)))
	})
	t.Run("ttl", func(t *testing.T) {
		check(t, newPlugin(t, allZones+" {\nttl 600\n}", store), []test.Case{
			answer("web.prod.svc.cluster.local.", tA, "web.prod.svc.cluster.local. 600 IN A 10.96.1.1"),
			answer("cluster.local.", tSOA, "cluster.local. 300 IN SOA ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 600"),
		})
	})
	t.Run("manifests imply namespaces", func(t *testing.T) {
		few := nt.Store(nt.Service("shop/web", "10.96.3.1", "http/TCP/80"))
		check(t, newPlugin(t, allZones, few), nxdomain("web.shop.svc.cluster.local.", tA))
		check(t, newPlugin(t, allZones+" {\nmanifests examples\n}", few), []test.Case{
			answer("web.shop.svc.cluster.local.", tA, "web.shop.svc.cluster.local. 5 IN A 10.96.3.1")})
	})
}

func TestUnsyncedNeverDenies(t *testing.T) {
	store := model.NewStore()
	nt.Apply(store, nt.Namespace("prod"), nt.Service("prod/web", "10.96.1.1", "http/TCP/80"), nt.External("prod/in", "late.prod.svc.cluster.local"))
	k := newPlugin(t, allZones+" {\npods insecure\nfallthrough\n}", store)
	if k.Ready() {
		t.Error("ready before the store is synced")
	}
	for _, name := range []string{"none.prod.svc.cluster.local.", "web.late.svc.cluster.local.", "1.0.96.10.in-addr.arpa.", "in.prod.svc.cluster.local.", "www.example.org.cluster.local."} {
		typ := tA
		if strings.HasSuffix(name, "arpa.") {
			typ = tPTR
		}
		m := new(dns.Msg).SetQuestion(name, typ)
		m.SetEdns0(1232, false)
		got := ask(t, k, m)
		if got == nil || got.Rcode != dns.RcodeServerFailure {
			t.Errorf("%s: want SERVFAIL, got %v", name, got)
			continue
		}
		if text := extendedError(got); text != "14 (Not Ready): (cluster state not synced)" {
			t.Errorf("%s: extended error %q", name, text)
		}
	}
	if got := ask(t, k, new(dns.Msg).SetQuestion("none.prod.svc.cluster.local.", tA)); got.Rcode != dns.RcodeServerFailure || got.IsEdns0() != nil {
		t.Errorf("a client without EDNS must get plain SERVFAIL: %v", got)
	}
	// What is known already is true, and the zone's own names do not depend on the cluster.
	check(t, k, []test.Case{
		answer("web.prod.svc.cluster.local.", tA, "web.prod.svc.cluster.local. 5 IN A 10.96.1.1"),
		answer("dns-version.cluster.local.", tTXT, `dns-version.cluster.local. 28800 IN TXT "1.1.0"`),
		{Qname: "cluster.local.", Qtype: tA, Ns: records(soaText)},
	})
	store.MarkSynced()
	check(t, k, []test.Case{{Qname: "none.prod.svc.cluster.local.", Qtype: tA, Rcode: fellThrough}})
}

func extendedError(m *dns.Msg) string {
	if opt := m.IsEdns0(); opt != nil {
		for _, o := range opt.Option {
			if ede, ok := o.(*dns.EDNS0_EDE); ok {
				return ede.String()
			}
		}
	}
	return ""
}

func TestTransfersAndOtherZones(t *testing.T) {
	k := newPlugin(t, allZones, nt.Store(cluster()...))
	for _, typ := range []uint16{tAXFRT, dns.TypeIXFR} {
		if got := ask(t, k, new(dns.Msg).SetQuestion("cluster.local.", typ)); got != nil {
			t.Errorf("%s was answered", dns.TypeToString[typ])
		}
	}
	check(t, k, []test.Case{{Qname: "www.example.org.", Qtype: tA, Rcode: fellThrough}})
	if k.Name() != "kubernetes" {
		t.Errorf("handler name = %q: autopath and k8s_external look for kubernetes", k.Name())
	}
}

// Requests are shared with the plugins around this one.
func TestRequestIsNotChanged(t *testing.T) {
	k := newPlugin(t, allZones, nt.Store(cluster()...))
	for _, name := range []string{"in2.prod.svc.cluster.local.", "CLUSTER.local.", "_HTTP._tcp.web.prod.svc.cluster.local."} {
		m := new(dns.Msg).SetQuestion(name, tA)
		m.SetEdns0(4096, true)
		before := m.Copy()
		ask(t, k, m)
		if m.String() != before.String() {
			t.Errorf("the request changed from\n%s\nto\n%s", before, m)
		}
	}
}
