package agent

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/braidnet/braid/internal/kernel/ipt"
	"github.com/braidnet/braid/internal/kernel/netns/nstest"
	"github.com/braidnet/braid/netagent/service"
)

// TestDataplaneIPTablesLegacy runs the scenario on the tools that old kernels need.
func TestDataplaneIPTablesLegacy(t *testing.T) {
	if !haveTool("iptables-legacy-restore") {
		t.Skip("iptables-legacy-restore is not installed")
	}
	t.Setenv("XTABLES_LOCKFILE", filepath.Join(t.TempDir(), "lock")) // the machine's own lock is not ours to take
	runDataplaneScenario(t, func(log *slog.Logger) (service.Dataplane, error) {
		return newIPTablesWith(log, func(ipv6 bool) (*ipt.Tool, error) { return ipt.FindVariant(ipv6, "legacy") })
	})
}

// TestIPTablesGoldensAccepted gives the renderer's goldens to the real tool.
func TestIPTablesGoldensAccepted(t *testing.T) {
	ns := nstest.New(t)
	files, err := filepath.Glob("../service/iptables/testdata/*.rules")
	if err != nil || len(files) == 0 {
		t.Fatalf("no goldens: %v", err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		ns.Run(t, func() error {
			tool, err := ipt.Find(strings.Contains(filepath.Base(file), "ipv6"))
			if err != nil {
				return err
			}
			if err := tool.Test(string(text)); err != nil {
				t.Errorf("%s: %v", file, err)
			}
			return nil
		})
	}
}

func TestIPTablesApplyBeforeReplace(t *testing.T) {
	ns := nstest.New(t)
	ns.Run(t, func() error {
		dp, err := newIPTables(slog.New(slog.DiscardHandler))
		if err != nil {
			return err
		}
		all, net := dpState()
		if err := dp.Apply(service.Delta{Set: all, Net: &net}); err == nil || !strings.Contains(err.Error(), "call Replace first") {
			t.Errorf("Apply before Replace: error %v, want a hint to Replace", err)
		}
		return nil
	})
}

// BenchmarkIPTables measures what BenchmarkNFTables does, on fewer services: the tools rewrite a whole
// table of the kernel (legacy) or list the chains they change (nftables) on every run.
func BenchmarkIPTables(b *testing.B) {
	for _, n := range []int{1000, 5000} {
		all, net := manyFrontends(n)
		ns := nstest.New(b)
		var dp service.Dataplane
		step := func(fn func() error) { ns.Run(b, fn) }
		step(func() (err error) { dp, err = newIPTables(slog.New(slog.DiscardHandler)); return err })
		b.Run(fmt.Sprintf("load/%dx2", n), func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				step(func() error { _, err := dp.Cleanup(); return err })
				b.StartTimer()
				step(func() error { return dp.Replace(all, net) })
			}
		})
		step(func() error { return dp.Replace(all, net) })
		b.Run(fmt.Sprintf("restart/%dx2", n), func(b *testing.B) {
			for b.Loop() {
				step(func() error { return dp.Replace(all, net) })
			}
		})
		less := all[n/2]
		less.Backends = less.Backends[:1]
		b.Run(fmt.Sprintf("endpoint/%dx2", n), func(b *testing.B) {
			for i := 0; b.Loop(); i++ {
				f := less
				if i%2 == 1 {
					f = all[n/2]
				}
				step(func() error { return dp.Apply(service.Delta{Set: []service.Frontend{f}}) })
			}
		})
	}
}
