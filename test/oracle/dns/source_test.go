package dns

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/miekg/dns"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/braidnet/braid/test/oracle/fakeapi"
)

// TestAPIServer takes our program through the life of its API server: not there yet, there, changing,
// ending watches, forgetting history, gone and back with another state.
func TestAPIServer(t *testing.T) {
	api, err := fakeapi.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(api.Stop)
	api.Put(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "prod"}}, service("prod/web", "10.96.0.1", "http/TCP/80"), service("prod/old", "10.96.0.2", "http/TCP/80"),
		service("prod/db", "None", "sql/TCP/5432"), slice("prod/db-1", "db", "sql/TCP/5432", "10.244.0.1=db-0"), pod("prod/db-0", corev1.PodRunning, "10.244.0.1"))
	api.Stop()
	all := []*variant{
		{name: "pods", zones: []string{"cluster.local."}, options: []string{"pods verified", "startup_timeout 100ms", "fallthrough"}, behind: true, verified: true},
	}
	start(t, "ours", ours(t), corefile(t, all, api.URL(), "ours"))
	c := &client{addr: all[0].ours}
	want := func(when, rel string, rcode int, addrs ...string) {
		t.Helper()
		eventually(t, when, func() error { return c.expect(all[0], rel, rcode, addrs...) })
	}
	for _, rel := range []string{"web.prod.svc", "none.prod.svc", "prod.svc", "none.svc", "10-244-0-1.prod.pod"} {
		want("before the first state", rel, dns.RcodeServerFailure)
		if m, _, err := c.ask(all[0].question(rel)); err != nil || !strings.Contains(m.String(), "cluster state not synced") {
			t.Errorf("%s before the first state is not explained: %v\n%v", rel, err, m)
		}
	}
	restart := func() {
		t.Helper()
		eventually(t, "start the API server again", api.Start)
	}
	restart()
	want("synced", "web.prod.svc", dns.RcodeSuccess, "10.96.0.1")
	want("synced", "db-0.db.prod.svc", dns.RcodeSuccess, "10.244.0.1")
	want("synced", "10-244-0-1.prod.pod", dns.RcodeSuccess, "10.244.0.1")
	want("synced", "none.prod.svc", dns.RcodeSuccess, "192.0.2.99") // falls through now

	api.Put(slice("prod/db-1", "db", "sql/TCP/5432", "10.244.0.1=db-0", "10.244.0.2=db-1"), service("prod/new", "10.96.0.3", ""))
	want("live change", "db.prod.svc", dns.RcodeSuccess, "10.244.0.1", "10.244.0.2")
	want("live change", "new.prod.svc", dns.RcodeSuccess, "10.96.0.3")
	api.Delete(service("prod/new", "10.96.0.3", ""))
	want("live deletion", "new.prod.svc", dns.RcodeSuccess, "192.0.2.99")

	api.CloseWatches()
	api.Put(service("prod/web", "10.96.0.4", "http/TCP/80"))
	want("after the watches ended", "web.prod.svc", dns.RcodeSuccess, "10.96.0.4")

	api.Stop()
	want("API server gone", "web.prod.svc", dns.RcodeSuccess, "10.96.0.4")
	want("API server gone", "old.prod.svc", dns.RcodeSuccess, "10.96.0.2")
	api.Delete(service("prod/old", "10.96.0.2", ""), pod("prod/db-0", corev1.PodRunning, "10.244.0.1"))
	api.Put(service("prod/web", "10.96.0.5", "http/TCP/80"), pod("prod/db-9", corev1.PodRunning, "10.244.0.9"))
	api.Forget() // a restart from a backup: what was watched is unknown
	restart()
	want("API server back", "web.prod.svc", dns.RcodeSuccess, "10.96.0.5")
	want("API server back", "old.prod.svc", dns.RcodeSuccess, "192.0.2.99")
	want("API server back", "10-244-0-1.prod.pod", dns.RcodeSuccess, "192.0.2.99")
	want("API server back", "10-244-0-9.prod.pod", dns.RcodeSuccess, "10.244.0.9")
	onlyReads(t, api, "/namespaces", "/services", "/pods", "discovery.k8s.io/endpointslices")
}

// TestPermissions starts our program with options that need less, and looks at what it asks for.
func TestPermissions(t *testing.T) {
	for _, tc := range []struct {
		name    string
		options []string
		kinds   []string
	}{
		{"default", nil, []string{"/namespaces", "/services", "discovery.k8s.io/endpointslices"}},
		{"insecure", []string{"pods insecure"}, []string{"/namespaces", "/services", "discovery.k8s.io/endpointslices"}},
		{"noendpoints", []string{"noendpoints"}, []string{"/namespaces", "/services"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			api, err := fakeapi.New()
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(api.Stop)
			api.Put(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "prod"}}, service("prod/web", "10.96.0.1", ""))
			v := &variant{name: tc.name, zones: []string{"cluster.local."}, options: tc.options}
			start(t, "ours", ours(t), corefile(t, []*variant{v}, api.URL(), "ours"))
			c := &client{addr: v.ours}
			eventually(t, "synced", func() error { return c.expect(v, "web.prod.svc", dns.RcodeSuccess, "10.96.0.1") })
			eventually(t, "watching", func() error {
				for _, k := range tc.kinds {
					if api.Watching(k[strings.LastIndexByte(k, '/')+1:]) == 0 {
						return errors.New("no watch of " + k)
					}
				}
				return nil
			})
			onlyReads(t, api, tc.kinds...)
		})
	}
}

// onlyReads checks that nothing but list and watch of the given resources was asked for, and each of these was watched.
func onlyReads(t *testing.T, api *fakeapi.Server, resources ...string) {
	t.Helper()
	left := map[string]bool{}
	for _, r := range resources {
		left[r] = true
	}
	for r, n := range api.Asked() {
		kind := r.Group + "/" + r.Resource
		known := false
		for _, want := range resources {
			known = known || want == kind
		}
		if !known || (r.Verb != "list" && r.Verb != "watch") {
			t.Errorf("%d requests to %s, want only list and watch of %v", n, r, resources)
		}
		if r.Verb == "watch" {
			delete(left, kind)
		}
	}
	if len(left) > 0 {
		t.Errorf("not watched: %v", left)
	}
}

// TestSilence asks what makes stock CoreDNS send nothing at all: PTR of an endpoint in a slice
// without a service, and PTR in the root zone. Ours answers.
func TestSilence(t *testing.T) {
	api, err := fakeapi.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(api.Stop)
	api.Put(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "prod"}}, service("prod/web", "10.96.0.1", "http/TCP/80"), slice("prod/orphan", "", "x/TCP/1", "10.244.0.1"),
		slice("prod/web-1", "web", "http/TCP/80", "10.244.0.2"))
	all := []*variant{{name: "zone", zones: []string{"cluster.local."}, reverse: "in-addr.arpa"}, {name: "root", zones: []string{"."}}}
	start(t, "stock", stock(t), corefile(t, all, api.URL(), "stock"))
	start(t, "ours", ours(t), corefile(t, all, api.URL(), "ours"))
	for _, tc := range []struct {
		v      *variant
		addr   string
		rcode  int
		answer string
	}{
		{all[0], "10.244.0.1", dns.RcodeNameError, ""},
		{all[1], "10.244.0.2", dns.RcodeSuccess, "2.0.244.10.in-addr.arpa. 5 IN PTR 10-244-0-2.web.prod.svc."},
		{all[1], "10.96.0.1", dns.RcodeSuccess, "1.0.96.10.in-addr.arpa. 5 IN PTR web.prod.svc."},
	} {
		p := newPair(tc.v)
		defer p.close()
		eventually(t, "synced", func() error {
			return errors.Join(p.stock.expect(tc.v, "web.prod.svc", dns.RcodeSuccess, "10.96.0.1"), p.ours.expect(tc.v, "web.prod.svc", dns.RcodeSuccess, "10.96.0.1"))
		})
		x := p.ask(question{variant: tc.v, name: reverseOf(tc.addr), typ: dns.TypePTR, class: dns.ClassINET})
		if x.stock.err == "" {
			t.Errorf("stock CoreDNS answers now, so this belongs to the comparison:\n%s", x)
		}
		if x.ours.rcode != tc.rcode || strings.Join(x.ours.answer, " ") != tc.answer || x.ours.err != "" {
			t.Errorf("want %s %q:\n%s", dns.RcodeToString[tc.rcode], tc.answer, x)
		}
	}
}

func (v *variant) question(rel string) question {
	return question{variant: v, name: relative(rel, v.zones[0]), typ: dns.TypeA, class: dns.ClassINET, edns: 1232}
}

// expect asks for the addresses of a name.
func (c *client) expect(v *variant, rel string, rcode int, addrs ...string) error {
	got := newView(c.ask(v.question(rel)))
	have := ""
	for _, rr := range got.answer {
		have += rr[strings.LastIndexByte(rr, ' ')+1:] + " "
	}
	if got.err != "" || got.rcode != rcode || strings.TrimSpace(have) != strings.Join(addrs, " ") {
		return fmt.Errorf("%s: want %s %v, got\n%s", rel, dns.RcodeToString[rcode], addrs, got)
	}
	return nil
}
