package worlds

import (
	"slices"

	networkingv1 "k8s.io/api/networking/v1"
)

// Shrink takes parts out of a world as long as it still fails.
func Shrink(w World, p Packet, fails func(World, Packet) bool) World {
	for again := true; again; {
		again = false
		for _, smaller := range w.smaller() {
			if fails(smaller, p) {
				w, again = smaller, true
				break
			}
		}
	}
	return w
}

// smaller lists the worlds that have one thing less.
func (w World) smaller() (out []World) {
	for i := range w.Policies {
		out = append(out, World{w.Namespaces, w.Pods, cut(w.Policies, i)})
	}
	for i := range w.Pods {
		out = append(out, World{w.Namespaces, cut(w.Pods, i), w.Policies})
	}
	for i, o := range w.Policies {
		for _, less := range smallerPolicies(o) {
			list := slices.Clone(w.Policies)
			list[i] = less
			out = append(out, World{w.Namespaces, w.Pods, list})
		}
	}
	for i, o := range w.Pods {
		for k := range o.Labels {
			less := o.DeepCopy()
			delete(less.Labels, k)
			list := slices.Clone(w.Pods)
			list[i] = less
			out = append(out, World{w.Namespaces, list, w.Policies})
		}
	}
	return out
}

// smallerPolicies lists the policies that lack a rule, or one of a rule's several peers or ports.
func smallerPolicies(o *networkingv1.NetworkPolicy) (out []*networkingv1.NetworkPolicy) {
	with := func(change func(*networkingv1.NetworkPolicySpec)) {
		less := o.DeepCopy()
		change(&less.Spec)
		out = append(out, less)
	}
	for i, r := range o.Spec.Ingress {
		with(func(s *networkingv1.NetworkPolicySpec) { s.Ingress = cut(s.Ingress, i) })
		for j := range r.From {
			if len(r.From) > 1 {
				with(func(s *networkingv1.NetworkPolicySpec) { s.Ingress[i].From = cut(r.From, j) })
			}
			if b := r.From[j].IPBlock; b != nil {
				for k := range b.Except {
					with(func(s *networkingv1.NetworkPolicySpec) { s.Ingress[i].From[j].IPBlock.Except = cut(b.Except, k) })
				}
			}
		}
		for j := range r.Ports {
			if len(r.Ports) > 1 {
				with(func(s *networkingv1.NetworkPolicySpec) { s.Ingress[i].Ports = cut(r.Ports, j) })
			}
		}
	}
	for i, r := range o.Spec.Egress {
		with(func(s *networkingv1.NetworkPolicySpec) { s.Egress = cut(s.Egress, i) })
		for j := range r.To {
			if len(r.To) > 1 {
				with(func(s *networkingv1.NetworkPolicySpec) { s.Egress[i].To = cut(r.To, j) })
			}
		}
		for j := range r.Ports {
			if len(r.Ports) > 1 {
				with(func(s *networkingv1.NetworkPolicySpec) { s.Egress[i].Ports = cut(r.Ports, j) })
			}
		}
	}
	return out
}

func cut[T any](list []T, i int) []T { return slices.Concat(list[:i], list[i+1:]) }
