package ipt

import (
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/braidnet/braid/internal/kernel/netns/nstest"
)

// TestWatchSeesChanges: by each family's tools, asked from outside of the namespace it was made in.
func TestWatchSeesChanges(t *testing.T) {
	if _, err := exec.LookPath("iptables-legacy-restore"); err != nil {
		t.Skip("iptables-legacy-restore is not installed")
	}
	t.Setenv("XTABLES_LOCKFILE", filepath.Join(t.TempDir(), "lock")) // the machine's own lock is not ours to take
	ns := nstest.New(t)
	var w *Watch
	ns.Run(t, func() (err error) { w, err = NewWatch(false, true); return err })
	defer w.Close()
	sum := func() uint32 {
		t.Helper()
		n, err := w.Sum()
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	empty := sum()
	seen := map[uint32]string{empty: "nothing"}
	for _, tool := range []string{"iptables-legacy", "ip6tables-legacy"} {
		for _, change := range [][]string{
			{"-t", "nat", "-N", "MINE"},
			{"-t", "nat", "-A", "MINE", "-j", "RETURN"},
			{"-A", "FORWARD", "-p", "tcp", "-j", "ACCEPT"},
		} {
			ns.Exec(t, tool, change...)
			n := sum()
			if was, dup := seen[n]; dup {
				t.Errorf("%s %v: the sum is that after %s", tool, change, was)
			}
			seen[n] = tool + " " + change[len(change)-1]
			if n != sum() {
				t.Errorf("%s %v: the sum changes without a change", tool, change)
			}
		}
	}
	for _, tool := range []string{"iptables-legacy", "ip6tables-legacy"} {
		ns.Exec(t, tool, "-F")
		ns.Exec(t, tool, "-t", "nat", "-F")
		ns.Exec(t, tool, "-t", "nat", "-X")
	}
	if sum() != empty {
		t.Error("after everything was undone the sum is another")
	}
}
