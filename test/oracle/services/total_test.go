package services

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// total counts what was compared.
type total struct {
	mu                             sync.Mutex
	clusters, packets, differences int
	intended                       map[string]int
}

func (t *total) count(name string) {
	if t.intended == nil {
		t.intended = map[string]int{}
	}
	t.intended[name]++
}

func (t *total) add(r *run) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.clusters += r.clusters
	t.packets += r.packets
	t.differences += r.differences
	for name, n := range r.total.intended {
		if t.intended == nil {
			t.intended = map[string]int{}
		}
		t.intended[name] += n
	}
}

// report prints the line that sums up.
func (t *total) report(tt *testing.T, start time.Time) {
	for _, x := range intendeds {
		if t.clusters >= fullLength && t.intended[x.name] == 0 {
			tt.Errorf("%q never came: the difference is gone, take it out of the list", x.name)
		}
	}
	sum := 0
	var texts []string
	for _, name := range slices.Sorted(maps.Keys(t.intended)) {
		sum += t.intended[name]
		texts = append(texts, fmt.Sprintf("%s: %d", name, t.intended[name]))
	}
	fmt.Printf("seed %d: %d clusters, %d packets, %d differences, %d intended (%s), %s\n", *flagSeed, t.clusters, t.packets, t.differences, sum,
		strings.Join(texts, "; "), time.Since(start).Round(time.Second))
}
