package ipt

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/braidnet/braid/internal/kernel/netns/nstest"
)

var testTraces = Traces{Chains: []string{"HINT", "CANARY"}, Own: "MINE"}

// needLegacy skips a test on machines that have no tools of the older variant. Their lock is one for the whole
// machine, and not ours to take.
func needLegacy(t *testing.T) {
	t.Helper()
	if _, err := Find(false, Legacy); err != nil {
		t.Skipf("skipped: %v", err)
	}
	t.Setenv("XTABLES_LOCKFILE", filepath.Join(t.TempDir(), "lock"))
}

func TestChoose(t *testing.T) {
	needLegacy(t)
	rule := func(tool, chain string) []string { return []string{tool, "-A", chain, "-p", "tcp", "-j", "ACCEPT"} }
	for _, tc := range []struct {
		name   string
		others [][]string // what other programs did before
		want   Variant
		why    string
	}{
		{"nobody", nil, NFT, "no other program has rules"},
		{"kubelet on nft", [][]string{{"iptables-nft", "-t", "mangle", "-N", "HINT"}, rule("iptables-legacy", "INPUT")}, NFT, "chain HINT"},
		{"kubelet on legacy", [][]string{{"iptables-legacy", "-t", "mangle", "-N", "HINT"}, rule("iptables-nft", "INPUT"), rule("iptables-nft", "INPUT")}, Legacy, "chain HINT"},
		{"older kubelet, IPv6 only", [][]string{{"ip6tables-legacy", "-t", "mangle", "-N", "CANARY"}}, Legacy, "chain CANARY"},
		{"a chain of that name elsewhere", [][]string{{"iptables-legacy", "-t", "nat", "-N", "HINT"}}, NFT, "no other"},
		{"more rules in legacy", [][]string{rule("iptables-legacy", "INPUT"), rule("ip6tables-legacy", "INPUT"), rule("iptables-nft", "INPUT")}, Legacy, "2 rules of other programs, nft 1"},
		{"more rules in nft", [][]string{rule("iptables-legacy", "INPUT"), rule("ip6tables-nft", "INPUT"), rule("iptables-nft", "INPUT")}, NFT, "2 rules of other programs, legacy 1"},
		{"as many", [][]string{rule("iptables-legacy", "INPUT"), rule("iptables-nft", "INPUT")}, NFT, "1 rules"},
		{"our own do not count", [][]string{{"iptables-legacy", "-N", "MINE-1"}, rule("iptables-legacy", "MINE-1"), rule("iptables-legacy", "MINE-1")}, NFT, "no other"},
		{"rules that iptables cannot read", [][]string{{"nft", "add table ip filter; add chain ip filter INPUT { type filter hook input priority 0 ; }; add set ip filter s { type ipv4_addr ; }; add rule ip filter INPUT ip saddr @s drop"}}, NFT, "no other program has rules in legacy"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			ns := nstest.New(t)
			for _, argv := range tc.others {
				ns.Exec(t, argv[0], argv[1:]...)
			}
			before := ns.Exec(t, "nft", "list", "ruleset") + tablesMade(t, ns)
			ns.Run(t, func() error {
				got, why, err := Choose(testTraces)
				if got != tc.want || !strings.Contains(why, tc.why) {
					t.Errorf("%s because %s, want %s because of %q", got, why, tc.want, tc.why)
				}
				return err
			})
			if after := ns.Exec(t, "nft", "list", "ruleset") + tablesMade(t, ns); after != before {
				t.Errorf("looking changed the kernel from\n%s\nto\n%s", before, after)
			}
		})
	}
}

// tablesMade lists the tables of variant legacy.
func tablesMade(t *testing.T, ns *nstest.NS) string {
	return ns.Exec(t, "cat", "/proc/net/ip_tables_names", "/proc/net/ip6_tables_names")
}

// Without NET_RAW the older variant's rules cannot be read. Where it has no tables that does not matter, nor
// where the kubelet uses the other; elsewhere the choice must not fall on a guess.
func TestChooseWithoutTheRightToRead(t *testing.T) {
	needLegacy(t)
	for _, tc := range []struct {
		name   string
		others [][]string
		want   Variant
		denied bool
	}{
		{"no tables", nil, NFT, false},
		{"kubelet on nft", [][]string{{"iptables-nft", "-t", "mangle", "-N", "HINT"}, {"iptables-legacy", "-N", "X"}}, NFT, false},
		{"tables in legacy", [][]string{{"iptables-legacy", "-N", "X"}, {"iptables-nft", "-A", "INPUT", "-j", "ACCEPT"}}, Legacy, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			ns := nstest.New(t)
			for _, argv := range tc.others {
				ns.Exec(t, argv[0], argv[1:]...)
			}
			done := make(chan error)
			go func() {
				runtime.LockOSThread() // never unlocked: the thread, which lacks the right, ends with this goroutine
				done <- ns.Do(func() error {
					if err := dropNetRaw(); err != nil {
						return err
					}
					got, why, err := Choose(testTraces)
					if got != tc.want || errors.Is(err, os.ErrPermission) != tc.denied || (err != nil) != tc.denied {
						t.Errorf("%s because %s: %v", got, why, err)
					}
					return nil
				})
			}()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
}

// dropNetRaw takes the capability from the calling thread and what it starts.
func dropNetRaw() error {
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var set [2]unix.CapUserData
	if err := unix.Capget(&head, &set[0]); err != nil {
		return err
	}
	set[0].Effective &^= 1 << unix.CAP_NET_RAW
	set[0].Permitted &^= 1 << unix.CAP_NET_RAW
	set[0].Inheritable &^= 1 << unix.CAP_NET_RAW
	if err := unix.Prctl(unix.PR_CAPBSET_DROP, unix.CAP_NET_RAW, 0, 0, 0); err != nil {
		return err
	}
	return unix.Capset(&head, &set[0])
}

func TestDecision(t *testing.T) {
	broken := errors.New("no support in the kernel")
	for _, tc := range []struct {
		name        string
		nft, legacy use
		want        Variant
		why         string
	}{
		{"nft does not work", use{err: broken}, use{}, Legacy, "no support in the kernel"},
		{"neither works", use{err: broken}, use{err: broken}, NFT, "no other"},
		{"legacy has rules but no tools", use{rules: 1}, use{err: broken}, NFT, "1 rules"},
		{"nft has the chain and does not work", use{chain: "HINT", err: broken}, use{}, NFT, "HINT"},
		{"both have the chain", use{chain: "HINT"}, use{chain: "CANARY"}, NFT, "HINT"},
	} {
		if got, why := choose(tc.nft, tc.legacy); got != tc.want || !strings.Contains(why, tc.why) {
			t.Errorf("%s: %s because %s, want %s because of %q", tc.name, got, why, tc.want, tc.why)
		}
	}
}

// The tools of variant legacy take a lock that all of them share; where its file cannot be made, the check
// says so before any rule is written.
func TestCheckSeesTheLock(t *testing.T) {
	needLegacy(t)
	t.Setenv("XTABLES_LOCKFILE", filepath.Join(t.TempDir(), "missing", "lock"))
	ns := nstest.New(t)
	ns.Run(t, func() error {
		tool, err := Find(false, Legacy)
		if err != nil {
			return err
		}
		if err := tool.Check(); err == nil || !strings.Contains(err.Error(), "lock file") || tool.NFTables() {
			t.Errorf("%v", err)
		}
		if tool, err = Find(false, NFT); err != nil {
			return err
		}
		return tool.Check()
	})
}
