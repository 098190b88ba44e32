package agent

import (
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
