package main

import (
	"errors"
	"net/netip"
	"os/exec"
	"testing"
	"time"

	"github.com/braidnet/braid/internal/kernel/netns/nstest"
	"github.com/braidnet/braid/test/bench/rig"
)

// TestAwait: the probe finds when the server can be reached and when not, whether it is refused or silent, from a pod
// of the node and from one elsewhere.
func TestAwait(t *testing.T) {
	nstest.RequireRoot(t)
	w, err := newWorld()
	if err != nil {
		t.Fatal(err)
	}
	defer w.close()
	far := rig.Offset(farRange, 77)
	check := func(when string, allowed bool) {
		t.Helper()
		if _, err := await(w.client, clientAddr, serverAddr, allowed, 30*time.Second, nil); err != nil {
			t.Errorf("%s: client: %v", when, err)
		}
		if _, err := await(w.far, far, serverAddr, allowed, 30*time.Second, nil); err != nil {
			t.Errorf("%s: pod elsewhere: %v", when, err)
		}
	}
	check("without rules", true)
	if _, err := await(w.client, clientAddr, serverAddr, false, 50*time.Millisecond, nil); !errors.Is(err, errLimit) {
		t.Errorf("nobody denies anything: %v, want the time limit", err)
	}
	p, err := newPair(w)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if took, err := p.packet(); err != nil || took <= 0 {
			t.Errorf("packet: %v, %v", took, err)
		}
		if took, err := p.connection(); err != nil || took <= 0 {
			t.Errorf("connection: %v, %v", took, err)
		}
	}
	for _, verdict := range []string{"reject with tcp reset", "drop"} {
		err := w.node.Do(func() error {
			return exec.Command("nft", "add table ip t; add chain ip t f { type filter hook forward priority 0; }; flush chain ip t f; add rule ip t f tcp flags syn / syn,ack ip daddr "+serverAddr.String()+" "+verdict).Run()
		})
		if err != nil {
			t.Fatal(err)
		}
		check(verdict, false)
	}
	if err := w.node.Do(func() error { return exec.Command("nft", "delete", "table", "ip", "t").Run() }); err != nil {
		t.Fatal(err)
	}
	check("without rules again", true)
}

// TestLargePolicies: blocks are as many as are asked for, each other, and what is excepted lies in the block.
func TestLargePolicies(t *testing.T) {
	seen := map[string]bool{}
	for _, p := range blocks(10_000) {
		seen[p.IPBlock.CIDR] = true
		if b := netip.MustParsePrefix(p.IPBlock.CIDR); b != b.Masked() || b.Overlaps(podCIDR) {
			t.Fatalf("block %s", b)
		}
	}
	if len(seen) != 10_000 {
		t.Errorf("%d blocks", len(seen))
	}
	whole := netip.MustParsePrefix("10.0.0.0/8")
	holes := map[string]bool{}
	for _, e := range without(whole.String(), 1000).IPBlock.Except {
		holes[e] = true
		if b := netip.MustParsePrefix(e); b != b.Masked() || b.Bits() <= whole.Bits() || !whole.Contains(b.Addr()) {
			t.Fatalf("exception %s", b)
		}
	}
	if len(holes) != 1000 || !holes[podCIDR.String()] {
		t.Errorf("%d exceptions", len(holes))
	}
}
