package stores

import (
	"maps"
	"testing"

	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/internal/names"
	nt "github.com/braidnet/braid/internal/names/namestest"
)

func TestSelectors(t *testing.T) {
	for _, tc := range []struct {
		src  Source
		want map[model.Kind]string
	}{
		{Source{}, map[model.Kind]string{}},
		{Source{NamespaceLabels: "team=red"}, map[model.Kind]string{model.KindNamespace: "team=red"}},
		{Source{Labels: "app=web"}, map[model.Kind]string{model.KindService: "app=web", model.KindEndpointSlice: "app=web", model.KindPod: "app=web", model.KindServiceImport: "app=web"}},
		{Source{HeadlessOnly: true}, map[model.Kind]string{model.KindEndpointSlice: "service.kubernetes.io/headless"}},
		{Source{HeadlessOnly: true, Labels: "app=web"}, map[model.Kind]string{model.KindService: "app=web", model.KindPod: "app=web", model.KindServiceImport: "app=web",
			model.KindEndpointSlice: "service.kubernetes.io/headless,app=web"}},
	} {
		if got := tc.src.Selectors(); !maps.Equal(got, tc.want) {
			t.Errorf("%s selects %v, want %v", tc.src, got, tc.want)
		}
	}
}

// A folder of manifests cannot choose by labels itself: what is not chosen, or not any more, is not there.
func TestManifestsAreChosenByLabels(t *testing.T) {
	store, index := nt.Store(), names.New()
	src := Source{Manifests: "m", Labels: "app=web", NamespaceLabels: "team!=blue"}
	store.Subscribe(src.chosen(index.Apply))
	labelled := func(key, app string) *model.Service {
		s := nt.Service(key, "10.96.0.1", "http/TCP/80")
		s.Labels = map[string]string{"app": app}
		return s
	}
	blue := nt.Namespace("blue")
	blue.Labels = map[string]string{"team": "blue"}
	here := func(name string) bool { return index.Service(model.Key{Namespace: "prod", Name: name}) != nil }
	nt.Apply(store, nt.Namespace("prod"), blue, labelled("prod/web", "web"), labelled("prod/db", "db"))
	if !index.HasNamespace("prod") || index.HasNamespace("blue") || !here("web") || here("db") {
		t.Errorf("prod %v, blue %v, web %v, db %v; want only prod and web", index.HasNamespace("prod"), index.HasNamespace("blue"), here("web"), here("db"))
	}
	nt.Apply(store, labelled("prod/web", "db"), labelled("prod/db", "web"))
	if here("web") || !here("db") {
		t.Error("a change of labels changes nothing")
	}
	store.Apply([]model.Update{model.Delete(labelled("prod/db", "web").Ref)})
	if here("db") {
		t.Error("a deleted service is still there")
	}
	everything := Source{Manifests: "m"}
	store.Subscribe(everything.chosen(index.Apply))
	if !here("web") {
		t.Error("without selectors not everything is there")
	}
}
