package lab

import (
	"os"
	"os/exec"
	"testing"

	"github.com/braidnet/braid/internal/kernel/netns/nstest"
)

// TestNamesBesideIP: `ip netns add`, which mounts /run/netns when it is the first to use it, must not hide
// the playground's handles. The test runs itself again where /run/netns is nothing yet.
func TestNamesBesideIP(t *testing.T) {
	nstest.RequireRoot(t)
	const inside = "BRAID_TEST_EMPTY_RUN"
	if os.Getenv(inside) == "" {
		cmd := exec.Command("unshare", "--mount", "--propagation", "private", "sh", "-c",
			`mount -t tmpfs none /run && exec "$0" -test.run '^TestNamesBesideIP$' -test.v`, os.Args[0])
		cmd.Env = append(os.Environ(), inside+"=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	for _, name := range []string{"one", "two"} {
		if err := createNS(name); err != nil {
			t.Fatal(err)
		}
	}
	for _, args := range [][]string{{"netns", "add", "theirs"}, {"netns", "exec", "one", "true"}, {"netns", "delete", "two"}} {
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			t.Fatalf("ip %v: %v\n%s", args, err, out)
		}
	}
	if err := deleteNS("one"); err != nil {
		t.Error(err)
	}
	left, err := os.ReadDir(netnsRoot)
	if err != nil || len(left) != 1 || left[0].Name() != "theirs" {
		t.Errorf("left in %s: %v (%v), want only theirs", netnsRoot, left, err)
	}
}
