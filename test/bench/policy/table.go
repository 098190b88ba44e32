package main

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
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

func (t *table) time(subject, row string, d time.Duration) { t.set(subject, row, short(d)) }

func (t *table) changes(subject, when string, c changes) {
	for _, kind := range kinds {
		t.set(subject, when+kind+", p50, p99", short(percentile(c[kind], 50))+", "+short(percentile(c[kind], 99)))
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

// percentile returns the smallest value that at least p of 100 are not above.
func percentile(list []time.Duration, p int) time.Duration {
	if len(list) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(list))
	return s[(len(s)*p+99)/100-1]
}

// short prints a time with three digits.
func short(d time.Duration) string {
	switch {
	case d < time.Millisecond:
		return digits(d.Seconds()*1e6) + " µs"
	case d < time.Second:
		return digits(d.Seconds()*1000) + " ms"
	}
	return digits(d.Seconds()) + " s"
}

func digits(v float64) string {
	if v >= 100 {
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprintf("%.3g", v)
}

// printFacts says on what the figures were taken.
func printFacts(w io.Writer) {
	var u unix.Utsname
	_ = unix.Uname(&u) // it cannot fail with a valid address
	load, _ := os.ReadFile("/proc/loadavg")
	fmt.Fprintf(w, "%s; Linux %s; %d processors", time.Now().UTC().Format("2 January 2006 15:04 MST"), unix.ByteSliceToString(u.Release[:]), runtime.NumCPU())
	if out, err := exec.Command("nft", "--version").Output(); err == nil {
		fmt.Fprintf(w, "; %s", strings.TrimSpace(string(out)))
	}
	fmt.Fprintf(w, "; load average at the start %s\n", strings.Join(strings.Fields(string(load))[:1], ""))
}
