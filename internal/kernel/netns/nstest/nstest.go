// Package nstest gives kernel tests network namespaces of their own.
//
// The namespaces have no name: they end with the test, and with the test
// process should that be killed, so no run leaves anything on the machine.
//
//	node := nstest.New(t)
//	pod := nstest.New(t)
//	nstest.Veth(t, node, "eth0", pod, "eth0")
//	node.Exec(t, "ip", "addr", "add", "10.0.0.1/24", "dev", "eth0")
//	err := pod.Do(func() error { ... })
package nstest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/braidnet/braid/internal/kernel/netns"
	"github.com/vishvananda/netlink"
)

// RequireRoot skips the test when it may not make namespaces. With CI=true
// that is a failure instead: a green run must mean that the kernel was asked.
func RequireRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatal("needs root for network namespaces; with CI=true that is a failure")
	}
	t.Skip("needs root for network namespaces")
}

// NS is a namespace that ends with the test. Do, Fd and Path are those of
// netns.NS.
type NS struct {
	*netns.NS
}

// New makes a namespace with loopback up.
func New(t testing.TB) *NS {
	t.Helper()
	RequireRoot(t)
	inner, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = inner.Close() })
	ns := &NS{inner}
	ns.Run(t, func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(lo)
	})
	return ns
}

// Run is Do that ends the test on an error.
func (n *NS) Run(t testing.TB, fn func() error) {
	t.Helper()
	if err := n.Do(fn); err != nil {
		t.Fatal(err)
	}
}

// Exec runs a program in the namespace, waits for it, and returns what it
// wrote on both outputs. The test ends when the program fails.
func (n *NS) Exec(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := n.Output(name, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// Output is Exec for programs that may fail; the error carries their output.
func (n *NS) Output(name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	err := n.Start(cmd)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		return out.String(), fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, out.String())
	}
	return out.String(), nil
}

// Start starts cmd in the namespace; the caller waits for it. Do not combine
// it with Pdeathsig, which is tied to the starting thread.
func (n *NS) Start(cmd *exec.Cmd) error { return n.Do(cmd.Start) }

// Daemon starts cmd in the namespace and ends it with the test.
func (n *NS) Daemon(t testing.TB, cmd *exec.Cmd) {
	t.Helper()
	if err := n.Start(cmd); err != nil {
		t.Fatalf("start %s: %v", strings.Join(cmd.Args, " "), err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
}

// Sysctl writes a value of the namespace; key is a path below /proc/sys with
// slashes, since interface names may hold dots: "net/ipv4/ip_forward".
func (n *NS) Sysctl(t testing.TB, key, value string) {
	t.Helper()
	n.Run(t, func() error {
		return os.WriteFile(filepath.Join("/proc/sys", key), []byte(value), 0)
	})
}

// Forward turns on routing between interfaces for both families.
func (n *NS) Forward(t testing.TB) {
	t.Helper()
	n.Sysctl(t, "net/ipv4/ip_forward", "1")
	n.Sysctl(t, "net/ipv6/conf/all/forwarding", "1")
}

// Veth joins two namespaces by a pair of interfaces and brings both ends up.
func Veth(t testing.TB, a *NS, aName string, b *NS, bName string) {
	t.Helper()
	a.Run(t, func() error {
		return netlink.LinkAdd(&netlink.Veth{
			LinkAttrs:     netlink.LinkAttrs{Name: aName},
			PeerName:      bName,
			PeerNamespace: netlink.NsFd(b.Fd()),
		})
	})
	a.up(t, aName)
	b.up(t, bName)
}

func (n *NS) up(t testing.TB, name string) {
	t.Helper()
	n.Run(t, func() error {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return fmt.Errorf("link %s: %w", name, err)
		}
		return netlink.LinkSetUp(l)
	})
}

// Wait asks cond again and again until it returns nil and ends the test with
// its last error when that has not come true in ten seconds: a bound on a
// hang, not a measure of time.
func Wait(t testing.TB, what string, cond func() error) {
	t.Helper()
	err := errors.New("never asked")
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if err = cond(); err == nil {
			return
		}
	}
	t.Fatalf("waited in vain for %s: %v", what, err)
}
