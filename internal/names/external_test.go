package names

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/braidnet/braid/internal/model"
	nt "github.com/braidnet/braid/internal/names/namestest"
)

func TestResolveExternal(t *testing.T) {
	lb := nt.Service("prod/web", "10.96.0.1", "http/TCP/80 https/TCP/443")
	lb.ExternalIPs = []netip.Addr{netip.MustParseAddr("192.0.2.1")}
	lb.Ingress = []model.Ingress{{Addr: netip.MustParseAddr("2001:db8::1")}, {Hostname: "lb.example.net"}}
	x := follow(nt.Store(lb, nt.Service("prod/in", "10.96.0.2", "http/TCP/80"), nt.Headless("prod/db", "sql/TCP/1"),
		nt.Slice("prod/db-1", "db", "sql/TCP/1", nt.Ready("10.1.0.1", "db-0", "")), nt.Slice("prod/in-1", "in", "http/TCP/80", nt.Ready("10.1.0.2", "", ""))))
	for _, tc := range []struct {
		rel      string
		headless bool
		exists   bool
		want     string
	}{
		{"web.prod.svc", false, true, "192.0.2.1:80 2001:db8::1:80 lb.example.net:80 192.0.2.1:443 2001:db8::1:443 lb.example.net:443"},
		{"_https._tcp.web.prod.svc", false, true, "192.0.2.1:443 2001:db8::1:443 lb.example.net:443"},
		{"_ftp._tcp.web.prod.svc", false, false, ""},
		{"in.prod.svc", true, false, ""},
		{"10-1-0-2.in.prod.svc", true, true, "10-1-0-2/10.1.0.2:80"},
		{"10-1-0-2.in.prod.svc", false, false, ""},
		{"db.prod.svc", false, false, ""},
		{"db.prod.svc", true, true, "db-0/10.1.0.1:1"},
		{"none.prod.svc", true, false, ""},
	} {
		n, _ := Parse(tc.rel)
		list, exists := x.ResolveExternal(n, View{}, tc.headless)
		var got []string
		for _, o := range list {
			where := o.Host
			if where == "" {
				where = o.Addr.String()
			}
			got = append(got, strings.TrimPrefix(fmt.Sprintf("%s/%s:%d", o.Labels(), where, o.Port), "/"))
		}
		if exists != tc.exists || strings.Join(got, " ") != tc.want {
			t.Errorf("%s headless %v: exists %v, %q; want %v, %q", tc.rel, tc.headless, exists, got, tc.exists, tc.want)
		}
	}
	if keys := x.ExternalIP(netip.MustParseAddr("2001:db8::1")); fmt.Sprint(keys) != "[prod/web]" {
		t.Errorf("the load balancer's address is of %v", keys)
	}
}
