package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/braidnet/braid/test/bench/rig"
)

// flood asks every server for names of the cluster, a thousand a second, while somebody else asks for as
// many names outside, each of them once, as it can: what goes on then is told by how many of the known
// names are answered, how fast, and what memory the server takes.
func flood(ctx context.Context, o *options, all []*server, out io.Writer) error {
	// Who asks for known names goes before the flood on their processor: the server is what is measured.
	known, fresh := &workload{lines: cases(o)[1].lines, nice: -15}, &workload{}
	for i := range 400000 {
		fresh.lines = append(fresh.lines, fmt.Sprintf("flood-%d.example.test A", i))
	}
	files := map[*workload]string{}
	for i, w := range []*workload{known, fresh} {
		files[w] = filepath.Join(o.dir, fmt.Sprintf("flood-%d", i))
		if err := os.WriteFile(files[w], []byte(strings.Join(w.lines, "\n")+"\n"), 0o644); err != nil {
			return err
		}
	}
	const rate = 1000
	fmt.Fprintf(out, "\n### %d questions per second for services, in a flood of names outside\n\n| | answered | p50, p99 | memory before, at its highest, MiB |\n|---|---|---|---|\n", rate)
	for _, s := range all {
		if s.corefile == "" {
			continue
		}
		before, _ := s.memory()
		storm := fresh.dnsperf(ctx, s, files[fresh], o.span+3*time.Second, "-q", "20000")
		if err := storm.Start(); err != nil {
			return err
		}
		time.Sleep(time.Second) // until the flood is one
		list, err := known.latencies(ctx, s, files[known], o.span, rate)
		werr := storm.Wait()
		if err != nil || werr != nil {
			return fmt.Errorf("%s: %w, %w", s.name, err, werr)
		}
		_, peak := s.memory()
		fmt.Fprintf(out, "| %s | %.1f %% | %s, %s | %d, %d |\n", s.name, 100*float64(len(list))/(rate*o.span.Seconds()), rig.Short(rig.Percentile(list, 50)), rig.Short(rig.Percentile(list, 99)), before, peak)
	}
	return nil
}
