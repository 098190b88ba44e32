package agent

import (
	"errors"
	"reflect"
	"testing"
	"time"

	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/netagent/status"
)

func TestProgrammedRevisionOfEachService(t *testing.T) {
	l := newMetricsLab(t)
	want := func(when string, web, api status.Service) {
		t.Helper()
		if got, want := withoutTimes(t, l.ledger.programmed()), map[string]status.Service{"shop/web": web, "shop/api": api}; !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, want %+v", when, got, want)
		}
	}
	slice := func(node string) model.Update {
		return model.Set(portsSlice("web-1", "web", false, endpointAt("10.244.1.1", node, true)))
	}
	l.store.Apply([]model.Update{model.Set(balanced("web", 30500))})
	other := balanced("api", 30501)
	other.ClusterIPs = other.ClusterIPs[:1]
	other.ClusterIPs[0] = other.ClusterIPs[0].Next()
	l.store.Apply([]model.Update{model.Set(other), model.Set(portsSlice("x-1", "nowhere", false))})
	want("at first", status.Service{Pending: true}, status.Service{Pending: true})
	l.run(t, false)
	want("after a step", status.Service{Programmed: 1}, status.Service{Programmed: 2})
	l.store.Apply([]model.Update{slice("n1")})
	want("an endpoint came", status.Service{Programmed: 1, Pending: true}, status.Service{Programmed: 2})
	l.plane.err = errors.New("no")
	l.run(t, true)
	l.store.Apply([]model.Update{slice("n2")})
	want("a step failed", status.Service{Programmed: 1, Pending: true}, status.Service{Programmed: 2})
	l.plane.err = nil
	b := l.ledger.take() // a change comes while a step works
	l.store.Apply([]model.Update{slice("n3")})
	l.ledger.settle(b)
	want("during a step", status.Service{Programmed: 4, Pending: true}, status.Service{Programmed: 2})
	l.run(t, false)
	want("all is in force", status.Service{Programmed: 5}, status.Service{Programmed: 2})
	l.store.Apply([]model.Update{model.Delete(balanced("web", 0).Ref), model.Delete(balanced("api", 0).Ref)})
	l.store.Apply([]model.Update{slice("n1")})
	l.run(t, false)
	if got := l.ledger.programmed(); len(got) != 0 {
		t.Errorf("no Service is left, but %+v", got)
	}
}

// withoutTimes wants a time with each revision that is in force, and takes it away.
func withoutTimes(t *testing.T, all map[string]status.Service) map[string]status.Service {
	t.Helper()
	for name, s := range all {
		if s.InForce.IsZero() != (s.Programmed == 0) {
			t.Errorf("%s: %+v", name, s)
		}
		s.InForce = time.Time{}
		all[name] = s
	}
	return all
}
