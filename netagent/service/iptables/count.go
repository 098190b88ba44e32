package iptables

import "slices"

// Rules counts rules in our chains of one table.
type Rules struct {
	Total int // in the kernel
	Last  int // written when the kernel last took a change
}

// Rules returns the counts by table.
func (r *Renderer) Rules() map[string]Rules {
	out := map[string]Rules{}
	for _, t := range tables {
		out[t] = Rules{r.total[t], r.last[t]}
	}
	return out
}

// Entries is how many the kernel's older tables have at least, by their own count: our rules and those that lead to us, two for
// each chain of ours, a policy for each chain of the kernel's, and an end.
func (r *Renderer) Entries(table string) int {
	n := map[string]int{"nat": 4, "filter": 3}[table] + 1 + len(Entrances[table])
	for id, rules := range r.have {
		if id.table == table {
			n += len(rules) + 2
		}
	}
	return n
}

// recount counts what the kernel was found to have.
func (r *Renderer) recount() {
	r.total, r.last = map[string]int{}, map[string]int{}
	for id, rules := range r.have {
		r.total[id.table] += len(rules)
	}
}

// countDirty counts what the kernel takes over, before it is noted.
func (r *Renderer) countDirty() {
	r.last, r.early = r.early, map[string]int{}
	for id := range r.dirty {
		want, have := r.want[id], r.have[id]
		r.total[id.table] += len(want) - len(have)
		if !slices.Equal(want, have) {
			r.last[id.table] += len(want)
		}
	}
}
