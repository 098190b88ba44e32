package agent

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/braidnet/braid/internal/kernel/ipt"
	"github.com/braidnet/braid/internal/kernel/netns/nstest"
	"github.com/braidnet/braid/netagent/service"
	"github.com/braidnet/braid/netagent/service/iptables"
)

// TestDataplaneIPTablesLegacy runs the scenario on the tools that old kernels need.
func TestDataplaneIPTablesLegacy(t *testing.T) {
	if !haveTool("iptables-legacy-restore") {
		t.Skip("iptables-legacy-restore is not installed")
	}
	t.Setenv("XTABLES_LOCKFILE", filepath.Join(t.TempDir(), "lock")) // the machine's own lock is not ours to take
	runDataplaneScenario(t, func(log *slog.Logger) (service.Dataplane, error) {
		return newIPTablesVariant(log, ipt.Legacy, "asked for")
	})
}

// TestRemainsOfOtherModes: the variant that a node's programs use may change between two runs of the agent,
// and so may the service mode. What the earlier run wrote goes, wherever that was; without the right to read
// there it stays, which is no error.
func TestRemainsOfOtherModes(t *testing.T) {
	if !haveTool("iptables-legacy-restore") {
		t.Skip("iptables-legacy-restore is not installed")
	}
	t.Setenv("XTABLES_LOCKFILE", filepath.Join(t.TempDir(), "lock"))
	l := newDPLab(t)
	log := slog.New(slog.DiscardHandler)
	all, net := dpState()
	l.foreignRules(t)
	for _, v := range ipt.Variants {
		dp := l.construct(t, func(log *slog.Logger) (service.Dataplane, error) { return newIPTablesVariant(log, v, "test") })
		l.must(t, "Replace", func() error { return dp.Replace(all, net) })
	}
	ours := func() int { return strings.Count(l.rules(t)+l.node.Exec(t, "iptables-legacy-save"), iptables.Prefix) }
	if ours() == 0 {
		t.Fatal("nothing was written")
	}
	l.must(t, "sweep", func() error {
		chosen, err := newNFTables(log)
		if err != nil {
			return err
		}
		s := services{dataplane: chosen, remains: remainsBeside(chosen, log), log: log}
		defer s.close()
		if len(s.remains) != 2 {
			t.Errorf("remains %v", s.remains)
		}
		return s.sweep()
	})
	if n := ours(); n != 0 {
		t.Errorf("%d lines of ours are left\n%s%s", n, l.rules(t), l.node.Exec(t, "iptables-legacy-save"))
	}
	l.wantForeign(t)

	closed := services{remains: []remains{closedRemains{"x", os.ErrPermission}}, log: log}
	if err := closed.sweep(); err != nil {
		t.Error(err)
	}
	broken := services{remains: []remains{closedRemains{"x", os.ErrInvalid}}, log: log}
	if err := broken.sweep(); !errors.Is(err, os.ErrInvalid) {
		t.Error(err)
	}
}

// TestVariantFollowsTheKubelet: the mode says which variant it took and why.
func TestVariantFollowsTheKubelet(t *testing.T) {
	if !haveTool("iptables-legacy-restore") {
		t.Skip("iptables-legacy-restore is not installed")
	}
	t.Setenv("XTABLES_LOCKFILE", filepath.Join(t.TempDir(), "lock"))
	for _, v := range ipt.Variants {
		ns := nstest.New(t)
		ns.Exec(t, "iptables-"+string(v), "-t", "mangle", "-N", "KUBE-IPTABLES-HINT")
		ns.Run(t, func() error {
			dp, refused, err := chooseDataplane("iptables", slog.New(slog.DiscardHandler))
			if err != nil {
				return err
			}
			if p := dp.(*iptablesPlane); p.variant != v || !strings.Contains(p.why, "KUBE-IPTABLES-HINT") || refused != "" {
				t.Errorf("kubelet on %s: took %s because %s (%s)", v, p.variant, p.why, refused)
			}
			return nil
		})
	}
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
			tool, err := ipt.Find(strings.Contains(filepath.Base(file), "ipv6"), ipt.NFT)
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
