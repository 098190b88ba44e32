package main

import (
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// from sends one query over UDP from an address of the loopback network.
func from(t *testing.T, client, server, name string, typ uint16) *dns.Msg {
	t.Helper()
	m := new(dns.Msg).SetQuestion(name, typ)
	m.SetEdns0(1232, false)
	c := dns.Client{Timeout: patience, Dialer: &net.Dialer{LocalAddr: &net.UDPAddr{IP: net.ParseIP(client)}, Timeout: patience}}
	got, _, err := c.Exchange(m, server)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// extended returns the text of an extended DNS error, "" without one.
func extended(m *dns.Msg) string {
	if o := m.IsEdns0(); o != nil {
		for _, option := range o.Option {
			if e, ok := option.(*dns.EDNS0_EDE); ok {
				return e.ExtraText
			}
		}
	}
	return ""
}

// serving starts the program with options of the kubernetes plugin on manifests.
func serving(t *testing.T, manifests, options string) (addr string) {
	t.Helper()
	work, port := t.TempDir(), freePort(t)
	write(t, filepath.Join(work, "all.yaml"), manifests)
	corefile := filepath.Join(work, "Corefile")
	write(t, corefile, fmt.Sprintf(".:%d {\n    bind 127.0.0.1\n    errors\n    kubernetes cluster.local 10.0.0.0/8 {\n        manifests %s\n        %s\n    }\n}\n", port, filepath.Join(work, "all.yaml"), options))
	p := start(t, corefile, fmt.Sprintf("127.0.0.1:%d", port))
	p.eventually(t, "web.prod.svc.cluster.local.", dns.TypeA, "NOERROR 10.96.1.1")
	return p.addr
}

// Only clients that explain names are told why an answer is negative, and have names why.NAME.
func TestExplain(t *testing.T) {
	const told, other = "127.0.7.1", "127.0.8.1"
	addr := serving(t, manifests, "explain 127.0.7.0/24")
	for _, tc := range []struct {
		name  string
		typ   uint16
		short string
		why   string
	}{
		{"wep.prod.svc.cluster.local.", dns.TypeA, "NXDOMAIN", "namespace prod has no service wep; did you mean web?"},
		{"web.prd.svc.cluster.local.", dns.TypeA, "NXDOMAIN", "there is no namespace prd; did you mean prod?"},
		{"_sqk._tcp.db.prod.svc.cluster.local.", dns.TypeSRV, "NXDOMAIN", "no port _sqk._tcp; did you mean _sql._tcp?"},
		{"db.prod.svc.cluster.local.", dns.TypeAAAA, "NOERROR", "service prod/db: 1 of 2 endpoints ready"},
		{"9.9.96.10.in-addr.arpa.", dns.TypePTR, "NXDOMAIN", "10.96.9.9 is no cluster IP of a service and no ready endpoint of one"},
		{"web.prod.svc.cluster.local.", dns.TypeA, "NOERROR 10.96.1.1", ""},
	} {
		m := from(t, told, addr, tc.name, tc.typ)
		if got := extended(m); short(m) != tc.short || !strings.Contains(got, tc.why) || (tc.why == "") != (got == "") {
			t.Errorf("%s %s = %q with %q, want %q with %q", tc.name, dns.Type(tc.typ), short(m), got, tc.short, tc.why)
		}
		m = from(t, other, addr, tc.name, tc.typ)
		if got := extended(m); short(m) != tc.short || got != "" {
			t.Errorf("%s %s from another client = %q with %q, want %q and no word", tc.name, dns.Type(tc.typ), short(m), got, tc.short)
		}
	}
	const why = "why.db.prod.svc.cluster.local."
	if m := from(t, told, addr, why, dns.TypeTXT); !strings.HasPrefix(short(m), `NOERROR "service prod/db: 1 of 2 endpoints ready, headless`) || m.Answer[0].Header().Ttl != 0 {
		t.Errorf("%s = %v", why, m)
	}
	if m := from(t, other, addr, why, dns.TypeTXT); short(m) != "NXDOMAIN" {
		t.Errorf("%s from another client = %q, want NXDOMAIN", why, short(m))
	}
}

// Two nodes in one zone and one in another; the loopback network is that of their pods.
const places = `
---
apiVersion: v1
kind: Node
metadata: {name: a, labels: {topology.kubernetes.io/zone: east}}
spec: {podCIDR: 127.0.1.0/24, podCIDRs: [127.0.1.0/24]}
---
apiVersion: v1
kind: Node
metadata: {name: b, labels: {topology.kubernetes.io/zone: east}}
spec: {podCIDR: 127.0.2.0/24, podCIDRs: [127.0.2.0/24]}
status: {addresses: [{type: InternalIP, address: 127.0.9.2}]}
---
apiVersion: v1
kind: Node
metadata: {name: c, labels: {topology.kubernetes.io/zone: west}}
spec: {podCIDR: 127.0.3.0/24, podCIDRs: [127.0.3.0/24]}
---
apiVersion: v1
kind: Service
metadata: {name: spread, namespace: prod}
spec: {clusterIP: None, ports: [{name: x, port: 1}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: spread-1, namespace: prod, labels: {kubernetes.io/service-name: spread}}
addressType: IPv4
ports: [{name: x, port: 1, protocol: TCP}]
endpoints:
- {addresses: [10.9.3.5], nodeName: c, zone: west}
- {addresses: [10.9.2.5], nodeName: b, zone: east}
- {addresses: [10.9.1.5], nodeName: a, zone: east}
- {addresses: [10.9.2.6], nodeName: b, zone: east}
- {addresses: [10.9.1.6], nodeName: a, zone: east}
`

// A client gets the addresses of its own node first, then those of its zone, each in random order; a
// client that no node has gets what everybody gets without the option.
func TestNearest(t *testing.T) {
	addr, plain := serving(t, manifests+places, "nearest"), serving(t, manifests+places, "")
	order := func(client, server string) (out []string) {
		for _, rr := range from(t, client, server, "spread.prod.svc.cluster.local.", dns.TypeA).Answer {
			out = append(out, rr.(*dns.A).A.String())
		}
		return out
	}
	for client, want := range map[string][]string{ // the third number of an address is that of its node
		"127.0.1.77": {"1", "1", "2", "2", "3"},
		"127.0.2.77": {"2", "2", "1", "1", "3"},
		"127.0.9.2":  {"2", "2", "1", "1", "3"},
	} {
		seen := map[string]bool{}
		for deadline := time.Now().Add(patience); len(seen) < 4 && time.Now().Before(deadline); {
			got := order(client, addr)
			var nodes []string
			for _, a := range got {
				nodes = append(nodes, strings.Split(a, ".")[2])
			}
			if !slices.Equal(nodes, want) {
				t.Fatalf("%s gets %v, want nodes %v", client, got, want)
			}
			seen[got[0]], seen[got[2]] = true, true
		}
		if len(seen) != 4 {
			t.Errorf("%s: only %v come first in their group", client, seen)
		}
	}
	for range 5 {
		if got := order("127.0.3.77", addr); len(got) != 5 || got[0] != "10.9.3.5" {
			t.Errorf("a client on node c gets %v", got)
		}
		if got, want := order("127.0.9.9", addr), order("127.0.1.77", plain); len(want) != 5 || !slices.Equal(got, want) {
			t.Errorf("an unknown client gets %v, want %v as without nearest", got, want)
		}
	}
}
