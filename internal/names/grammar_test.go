package names

import (
	"testing"

	"github.com/braidnet/braid/internal/model"
	nt "github.com/braidnet/braid/internal/names/namestest"
)

func TestGrammars(t *testing.T) {
	tests := []struct {
		g    Grammar
		rel  string
		want Name
		ok   bool
	}{
		{Grammar{Clusters: true}, "db-0.east.db.prod.svc", Name{Kind: Svc, Namespace: "prod", Object: "db", Endpoint: "db-0", Cluster: "east"}, true},
		{Grammar{Clusters: true}, "_sql._tcp.db.prod.svc", Name{Kind: Svc, Namespace: "prod", Object: "db", Port: "sql", Protocol: "tcp"}, true},
		{Grammar{Clusters: true}, "sql._tcp.db.prod.svc", Name{Kind: Svc, Namespace: "prod", Object: "db", Port: "sql", Protocol: "tcp"}, true},
		{Grammar{Clusters: true}, "east.db.prod.svc", Name{Kind: Svc, Namespace: "prod", Object: "db", Endpoint: "east"}, true},
		{Grammar{Clusters: true, Zonal: true}, "a.pin._zone.db.prod.svc", Name{}, false},
		{Grammar{Zonal: true}, "a.pin._zone.db.prod.svc", Name{Kind: Svc, Namespace: "prod", Object: "db", Zone: "a"}, true},
		{Grammar{Zonal: true}, "a.b.c.prefer._zone.db.prod.svc", Name{Kind: Svc, Namespace: "prod", Object: "db", Zone: "a.b.c", Prefer: true}, true},
		{Grammar{Zonal: true}, "_zone.db.prod.svc", Name{Kind: Svc, Namespace: "prod", Object: "db", Holder: true}, true},
		{Grammar{Zonal: true}, "pin._zone.db.prod.svc", Name{Kind: Svc, Namespace: "prod", Object: "db", Holder: true}, true},
		{Grammar{Zonal: true}, "a.near._zone.db.prod.svc", Name{}, false},
		{Grammar{Zonal: true}, "a.pin._zone.db.prod.pod", Name{}, false},
		{Grammar{}, "a.pin._zone.db.prod.svc", Name{}, false},
	}
	for _, tc := range tests {
		got, ok := tc.g.Parse(tc.rel)
		if got != tc.want || ok != tc.ok {
			t.Errorf("%+v.Parse(%q) = %+v, %v; want %+v, %v", tc.g, tc.rel, got, ok, tc.want, tc.ok)
		}
	}
}

func TestZoneScopedNames(t *testing.T) {
	at := func(addr, zone string) model.Endpoint {
		e := nt.Ready(addr, "", "")
		e.Zone = zone
		return e
	}
	x := follow(nt.Store(nt.Headless("prod/db", "sql/TCP/1"), nt.Service("prod/web", "10.96.0.1", "http/TCP/80"), nt.External("prod/out", "example.org"),
		nt.Slice("prod/db-1", "db", "sql/TCP/1", at("10.1.0.1", "east"), at("10.1.0.2", "West.example"), at("10.1.0.3", ""))))
	for _, tc := range []struct {
		rel    string
		exists bool
		want   string
	}{
		{"east.pin._zone.db.prod.svc", true, "10-1-0-1.10.1.0.1:1"},
		{"west.example.pin._zone.db.prod.svc", true, "10-1-0-2.10.1.0.2:1"},
		{"north.pin._zone.db.prod.svc", true, ""},
		{"north.prefer._zone.db.prod.svc", true, "10-1-0-1.10.1.0.1:1 10-1-0-2.10.1.0.2:1 10-1-0-3.10.1.0.3:1"},
		{"east.prefer._zone.db.prod.svc", true, "10-1-0-1.10.1.0.1:1"},
		{"pin._zone.db.prod.svc", true, ""},
		{"_zone.db.prod.svc", true, ""},
		{"east.pin._zone.web.prod.svc", false, ""},
		{"_zone.web.prod.svc", false, ""},
		{"east.pin._zone.out.prod.svc", false, ""},
		{"east.pin._zone.none.prod.svc", false, ""},
	} {
		n, ok := Grammar{Zonal: true}.Parse(tc.rel)
		if a := x.Resolve(n, View{}, true); !ok || a.Exists != tc.exists || targets(a) != tc.want {
			t.Errorf("%s: exists %v, %q; want %v, %q", tc.rel, a.Exists, targets(a), tc.exists, tc.want)
		}
	}
}

func TestClusterSetNames(t *testing.T) {
	of := func(sl *model.EndpointSlice, service, cluster string) *model.EndpointSlice {
		sl.Import, sl.Cluster = model.Key{Namespace: sl.Namespace, Name: service}, cluster
		return sl
	}
	x := follow(nt.Store(nt.Import("prod/db", "", "sql/TCP/1"), nt.Import("prod/web", "10.98.0.1 fd98::1", "http/TCP/80"),
		of(nt.Slice("prod/db-e", "", "sql/TCP/1", nt.Ready("10.1.0.1", "db-0", "")), "db", "east"),
		of(nt.Slice("prod/db-w", "db", "sql/TCP/1", nt.Ready("10.2.0.1", "db-0", "")), "db", "west"),
		of(nt.Slice("prod/web-e", "", "http/TCP/80", nt.Ready("10.1.0.2", "", "")), "web", "east")))
	for _, tc := range []struct {
		rel    string
		exists bool
		want   string
	}{
		{"db.prod.svc", true, "db-0.east.10.1.0.1:1 db-0.west.10.2.0.1:1"},
		{"db-0.east.db.prod.svc", true, "db-0.east.10.1.0.1:1"},
		{"db-0.WEST.db.prod.svc", true, "db-0.west.10.2.0.1:1"},
		{"db-0.north.db.prod.svc", false, ""},
		{"db-0.db.prod.svc", false, ""}, // which cluster's?
		{"east.db.prod.svc", true, ""},
		{"_tcp.db.prod.svc", true, ""},
		{"_udp.db.prod.svc", false, ""},
		{"_sql._tcp.db.prod.svc", true, "db-0.east.10.1.0.1:1 db-0.west.10.2.0.1:1"},
		{"web.prod.svc", true, "10.98.0.1:80 fd98::1:80"},
		{"10-1-0-2.east.web.prod.svc", true, "10-1-0-2.east.10.1.0.2:80"},
		{"none.prod.svc", false, ""},
	} {
		n, ok := Grammar{Clusters: true}.Parse(tc.rel)
		if a := x.ResolveImport(n, View{NoEndpoints: true}, true); !ok || a.Exists != tc.exists || targets(a) != tc.want {
			t.Errorf("%s: exists %v, %q; want %v, %q", tc.rel, a.Exists, targets(a), tc.exists, tc.want)
		}
	}
	// The set's slices are not the cluster's own, unless they say so.
	n, _ := Parse("db.prod.svc")
	if a := x.Resolve(n, View{}, true); a.Exists {
		t.Errorf("a service that only the set has is the cluster's: %+v", a)
	}
	if owners := x.Owners(x.imports[model.Key{Namespace: "prod", Name: "web"}].ClusterIPs[0]); len(owners) > 0 {
		t.Errorf("addresses of the set have owners here: %v", owners)
	}
}
