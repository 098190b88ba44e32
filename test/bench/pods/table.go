package main

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/braidnet/braid/test/bench/rig"
)

// table gathers figures: all of one measure of one subject.
type table struct {
	subjects []subject
	values   map[[2]string][]float64
}

func newTable(list []subject) *table {
	return &table{subjects: list, values: map[[2]string][]float64{}}
}

func (t *table) add(subject, measure string, v float64) {
	k := [2]string{subject, measure}
	t.values[k] = append(t.values[k], v)
}

// median of one figure, with the smallest and the largest; ok is false when it was not taken.
func (t *table) median(subject, measure string) (mid, low, high float64, ok bool) {
	list := t.values[[2]string{subject, measure}]
	if len(list) == 0 {
		return 0, 0, 0, false
	}
	return rig.Percentile(list, 50), slices.Min(list), slices.Max(list), true
}

// print writes one row for each subject, each figure as median and range, and what it is of the first
// subject's.
func (t *table) print(w io.Writer) {
	var shown []measure
	for _, m := range measures {
		if _, _, _, ok := t.median(t.subjects[0].name, m.name); ok {
			shown = append(shown, m)
		}
	}
	fmt.Fprint(w, "\n|")
	for _, m := range shown {
		fmt.Fprintf(w, " | %s, %s", m.name, m.unit)
	}
	fmt.Fprintf(w, " |\n|%s\n", strings.Repeat("---|", len(shown)+1))
	for _, s := range t.subjects {
		fmt.Fprintf(w, "| %s |", s.name)
		for _, m := range shown {
			mid, low, high, _ := t.median(s.name, m.name)
			base, _, _, _ := t.median(t.subjects[0].name, m.name)
			fmt.Fprintf(w, " %.4g (%.3g–%.3g; %.2f×) |", mid, low, high, mid/base)
		}
		fmt.Fprintln(w)
	}
}

// facts says on what the figures were taken.
func (o *options) facts() string {
	text := fmt.Sprintf("%s; medians of %d rounds of %s (smallest–largest; times the first row)", rig.Facts(), o.rounds, o.length)
	if o.underlay == 6 {
		text += "; over IPv6"
	}
	if o.offUDP {
		text += "; the wire splits UDP"
	}
	if o.offTCP {
		text += "; the wire splits TCP"
	}
	return text
}
