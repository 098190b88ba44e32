package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/braidnet/braid/test/bench/rig"
)

// table is what was measured at one size: a row for each figure, a column for each subject. A peer's
// figure stands with its ratio to ours in the same mode.
type table struct {
	title    string
	subjects []subject
	rows     []string
	cells    map[[2]string]cell // row, subject
}

type cell struct {
	text  string
	value float64 // for ratios; 0 = none
}

func newTable(title string, all []subject) *table {
	return &table{title: title, subjects: all, cells: map[[2]string]cell{}}
}

func (t *table) set(s subject, row string, c cell) {
	known := false
	for _, r := range t.rows {
		known = known || r == row
	}
	if !known {
		t.rows = append(t.rows, row)
	}
	t.cells[[2]string{row, s.name}] = c
	fmt.Fprintf(os.Stderr, "  %-62s %s\n", row, c.text)
}

func (t *table) time(s subject, row string, d time.Duration) {
	t.set(s, row, cell{rig.Short(d), d.Seconds()})
}

// plain is a time that is not the subject's doing.
func (t *table) plain(s subject, row string, d time.Duration) {
	t.set(s, row, cell{text: rig.Short(d)})
}

func (t *table) over(s subject, row string, limit time.Duration) {
	t.set(s, row, cell{text: "> " + limit.String()})
}

func (t *table) memory(s subject, row string, mib float64) {
	t.set(s, row, cell{fmt.Sprintf("%.0f", mib), mib})
}

func (t *table) delays(s subject, row string, d delays, l limits) {
	if d.late {
		t.over(s, row+": kernel, p50", l.cold)
		return
	}
	for _, part := range []struct {
		name string
		list []time.Duration
	}{{"kernel", d.kernel}, {"packet", d.packet}} {
		for _, p := range []int{50, 99} {
			t.time(s, fmt.Sprintf("%s: %s, p%d", row, part.name, p), rig.Percentile(part.list, p))
		}
	}
	t.set(s, row+": trials", cell{text: fmt.Sprint(len(d.packet))})
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

// ratio is how many times our figure a peer's is.
func (t *table) ratio(row string, s subject, c cell) string {
	mode := strings.TrimPrefix(strings.SplitN(s.name, ",", 2)[0], "kube-proxy ")
	ours := t.cells[[2]string{row, "braid " + mode}]
	if s.ours || ours.value == 0 || c.value == 0 {
		return ""
	}
	return " (" + strings.TrimSuffix(rig.Digits(c.value/ours.value), ".0") + "×)"
}
