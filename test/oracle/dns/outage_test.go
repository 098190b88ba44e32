package dns

import (
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/braidnet/braid/test/oracle/fakeapi"
)

// page returns what an address says over HTTP.
func page(t *testing.T, url string) string {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s %v", url, resp.Status, err)
	}
	return string(text)
}

// TestOutage takes the API server away: what is known goes on being answered, the metric and /health say
// how old it is, and both are well again when it is back.
func TestOutage(t *testing.T) {
	api, err := fakeapi.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(api.Stop)
	api.Put(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "prod"}}, service("prod/web", "10.96.0.1", "http/TCP/80"))
	port, metrics, health := freePort(t), freePort(t), freePort(t)
	start(t, "ours", ours(t), fmt.Sprintf(".:%d {\n bind 127.0.0.1\n errors\n prometheus 127.0.0.1:%d\n health 127.0.0.1:%d\n kubernetes cluster.local {\n endpoint %s\n }\n}\n", port, metrics, health, api.URL()))
	v := &variant{name: "outage", zones: []string{"cluster.local."}}
	c := &client{addr: fmt.Sprintf("127.0.0.1:%d", port)}
	eventually(t, "synced", func() error { return c.expect(v, "web.prod.svc", dns.RcodeSuccess, "10.96.0.1") })
	healthy := func() error {
		if got := page(t, fmt.Sprintf("http://127.0.0.1:%d/health", health)); got != "OK" {
			return fmt.Errorf("/health says %q", got)
		}
		return nil
	}
	age := func() float64 {
		for _, line := range strings.Split(page(t, fmt.Sprintf("http://127.0.0.1:%d/metrics", metrics)), "\n") {
			if rest, ok := strings.CutPrefix(line, "braid_dns_source_age_seconds{source=\"endpoint "+api.URL()+"\"} "); ok {
				n, err := strconv.ParseFloat(rest, 64)
				if err != nil {
					t.Fatal(err)
				}
				return n
			}
		}
		t.Fatal("no metric tells the age")
		return 0
	}
	eventually(t, "healthy", healthy)
	api.Stop()
	want := "kubernetes: endpoint " + api.URL() + ": cluster state is "
	eventually(t, "the age in /health", func() error {
		if got := page(t, fmt.Sprintf("http://127.0.0.1:%d/health", health)); !strings.HasPrefix(got, "OK\n"+want) {
			return fmt.Errorf("/health says %q", got)
		}
		return nil
	})
	if err := c.expect(v, "web.prod.svc", dns.RcodeSuccess, "10.96.0.1"); err != nil {
		t.Error(err)
	}
	old := age()
	eventually(t, "a growing age", func() error {
		if now := age(); now <= old {
			return fmt.Errorf("%v s, %v s before", now, old)
		}
		return nil
	})
	eventually(t, "start the API server again", api.Start)
	eventually(t, "a young age", func() error {
		if now := age(); now >= old {
			return fmt.Errorf("%v s with the API server back", now)
		}
		return healthy()
	})
}
