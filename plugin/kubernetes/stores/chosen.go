package stores

import (
	"k8s.io/apimachinery/pkg/labels"

	"github.com/braidnet/braid/internal/model"
)

// labelHeadless is what the EndpointSlice controller marks the slices of headless services with.
const labelHeadless = "service.kubernetes.io/headless"

// Selectors returns the label selectors of a source by kind, for a server that understands them.
func (s Source) Selectors() map[model.Kind]string {
	out := map[model.Kind]string{}
	if s.NamespaceLabels != "" {
		out[model.KindNamespace] = s.NamespaceLabels
	}
	if s.Labels != "" {
		for _, k := range []model.Kind{model.KindService, model.KindEndpointSlice, model.KindPod, model.KindServiceImport} {
			out[k] = s.Labels
		}
	}
	if s.HeadlessOnly {
		out[model.KindEndpointSlice] = labelHeadless
		if s.Labels != "" {
			out[model.KindEndpointSlice] += "," + s.Labels
		}
	}
	return out
}

// chosen passes on only what the selectors choose; a change of something else is its end. An API
// server has chosen already, and what it sends comes without labels.
func (s Source) chosen(next model.Subscriber) model.Subscriber {
	if s.Manifests == "" || (s.Labels == "" && s.NamespaceLabels == "") {
		return next
	}
	by := map[model.Kind]labels.Selector{}
	for kind, text := range s.Selectors() {
		if kind == model.KindEndpointSlice {
			text = s.Labels // manifests seldom carry the controller's label
		}
		by[kind], _ = labels.Parse(text) // the Corefile's reader wrote it
	}
	return func(rev uint64, changes []model.Change) {
		out := make([]model.Change, len(changes))
		for i, c := range changes {
			if sel := by[c.Kind]; sel != nil && c.New != nil && !sel.Matches(labelsOf(c.New)) {
				c.New = nil
			}
			out[i] = c
		}
		next(rev, out)
	}
}

func labelsOf(o model.Object) labels.Set {
	switch o := o.(type) {
	case *model.Namespace:
		return o.Labels
	case *model.Service:
		return o.Labels
	case *model.EndpointSlice:
		return o.Labels
	case *model.Pod:
		return o.Labels
	case *model.ServiceImport:
		return o.Labels
	}
	return nil
}
