package iptables

import (
	"slices"
	"strings"
)

// part returns the next chains of a table to write ahead of all else: of very many new ones some that
// lead only to chains which are there already, or are of the part. Nothing leads to them yet, so that packets
// see all change at once still. It is nil when what is left is written as a whole.
func (r *Renderer) part(table string) []chainID {
	changed := r.changed(table)
	if r.Parts == 0 || len(changed) <= r.Parts {
		return nil
	}
	var out []chainID
	seen := map[chainID]bool{}
	var visit func(id chainID)
	visit = func(id chainID) {
		_, there := r.have[id]
		rules, wanted := r.want[id]
		if there || !wanted || seen[id] {
			return
		}
		seen[id] = true
		for _, x := range rules {
			if to := target(x); strings.HasPrefix(to, Prefix) {
				visit(chainID{table, to})
			}
		}
		if len(out) < r.Parts { // else what it leads to may be missing
			out = append(out, id)
		}
	}
	for _, id := range changed {
		if len(out) < r.Parts {
			visit(id)
		}
	}
	sortChains(out)
	return out
}

// target is the chain or action that a rule leads to.
func target(rule string) string {
	for _, flag := range []string{"-j ", "-g "} {
		if at := strings.LastIndex(rule, flag); at == 0 || at > 0 && rule[at-1] == ' ' {
			to, _, _ := strings.Cut(rule[at+len(flag):], " ")
			return to
		}
	}
	return ""
}

// sortChains puts the last by name first: the nftables variant of iptables-restore keeps the names that it was
// given in a sorted list, which it searches from the start for every line, so that ten thousand in rising order take twice
// as long.
func sortChains(list []chainID) {
	slices.SortFunc(list, func(a, b chainID) int { return strings.Compare(b.name, a.name) })
}

// commitPart notes that the kernel took a part.
func (r *Renderer) commitPart() {
	for _, id := range r.ahead {
		r.have[id] = r.want[id]
		r.total[id.table] += len(r.want[id])
		r.early[id.table] += len(r.want[id])
	}
	r.ahead = nil
}
