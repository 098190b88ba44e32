package kubernetes

import (
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/coredns/caddy"
	"github.com/miekg/dns"

	nt "github.com/braidnet/braid/internal/names/namestest"
)

var hasPlace = regexp.MustCompile(`^\S+:\d+ - Error during parsing: .`)

// Whatever a Corefile says, it is read or refused with a place, and what is read has its invariants.
func FuzzCorefile(f *testing.F) {
	f.Add("kubernetes cluster.local in-addr.arpa ip6.arpa {\npods insecure\nupstream\nfallthrough in-addr.arpa ip6.arpa\n}")
	for word := range options {
		for _, args := range []string{"", "a", "5", "5s", "insecure", "headless", "a in (b, c)", "10.0.0.0/8 fd00::1", "clusterset.local", "empty_service"} {
			f.Add("kubernetes cluster.local clusterset.local 10.96.0.0/12 {\n" + word + " " + args + "\n}")
		}
	}
	f.Fuzz(func(t *testing.T, text string) {
		if strings.Contains(text, "import") { // reads files
			t.Skip()
		}
		cfg, err := parse(caddy.NewTestController("dns", text))
		if err != nil {
			if !hasPlace.MatchString(err.Error()) {
				t.Errorf("an error without a place: %v", err)
			}
			return
		}
		if cfg == nil {
			return
		}
		if !slices.Contains(cfg.zones, cfg.primary) || cfg.ttl > maxTTL || cfg.startupTimeout < 0 {
			t.Errorf("read %q as %+v", text, cfg)
		}
		for _, w := range cfg.warnings {
			if !strings.Contains(w, ":") {
				t.Errorf("a warning without a place: %q", w)
			}
		}
	})
}

// Whatever is asked, the answer has a wire form and, within our zones, is ours.
func FuzzQuestion(f *testing.F) {
	for _, name := range []string{"cluster.local.", "web.prod.svc.cluster.local.", "_http._tcp.web.prod.svc.cluster.local.", "db-0.db.prod.svc.CLUSTER.local.", "6.1.244.10.in-addr.arpa.", "fd00--1.prod.pod.cluster.local.",
		"a.pin._zone.db.prod.svc.cluster.local.", "db-0.east.db.prod.svc.clusterset.local.", "why.web.prod.svc.cluster.local.", `we\.b.prod.svc.cluster.local.`, "loop-a.prod.svc.cluster.local."} {
		for _, typ := range []uint16{tA, tSRV, tTXT, tPTR, tNS, tSOA, tANY} {
			f.Add(name, typ)
		}
	}
	f.Fuzz(func(t *testing.T, name string, typ uint16) {
		if _, ok := dns.IsDomainName(name); !ok || !dns.IsFqdn(name) || typ == dns.TypeAXFR || typ == dns.TypeIXFR {
			t.Skip()
		}
		m := new(dns.Msg).SetQuestion(name, typ)
		wire, err := m.Pack()
		if err != nil {
			t.Skip()
		}
		if err := m.Unpack(wire); err != nil {
			t.Skip()
		}
		k := newPlugin(t, "kubernetes cluster.local clusterset.local in-addr.arpa ip6.arpa {\nzonal\nmulticluster clusterset.local\npods insecure\nexplain\nnearest\n}", nt.Store(cluster()...))
		if got := ask(t, k, m); got != nil && (len(got.Question) != 1 || got.Question[0].Name != m.Question[0].Name) {
			t.Errorf("%s was answered as %v", name, got.Question)
		}
	})
}
