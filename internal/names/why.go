package names

import (
	"slices"

	"github.com/braidnet/braid/internal/model"
)

// Endpoints returns how many addresses the slices of a service list, ready ones and all.
func (x *Index) Endpoints(k model.Key) (ready, all int) {
	_, list := x.service(k)
	for _, s := range list {
		ready += len(s.Endpoints)
		all += len(s.Endpoints) + s.Unready
	}
	return ready, all
}

// ServiceNames returns the names of the services of a namespace, sorted. It looks at every service
// there is: it is for people, never for an ordinary answer.
func (x *Index) ServiceNames(ns string) []string {
	var out []string
	for k, r := range x.records.all() {
		if k.Namespace == ns && r.service != nil {
			out = append(out, k.Name)
		}
	}
	slices.Sort(out)
	return out
}

// NamespaceNames returns the names of the namespaces, sorted.
func (x *Index) NamespaceNames() []string {
	var out []string
	for ns := range x.namespaces.all() {
		out = append(out, ns)
	}
	slices.Sort(out)
	return out
}

// Nearest returns the entry of a list that a word was most likely meant to be, or "" when none is near:
// no more than a third of its letters are wrong, missing or too many. It prefers the first of equals.
func Nearest(word string, list []string) string {
	best, allowed := "", max(1, len(word)/3)
	for _, candidate := range list {
		if d := distance(word, candidate, allowed); d <= allowed && candidate != word {
			best, allowed = candidate, d-1
		}
	}
	return best
}

// distance counts the letters to insert, delete, replace, or swap with their neighbour, that lead from a
// to b; anything above most is as good as most+1.
func distance(a, b string, most int) int {
	if abs(len(a)-len(b)) > most {
		return most + 1
	}
	before, last, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := range len(a) {
		row[0] = i + 1
		for j := range len(b) {
			differs := 1
			if a[i] == b[j] {
				differs = 0
			}
			row[j+1] = min(last[j]+differs, last[j+1]+1, row[j]+1)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				row[j+1] = min(row[j+1], before[j-1]+1)
			}
		}
		before, last, row = last, row, before
	}
	return last[len(b)]
}

func abs(n int) int { return max(n, -n) }
