package service

import (
	"math/rand/v2"
	"net/netip"
	"reflect"
	"testing"

	"github.com/braidnet/braid/internal/model"
)

// What Trim leaves out has no effect on any frontend: two planners, one of which sees trimmed objects
// only, never differ.
func TestTrimChangesNoFrontend(t *testing.T) {
	cfg := Config{Node: testNode, ExternalIPs: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}}
	for seed := range uint64(200) {
		m := maker{rand.New(rand.NewPCG(seed, 1))}
		whole, trimmed := NewPlanner(cfg), NewPlanner(cfg)
		for rev := range uint64(40) {
			var o model.Object
			switch m.IntN(3) {
			case 0:
				o = m.service()
			case 1:
				s := m.slice()
				s.Labels = map[string]string{"some": "label"}
				if m.one(6) {
					s.Labels[labelHeadless] = ""
				}
				for i := range s.Endpoints {
					s.Endpoints[i].Hostname, s.Endpoints[i].Target = "h", ref(model.KindPod, "p").Ref
				}
				o = s
			default:
				o = m.node()
			}
			r := o.From().Ref
			whole.Apply(rev, []model.Change{{Ref: r, New: o}})
			trimmed.Apply(rev, []model.Change{{Ref: r, New: Trim(o)}})
			if a, b := whole.Flush(), trimmed.Flush(); !reflect.DeepEqual(a, b) {
				t.Fatalf("seed %d, %s: with the whole object\n%+v\nwith the trimmed one\n%+v", seed, r, a, b)
			}
		}
	}
}

func TestTrimLeavesOut(t *testing.T) {
	full := testSlice("s", "web", ep("10.244.1.1", "r", "n1", "z:z1"))
	full.Labels = map[string]string{"app": "web"}
	full.Endpoints[0].Hostname, full.Endpoints[0].Target = "h", ref(model.KindPod, "p").Ref
	got := Trim(full).(*model.EndpointSlice)
	if got.Labels != nil || got.Endpoints[0].Hostname != "" || got.Endpoints[0].Target != (model.Ref{}) {
		t.Errorf("got %+v", got)
	}
	if full.Labels == nil || full.Endpoints[0].Hostname != "h" {
		t.Errorf("Trim changed what it was given: %+v", full)
	}
	full.Labels[labelHeadless] = ""
	if got := Trim(full).(*model.EndpointSlice); len(got.Endpoints) > 0 || got.Service != full.Service {
		t.Errorf("a slice of a headless service: got %+v, want its name and no endpoints", got)
	}
}
