package dns

import (
	"fmt"
	"testing"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/braidnet/braid/test/oracle/fakeapi"
)

// TestEndpointsHeadless asks our program what "endpoints headless" takes away and what it leaves, beside a
// server block without it.
func TestEndpointsHeadless(t *testing.T) {
	api, err := fakeapi.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(api.Stop)
	db := slice("prod/db-1", "db", "sql/TCP/5432", "10.244.0.1=db-0", "10.244.0.2!")
	db.Labels[corev1.IsHeadlessService] = "" // as the controller of EndpointSlices says it
	api.Put(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "prod"}}, service("prod/web", "10.96.0.1", "http/TCP/80"), slice("prod/web-1", "web", "http/TCP/8080", "10.244.1.1=web-0"),
		service("prod/db", "None", "sql/TCP/5432"), db, service("prod/bare", "None", "x/TCP/1"), slice("prod/bare-1", "bare", "x/TCP/1", "10.244.2.1=bare-0"))
	all := []*variant{
		{name: "all", zones: []string{"cluster.local."}, reverse: "in-addr.arpa", options: []string{"endpoints all"}},
		{name: "headless", zones: []string{"cluster.local."}, reverse: "in-addr.arpa", options: []string{"endpoints headless"}},
	}
	start(t, "ours", ours(t), corefile(t, all, api.URL(), "ours"))
	for _, v := range all {
		c := &client{addr: v.ours}
		eventually(t, v.name+" synced", func() error {
			if err := c.expect(v, "db.prod.svc", dns.RcodeSuccess, "10.244.0.1"); err != nil {
				return err
			}
			return c.expect(v, "none.prod.svc", dns.RcodeNameError) // SERVFAIL while something is not known
		})
		lost := map[string]int{"all": dns.RcodeSuccess, "headless": dns.RcodeNameError}[v.name]
		for _, tc := range []struct {
			name  string
			typ   uint16
			rcode int
		}{
			{"web.prod.svc.cluster.local.", dns.TypeA, dns.RcodeSuccess},
			{"_http._tcp.web.prod.svc.cluster.local.", dns.TypeSRV, dns.RcodeSuccess},
			{"web-0.web.prod.svc.cluster.local.", dns.TypeA, lost},
			{"1.1.244.10.in-addr.arpa.", dns.TypePTR, lost},
			{"1.0.96.10.in-addr.arpa.", dns.TypePTR, dns.RcodeSuccess},
			{"bare.prod.svc.cluster.local.", dns.TypeA, lost}, // headless, but its slice has no label that says so
			{"db-0.db.prod.svc.cluster.local.", dns.TypeA, dns.RcodeSuccess},
			{"_sql._tcp.db.prod.svc.cluster.local.", dns.TypeSRV, dns.RcodeSuccess},
			{"1.0.244.10.in-addr.arpa.", dns.TypePTR, dns.RcodeSuccess},
		} {
			got := newView(c.ask(question{variant: v, name: tc.name, typ: tc.typ, class: dns.ClassINET, edns: 1232}))
			if got.err != "" || got.rcode != tc.rcode || len(got.answer) != map[int]int{dns.RcodeSuccess: 1}[tc.rcode] {
				t.Errorf("endpoints %s: %s %s: want %s, got\n%s", v.name, tc.name, dns.Type(tc.typ), dns.RcodeToString[tc.rcode], got)
			}
		}
	}
	// A slice that comes later is held to the same rule.
	more := slice("prod/db-2", "db", "sql/TCP/5432", "10.244.0.3=db-2")
	more.Labels[corev1.IsHeadlessService] = ""
	api.Put(slice("prod/web-2", "web", "http/TCP/8080", "10.244.1.2=web-1"), more)
	for _, v := range all {
		c := &client{addr: v.ours}
		eventually(t, "a later endpoint", func() error { return c.expect(v, "db-2.db.prod.svc", dns.RcodeSuccess, "10.244.0.3") })
		want := []string{"10.244.1.2"}
		rcode := dns.RcodeSuccess
		if v.name == "headless" {
			want, rcode = nil, dns.RcodeNameError
		}
		if err := c.expect(v, "web-1.web.prod.svc", rcode, want...); err != nil {
			t.Error(fmt.Errorf("endpoints %s: %w", v.name, err))
		}
	}
}
