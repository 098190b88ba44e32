package nftables

import (
	"flag"
	"fmt"
	"strings"
	"testing"

	"github.com/braidnet/braid/internal/desired"
	"github.com/braidnet/braid/internal/kernel/nft"
	"github.com/braidnet/braid/netagent/policy"
	"github.com/braidnet/braid/netagent/policy/worlds/probe"
)

var (
	count = flag.Int("policy.worlds", 150, "how many random clusters TestKernelAgrees tries")
	seed  = flag.Uint64("policy.seed", 1, "of its random clusters")
)

// kernel is a node whose tables follow a compiler.
type kernel struct {
	node  *probe.Node
	t     testing.TB
	conn  *nft.Conn
	state *State
}

func newKernel(t testing.TB, o Options) *kernel {
	k := &kernel{t: t, node: probe.New(t, o.Drop), state: NewState(Families, o)}
	k.node.Filter = k
	k.node.Run(t, func() (err error) {
		k.conn, err = nft.Open()
		return err
	})
	t.Cleanup(k.conn.Close)
	k.write(k.state.Replace(k.node.Compiler.All(), k.read()))
	return k
}

func (k *kernel) read() Contents {
	k.t.Helper()
	have := Contents{}
	for _, f := range Families {
		c, err := k.conn.Read(f, TableName)
		if err != nil {
			k.t.Fatal(err)
		}
		have[f] = c
	}
	return have
}

func (k *kernel) write(ops []desired.NFTOp, _ []string) {
	k.t.Helper()
	before := k.conn.Commits()
	if err := k.conn.Apply(ops); err != nil {
		k.t.Fatal(err)
	}
	if n := k.conn.Commits() - before; n > 1 {
		k.t.Fatalf("%d transactions, want one", n)
	}
}

// Apply implements probe.Filter.
func (k *kernel) Apply(d policy.Delta) error {
	ops, err := k.state.Apply(d)
	if err == nil {
		k.write(ops, nil)
	}
	return err
}

// Damage implements probe.Filter.
func (k *kernel) Damage(all policy.Delta) string {
	for _, f := range Families {
		fresh := NewState([]desired.NFTFamily{f}, k.state.options)
		if ops, why := fresh.Replace(all, k.read()); len(ops) > 0 {
			return strings.Join(why, "; ")
		}
	}
	return ""
}

// Print implements probe.Filter.
func (k *kernel) Print() string { return k.node.Exec(k.t, "nft", "list", "ruleset") }

// TestKernelAgrees sends packets through the kernel for random clusters, each made from the one before it
// by changes, and compares what becomes of them with what the compiler and the naive model say.
func TestKernelAgrees(t *testing.T) {
	for _, drop := range []bool{false, true} {
		t.Run(fmt.Sprintf("drop=%v", drop), func(t *testing.T) {
			k := newKernel(t, Options{Bridge: probe.Bridge, Drop: drop, Log: drop})
			k.node.Agree(*seed, *count)
		})
	}
}
