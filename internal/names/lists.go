package names

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/braidnet/braid/internal/model"
)

// addKey and removeKey keep each list sorted, so that an answer does not depend on the order of events.
// They replace lists, so that readers may keep the one they have.
func addKey(m map[netip.Addr][]model.Key, a netip.Addr, k model.Key) {
	list := m[a]
	if at, ok := slices.BinarySearchFunc(list, k, compareKeys); !ok {
		m[a] = slices.Insert(slices.Clip(list), at, k)
	}
}

func removeKey(m map[netip.Addr][]model.Key, a netip.Addr, k model.Key) {
	list := m[a]
	if at, ok := slices.BinarySearchFunc(list, k, compareKeys); ok {
		list = slices.Delete(slices.Clone(list), at, at+1)
	}
	if len(list) == 0 {
		delete(m, a)
	} else {
		m[a] = list
	}
}

func compareKeys(a, b model.Key) int {
	if c := strings.Compare(a.Namespace, b.Namespace); c != 0 {
		return c
	}
	return strings.Compare(a.Name, b.Name)
}

func compareSlices(a, b *slice) int { return compareKeys(a.Key, b.Key) }

// addSlice and removeSlice keep the lists of a map.
func addSlice(m map[model.Key][]*slice, k model.Key, s *slice) {
	if k.Name != "" {
		m[k] = withSlice(m[k], s)
	}
}

func removeSlice(m map[model.Key][]*slice, k model.Key, s *slice) {
	if list := withoutSlice(m[k], s); len(list) > 0 {
		m[k] = list
	} else {
		delete(m, k)
	}
}

// withSlice and withoutSlice return new lists, so that readers may keep the one they have.
func withSlice(list []*slice, s *slice) []*slice {
	at, _ := slices.BinarySearchFunc(list, s, compareSlices)
	return slices.Insert(slices.Clip(list), at, s)
}

func withoutSlice(list []*slice, s *slice) []*slice {
	at, ok := slices.BinarySearchFunc(list, s, compareSlices)
	if !ok {
		return list
	}
	return slices.Delete(slices.Clone(list), at, at+1)
}
