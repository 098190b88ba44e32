package main

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/braidnet/braid/test/bench/rig"
)

// table has a row for each figure and a column for each subject. A peer's figure stands with how many times ours it is.
type table struct {
	title    string
	subjects []subject
	rows     []string
	cells    map[[2]string]cell // row, subject
}

type cell struct {
	text  string
	value float64 // for ratios; 0: none
}

func newTable(title string, all []subject) *table {
	return &table{title: title, subjects: all, cells: map[[2]string]cell{}}
}

func (t *table) set(subject, row, text string) { t.put(subject, row, cell{text: text}) }

func (t *table) put(subject, row string, c cell) {
	if !slices.Contains(t.rows, row) {
		t.rows = append(t.rows, row)
	}
	t.cells[[2]string{row, subject}] = c
	fmt.Fprintf(os.Stderr, "  %-62s %s\n", row, c.text)
}

func (t *table) time(subject, row string, d time.Duration) {
	t.put(subject, row, cell{rig.Short(d), d.Seconds()})
}

func (t *table) changes(subject, when string, c changes) {
	t.set(subject, when+"changes of each kind", fmt.Sprint(len(c[kinds[0]])))
	for _, kind := range kinds {
		p50, p99 := rig.Percentile(c[kind], 50), rig.Percentile(c[kind], 99)
		t.time(subject, when+kind+", p50", p50)
		t.time(subject, when+kind+", p99", p99)
	}
}

func (t *table) memory(subject, when string, now, highest float64) {
	t.put(subject, "memory"+when+", MiB", cell{fmt.Sprintf("%.0f", now), now})
	t.put(subject, "memory"+when+" at its highest, MiB", cell{fmt.Sprintf("%.0f", highest), highest})
}

func (t *table) print(w io.Writer) {
	fmt.Fprintf(w, "\n### %s\n\n|", t.title)
	for _, s := range t.subjects {
		fmt.Fprintf(w, " | %s", s.name)
	}
	fmt.Fprintf(w, " |\n|%s\n", strings.Repeat("---|", len(t.subjects)+1))
	for _, row := range t.rows {
		fmt.Fprintf(w, "| %s |", row)
		for _, s := range t.subjects {
			c, there := t.cells[[2]string{row, s.name}]
			if !there {
				c.text = "–"
			}
			fmt.Fprintf(w, " %s%s |", c.text, t.ratio(row, s, c))
		}
		fmt.Fprintln(w)
	}
}

// ratio is how many times ours a peer's figure is, in each of our modes.
func (t *table) ratio(row string, s subject, c cell) string {
	var out []string
	for _, ours := range t.subjects {
		if base := t.cells[[2]string{row, ours.name}]; s.peer && !ours.peer && base.value > 0 && c.value > 0 {
			out = append(out, rig.Digits(c.value/base.value)+"×")
		}
	}
	if len(out) == 0 {
		return ""
	}
	return " (" + strings.Join(out, ", ") + ")"
}
