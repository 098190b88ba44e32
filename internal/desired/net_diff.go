package desired

import "fmt"

// Object is a value of one kind that Diff can compare: K tells objects apart, and what else it holds
// (but for the Origin) may be changed in place.
type Object[T any, K comparable] interface {
	comparable
	fmt.Stringer
	Key() K
	Why() string
	bare() T
}

// Edit is one step from what is to what should be: Old nil = add, New nil = delete, both = change.
type Edit[T any] struct {
	Old, New *T
}

// Same reports whether two objects are equal but for the reason they exist.
func Same[T interface {
	comparable
	bare() T
}](a, b T) bool {
	return a.bare() == b.bare()
}

// Diff lists the steps that turn have into want: first what is added or changed, in the order of
// want, then what is deleted, in the order of have. Several objects of have may share a key (two
// routes to one destination); the ones that are not right are deleted or changed.
func Diff[T Object[T, K], K comparable](want, have []T) []Edit[T] {
	old := make(map[K][]int, len(have))
	for i := range have {
		old[have[i].Key()] = append(old[have[i].Key()], i)
	}
	keep := make([]bool, len(have))
	var edits []Edit[T]
	for i := range want {
		found, change := false, -1
		for _, j := range old[want[i].Key()] {
			switch {
			case !found && Same(want[i], have[j]):
				found, keep[j] = true, true
			case change < 0:
				change = j
			}
		}
		switch {
		case found:
		case change >= 0:
			keep[change] = true
			edits = append(edits, Edit[T]{Old: &have[change], New: &want[i]})
		default:
			edits = append(edits, Edit[T]{New: &want[i]})
		}
	}
	for j := range have {
		if !keep[j] {
			edits = append(edits, Edit[T]{Old: &have[j]})
		}
	}
	return edits
}

// Text prints the edit with its reason: "added route …: pod CIDR … of Node b".
func Text[T interface {
	fmt.Stringer
	Why() string
}](e Edit[T]) string {
	switch {
	case e.Old == nil:
		return fmt.Sprintf("added %s: %s", *e.New, (*e.New).Why())
	case e.New == nil:
		return fmt.Sprintf("deleted %s: nothing wants it", *e.Old)
	}
	return fmt.Sprintf("changed %s to %s: %s", *e.Old, *e.New, (*e.New).Why())
}
