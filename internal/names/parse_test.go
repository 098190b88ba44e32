package names

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

func TestParse(t *testing.T) {
	tests := []struct {
		rel  string
		want Name
		ok   bool
	}{
		{"", Name{Kind: Node}, true},
		{"svc", Name{Kind: Node}, true},
		{"pod", Name{Kind: Node}, true},
		{"dns", Name{Kind: Node}, true},
		{"ns.dns", Name{Kind: NSHost}, true},
		{"dns-version", Name{Kind: Version}, true},
		{"prod.svc", Name{Kind: Svc, Namespace: "prod"}, true},
		{"prod.pod", Name{Kind: Pod, Namespace: "prod"}, true},
		{"10-0-0-1.prod.pod", Name{Kind: Pod, Namespace: "prod", Object: "10-0-0-1"}, true},
		{"web.prod.svc", Name{Kind: Svc, Namespace: "prod", Object: "web"}, true},
		{"db-0.web.prod.svc", Name{Kind: Svc, Namespace: "prod", Object: "web", Endpoint: "db-0"}, true},
		{"_tcp.web.prod.svc", Name{Kind: Svc, Namespace: "prod", Object: "web", Endpoint: "_tcp"}, true},
		{"_http._tcp.web.prod.svc", Name{Kind: Svc, Namespace: "prod", Object: "web", Port: "http", Protocol: "tcp"}, true},
		{"http.tcp.web.prod.svc", Name{Kind: Svc, Namespace: "prod", Object: "web", Port: "http", Protocol: "tcp"}, true},
		{"_._tcp.web.prod.svc", Name{Kind: Svc, Namespace: "prod", Object: "web", Protocol: "tcp"}, true},
		{`a\.b.prod.svc`, Name{Kind: Svc, Namespace: "prod", Object: `a\.b`}, true},
		{"x._http._tcp.web.prod.svc", Name{}, false},
		{"google.com", Name{}, false},
		{"web", Name{}, false},
		{"ns.dns2", Name{}, false},
		{"x.ns.dns", Name{}, false},
	}
	for _, tc := range tests {
		got, ok := Parse(tc.rel)
		if got != tc.want || ok != tc.ok {
			t.Errorf("Parse(%q) = %+v, %v; want %+v, %v", tc.rel, got, ok, tc.want, tc.ok)
		}
	}
}

// The parser cuts labels itself; miekg/dns is the judge of where they end.
func FuzzParse(f *testing.F) {
	for _, s := range []string{"", "svc", "_http._tcp.web.prod.svc", `a\.b\\.c.svc`, "a.b.c.d.e.svc", "1-2-3-4.x.pod", `\`, "..svc", "svc."} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, rel string) {
		n, ok := Parse(rel)
		if !ok || (n.Kind != Svc && n.Kind != Pod) {
			return
		}
		if n.Namespace == "" && n.Object != "" {
			if !strings.Contains(rel, ".") {
				t.Fatalf("Parse(%q) has an object without a namespace: %+v", rel, n)
			}
			return // an empty label; no wire name has one
		}
		if _, valid := dns.IsDomainName(rel); !valid || rel == "." || strings.HasSuffix(rel, ".") {
			return
		}
		labels := dns.SplitDomainName(rel)
		get := func(fromEnd int) string {
			if i := len(labels) - fromEnd; i >= 0 {
				return labels[i]
			}
			return ""
		}
		if n.Namespace != get(2) || n.Object != get(3) {
			t.Fatalf("Parse(%q) = %+v, labels are %q", rel, n, labels)
		}
		if len(labels) > 5 {
			t.Fatalf("Parse(%q) accepts %d labels", rel, len(labels))
		}
		if len(labels) == 5 && (n.Port != strings.TrimPrefix(get(5), "_") || n.Protocol != strings.TrimPrefix(get(4), "_")) {
			t.Fatalf("Parse(%q) = %+v, labels are %q", rel, n, labels)
		}
	})
}

func TestDashed(t *testing.T) {
	tests := []struct{ addr, label string }{
		{"10.0.0.1", "10-0-0-1"},
		{"2001:db8::", "2001-db8--0"},
		{"2001:db8::1", "2001-db8--1"},
		{"::1", "--1"},
		{"1:2:3:4:5:6:7:8", "1-2-3-4-5-6-7-8"},
	}
	for _, tc := range tests {
		a := netip.MustParseAddr(tc.addr)
		if got := DashedAddr(a); got != tc.label {
			t.Errorf("DashedAddr(%s) = %q, want %q", a, got, tc.label)
		}
		if got, ok := ParseDashed(tc.label); !ok || got != a {
			t.Errorf("ParseDashed(%q) = %s, %v; want %s", tc.label, got, ok, a)
		}
	}
	for _, label := range []string{"", "web", "1-2-3", "1-2-3-4-5", "300-0-0-1", "1-2-3-x", "--", "fe80--1%eth0", "01-2-3-4"} {
		got, ok := ParseDashed(label)
		if label == "--" { // all zeros
			if !ok || got != netip.IPv6Unspecified() {
				t.Errorf("ParseDashed(%q) = %s, %v", label, got, ok)
			}
			continue
		}
		if ok {
			t.Errorf("ParseDashed(%q) = %s, want nothing", label, got)
		}
	}
}

func FuzzReverse(f *testing.F) {
	f.Add("1.0.96.10.in-addr.arpa.")
	f.Add("1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa.")
	f.Add("96.10.in-addr.arpa.")
	f.Fuzz(func(t *testing.T, name string) {
		a, ok := ParseReverse(name)
		if !ok {
			return
		}
		back, err := dns.ReverseAddr(a.String())
		if err != nil {
			t.Fatalf("ParseReverse(%q) = %s: %v", name, a, err)
		}
		// A mapped address prints as IPv4 in miekg/dns; its own name is not one a resolver asks for.
		if back != name && !a.Is4In6() {
			t.Fatalf("ParseReverse(%q) = %s, whose name is %s", name, a, back)
		}
	})
}

func TestParseReverse(t *testing.T) {
	for _, text := range []string{"10.96.0.10", "255.255.255.255", "fd00:10:96::a", "2001:db8::1"} {
		a := netip.MustParseAddr(text)
		name, err := dns.ReverseAddr(text)
		if err != nil {
			t.Fatal(err)
		}
		if got, ok := ParseReverse(name); !ok || got != a {
			t.Errorf("ParseReverse(%s) = %s, %v; want %s", name, got, ok, a)
		}
	}
	for _, name := range []string{"in-addr.arpa.", "96.10.in-addr.arpa.", "1.1.0.96.10.in-addr.arpa.", "x.0.96.10.in-addr.arpa.", "ip6.arpa.", "1.0.ip6.arpa.", "web.prod.svc.cluster.local."} {
		if a, ok := ParseReverse(name); ok {
			t.Errorf("ParseReverse(%s) = %s, want nothing", name, a)
		}
	}
}
