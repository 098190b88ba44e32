package process

import (
	"testing"
	"time"

	"github.com/braidnet/braid/internal/kernel/netns"
	"github.com/braidnet/braid/internal/kernel/netns/nstest"
)

func TestProcessorTimeAndMemory(t *testing.T) {
	nstest.RequireRoot(t)
	ns, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	// It works for a moment.
	p, err := Start(ns, t.TempDir(), "sh", "-c", "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done; echo ready; read x </dev/zero")
	if err != nil {
		t.Fatal(err)
	}
	defer p.Stop()
	for deadline := time.Now().Add(30 * time.Second); p.Last() != "ready"; {
		if time.Now().After(deadline) {
			t.Fatalf("it said %q", p.Last())
		}
	}
	used, err := p.CPU()
	if err != nil || used <= 0 {
		t.Errorf("processor time %v, %v", used, err)
	}
	now, highest, err := p.Memory()
	if err != nil || now <= 0 || highest < now {
		t.Errorf("memory %v, at its highest %v, %v", now, highest, err)
	}
}
