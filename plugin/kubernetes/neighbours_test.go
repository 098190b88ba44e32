package kubernetes

import (
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/coredns/coredns/plugin/autopath"
	"github.com/coredns/coredns/plugin/metadata"
	"github.com/coredns/coredns/plugin/ready"
	"github.com/coredns/coredns/plugin/test"
	"github.com/coredns/coredns/request"
	"github.com/miekg/dns"

	"github.com/braidnet/braid/internal/model"
	nt "github.com/braidnet/braid/internal/names/namestest"
)

var (
	_ autopath.AutoPather = (*Kubernetes)(nil)
	_ metadata.Provider   = (*Kubernetes)(nil)
	_ ready.Readiness     = (*Kubernetes)(nil)
)

// from is a query from a client.
func from(addr, name string, typ uint16) request.Request {
	return request.Request{W: &test.ResponseWriter{RemoteIP: addr}, Req: new(dns.Msg).SetQuestion(name, typ)}
}

func TestAutoPath(t *testing.T) {
	file := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(file, []byte("search Corp.example.com lan\nnameserver 192.0.2.1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	store := nt.Store(append(cluster(), nt.Pod("prod/db-0", "10.244.1.6 fd00:10:244:1::6"))...)
	k := newPlugin(t, allZones+" {\npods verified\n}", store)
	k.search = searchPath(file)
	want := []string{"prod.svc.cluster.local.", "svc.cluster.local.", "cluster.local.", "corp.example.com.", "lan.", ""}
	for _, addr := range []string{"10.244.1.6", "fd00:10:244:1::6"} {
		if got := k.AutoPath(from(addr, "www.example.org.prod.svc.cluster.local.", tA)); !slices.Equal(got, want) {
			t.Errorf("search path of %s = %q, want %q", addr, got, want)
		}
	}
	for name, addr := range map[string]string{"www.example.org.": "10.244.1.6", "x.cluster.local.": "10.244.1.99"} {
		if got := k.AutoPath(from(addr, name, tA)); got != nil {
			t.Errorf("%s from %s has the search path %q, want none", name, addr, got)
		}
	}
	root := newPlugin(t, "kubernetes . {\npods verified\n}", store)
	if got, want := root.AutoPath(from("10.244.1.6", "x.", tA)), []string{"prod.svc.", "svc.", ".", ""}; !slices.Equal(got, want) {
		t.Errorf("search path in the root zone = %q, want %q", got, want)
	}
	if got := newPlugin(t, allZones, store).AutoPath(from("10.244.1.6", "x.cluster.local.", tA)); got != nil {
		t.Errorf("without pods verified nobody is known, got %q", got)
	}
}

func TestMetadata(t *testing.T) {
	pod := nt.Pod("prod/db-0", "127.0.0.9")
	pod.Labels = map[string]string{"app": "db", "team": "red"}
	k := newPlugin(t, "kubernetes cluster.local clusterset.local in-addr.arpa {\npods verified\nzonal\nmulticluster clusterset.local\n}", nt.Store(append(cluster(), pod)...))
	labels := func(name, client string) map[string]string {
		ctx := metadata.ContextWithMetadata(context.Background())
		k.Metadata(ctx, from(client, name, tA))
		out := map[string]string{}
		for l, f := range metadata.ValueFuncs(ctx) {
			out[l[len("kubernetes/"):]] = f()
		}
		return out
	}
	for _, tc := range []struct {
		name, client string
		want         map[string]string
	}{
		{"_HTTP._tcp.web.prod.svc.cluster.local.", "10.0.0.1", map[string]string{"kind": "svc", "namespace": "prod", "service": "web", "port-name": "http", "protocol": "tcp", "endpoint": "", "zone": ""}},
		{"db-0.db.prod.svc.cluster.local.", "127.0.0.9", map[string]string{"kind": "svc", "namespace": "prod", "service": "db", "port-name": "", "protocol": "", "endpoint": "db-0", "zone": "",
			"client-namespace": "prod", "client-pod-name": "db-0", "client-label/app": "db", "client-label/team": "red"}},
		{"a.b.pin._zone.db.prod.svc.cluster.local.", "10.0.0.1", map[string]string{"kind": "svc", "namespace": "prod", "service": "db", "port-name": "", "protocol": "", "endpoint": "", "zone": "a.b"}},
		// In-tree looks for the zone before it is known, and takes these labels for a port.
		{"db-0.east.db.prod.svc.clusterset.local.", "10.0.0.1", map[string]string{"kind": "svc", "namespace": "prod", "service": "db", "port-name": "", "protocol": "", "endpoint": "db-0", "cluster": "east", "zone": ""}},
		{"10-0-0-1.prod.pod.cluster.local.", "10.0.0.1", map[string]string{"kind": "pod", "namespace": "prod", "service": "10-0-0-1", "port-name": "", "protocol": "", "endpoint": "", "zone": ""}},
		{"svc.cluster.local.", "10.0.0.1", map[string]string{"kind": "", "namespace": "", "service": "", "port-name": "", "protocol": "", "endpoint": "", "zone": ""}},
		{"google.com.cluster.local.", "10.0.0.1", map[string]string{"parse-error": "invalid query name"}},
		{"dns-version.cluster.local.", "10.0.0.1", map[string]string{"parse-error": "invalid query name"}},
		{"www.example.org.", "127.0.0.9", map[string]string{"client-namespace": "prod", "client-pod-name": "db-0", "client-label/app": "db", "client-label/team": "red"}},
	} {
		got := labels(tc.name, tc.client)
		for l, v := range tc.want {
			if got[l] != v {
				t.Errorf("%s: %s = %q, want %q", tc.name, l, got[l], v)
			}
		}
		if len(got) != len(tc.want) {
			t.Errorf("%s: labels %v, want %v", tc.name, got, tc.want)
		}
	}
	if fresh := (&Kubernetes{cfg: k.cfg}); fresh.client(from("127.0.0.9", "x.", tA)) != nil {
		t.Error("a client is known before the server has started")
	}
}

func TestNearest(t *testing.T) {
	place := func(addr, node, zone string) model.Endpoint {
		e := nt.Ready(addr, "", "")
		e.Node, e.Zone = node, zone
		return e
	}
	node := func(name, cidr, addr, zone string) *model.Node {
		n := nt.Node(name, cidr, addr)
		n.Labels = map[string]string{"topology.kubernetes.io/zone": zone}
		return n
	}
	store := nt.Store(nt.Namespace("prod"), nt.Headless("prod/db", "x/TCP/1"), node("a", "10.1.0.0/24", "192.0.2.1", "east"), node("b", "10.1.1.0/24", "192.0.2.2", "east"), node("c", "10.1.2.0/24", "192.0.2.3", "west"),
		nt.Slice("prod/db-4", "db", "x/TCP/1", place("10.1.2.5", "c", "west"), place("10.1.1.5", "b", "east"), place("10.1.0.5", "a", "east"), place("10.1.1.6", "b", "east"), place("10.1.0.6", "a", "east")))
	k := newPlugin(t, "kubernetes cluster.local {\nnearest\n}", store)
	order := func(k *Kubernetes, client string) (out []string) {
		w := &test.ResponseWriter{RemoteIP: client}
		q := from(client, "db.prod.svc.cluster.local.", tA)
		q.W = w
		for _, rr := range k.answer(context.Background(), question{state: q, name: "db.prod.svc.cluster.local.", typ: tA, zone: "cluster.local."}).records {
			out = append(out, rr.(*dns.A).A.String())
		}
		return out
	}
	rank := func(list []string, of map[string]int) (out []int) {
		for _, a := range list {
			out = append(out, of[a])
		}
		return out
	}
	seen := map[string]bool{}
	for range 50 {
		for client, of := range map[string]map[string]int{
			"10.1.0.77": {"10.1.0.5": 0, "10.1.0.6": 0, "10.1.1.5": 1, "10.1.1.6": 1, "10.1.2.5": 2},
			"192.0.2.2": {"10.1.1.5": 0, "10.1.1.6": 0, "10.1.0.5": 1, "10.1.0.6": 1, "10.1.2.5": 2},
			"10.1.2.9":  {"10.1.2.5": 0, "10.1.0.5": 2, "10.1.0.6": 2, "10.1.1.5": 2, "10.1.1.6": 2},
		} {
			got := order(k, client)
			if ranks := rank(got, of); len(got) != 5 || !slices.IsSorted(ranks) {
				t.Fatalf("%s gets %v", client, got)
			}
			seen[client+got[0]] = true
		}
	}
	if !seen["10.1.0.7710.1.0.5"] || !seen["10.1.0.7710.1.0.6"] {
		t.Errorf("endpoints of one node do not take turns: %v", seen)
	}
	plain := newPlugin(t, "kubernetes cluster.local", store)
	for name, got := range map[string][]string{"unknown client": order(k, "203.0.113.1"), "option off": order(plain, "10.1.0.77")} {
		if want := []string{"10.1.2.5", "10.1.1.5", "10.1.0.5", "10.1.1.6", "10.1.0.6"}; !slices.Equal(got, want) {
			t.Errorf("%s: %v, want the plain order %v", name, got, want)
		}
	}
	store.Apply([]model.Update{model.Set(pod("prod/host", "203.0.113.1", "c"))})
	if got := order(k, "203.0.113.1"); got[0] != "10.1.2.5" {
		t.Errorf("a pod that is known by its address gets %v first, want its own node's endpoint", got[0])
	}
}

func pod(key, addr, node string) *model.Pod {
	p := nt.Pod(key, addr)
	p.Node = node
	return p
}

func TestExplain(t *testing.T) {
	objects := append(cluster(), nt.Service("prod/api", "10.96.9.1", "http/TCP/80"), nt.Slice("prod/api-4", "api", "http/TCP/80", nt.NotReady("10.244.9.1"), nt.NotReady("10.244.9.2")))
	k := newPlugin(t, allZones+" {\nexplain 10.0.0.0/8\npods verified\n}", nt.Store(objects...))
	reply := func(client, name string, typ uint16) *dns.Msg {
		q := from(client, name, typ)
		q.Req.SetEdns0(1232, false)
		rec := &recorder{ResponseWriter: q.W}
		if _, err := k.ServeDNS(context.Background(), rec, q.Req); err != nil {
			t.Fatal(err)
		}
		return rec.msg
	}
	for _, tc := range []struct {
		name string
		typ  uint16
		want string
	}{
		{"ap1.prod.svc.cluster.local.", tA, "namespace prod has no service ap1; did you mean api?"},
		{"AP1.prod.svc.cluster.local.", tA, "namespace prod has no service ap1; did you mean api?"},
		{"web.prdo.svc.cluster.local.", tA, "there is no namespace prdo; did you mean prod?"},
		{"web.nothing.svc.cluster.local.", tA, "there is no namespace nothing"},
		{"down.prod.svc.cluster.local.", tA, "service prod/down: 0 of 1 endpoints ready, headless, named ports _x._tcp, revision 1"},
		{"kubernetes.default.svc.cluster.local.", tAAAA, "service default/kubernetes: 0 of 0 endpoints ready, cluster IP 10.96.0.1, named ports _https._tcp, revision 1"},
		{"_htp._tcp.web.prod.svc.cluster.local.", tSRV, "service prod/web: 1 of 1 endpoints ready, cluster IP 10.96.1.1, cluster IP fd00:10:96::1, no port _htp._tcp; did you mean _http._tcp?, named ports _http._tcp, revision 1"},
		{"db-9.db.prod.svc.cluster.local.", tA, "service prod/db: 3 of 4 endpoints ready, headless, no ready endpoint is called db-9; did you mean db-0?, named ports _sql._tcp, revision 1"},
		{"10-244-9-9.prod.pod.cluster.local.", tA, "namespace prod has no pod with the address 10.244.9.9"},
		{"google.com.cluster.local.", tA, "no name of a cluster has this form: in cluster.local. names end in SERVICE.NAMESPACE.svc or ADDRESS.NAMESPACE.pod"},
		{"9.9.9.9.in-addr.arpa.", tPTR, "9.9.9.9 is no cluster IP of a service and no ready endpoint of one"},
		{"cluster.local.", tMX, "this name of the zone itself has no MX record"},
	} {
		if got := extendedError(reply("10.0.0.1", tc.name, tc.typ)); got != "0 (Other): ("+tc.want+")" {
			t.Errorf("%s %s:\n got %q\nwant %q", tc.name, dns.Type(tc.typ), got, tc.want)
		}
		if got := extendedError(reply("192.0.2.1", tc.name, tc.typ)); got != "" {
			t.Errorf("%s: a client that was not named is told %q", tc.name, got)
		}
	}
	why := reply("10.0.0.1", "why.api.prod.svc.cluster.local.", tTXT)
	if got, want := why.Answer[0].String(), "why.api.prod.svc.cluster.local.\t0\tIN\tTXT\t\"service prod/api: 0 of 2 endpoints ready, cluster IP 10.96.9.1, named ports _http._tcp, revision 1\""; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if got := extendedError(reply("10.0.0.1", "web.prod.svc.cluster.local.", tA)); got != "" {
		t.Errorf("an answer is explained: %q", got)
	}
	if m := reply("192.0.2.1", "why.api.prod.svc.cluster.local.", tTXT); m.Rcode != dns.RcodeNameError {
		t.Errorf("why. answers a client that was not named: %v", m)
	}
	long := newPlugin(t, allZones+" {\nexplain\n}", nt.Store(nt.Namespace("prod"), nt.Service("prod/many", "10.96.0.1", manyPorts(40))))
	m := ask(t, long, new(dns.Msg).SetQuestion("why.many.prod.svc.cluster.local.", tTXT))
	if txt := m.Answer[0].(*dns.TXT).Txt; len(txt) < 2 || len(txt[0]) != 255 {
		t.Errorf("a long text came as %q", txt)
	}
}

func manyPorts(n int) (out string) {
	for i := range n {
		out += " port-" + netip.AddrFrom4([4]byte{byte(i)}).String()[:1] + "-" + string(rune('a'+i%26)) + "/TCP/" + "80"
	}
	return out
}

// recorder keeps the message that was written.
type recorder struct {
	dns.ResponseWriter
	msg *dns.Msg
}

func (r *recorder) WriteMsg(m *dns.Msg) error {
	r.msg = m
	return nil
}
