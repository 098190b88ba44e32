package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/braidnet/braid/test/bench/rig"
)

// result is one run.
type result struct {
	rate    float64 // answers per second
	perCPU  float64 // answers per second of processor time of the server
	lost    int
	answers string // dnsperf's line of response codes
}

// measure asks one workload of all servers in turns and prints a table.
func (w *workload) measure(ctx context.Context, o *options, all []*server, out io.Writer) error {
	file := filepath.Join(o.dir, "questions")
	if err := os.WriteFile(file, []byte(strings.Join(w.lines, "\n")+"\n"), 0o644); err != nil {
		return err
	}
	results := map[*server][]result{}
	for range o.rounds {
		for _, s := range all {
			if s.corefile == "" && w.outside {
				continue
			}
			r, err := w.ask(ctx, s, file, o.span)
			if err != nil {
				return fmt.Errorf("%s: %w", s.name, err)
			}
			results[s] = append(results[s], r)
			fmt.Fprintf(os.Stderr, "%-28s %-28s %8.0f/s %8.0f per CPU second, %d lost, %s\n", w.name, s.name, r.rate, r.perCPU, r.lost, r.answers)
		}
	}
	fmt.Fprintf(out, "\n### %s\n\n| | per second | per CPU second | against stock | against bare | p50, p99 at half load |\n|---|---|---|---|---|---|\n", w.name)
	figure := func(program string) float64 {
		for s, list := range results {
			if strings.HasPrefix(s.name, program) {
				return median(list, func(r result) float64 { return r.perCPU })
			}
		}
		return math.NaN()
	}
	stock, bare := figure("stock"), figure("bare")
	for _, s := range all {
		list := results[s]
		if len(list) == 0 {
			continue
		}
		rate, per := median(list, func(r result) float64 { return r.rate }), median(list, func(r result) float64 { return r.perCPU })
		delays, err := w.latencies(ctx, s, file, o.span, rate/2)
		if err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		fmt.Fprintf(out, "| %s | %.0f | %.0f | %s | %s | %s, %s |\n", s.name, rate, per, ratio(per, stock), ratio(per, bare), rig.Short(rig.Percentile(delays, 50)), rig.Short(rig.Percentile(delays, 99)))
	}
	return nil
}

func ratio(a, b float64) string {
	if math.IsNaN(b) || b == 0 {
		return "–"
	}
	return fmt.Sprintf("%.2f×", a/b)
}

// median of a figure of several runs.
func median(list []result, of func(result) float64) float64 {
	values := make([]float64, len(list))
	for i, r := range list {
		values[i] = of(r)
	}
	return rig.Percentile(values, 50)
}

func (w *workload) dnsperf(ctx context.Context, s *server, file string, span time.Duration, more ...string) *exec.Cmd {
	args := append([]string{"-c", strconv.Itoa(askerCPU), "nice", "-n", strconv.Itoa(w.nice), "dnsperf", "-s", "127.0.0.1", "-p", strconv.Itoa(s.port), "-d", file,
		"-l", fmt.Sprint(max(1, int(span.Seconds()))), "-c", "8", "-t", "1"}, more...)
	if w.edns {
		args = append(args, "-e")
	}
	return exec.CommandContext(ctx, "taskset", args...)
}

// ask asks as fast as the server answers, with up to 200 questions under way.
func (w *workload) ask(ctx context.Context, s *server, file string, span time.Duration) (r result, err error) {
	before, err := s.cpuTime()
	if err != nil {
		return r, err
	}
	text, err := w.dnsperf(ctx, s, file, span, "-q", "200").CombinedOutput()
	if err != nil {
		return r, fmt.Errorf("dnsperf: %w: %s", err, text)
	}
	after, err := s.cpuTime()
	if err != nil {
		return r, err
	}
	var done float64
	for line := range strings.SplitSeq(string(text), "\n") {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		f := strings.Fields(value)
		if len(f) == 0 {
			continue
		}
		switch name {
		case "Queries per second":
			r.rate, err = strconv.ParseFloat(f[0], 64)
		case "Queries completed":
			done, err = strconv.ParseFloat(f[0], 64)
		case "Queries lost":
			r.lost, err = strconv.Atoi(f[0])
		case "Response codes":
			r.answers = strings.TrimSpace(value)
		}
		if err != nil {
			return r, fmt.Errorf("dnsperf said %q: %w", line, err)
		}
	}
	if done == 0 || after <= before {
		return r, fmt.Errorf("nothing was answered:\n%s", text)
	}
	r.perCPU = done / (after - before).Seconds()
	return r, nil
}

// latencies asks at a rate and returns how long answers took.
func (w *workload) latencies(ctx context.Context, s *server, file string, span time.Duration, rate float64) ([]time.Duration, error) {
	cmd := w.dnsperf(ctx, s, file, span, "-q", "1000", "-v", "-Q", strconv.Itoa(max(1, int(rate))))
	text, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("dnsperf: %w", err)
	}
	list, err := delays(text)
	if err == nil && len(list) == 0 {
		err = fmt.Errorf("no answers at %.0f per second", rate)
	}
	return list, err
}

// delays reads from dnsperf's output (with -v) how long answers took.
func delays(text []byte) (list []time.Duration, err error) {
	lines := bufio.NewScanner(bytes.NewReader(text))
	for lines.Scan() {
		f := strings.Fields(lines.Text()) // > NOERROR name type seconds
		if len(f) == 5 && f[0] == ">" {
			if v, err := strconv.ParseFloat(f[4], 64); err == nil {
				list = append(list, time.Duration(v*float64(time.Second)))
			}
		}
	}
	return list, lines.Err()
}

// facts says on what the figures were taken.
func (o *options) facts() string {
	return fmt.Sprintf("%s; %d services with %d endpoints each; medians of %d runs of %v", rig.Facts(), o.services, o.endpoints, o.rounds, o.span)
}

func printStarts(w io.Writer, all []*server) {
	fmt.Fprint(w, "\n### Start and memory\n\n| | first answer after | resident, MiB | at its highest |\n|---|---|---|---|\n")
	for _, s := range all {
		now, peak := s.memory()
		fmt.Fprintf(w, "| %s | %s | %d | %d |\n", s.name, rig.Short(s.opened), now, peak)
	}
}
