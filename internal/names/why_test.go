package names

import (
	"testing"

	"github.com/braidnet/braid/internal/model"
	nt "github.com/braidnet/braid/internal/names/namestest"
)

func TestNearest(t *testing.T) {
	list := []string{"api", "apx", "database", "web", "web-canary"}
	for word, want := range map[string]string{"ap1": "api", "databse": "database", "dabatase": "database", "wbe": "web", "webcanary": "web-canary", "mail": "", "x": "", "api": "apx"} {
		if got := Nearest(word, list); got != want {
			t.Errorf("Nearest(%q) = %q, want %q", word, got, want)
		}
	}
}

func TestEndpointCounts(t *testing.T) {
	x := follow(nt.Store(nt.Slice("prod/a", "web", "", nt.Ready("10.0.0.1", "", ""), nt.NotReady("10.0.0.2")), nt.Slice("prod/b", "web", "", nt.NotReady("10.0.0.3"))))
	if ready, all := x.Endpoints(model.Key{Namespace: "prod", Name: "web"}); ready != 1 || all != 3 {
		t.Errorf("%d of %d ready, want 1 of 3", ready, all)
	}
}
