// Package probe holds a packet filter of policies against what policies say: it puts random clusters onto a node of
// its own, sends packets through the node's kernel, and compares what becomes of them with the compiler's verdict and with
// the naive reading of the API's text. Only tests use it.
package probe

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/braidnet/braid/internal/kernel/netns/nstest/wire"
	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/internal/source"
	"github.com/braidnet/braid/netagent/policy"
	"github.com/braidnet/braid/netagent/policy/worlds"
)

// Bridge is the interface behind which the node's pods are.
const Bridge = "pods0"

// Filter is a packet filter on a node.
type Filter interface {
	// Apply brings a change of the compiled value to the kernel.
	Apply(policy.Delta) error
	// Damage says how the kernel's rules differ from the compiled value; empty when they do not.
	Damage(all policy.Delta) string
	// Print lists the kernel's rules for people.
	Print() string
}

// Node is a node whose rules follow a compiler.
type Node struct {
	*wire.Node
	Compiler *policy.Compiler
	Filter   Filter
	Drop     bool // denied packets vanish
	t        testing.TB
}

// New makes a node without pods.
func New(t testing.TB, drop bool) *Node {
	n := &Node{Node: wire.New(t), Compiler: policy.NewCompiler("n1"), Drop: drop, t: t}
	n.Compiler.Flush()
	return n
}

// Apply brings changes of the cluster to the kernel, and checks that it has exactly the compiled value afterwards.
func (n *Node) Apply(changes []model.Change) {
	n.t.Helper()
	n.Compiler.Apply(0, changes)
	if err := n.Filter.Apply(n.Compiler.Flush()); err != nil {
		n.t.Fatal(err)
	}
	if why := n.Filter.Damage(n.Compiler.All()); why != "" {
		n.t.Fatalf("after the change: %s\n%s", why, n.Filter.Print())
	}
}

// Become is Apply of what makes one cluster another.
func (n *Node) Become(from, to worlds.World) {
	n.t.Helper()
	n.Apply(worlds.Changes(from, to, Convert))
}

// Convert reads an object as a source does.
func Convert(o runtime.Object) model.Object {
	value, err := source.Convert(o, model.Origin{})
	if err != nil {
		panic(fmt.Sprintf("the test made an object that cannot be: %v", err))
	}
	return value
}

// open is a pod that nothing isolates: packets behind the others come from it.
var open = netip.MustParseAddr("10.244.1.200")

// WithOpenPod adds a pod to a cluster that nothing isolates, open/open at 10.244.1.200.
func WithOpenPod(w worlds.World) worlds.World {
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
func (n *Node) ask(w worlds.World, p worlds.Packet, number int) question {
	n.t.Helper()
	if p.FromNode {
		p.Src = wire.Own(p.Src.Is4())[1]
	}
	q := question{Packet: p, sent: wire.Packet{Src: netip.AddrPortFrom(p.Src, uint16(20000+number)), Dst: netip.AddrPortFrom(p.Dst, p.Port), Protocol: uint8(p.Protocol)}}
	v := n.Compiler.Eval(policy.Packet(p))
	q.allowed, q.why = v.Allowed, v.Egress.String()+"; "+v.Ingress.String()
	naive := worlds.Naive{World: w, Node: "n1"}
	if naive.Allows(p) != v.Allowed {
		n.t.Fatalf("%+v: compiler: %s\n%s", p, q.why, w)
	}
	for _, a := range []netip.Addr{p.Src, p.Dst} {
		local := wire.Pods.Contains(a) || wire.Pods6.Contains(a)
		if local && naive.PodAt(a) == nil && a != wire.Own(a.Is4())[1] && !p.FromNode {
			q.allowed, q.why = false, a.String()+" is nobody's"
		}
	}
	return q
}

// Agree puts random clusters onto a node, each made from the one before it by changes, and ends the test at the first
// packet of which something else becomes than should, with the smallest cluster found in which that is so.
func (n *Node) Agree(seed uint64, count int) {
	n.t.Helper()
	at, asked, allowed := worlds.World{}, 0, 0
	for i := range count {
		d := worlds.NewDice(seed, uint64(i))
		bare := d.World()
		w := WithOpenPod(bare)
		n.Become(at, w)
		at = w
		var list []question
		for m := range 80 {
			if p := d.Packet(w); p.Port > 0 {
				list = append(list, n.ask(w, p, 100*(i%100)+m))
			}
		}
		for m, dst := range []netip.Addr{wire.Own(true)[0], wire.Own(true)[1], open} { // to the node itself; and last the open pod's
			p := worlds.Packet{Src: open, Dst: dst, Protocol: model.UDP, Port: 99}
			if m < 2 {
				p.Src = netip.MustParseAddr(fmt.Sprintf("10.244.1.%d", 8+d.IntN(8)))
			}
			list = append(list, n.ask(w, p, 100*(i%100)+80+m))
		}
		if wrong, fate := n.compare(list); wrong != nil {
			n.t.Errorf("cluster %d of seed %d: %s", i, seed, wrong.unlike(fate))
			n.small(bare, wrong.Packet)
		}
		for _, q := range list {
			asked++
			if q.allowed {
				allowed++
			}
		}
	}
	n.t.Logf("%d random clusters, %d packets (%d allowed), mismatches: 0", count, asked, allowed)
}

// compare sends packets and returns the first of which something else becomes than should, and what does.
func (n *Node) compare(list []question) (*question, wire.Fate) {
	n.t.Helper()
	packets := make([]wire.Packet, len(list))
	for i := range list {
		packets[i] = list[i].sent
	}
	for i, f := range n.SendAll(packets) {
		q := list[i]
		passed := f.Sent != nil || f.Local != nil
		if passed == q.allowed && (passed || f.Refused != n.Drop) {
			continue
		}
		if own := wire.Own(q.Dst.Is4()); f.Refused && q.allowed && (q.Dst == own[0] || q.Dst == own[1]) && !strings.Contains(f.Refusal, "3/13") {
			continue // it reached the node, which has no such port
		}
		return &q, f
	}
	return nil, wire.Fate{}
}

func (q question) unlike(f wire.Fate) string {
	return fmt.Sprintf("%+v: want allowed %v (%s), got %+v", q.Packet, q.allowed, q.why, f)
}

// small ends the test with the smallest cluster found in which the kernel does something wrong with a packet. What is
// wrong only after certain changes goes right in smaller clusters, and is shown as it was met.
func (n *Node) small(w worlds.World, p worlds.Packet) {
	n.t.Helper()
	at, number := WithOpenPod(w), 10_000 // source ports that no other packet has, so that each is of a new connection
	wrong := func(w worlds.World, p worlds.Packet) string {
		w = WithOpenPod(w)
		n.Compiler.Apply(0, worlds.Changes(at, w, Convert))
		if err := n.Filter.Apply(n.Compiler.Flush()); err != nil {
			n.t.Fatal(err)
		}
		at, number = w, number+2
		last := worlds.Packet{Src: open, Dst: wire.Own(true)[0], Protocol: model.UDP, Port: 99} // as SendAll wants it
		if q, f := n.compare([]question{n.ask(w, p, number), n.ask(w, last, number+1)}); q != nil {
			return q.unlike(f)
		}
		return ""
	}
	w = worlds.Shrink(w, p, func(w worlds.World, p worlds.Packet) bool { return wrong(w, p) != "" })
	n.t.Fatalf("%s\n%s\n%s", wrong(w, p), w, n.Filter.Print())
}
