package names

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/braidnet/braid/internal/model"
	nt "github.com/braidnet/braid/internal/names/namestest"
)

func follow(s *model.Store) *Index {
	x := New()
	s.Subscribe(x.Apply)
	return x
}

func targets(a Answer) string {
	var out []string
	for _, t := range a.Targets {
		out = append(out, strings.TrimPrefix(fmt.Sprintf("%s.%s:%d", t.Labels(), t.Addr, t.Port), "."))
	}
	return strings.Join(out, " ")
}

func TestResolve(t *testing.T) {
	x := follow(nt.Store(
		nt.Namespace("prod"),
		nt.Service("prod/web", "10.96.0.1 fd00::1", "http/TCP/80 https/TCP/443"),
		nt.Slice("prod/web-1", "web", "http/TCP/8080 https/TCP/8443", nt.Ready("10.1.0.1", "", "web-a"), nt.NotReady("10.1.0.2")),
		nt.Service("prod/idle", "10.96.0.2", "/TCP/1"),
		nt.Service("prod/portless", "10.96.0.3", ""),
		nt.Headless("prod/db", "sql/TCP/5432"),
		nt.Slice("prod/db-1", "db", "sql/TCP/5432", nt.Ready("10.1.0.3", "db-0", "db-0"), nt.Ready("10.1.0.4", "", "db-one")),
		nt.Slice("prod/db-2", "db", "sql/TCP/5432", nt.Ready("fd01::3", "db-0", "db-0")),
		nt.Headless("prod/lost", "x/TCP/1"),
		nt.External("prod/mail", "mx.example.org"),
		nt.External("prod/number", "192.0.2.1"),
	))
	tests := []struct {
		rel    string
		view   View
		ports  bool
		exists bool
		want   string
	}{
		{rel: "web.prod.svc", exists: true, want: "10.96.0.1:80 fd00::1:80"},
		{rel: "web.prod.svc", ports: true, exists: true, want: "10.96.0.1:80 fd00::1:80 10.96.0.1:443 fd00::1:443"},
		{rel: "_https._tcp.web.prod.svc", ports: true, exists: true, want: "10.96.0.1:443 fd00::1:443"},
		{rel: "_https._udp.web.prod.svc", ports: true},
		{rel: "_tcp.web.prod.svc", exists: true},
		{rel: "_udp.web.prod.svc"},
		{rel: "10-1-0-1.web.prod.svc", exists: true, want: "10-1-0-1.10.1.0.1:8080"},
		{rel: "10-1-0-2.web.prod.svc"},
		{rel: "web-a.web.prod.svc"},
		{rel: "web-a.web.prod.svc", view: View{PodNames: true}, exists: true, want: "web-a.10.1.0.1:8080"},
		{rel: "10-1-0-1.web.prod.svc", view: View{PodNames: true}},
		{rel: "10-1-0-1.web.prod.svc", view: View{NoEndpoints: true}},
		{rel: "idle.prod.svc", exists: true, want: "10.96.0.2:1"},
		{rel: "idle.prod.svc", view: View{IgnoreEmpty: true}},
		{rel: "web.prod.svc", view: View{IgnoreEmpty: true}, exists: true, want: "10.96.0.1:80 fd00::1:80"},
		{rel: "portless.prod.svc", exists: true, want: "10.96.0.3:0"},
		{rel: "_x._tcp.portless.prod.svc"},
		{rel: "_tcp.portless.prod.svc"},
		{rel: "db.prod.svc", exists: true, want: "db-0.10.1.0.3:5432 10-1-0-4.10.1.0.4:5432 db-0.fd01::3:5432"},
		{rel: "db-0.db.prod.svc", exists: true, want: "db-0.10.1.0.3:5432 db-0.fd01::3:5432"},
		{rel: "db-one.db.prod.svc", view: View{PodNames: true}, exists: true, want: "db-one.10.1.0.4:5432"},
		{rel: "_sql._tcp.db.prod.svc", ports: true, exists: true, want: "db-0.10.1.0.3:5432 10-1-0-4.10.1.0.4:5432 db-0.fd01::3:5432"},
		{rel: "_tcp.db.prod.svc", exists: true},
		{rel: "_udp.db.prod.svc"},
		{rel: "lost.prod.svc"},
		{rel: "_tcp.lost.prod.svc"},
		{rel: "mail.prod.svc", exists: true},
		{rel: "x.mail.prod.svc"},
		{rel: "number.prod.svc"},
		{rel: "none.prod.svc"},
		{rel: "web.other.svc"},
	}
	for _, tc := range tests {
		n, ok := Parse(tc.rel)
		if !ok {
			t.Fatalf("Parse(%q) failed", tc.rel)
		}
		a := x.Resolve(n, tc.view, tc.ports)
		if got := targets(a); a.Exists != tc.exists || got != tc.want {
			t.Errorf("%s %+v ports=%v: exists=%v %q, want %v %q", tc.rel, tc.view, tc.ports, a.Exists, got, tc.exists, tc.want)
		}
	}
	n, _ := Parse("mail.prod.svc")
	if got := x.Resolve(n, View{}, false).External; got != "mx.example.org" {
		t.Errorf("external name = %q", got)
	}
}

func TestAddresses(t *testing.T) {
	gone := nt.Pod("prod/job", "10.1.0.9")
	gone.Phase = model.PhaseSucceeded
	x := follow(nt.Store(
		nt.Service("prod/web", "10.96.0.1", "http/TCP/80"),
		nt.Slice("prod/web-1", "web", "http/TCP/8080", nt.Ready("10.1.0.1", "", "")),
		nt.Slice("prod/also", "web2", "http/TCP/8080", nt.Ready("10.1.0.1", "h", "")),
		nt.Slice("prod/foreign", "", "http/TCP/8080", nt.Ready("10.1.0.1", "", "")),
		nt.Pod("prod/a", "10.1.0.1 fd01::1"), gone,
	))
	addr := netip.MustParseAddr
	if got := x.ClusterIP(addr("10.96.0.1")); len(got) != 1 || got[0] != (model.Key{Namespace: "prod", Name: "web"}) {
		t.Errorf("cluster IP belongs to %v", got)
	}
	owners := x.Owners(addr("10.1.0.1"))
	if len(owners) != 2 || owners[0].Service.Name != "web2" || owners[0].Hostname != "h" || owners[1].Service.Name != "web" {
		t.Errorf("owners = %+v: a slice without a service must have none", owners)
	}
	for _, tc := range []struct {
		ns, addr string
		want     bool
	}{{"prod", "10.1.0.1", true}, {"prod", "fd01::1", true}, {"dev", "10.1.0.1", false}, {"prod", "10.1.0.9", false}} {
		if got := x.HasPod(tc.ns, addr(tc.addr)); got != tc.want {
			t.Errorf("HasPod(%s, %s) = %v, want %v", tc.ns, tc.addr, got, tc.want)
		}
	}
}

func TestSerial(t *testing.T) {
	s := nt.Store(nt.Pod("prod/a", "10.1.0.1"))
	x := New()
	clock := time.Unix(1000, 0)
	x.now = func() time.Time { return clock }
	s.Subscribe(x.Apply)
	step := func(o model.Object, at int64, want uint32) {
		t.Helper()
		clock = time.Unix(at, 0)
		nt.Apply(s, o)
		if got := x.Serial(ClusterZone); got != want {
			t.Errorf("serial = %d, want %d", got, want)
		}
	}
	labelled := nt.Pod("prod/a", "10.1.0.1")
	labelled.Labels = map[string]string{"a": "b"}
	step(labelled, 1001, 1000) // no name of a pod depends on its labels
	step(nt.Pod("prod/a", "10.1.0.2"), 1002, 1002)
	step(nt.Service("prod/web", "10.96.0.1", ""), 1003, 1003)
	step(nt.Service("prod/web", "10.96.0.2", ""), 900, 1003) // the clock went back, the serial must not
	if got := x.HandOut(ClusterZone); got != 1003 {
		t.Errorf("handed out %d, want 1003", got)
	}
	step(nt.Service("prod/web", "10.96.0.3", ""), 1003, 1004) // who copied 1003 must see that it is old
	step(nt.Service("prod/web", "10.96.0.4", ""), 1003, 1004) // nobody has 1004
	for z, want := range map[ZoneClass]uint32{ExternalZone: 0, SetZone: 0} {
		if got := x.Serial(z); got != want {
			t.Errorf("serial of zone class %d = %d, want %d", z, got, want)
		}
	}
	clock = time.Unix(2000, 0)
	lb := nt.Service("prod/lb", "10.96.0.9", "")
	lb.ExternalIPs = lb.ClusterIPs
	nt.Apply(s, lb)
	clock = time.Unix(2001, 0)
	nt.Apply(s, nt.Import("prod/far", "10.97.0.1", "http/TCP/80"))
	if e, m := x.Serial(ExternalZone), x.Serial(SetZone); e != 2000 || m != 2001 {
		t.Errorf("serials %d and %d, want 2000 for the external and 2001 for the set's zone", e, m)
	}
	clock = time.Unix(2002, 0)
	s.Apply([]model.Update{model.Delete(lb.Ref)})
	if e := x.Serial(ExternalZone); e != 2002 {
		t.Errorf("external serial %d after the service is gone, want 2002", e)
	}
}

func TestPlace(t *testing.T) {
	node := func(name, cidr, addr, zone string) *model.Node {
		n := nt.Node(name, cidr, addr)
		n.Labels = map[string]string{labelZone: zone}
		return n
	}
	s := nt.Store(node("a", "10.1.0.0/24", "192.168.0.1", "east"), node("b", "10.1.1.0/24", "192.168.0.2", "west"), node("c", "10.1.1.128/25", "192.168.0.3", "north"))
	x := follow(s)
	for addr, want := range map[string]string{"10.1.0.7": "a east", "192.168.0.2": "b west", "10.1.1.1": "b west", "10.1.1.200": "c north", "10.9.0.1": " ", "fd00::1": " "} {
		node, zone := x.Place(netip.MustParseAddr(addr))
		if got := node + " " + zone; got != want {
			t.Errorf("Place(%s) = %q, want %q", addr, got, want)
		}
	}
	s.Apply([]model.Update{model.Delete(model.Ref{Kind: model.KindNode, Key: model.Key{Name: "a"}})})
	if node, _ := x.Place(netip.MustParseAddr("10.1.0.7")); node != "" {
		t.Errorf("an address of a node that is gone belongs to %q", node)
	}
}

// world makes random objects from small sets of names and addresses, so that they collide often.
type world struct{ *rand.Rand }

func (w world) pick(from ...string) string { return from[w.IntN(len(from))] }

func (w world) addr() string {
	return w.pick("10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "fd00::1", "fd00::2", "fd00::3")
}

func (w world) object() model.Object {
	ns := w.pick("a", "b")
	ports := w.pick("", "http/TCP/80", "http/TCP/80 dns/UDP/53", "/SCTP/9")
	switch w.IntN(7) {
	case 0:
		return nt.Namespace(ns)
	case 5:
		return nt.Import(ns+"/"+w.pick("s", "t"), w.pick("", w.addr()), ports)
	case 6:
		return nt.Node(w.pick("n", "m"), w.pick("10.0.0.0/24", "10.0.1.0/24", "10.0.0.0/25", "fd00::/64"), w.addr())
	case 1:
		switch key := ns + "/" + w.pick("s", "t"); w.IntN(3) {
		case 0:
			return nt.Headless(key, ports)
		case 1:
			return nt.External(key, w.pick("example.org", "10.0.0.1", ""))
		default:
			svc := nt.Service(key, w.addr()+" "+w.addr(), ports)
			if w.IntN(2) == 0 {
				svc.ExternalIPs = []netip.Addr{netip.MustParseAddr(w.addr())}
				svc.Ingress = []model.Ingress{{Hostname: "lb"}, {Addr: netip.MustParseAddr(w.addr())}}
			}
			return svc
		}
	case 2:
		p := nt.Pod(ns+"/"+w.pick("p", "q", "r"), w.addr()+" "+w.addr())
		p.Phase = model.Phase(w.pick("Running", "Running", "Succeeded", "Unknown"))
		return p
	default:
		var eps []model.Endpoint
		for range w.IntN(4) {
			e := nt.Ready(w.addr(), w.pick("", "", "h0", "h1"), w.pick("", "p", strings.Repeat("x", 70)))
			e.Ready = w.IntN(4) > 0
			eps = append(eps, e)
		}
		sl := nt.Slice(ns+"/"+w.pick("s1", "s2", "s3", "s4"), w.pick("s", "t", ""), ports, eps...)
		if w.IntN(3) == 0 {
			sl.Import, sl.Cluster = model.Key{Namespace: ns, Name: w.pick("s", "t")}, w.pick("east", "west")
		}
		return sl
	}
}

// dump lists everything the index holds, without the pointers and the tables made at first use.
func (x *Index) dump() map[string]any {
	out := map[string]any{}
	for k := range x.namespaces.all() {
		out["namespace "+k] = true
	}
	for k, n := range x.used {
		out["used "+k] = n
	}
	for k, s := range x.slices {
		out["slice "+k.String()] = []any{s.Service, s.Ports, s.Endpoints}
	}
	for k, r := range x.records.all() {
		var keys []model.Key
		for _, s := range r.slices {
			keys = append(keys, s.Key)
		}
		out["record "+k.String()] = []any{r.service, keys}
	}
	for a, list := range x.clusterIPs {
		out["cluster IP "+a.String()] = list
	}
	for a := range x.endpoints.all() {
		var refs []string
		for _, r := range x.endpoints.find(nil, a) {
			refs = append(refs, fmt.Sprint(r.slice.Key, r.i))
		}
		out["endpoint "+a.String()] = refs
	}
	for k, s := range x.imports {
		out["import "+k.String()] = *s
	}
	for k, list := range x.byImport {
		var keys []model.Key
		for _, s := range list {
			keys = append(keys, s.Key)
		}
		out["slices of import "+k.String()] = keys
	}
	for a, list := range x.externals {
		out["external IP "+a.String()] = list
	}
	for name, n := range x.nodes.byName {
		out["node "+name] = *n
	}
	for p, list := range x.nodes.cidrs {
		out["cidr "+p.String()] = list
	}
	for a, list := range x.nodes.addrs {
		out["node address "+a.String()] = list
	}
	for l, n := range x.nodes.bits {
		out[fmt.Sprint("length ", l)] = n
	}
	for k, p := range x.pods {
		out["pod "+k.String()] = *p
	}
	for a, list := range x.podIPs {
		out["pod IP "+a.String()] = list
	}
	return out
}

// Whatever the way, the index of a state is the index of that state.
func TestIndexAfterChangesEqualsFreshIndex(t *testing.T) {
	for seed := range uint64(200) {
		w := world{rand.New(rand.NewPCG(seed, 1))}
		store := nt.Store()
		x := follow(store)
		for range 60 {
			var batch []model.Update
			for range 1 + w.IntN(3) {
				u := model.Set(w.object())
				if w.IntN(3) == 0 {
					u.Object = nil
				}
				batch = append(batch, u)
			}
			store.Apply(batch)
		}
		got, want := x.dump(), follow(store).dump()
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("seed %d: index after changes differs from a fresh one\n got %v\nwant %v", seed, got, want)
		}
		checkNaive(t, seed, store, x)
		for _, k := range append([]model.Kind{model.KindServiceImport}, model.Kinds...) {
			for _, o := range store.List(k) {
				store.Apply([]model.Update{model.Delete(o.From().Ref)})
			}
		}
		if left := x.dump(); len(left) != 0 {
			t.Fatalf("seed %d: after deleting everything the index still holds %v", seed, left)
		}
	}
}

// checkNaive compares look-ups with loops over all objects of the store.
func checkNaive(t *testing.T, seed uint64, store *model.Store, x *Index) {
	t.Helper()
	for _, ns := range []string{"a", "b"} {
		for _, svc := range []string{"s", "t"} {
			for _, label := range []string{"", "h0", "10-0-0-1", "fd00--2", "p"} {
				for _, podNames := range []bool{false, true} {
					n := Name{Kind: Svc, Namespace: ns, Object: svc, Endpoint: label}
					got := addrs(x.Resolve(n, View{PodNames: podNames}, false))
					want := naive(store, n, podNames)
					if !slices.Equal(got, want) {
						t.Fatalf("seed %d: %+v podNames=%v = %v, want %v", seed, n, podNames, got, want)
					}
				}
			}
		}
	}
	for _, text := range []string{"10.0.0.1", "10.0.0.3", "fd00::2"} {
		a, want := netip.MustParseAddr(text), 0
		for _, o := range store.List(model.KindEndpointSlice) {
			s := o.(*model.EndpointSlice)
			for _, e := range s.Endpoints {
				if s.Service.Name != "" && e.Ready && e.Addrs[0] == a {
					want++
				}
			}
		}
		if got := len(x.Owners(a)); got != want {
			t.Fatalf("seed %d: %s has %d owners, want %d", seed, a, got, want)
		}
	}
}

func addrs(a Answer) (out []netip.Addr) {
	for _, t := range a.Targets {
		out = append(out, t.Addr)
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return out
}

func naive(store *model.Store, n Name, podNames bool) (out []netip.Addr) {
	o := store.Get(model.Ref{Kind: model.KindService, Key: model.Key{Namespace: n.Namespace, Name: n.Object}})
	svc, _ := o.(*model.Service)
	if svc == nil || svc.Type == model.ExternalName {
		return nil
	}
	if !svc.Headless && n.Endpoint == "" {
		out = slices.Clone(svc.ClusterIPs)
	} else {
		for _, o := range store.List(model.KindEndpointSlice) {
			s := o.(*model.EndpointSlice)
			if s.Service != svc.Key {
				continue
			}
			for _, e := range s.Endpoints {
				label := e.Hostname
				if label == "" && podNames && len(e.Target.Name) < 64 {
					label = e.Target.Name
				}
				if label == "" {
					label = strings.NewReplacer(".", "-", ":", "-").Replace(e.Addrs[0].String())
				}
				if e.Ready && (n.Endpoint == "" || n.Endpoint == label) {
					out = append(out, e.Addrs[0])
				}
			}
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return out
}

// Readers run while a writer changes everything; the race detector is the judge, and no answer may
// mix two states of a service.
func TestConcurrentReaders(t *testing.T) {
	store := nt.Store(nt.Headless("a/s", "http/TCP/80"))
	x := follow(store)
	one := nt.Slice("a/s1", "s", "http/TCP/80", nt.Ready("10.0.0.1", "h0", ""), nt.Ready("10.0.0.2", "h0", ""))
	two := nt.Slice("a/s1", "s", "http/TCP/80", nt.Ready("10.0.0.3", "h0", ""), nt.Ready("10.0.0.4", "h0", ""))
	nt.Apply(store, one)
	done := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for {
				select {
				case <-done:
					return
				default:
				}
				got := targets(x.Resolve(Name{Kind: Svc, Namespace: "a", Object: "s", Endpoint: "h0"}, View{}, false))
				if got != "h0.10.0.0.1:80 h0.10.0.0.2:80" && got != "h0.10.0.0.3:80 h0.10.0.0.4:80" {
					t.Errorf("mixed answer %q", got)
					return
				}
				x.Owners(netip.MustParseAddr("10.0.0.1"))
			}
		}()
	}
	for range 500 {
		nt.Apply(store, two)
		nt.Apply(store, one)
	}
	close(done)
	wg.Wait()
}
