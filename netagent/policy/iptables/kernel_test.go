package iptables

import (
	"flag"
	"fmt"
	"strings"
	"testing"

	"github.com/braidnet/braid/internal/kernel/ipset"
	"github.com/braidnet/braid/internal/kernel/ipt"
	"github.com/braidnet/braid/netagent/policy"
	"github.com/braidnet/braid/netagent/policy/worlds/probe"
)

var (
	count = flag.Int("policy.worlds", 150, "how many random clusters TestKernelAgrees tries")
	seed  = flag.Uint64("policy.seed", 1, "of its random clusters")
)

// rig is a node whose rules and sets follow a compiler.
type rig struct {
	node  *probe.Node
	t     testing.TB
	tools map[bool]*ipt.Tool
	sets  *ipset.Conn
	state *State
}

var both = []bool{false, true}

func newRig(t testing.TB, v ipt.Variant, o Options) *rig {
	o.Bridge, o.Links = probe.Bridge, "brd"
	k := &rig{t: t, node: probe.New(t, o.Drop), tools: map[bool]*ipt.Tool{}, state: NewState(both, o)}
	k.node.Filter = k
	k.node.Run(t, func() (err error) {
		k.sets, err = ipset.Open()
		return err
	})
	t.Cleanup(k.sets.Close)
	for _, ipv6 := range both {
		tool, err := ipt.Find(ipv6, v)
		if err != nil {
			t.Fatal(err)
		}
		k.tools[ipv6] = tool
	}
	k.replace()
	return k
}

func (k *rig) read() map[bool]Contents {
	k.t.Helper()
	out := map[bool]Contents{false: {Sets: map[string]Set{}}, true: {Sets: map[string]Set{}}}
	for _, ipv6 := range both {
		var saved map[string]map[string][]string
		k.node.Run(k.t, func() (err error) { saved, err = k.tools[ipv6].Save(); return err })
		c := out[ipv6]
		c.Rules = saved[Table]
		out[ipv6] = c
	}
	list, err := k.sets.List(SetPrefix)
	if err != nil {
		k.t.Fatal(err)
	}
	for _, x := range list {
		members, err := k.sets.Read(x.IPSet)
		if err != nil {
			k.t.Fatal(err)
		}
		if size, ok := k.state.Sizes()[x.Name]; ok && k.state.known && (size != len(members) || size != x.Members) {
			k.t.Logf("%s has %d (%d) members, %d were said", x.Name, len(members), x.Members, size)
		}
		out[x.IPv6].Sets[x.Name] = Set{x.IPSet, members}
	}
	return out
}

func (k *rig) replace() []string {
	p, why := k.state.Replace(k.node.Compiler.All(), k.read())
	if err := k.carryOut(p); err != nil {
		k.t.Fatal(err)
	}
	return why
}

func (k *rig) carryOut(p Plan) error {
	if err := k.sets.Apply(p.Before); err != nil {
		return err
	}
	for _, ipv6 := range both {
		if text := p.Restore[ipv6]; text != "" {
			if err := k.node.Do(func() error { return k.tools[ipv6].Restore(text) }); err != nil {
				return fmt.Errorf("%w\n%s", err, text)
			}
		}
	}
	return k.sets.Apply(p.After)
}

// Apply implements probe.Filter.
func (k *rig) Apply(d policy.Delta) error {
	p, err := k.state.Apply(d)
	if err != nil {
		return err
	}
	return k.carryOut(p)
}

// Damage implements probe.Filter.
func (k *rig) Damage(all policy.Delta) string {
	have := k.read()
	for name, n := range k.state.Sizes() {
		if x, there := have[strings.HasPrefix(name, families[true].sets)].Sets[name]; !there || len(x.Members) != n {
			return fmt.Sprintf("%s has %d members (%v), not %d", name, len(x.Members), there, n)
		}
	}
	p, why := NewState(both, k.state.options).Replace(all, have)
	if p.Empty() {
		return ""
	}
	return fmt.Sprintf("%s\n%+v", strings.Join(why, "\n"), p)
}

// Print implements probe.Filter.
func (k *rig) Print() string {
	var b strings.Builder
	for _, ipv6 := range both {
		save := strings.TrimSuffix(k.tools[ipv6].String(), "restore") + "save"
		b.WriteString(k.node.Exec(k.t, save, "-t", Table))
	}
	return b.String() + k.node.Exec(k.t, "ipset", "save")
}

// TestKernelAgrees sends packets through the kernel for random clusters, each made from the one before it
// by changes, and compares what becomes of them with what the compiler and the naive model say.
func TestKernelAgrees(t *testing.T) {
	for _, v := range ipt.Variants {
		t.Run(string(v), func(t *testing.T) {
			t.Parallel()
			drop := v == ipt.Legacy
			k := newRig(t, v, Options{Drop: drop, Log: drop})
			k.node.Agree(*seed, *count)
		})
	}
}
