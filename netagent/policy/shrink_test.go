package policy

import (
	"slices"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
)

// shrink takes parts out of a world as long as it still fails.
func shrink(w world, p Packet, fails func(world, Packet) bool) (world, Packet) {
	for again := true; again; {
		again = false
		for _, smaller := range w.smaller() {
			if fails(smaller, p) {
				w, again = smaller, true
				break
			}
		}
	}
	return w, p
}

// smaller lists the worlds that have one thing less.
func (w world) smaller() (out []world) {
	for i := range w.policies {
		out = append(out, world{w.namespaces, w.pods, cut(w.policies, i)})
	}
	for i := range w.pods {
		out = append(out, world{w.namespaces, cut(w.pods, i), w.policies})
	}
	for i, o := range w.policies {
		for _, less := range smallerPolicies(o) {
			list := slices.Clone(w.policies)
			list[i] = less
			out = append(out, world{w.namespaces, w.pods, list})
		}
	}
	for i, o := range w.pods {
		for k := range o.Labels {
			less := o.DeepCopy()
			delete(less.Labels, k)
			list := slices.Clone(w.pods)
			list[i] = less
			out = append(out, world{w.namespaces, list, w.policies})
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

func TestShrink(t *testing.T) {
	excepts := func(w world) (n int) {
		for _, o := range w.policies {
			for _, r := range o.Spec.Ingress {
				for _, p := range r.From {
					if p.IPBlock != nil {
						n += len(p.IPBlock.Except)
					}
				}
			}
		}
		return n
	}
	for i := range uint64(1000) {
		d := newDice(3, i)
		w := d.world()
		if excepts(w) < 2 || len(w.policies) < 3 {
			continue
		}
		small, _ := shrink(w, Packet{}, func(w world, _ Packet) bool { return excepts(w) > 0 })
		if len(small.pods) > 0 || len(small.policies) != 1 || len(small.policies[0].Spec.Ingress) != 1 || len(small.policies[0].Spec.Egress) > 0 || excepts(small) != 1 {
			t.Fatalf("could be smaller:\n%s", small)
		}
		return
	}
	t.Fatal("no world to shrink was drawn")
}
