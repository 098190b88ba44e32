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

// table has a row for each figure and a column for each subject.
type table struct {
	title    string
	subjects []subject
	rows     []string
	cells    map[[2]string]string // row, subject
}

func newTable(title string, all []subject) *table {
	return &table{title: title, subjects: all, cells: map[[2]string]string{}}
}

func (t *table) set(subject, row, text string) {
	if !slices.Contains(t.rows, row) {
		t.rows = append(t.rows, row)
	}
	t.cells[[2]string{row, subject}] = text
	fmt.Fprintf(os.Stderr, "  %-62s %s\n", row, text)
}

func (t *table) time(subject, row string, d time.Duration) { t.set(subject, row, rig.Short(d)) }

func (t *table) changes(subject, when string, c changes) {
	for _, kind := range kinds {
		t.set(subject, when+kind+", p50, p99", rig.Short(rig.Percentile(c[kind], 50))+", "+rig.Short(rig.Percentile(c[kind], 99)))
	}
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
			text, there := t.cells[[2]string{row, s.name}]
			if !there {
				text = "–"
			}
			fmt.Fprintf(w, " %s |", text)
		}
		fmt.Fprintln(w)
	}
}
