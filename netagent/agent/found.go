package agent

import (
	"fmt"
	"strings"

	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/netagent/status"
)

// found lists what the agent has worked out from the cluster and the machine so far, with the reasons.
func (a *Agent) found() (out []status.Finding) {
	add := func(what, value, why string) { out = append(out, status.Finding{What: what, Value: value, Why: why}) }
	if node, ok := a.store.Get(model.Ref{Kind: model.KindNode, Key: model.Key{Name: a.cfg.Node}}).(*model.Node); ok && len(node.PodCIDRs) > 0 {
		cidrs := make([]string, len(node.PodCIDRs))
		for i, c := range node.PodCIDRs {
			cidrs[i] = c.String()
		}
		add("pod CIDRs", strings.Join(cidrs, ", "), fmt.Sprintf("spec.podCIDRs of %s", node.Origin))
	}
	if a.overlay != nil {
		add("overlay", a.overlay.backend, "setting overlay")
		if last := a.overlay.last.Load(); last != nil {
			add("node addresses", strings.Join(last.Addrs, ", "), last.AddrWhy)
			if a.cfg.MTU == 0 {
				add("pod MTU", fmt.Sprint(last.MTU), last.MTUWhy)
			}
		}
		if path := a.overlay.shown.Load(); path != nil {
			add("data path", path.Features().String(), "what the kernel has of all that overlay udp can use")
		}
	}
	if a.cfg.MTU > 0 {
		add("pod MTU", fmt.Sprint(a.cfg.MTU), "setting mtu")
	}
	if s := a.services; s != nil {
		why := "setting service-mode"
		if s.asked == "auto" {
			why = "the kernel can, and it is the best"
			if s.refused != "" {
				why = s.refused
			}
		}
		add("service mode", s.dataplane.Name(), why)
		if p, ok := s.dataplane.(*iptablesPlane); ok {
			add("iptables variant", string(p.variant), p.why)
		}
	}
	if p := a.policies; p != nil {
		name, why := p.Mode()
		add("policy mode", name, why)
	}
	return out
}

// tellFound logs what was found since the last time, or has changed.
func (a *Agent) tellFound() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, f := range a.found() {
		if a.toldFound[f.What] != f {
			a.toldFound[f.What] = f
			a.log.Info("found "+f.What, "value", f.Value, "because", f.Why)
		}
	}
}
