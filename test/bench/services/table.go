package main

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
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
	t.set(s, row, cell{short(d), d.Seconds()})
}

// plain is a time that is not the subject's doing.
func (t *table) plain(s subject, row string, d time.Duration) { t.set(s, row, cell{text: short(d)}) }

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
			t.time(s, fmt.Sprintf("%s: %s, p%d", row, part.name, p), percentile(part.list, p))
		}
	}
	t.set(s, row+": trials", cell{text: fmt.Sprint(len(d.packet))})
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

// digits prints a number with three digits, or more when it has more before the point.
func digits(v float64) string {
	if v >= 100 {
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprintf("%.3g", v)
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
	return " (" + strings.TrimSuffix(digits(c.value/ours.value), ".0") + "×)"
}

// printFacts says on what the figures were taken.
func printFacts(w io.Writer) {
	var u unix.Utsname
	_ = unix.Uname(&u) // it cannot fail with a valid address
	load, _ := os.ReadFile("/proc/loadavg")
	fmt.Fprintf(w, "%s; Linux %s; %d processors", time.Now().UTC().Format("2 January 2006 15:04 MST"), unix.ByteSliceToString(u.Release[:]), runtime.NumCPU())
	for _, name := range []string{"nft", "iptables"} {
		if out, err := exec.Command(name, "--version").Output(); err == nil {
			fmt.Fprintf(w, "; %s", strings.TrimSpace(string(out)))
		}
	}
	fmt.Fprintf(w, "; load average at the start %s", strings.Join(strings.Fields(string(load))[:1], ""))
	fmt.Fprintln(w)
}
