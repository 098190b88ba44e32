package worlds

import "testing"

func TestShrink(t *testing.T) {
	excepts := func(w World) (n int) {
		for _, o := range w.Policies {
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
		d := NewDice(3, i)
		w := d.World()
		if excepts(w) < 2 || len(w.Policies) < 3 {
			continue
		}
		small := Shrink(w, Packet{}, func(w World, _ Packet) bool { return excepts(w) > 0 })
		if len(small.Pods) > 0 || len(small.Policies) != 1 || len(small.Policies[0].Spec.Ingress) != 1 || len(small.Policies[0].Spec.Egress) > 0 || excepts(small) != 1 {
			t.Fatalf("could be smaller:\n%s", small)
		}
		return
	}
	t.Fatal("no world to shrink was drawn")
}
