package names

import (
	"math/rand/v2"
	"reflect"
	"testing"

	"github.com/braidnet/braid/internal/model"
	nt "github.com/braidnet/braid/internal/names/namestest"
)

// Answers must not depend on what is left out.
func TestTrimChangesNoAnswer(t *testing.T) {
	for seed := range uint64(100) {
		w := world{rand.New(rand.NewPCG(seed, 7))}
		full, lean := nt.Store(), nt.Store()
		x, y := follow(full), follow(lean)
		for range 60 {
			o := w.object()
			nt.Apply(full, o)
			u := model.Set(o)
			u.Object = Trim(o)
			lean.Apply([]model.Update{u})
		}
		for _, ns := range []string{"a", "b"} {
			for _, svc := range []string{"s", "t"} {
				for _, g := range []Grammar{{}, {Clusters: true}, {Zonal: true}} {
					for _, front := range []string{"", "h0.", "p.", "10-0-0-1.", "_http._tcp.", "_udp.", "h0.east.", "x.pin._zone."} {
						n, ok := g.Parse(front + svc + "." + ns + ".svc")
						if !ok {
							continue
						}
						for _, v := range []View{{}, {PodNames: true}, {IgnoreEmpty: true}} {
							if a, b := x.Resolve(n, v, true), y.Resolve(n, v, true); !reflect.DeepEqual(a, b) {
								t.Fatalf("seed %d, %+v: %+v from full objects, %+v from trimmed ones", seed, n, a, b)
							}
							if a, b := x.ResolveImport(n, v, true), y.ResolveImport(n, v, true); !reflect.DeepEqual(a, b) {
								t.Fatalf("seed %d, %+v of the set: %+v from full objects, %+v from trimmed ones", seed, n, a, b)
							}
							a, okA := x.ResolveExternal(n, v, true)
							b, okB := y.ResolveExternal(n, v, true)
							if okA != okB || !reflect.DeepEqual(a, b) {
								t.Fatalf("seed %d, %+v outside: %+v from full objects, %+v from trimmed ones", seed, n, a, b)
							}
						}
					}
				}
				k := model.Key{Namespace: ns, Name: svc}
				r1, a1 := x.Endpoints(k)
				if r2, a2 := y.Endpoints(k); r1 != r2 || a1 != a2 {
					t.Fatalf("seed %d: %d of %d endpoints, trimmed %d of %d", seed, r1, a1, r2, a2)
				}
			}
		}
		if a, b := x.Addresses(), y.Addresses(); !reflect.DeepEqual(a, b) {
			t.Fatalf("seed %d: addresses %v and %v", seed, a, b)
		}
		if a, b := len(x.Pods()), len(y.Pods()); a != b {
			t.Fatalf("seed %d: %d pods and %d", seed, a, b)
		}
	}
}

func TestTrimDoesNotChangeItsObject(t *testing.T) {
	s := nt.Service("a/s", "10.0.0.1", "http/TCP/80")
	s.Ports[0].NodePort = 30000
	s.Ingress = []model.Ingress{{Hostname: "x", Proxy: true}}
	if Trim(s).(*model.Service).Ports[0].NodePort != 0 || s.Ports[0].NodePort != 30000 || !s.Ingress[0].Proxy {
		t.Errorf("the object was changed, or not trimmed: %+v", s)
	}
}
