package dns

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/braidnet/braid/internal/source"
	"github.com/braidnet/braid/test/oracle/fakeapi"
)

// neighbours are server blocks in which other plugins look at the kubernetes plugin: at its metadata (in
// templates, views, rewrites and lists), at the client's search path, at its zones.
const neighbours = `
.:%[1]d {
    bind 127.0.0.1
    errors
    metadata
    view other {
        expr metadata('kubernetes/namespace') == 'viewed'
    }
    template IN A {
        answer "{{ .Name }} 60 IN A 192.0.2.200"
    }
    kubernetes cluster.local {
        endpoint %[2]s
        pods verified
    }
}
.:%[1]d {
    bind 127.0.0.1
    errors
    metadata
    rewrite stop name exact alias.test web.hand.svc.cluster.local
    rewrite name suffix .cluster.example .cluster.local answer auto
    autopath @kubernetes
    acl cluster.local {
        block type SRV net 127.0.0.0/8
        filter type MX net 127.0.0.0/8
        allow
    }
    header {
        response set ra
    }
    template IN LOC cluster.local {
        answer "{{ .Name }} 60 IN TXT \"{{ .Meta \"kubernetes/kind\" }} {{ .Meta \"kubernetes/namespace\" }} {{ .Meta \"kubernetes/service\" }} {{ .Meta \"kubernetes/endpoint\" }} {{ .Meta \"kubernetes/port-name\" }} {{ .Meta \"kubernetes/protocol\" }} {{ .Meta \"kubernetes/client-namespace\" }} {{ .Meta \"kubernetes/client-pod-name\" }} {{ .Meta \"kubernetes/client-label/app\" }} {{ .Meta \"kubernetes/parse-error\" }}\""
    }
    transfer cluster.local clusterset.local ext.test {
        to *
    }
    k8s_external ext.test {
        headless
    }
    kubernetes cluster.local clusterset.local in-addr.arpa ip6.arpa {
        endpoint %[2]s
        pods verified
        multicluster clusterset.local
    }
    file %[3]s example.net
}
`

// pairOn starts both programs with one Corefile.
func pairOn(t *testing.T, text, api string) (*pair, *variant) {
	t.Helper()
	p, v, _ := programsOn(t, text, api, func(string, string) {})
	return p, v
}

// programsOn starts both programs with one Corefile, in which a port, the API server, a zone file and a
// folder are to be filled in; before is called with that folder before the program starts.
func programsOn(t *testing.T, text, api string, before func(which, folder string)) (p *pair, v *variant, programs map[string]*program) {
	t.Helper()
	v = &variant{name: "neighbours", zones: []string{"cluster.local."}, verified: true}
	programs = map[string]*program{}
	for _, which := range []string{"stock", "ours"} {
		folder := t.TempDir()
		zone := filepath.Join(folder, "db.example.net")
		if err := os.WriteFile(zone, []byte(exampleNet), 0o644); err != nil {
			t.Fatal(err)
		}
		before(which, folder)
		port := freePort(t)
		*v.address(which) = fmt.Sprintf("127.0.0.1:%d", port)
		path := map[string]func(*testing.T) string{"stock": stock, "ours": ours}[which](t)
		programs[which] = start(t, which, path, fmt.Sprintf(text, port, api, zone, folder))
	}
	p = newPair(v)
	t.Cleanup(p.close)
	return p, v, programs
}

func neighbourCluster() []fakeapi.Object {
	client := pod("hand/client", corev1.PodRunning, "127.0.0.1")
	client.Labels = map[string]string{"app": "web"}
	viewed := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "viewed"}}
	return append(handCluster(), client, viewed, service("viewed/web", "10.96.88.1", "http/TCP/80"))
}

// TestNeighbours asks what depends on other plugins; both programs must say the same to the letter.
func TestNeighbours(t *testing.T) {
	api, err := fakeapi.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(api.Stop)
	api.Put(neighbourCluster()...)
	p, v := pairOn(t, neighbours, api.URL())
	for _, name := range []string{"web.hand.svc.cluster.local.", "10-244-83-1.hand.pod.cluster.local.", "lb.hand.ext.test."} {
		eventually(t, name, func() error {
			x := p.ask(question{variant: v, name: name, typ: dns.TypeA, class: dns.ClassINET})
			if len(x.stock.answer) > 0 && len(x.ours.answer) > 0 {
				return nil
			}
			return fmt.Errorf("%s", x)
		})
	}
	asked := 0
	for _, name := range []string{
		// metadata in a view, an answer, a rewrite
		"web.viewed.svc.cluster.local.", "web.hand.svc.cluster.local.", "db-0.db.hand.svc.cluster.local.", "_http._tcp.web.hand.svc.cluster.local.", "10-244-83-1.hand.pod.cluster.local.",
		"svc.cluster.local.", "none.cluster.local.", "alias.test.", "web.hand.svc.cluster.example.", "none.hand.svc.cluster.example.",
		// autopath: the client is a pod of namespace hand
		"www.example.net.hand.svc.cluster.local.", "web.hand.svc.cluster.local.hand.svc.cluster.local.", "web.hand.hand.svc.cluster.local.", "db.hand.svc.hand.svc.cluster.local.", "nothing.hand.svc.cluster.local.",
		"WWW.Example.net.Hand.svc.cluster.local.", "www.example.net.viewed.svc.cluster.local.", "alias.example.net.hand.svc.cluster.local.",
		"lb.hand.ext.test.", "none.hand.ext.test.", "ext.test.", "ns1.dns.ext.test.", "clusterset.local.", "far.hand.svc.clusterset.local.",
	} {
		for _, typ := range []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeSRV, dns.TypeMX, dns.TypeLOC} {
			for _, tcp := range []bool{false, true} {
				q := question{variant: v, name: name, typ: typ, class: dns.ClassINET, tcp: tcp, edns: 1232}
				asked++
				if x := p.ask(q); len(x.stock.diff(x.ours)) > 0 {
					if reason, ok := x.verdict(); !ok {
						t.Errorf("%s", x)
					} else {
						t.Logf("allowed (%s): %s", reason, q)
					}
				}
			}
		}
	}
	t.Logf("%d queries through other plugins compared", asked)
}

// transferred fetches a zone over TCP; serial 0 asks for all of it.
func transferred(t *testing.T, addr, zone string) (out []string) {
	t.Helper()
	m := new(dns.Msg).SetAxfr(zone)
	ch, err := new(dns.Transfer).In(m, addr)
	if err != nil {
		t.Fatal(err)
	}
	for e := range ch {
		if e.Error != nil {
			t.Fatalf("transfer of %s from %s: %v", zone, addr, e.Error)
		}
		out = append(out, lines(e.RR)...)
	}
	slices.Sort(out)
	return out
}

// TestTransfers compares zone transfers: ours has all that is in the stock one, but for what that gets
// wrong, and more.
func TestTransfers(t *testing.T) {
	api, err := fakeapi.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(api.Stop)
	api.Put(neighbourCluster()...)
	p, v := pairOn(t, neighbours, api.URL())
	eventually(t, "synced", func() error {
		x := p.ask(question{variant: v, name: "db.hand.svc.cluster.local.", typ: dns.TypeA, class: dns.ClassINET})
		if len(x.stock.answer) > 0 && len(x.ours.answer) > 0 {
			return nil
		}
		return fmt.Errorf("%s", x)
	})
	for _, zone := range []string{"cluster.local.", "clusterset.local.", "ext.test."} {
		theirs, mine := transferred(t, v.stock, zone), transferred(t, v.ours, zone)
		compared := 0
		for _, rr := range theirs {
			f := strings.Fields(rr)
			name, typ := f[0], f[3]
			switch {
			case strings.Contains(name, "fqdn.hand"): // slices of names are not read
				continue
			case typ == "SRV" && (f[6] == "65535" || f[7] == "net."):
				continue // their port of services without ports, and half of a load balancer's host
			case typ == "SRV" && zone == "ext.test." && strings.HasPrefix(name, "lb-host"):
				continue // beside the CNAME of a name nothing else may be
			case typ == "SRV": // weights are not those of answers in theirs
				f[5] = "*"
				if !slices.ContainsFunc(mine, func(m string) bool {
					g := strings.Fields(m)
					if len(g) != len(f) || g[3] != "SRV" {
						return false
					}
					g[5] = "*"
					return slices.Equal(f, g)
				}) && zone != "clusterset.local." {
					t.Errorf("%s: only the stock transfer has %s", zone, rr)
				}
				compared++
				continue
			case zone == "clusterset.local." && strings.HasPrefix(name, "far-0.far."), zone == "clusterset.local." && strings.HasPrefix(name, "10-245-"):
				continue // theirs lack the cluster, and so name nothing
			case zone == "ext.test." && typ == "CNAME", zone == "ext.test." && strings.HasSuffix(name, ".example.net."), zone == "ext.test." && strings.HasPrefix(name, "lb-both."):
				continue // one alias, and what it leads to is not of the zone
			}
			compared++
			if !slices.Contains(mine, rr) {
				t.Errorf("%s: only the stock transfer has %s", zone, rr)
			}
		}
		if compared < 3 || len(mine) < 3 {
			t.Errorf("%s: %d records of theirs compared with %d of ours", zone, compared, len(mine))
		}
		t.Logf("%s: %d records in the stock transfer, %d in ours", zone, len(theirs), len(mine))
	}
	mine := transferred(t, v.ours, "cluster.local.")
	for _, want := range []string{`dns-version.cluster.local. 28800 IN TXT "1.1.0"`, "10-244-80-1.web.hand.svc.cluster.local. 5 IN A 10.244.80.1", "10-244-83-1.hand.pod.cluster.local. 5 IN A 10.244.83.1"} {
		if !slices.Contains(mine, want) {
			t.Errorf("our transfer lacks %s", want)
		}
	}
	if sets := transferred(t, v.ours, "clusterset.local."); !slices.Contains(sets, "far-0.east.far.hand.svc.clusterset.local. 5 IN A 10.245.0.1") {
		t.Errorf("our transfer lacks an endpoint with its cluster: %q", sets)
	}
}

// TestSerials looks at what the comparison passes over: serials of clusterset and external zones count
// additions and deletions, and two states that were handed out never share one.
func TestSerials(t *testing.T) {
	api, err := fakeapi.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(api.Stop)
	api.Put(neighbourCluster()...)
	zone := filepath.Join(t.TempDir(), "db.example.net")
	if err := os.WriteFile(zone, []byte(exampleNet), 0o644); err != nil {
		t.Fatal(err)
	}
	port := freePort(t)
	start(t, "ours", ours(t), fmt.Sprintf(neighbours, port, api.URL(), zone))
	v := &variant{zones: []string{"cluster.local."}}
	c := &client{addr: fmt.Sprintf("127.0.0.1:%d", port)}
	eventually(t, "synced", func() error { return c.expect(v, "web.hand.svc", dns.RcodeSuccess, "10.96.80.1") })
	serial := func(zone string) uint32 {
		m, _, err := c.ask(question{variant: v, name: zone, typ: dns.TypeSOA, class: dns.ClassINET})
		if err != nil || len(m.Answer) != 1 {
			t.Fatalf("SOA of %s: %v %v", zone, m, err)
		}
		return m.Answer[0].(*dns.SOA).Serial
	}
	imported := &source.ServiceImport{ObjectMeta: meta("hand/more"), Spec: source.ServiceImportSpec{Type: "ClusterSetIP", IPs: []string{"10.98.7.7"}, Ports: []source.ServiceImportPort{{Port: 1, Protocol: corev1.ProtocolTCP}}}}
	lb := service("hand/more", "10.96.87.77", "http/TCP/80")
	lb.Spec.ExternalIPs = []string{"192.0.2.177"}
	for _, step := range []struct {
		zone  string
		apply func()
	}{
		{"clusterset.local.", func() { api.Put(imported) }},
		{"clusterset.local.", func() { api.Delete(imported) }},
		{"ext.test.", func() { api.Put(lb) }},
		{"ext.test.", func() { api.Delete(lb) }},
		{"cluster.local.", func() { api.Put(service("hand/web", "10.96.80.99", "http/TCP/80")) }},
		{"cluster.local.", func() { api.Put(service("hand/web", "10.96.80.98", "http/TCP/80")) }},
	} {
		before := serial(step.zone)
		if now := uint32(time.Now().Unix()); before == 0 || before > now+10 {
			t.Errorf("serial of %s is %d at %d", step.zone, before, now)
		}
		step.apply()
		eventually(t, "a later serial of "+step.zone, func() error {
			if now := serial(step.zone); now <= before {
				return fmt.Errorf("serial %d after a change, %d before", now, before)
			}
			return nil
		})
	}
}

// TestNotify has a secondary name server, CoreDNS's own, that copies our zones: it must follow every
// change because it is told, not because it asks again (after two hours).
func TestNotify(t *testing.T) {
	api, err := fakeapi.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(api.Stop)
	api.Put(neighbourCluster()...)
	primary, secondary := freePort(t), freePort(t)
	zones := "cluster.local ext.test 96.10.in-addr.arpa"
	second := start(t, "secondary", ours(t), fmt.Sprintf(".:%d {\n bind 127.0.0.1\n errors\n secondary %s {\n transfer from 127.0.0.1:%d\n }\n}\n", secondary, zones, primary))
	start(t, "ours", ours(t), fmt.Sprintf(`.:%d {
    bind 127.0.0.1
    errors
    transfer %s {
        to 127.0.0.1:%d
    }
    k8s_external ext.test
    kubernetes cluster.local 10.96.0.0/16 {
        endpoint %s
    }
}
`, primary, zones, secondary, api.URL()))
	copied := &client{addr: fmt.Sprintf("127.0.0.1:%d", secondary)}
	v := &variant{name: "secondary", zones: []string{"cluster.local."}}
	eventually(t, "the first copy", func() error { return copied.expect(v, "web.hand.svc", dns.RcodeSuccess, "10.96.80.1") })
	for i := range 3 {
		addr := fmt.Sprintf("10.96.80.%d", 101+i)
		api.Put(service("hand/web", addr, "http/TCP/80"))
		eventually(t, "change "+itoa(i), func() error { return copied.expect(v, "web.hand.svc", dns.RcodeSuccess, addr) })
	}
	lb := service("hand/fresh", "10.96.80.200", "http/TCP/80")
	lb.Spec.ExternalIPs = []string{"192.0.2.99"}
	api.Put(lb)
	ext := &variant{name: "secondary", zones: []string{externalZone}}
	eventually(t, "an external address", func() error { return copied.expect(ext, "fresh.hand.svc", dns.RcodeSuccess, "192.0.2.99") })
	eventually(t, "a reverse name", func() error {
		m, _, err := copied.ask(question{variant: v, name: "200.80.96.10.in-addr.arpa.", typ: dns.TypePTR, class: dns.ClassINET})
		if err != nil || len(m.Answer) != 1 || m.Answer[0].(*dns.PTR).Ptr != "fresh.hand.svc.cluster.local." {
			return fmt.Errorf("got %v %v", m, err)
		}
		return nil
	})
	if !strings.Contains(second.log(), "Notify") {
		t.Errorf("the secondary was told of nothing:\n%s", second.log())
	}
}
