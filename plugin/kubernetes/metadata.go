package kubernetes

import (
	"context"
	"maps"
	"slices"
	"strings"

	"github.com/coredns/coredns/plugin"
	"github.com/coredns/coredns/plugin/metadata"
	"github.com/coredns/coredns/request"

	"github.com/braidnet/braid/internal/names"
)

// Metadata implements metadata.Provider: labels "kubernetes/…" about the name that is asked for and,
// with "pods verified", about the pod that asks.
func (k *Kubernetes) Metadata(ctx context.Context, state request.Request) context.Context {
	set := func(label, value string) {
		metadata.SetValueFunc(ctx, pluginName+"/"+label, func() string { return value })
	}
	if pod := k.client(state); pod != nil {
		set("client-namespace", pod.Namespace)
		set("client-pod-name", pod.Name)
		for _, l := range slices.Sorted(maps.Keys(pod.Labels)) {
			set("client-label/"+l, pod.Labels[l])
		}
	}
	zone := plugin.Zones(k.cfg.zones).Matches(state.Name())
	if zone == "" {
		return ctx
	}
	q := question{name: state.QName(), zone: zone}
	n, ok := k.grammar(zone).Parse(q.relative())
	if !ok || n.Kind == names.Version || n.Kind == names.NSHost || q.relative() == "dns" {
		set("parse-error", "invalid query name")
		return ctx
	}
	if n.Kind == names.Node { // "svc" and "pod" hold others and are of no kind themselves
		n.Kind = 0
	}
	kinds := map[names.Kind]string{names.Svc: "svc", names.Pod: "pod"}
	set("port-name", n.Port)
	set("protocol", n.Protocol)
	set("endpoint", n.Endpoint)
	if k.class(zone) == names.SetZone {
		set("cluster", n.Cluster)
	}
	if k.cfg.zonal {
		set("zone", strings.TrimSuffix(n.Zone, "."))
	}
	set("service", n.Object)
	set("namespace", n.Namespace)
	set("kind", kinds[n.Kind])
	return ctx
}
