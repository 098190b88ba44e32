package model

import (
	"net/netip"
	"testing"
	"time"
)

func svc(name, ip string, line int) *Service {
	s := &Service{Origin: Origin{Ref: Ref{KindService, Key{"default", name}}, File: "a.yaml", Line: line}, Type: ClusterIP}
	if ip != "" {
		s.ClusterIPs = []netip.Addr{netip.MustParseAddr(ip)}
	}
	return s
}

func TestStoreReportsOnlyRealChanges(t *testing.T) {
	s := NewStore()
	var got []Change
	s.Subscribe(func(_ uint64, c []Change) { got = append(got, c...) })

	s.Apply([]Update{Set(svc("web", "10.0.0.1", 1))})
	s.Apply([]Update{Set(svc("web", "10.0.0.1", 9))}) // only moved in its file
	s.Apply([]Update{Set(svc("web", "10.0.0.2", 9))})
	s.Apply([]Update{Delete(Ref{KindService, Key{"default", "none"}})})
	s.Apply([]Update{Delete(Ref{KindService, Key{"default", "web"}})})

	if len(got) != 3 {
		t.Fatalf("changes = %d, want add, update, delete: %+v", len(got), got)
	}
	if got[0].Old != nil || got[0].New == nil || got[1].Old == nil || got[1].New == nil || got[2].Old == nil || got[2].New != nil {
		t.Errorf("wrong steps: %+v", got)
	}
	if line := got[1].Old.From().Line; line != 9 {
		t.Errorf("the stored origin is at line %d, want 9: a moved document must be stored", line)
	}
	if s.Rev() != 3 {
		t.Errorf("rev = %d, want 3", s.Rev())
	}
}

func TestSubscribeReplaysThenFollows(t *testing.T) {
	s := NewStore()
	s.Apply([]Update{Set(svc("b", "", 0)), Set(svc("a", "", 0)),
		Set(&Namespace{Origin: Origin{Ref: Ref{KindNamespace, Key{Name: "default"}}}})})
	var names []string
	cancel := s.Subscribe(func(_ uint64, c []Change) {
		for _, x := range c {
			names = append(names, x.Ref.String())
		}
	})
	s.Apply([]Update{Set(svc("c", "", 0))})
	cancel()
	s.Apply([]Update{Set(svc("d", "", 0))})
	want := []string{"Namespace default", "Service default/a", "Service default/b", "Service default/c"}
	if len(names) != len(want) {
		t.Fatalf("got %v, want %v", names, want)
	}
	for i := range want {
		if names[i] != want[i] {
			t.Errorf("step %d = %q, want %q", i, names[i], want[i])
		}
	}
}

func TestSynced(t *testing.T) {
	s := NewStore()
	if s.HasSynced() {
		t.Fatal("a new store must not be synced")
	}
	s.MarkSynced()
	s.MarkSynced()
	<-s.Synced()
	if !s.HasSynced() {
		t.Fatal("synced store says it is not")
	}
}

func TestCurrentIsZeroUntilTheSourceSays(t *testing.T) {
	s := NewStore()
	if !s.Current().IsZero() {
		t.Fatal("nobody has said yet what the store holds")
	}
	now := time.Now()
	s.MarkCurrent(now)
	if !s.Current().Equal(now) {
		t.Errorf("current %s, want %s", s.Current(), now)
	}
}

func TestOriginString(t *testing.T) {
	o := svc("web", "", 12).Origin
	if got, want := o.String(), "Service default/web (a.yaml:12)"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	o.File = ""
	if got, want := o.String(), "Service default/web"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
