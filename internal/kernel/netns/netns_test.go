package netns_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/braidnet/braid/internal/kernel/netns"
	"github.com/braidnet/braid/internal/kernel/netns/nstest"
	"github.com/vishvananda/netlink"
)

func mustCurrent(t *testing.T) *netns.NS {
	t.Helper()
	ns, err := netns.Current()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ns.Close() })
	return ns
}

func TestDoEntersAndReturns(t *testing.T) {
	ns := nstest.New(t)
	home := mustCurrent(t)
	fail := errors.New("from fn")
	err := ns.Do(func() error {
		if same, err := mustCurrent(t).Same(ns.NS); err != nil || !same {
			t.Errorf("inside Do: same %v, %v", same, err)
		}
		return fail
	})
	if !errors.Is(err, fail) {
		t.Errorf("Do returned %v, want the error of fn", err)
	}
	if same, err := mustCurrent(t).Same(home); err != nil || !same {
		t.Errorf("after Do: same %v, %v", same, err)
	}
}

func TestDoReturnsAfterPanic(t *testing.T) {
	ns := nstest.New(t)
	home := mustCurrent(t)
	func() {
		defer func() { _ = recover() }()
		_ = ns.Do(func() error { panic("fn") })
	}()
	if same, err := mustCurrent(t).Same(home); err != nil || !same {
		t.Errorf("after a panic: same %v, %v", same, err)
	}
}

func TestOpenTellsWhatIsWrong(t *testing.T) {
	dir := t.TempDir()
	if _, err := netns.Open(filepath.Join(dir, "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing path: %v", err)
	}
	plain := filepath.Join(dir, "plain")
	if err := os.WriteFile(plain, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := netns.Open(plain); !errors.Is(err, netns.ErrNotNamespace) {
		t.Errorf("plain file: %v", err)
	}
	if _, err := netns.Open("/proc/self/ns/mnt"); !errors.Is(err, netns.ErrNotNamespace) {
		t.Errorf("namespace of another kind: %v", err)
	}
}

func TestPathOpensTheSameNamespace(t *testing.T) {
	ns := nstest.New(t)
	again, err := netns.Open(ns.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if same, err := again.Same(ns.NS); err != nil || !same {
		t.Errorf("opened by path: same %v, %v", same, err)
	}
}

func TestHelpers(t *testing.T) {
	a, b := nstest.New(t), nstest.New(t)
	nstest.Veth(t, a, "left", b, "right.0")
	a.Exec(t, "ip", "addr", "add", "192.0.2.1/24", "dev", "left")
	b.Exec(t, "ip", "addr", "add", "192.0.2.2/24", "dev", "right.0")
	b.Sysctl(t, "net/ipv4/conf/right.0/arp_notify", "1")
	a.Exec(t, "ping", "-c", "1", "-W", "5", "192.0.2.2")
	if out, err := b.Output("ip", "link", "show", "left"); err == nil {
		t.Errorf("the other side has our link: %s", out)
	}

	cat := exec.Command("cat")
	if _, err := cat.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	b.Daemon(t, cat)
	link, err := os.Readlink("/proc/" + strconv.Itoa(cat.Process.Pid) + "/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	want := b.Exec(t, "readlink", "/proc/self/ns/net")
	if link != strings.TrimSpace(want) {
		t.Errorf("daemon runs in %s, want %s", link, want)
	}
	b.Run(t, func() error {
		_, err := netlink.LinkByName("right.0")
		return err
	})
}
