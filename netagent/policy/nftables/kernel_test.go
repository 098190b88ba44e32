package nftables

import (
	"flag"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/braidnet/braid/internal/desired"
	"github.com/braidnet/braid/internal/kernel/netns/nstest/wire"
	"github.com/braidnet/braid/internal/kernel/nft"
	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/internal/source"
	"github.com/braidnet/braid/netagent/policy"
	"github.com/braidnet/braid/netagent/policy/worlds"
)

var (
	count = flag.Int("policy.worlds", 150, "how many random clusters TestKernelAgrees tries")
	seed  = flag.Uint64("policy.seed", 1, "of its random clusters")
)

// kernel is a node whose tables follow a compiler.
type kernel struct {
	t        testing.TB
	node     *wire.Node
	conn     *nft.Conn
	compiler *policy.Compiler
	state    *State
}

func newKernel(t testing.TB, o Options) *kernel {
	k := &kernel{t: t, node: wire.New(t), compiler: policy.NewCompiler("n1"), state: NewState(Families, o)}
	k.node.Run(t, func() (err error) {
		k.conn, err = nft.Open()
		return err
	})
	t.Cleanup(k.conn.Close)
	k.compiler.Flush()
	k.write(k.state.Replace(k.compiler.All(), k.read()))
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

// apply brings a change to the kernel, and checks that it has exactly the compiled value afterwards.
func (k *kernel) apply(changes []model.Change) {
	k.t.Helper()
	k.compiler.Apply(0, changes)
	ops, err := k.state.Apply(k.compiler.Flush())
	if err != nil {
		k.t.Fatal(err)
	}
	k.write(ops, nil)
	for _, f := range Families {
		fresh := NewState([]desired.NFTFamily{f}, k.state.options)
		if ops, why := fresh.Replace(k.compiler.All(), k.read()); len(ops) > 0 {
			k.t.Fatalf("after the change: %v\n%s", why, k.node.Exec(k.t, "nft", "list", "table", f.String(), TableName))
		}
	}
}

func convert(o runtime.Object) model.Object {
	value, err := source.Convert(o, model.Origin{})
	if err != nil {
		panic(fmt.Sprintf("the test made an object that cannot be: %v", err))
	}
	return value
}

// open is a pod that nothing isolates: packets behind the others come from it.
var open = netip.MustParseAddr("10.244.1.200")

func withOpenPod(w worlds.World) worlds.World {
	w.Namespaces = append(w.Namespaces, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "open"}})
	w.Pods = append(w.Pods, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "open", Namespace: "open"},
		Spec: corev1.PodSpec{NodeName: "n1"}, Status: corev1.PodStatus{PodIPs: []corev1.PodIP{{IP: open.String()}}}})
	return w
}

// question is a packet, and what ought to become of it.
type question struct {
	worlds.Packet
	sent    wire.Packet
	allowed bool
	why     string
}

// ask says what ought to become of a packet: what Eval says, and what the naive model says; but a packet
// from or to an address of the node's pods that is no pod's is refused.
func (k *kernel) ask(w worlds.World, p worlds.Packet, n int) question {
	if p.FromNode {
		p.Src = wire.Own(p.Src.Is4())[1]
	}
	q := question{Packet: p, sent: wire.Packet{Src: netip.AddrPortFrom(p.Src, uint16(20000+n)), Dst: netip.AddrPortFrom(p.Dst, p.Port), Protocol: uint8(p.Protocol)}}
	v := k.compiler.Eval(policy.Packet(p))
	q.allowed, q.why = v.Allowed, v.Egress.String()+"; "+v.Ingress.String()
	naive := worlds.Naive{World: w, Node: "n1"}
	if naive.Allows(p) != v.Allowed {
		k.t.Fatalf("%+v: compiler: %s\n%s", p, q.why, w)
	}
	for _, a := range []netip.Addr{p.Src, p.Dst} {
		local := wire.Pods.Contains(a) || wire.Pods6.Contains(a)
		if local && naive.PodAt(a) == nil && a != wire.Own(a.Is4())[1] && !p.FromNode {
			q.allowed, q.why = false, a.String()+" is nobody's"
		}
	}
	return q
}

// TestKernelAgrees sends packets through the kernel for random clusters, each made from the one before it
// by changes, and compares what becomes of them with what the compiler and the naive model say.
func TestKernelAgrees(t *testing.T) {
	for _, drop := range []bool{false, true} {
		t.Run(fmt.Sprintf("drop=%v", drop), func(t *testing.T) {
			k := newKernel(t, Options{Bridge: "pods0", Drop: drop, Log: drop})
			at, asked, allowed := worlds.World{}, 0, 0
			for i := range *count {
				d := worlds.NewDice(*seed, uint64(i))
				w := withOpenPod(d.World())
				k.apply(worlds.Changes(at, w, convert))
				at = w
				var list []question
				for n := range 80 {
					if p := d.Packet(w); p.Port > 0 {
						list = append(list, k.ask(w, p, 100*(i%100)+n))
					}
				}
				for n, dst := range []netip.Addr{wire.Own(true)[0], wire.Own(true)[1], open} { // to the node itself; and last the open pod's
					p := worlds.Packet{Src: open, Dst: dst, Protocol: model.UDP, Port: 99}
					if n < 2 {
						p.Src = netip.MustParseAddr(fmt.Sprintf("10.244.1.%d", 8+d.IntN(8)))
					}
					list = append(list, k.ask(w, p, 100*(i%100)+80+n))
				}
				k.compare(w, list, drop)
				for _, q := range list {
					asked++
					if q.allowed {
						allowed++
					}
				}
			}
			t.Logf("%d random clusters, %d packets (%d allowed), mismatches: 0", *count, asked, allowed)
		})
	}
}

func (k *kernel) compare(w worlds.World, list []question, drop bool) {
	k.t.Helper()
	packets := make([]wire.Packet, len(list))
	for i := range list {
		packets[i] = list[i].sent
	}
	for i, f := range k.node.SendAll(packets) {
		q := list[i]
		passed := f.Sent != nil || f.Local != nil
		if passed == q.allowed && (passed || f.Refused != drop) {
			continue
		}
		if own := wire.Own(q.Dst.Is4()); f.Refused && q.allowed && (q.Dst == own[0] || q.Dst == own[1]) && !strings.Contains(f.Refusal, "3/13") {
			continue // it reached the node, which has no such port
		}
		k.t.Fatalf("%+v: want allowed %v (%s), got %+v\n%s\n%s", q.Packet, q.allowed, q.why, f, w,
			k.node.Exec(k.t, "nft", "list", "ruleset"))
	}
}
