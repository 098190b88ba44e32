package enforce

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/labels"

	"github.com/braidnet/braid/internal/kernel/netns/nstest"
	"github.com/braidnet/braid/internal/model"
)

// lab is a node with two pods behind its bridge, and what enforces policy there.
type lab struct {
	*Enforcer
	t    *testing.T
	cfg  Config
	node *nstest.NS
	pods map[string]*nstest.NS
}

var podAddrs = map[string]string{"a": "10.0.0.2", "b": "10.0.0.3"}

func newLab(t *testing.T) *lab {
	l := &lab{t: t, node: nstest.New(t), pods: map[string]*nstest.NS{}}
	l.node.Exec(t, "ip", "link", "add", "braid0", "address", "02:00:00:00:00:01", "type", "bridge")
	l.node.Exec(t, "ip", "addr", "add", "10.0.0.1/24", "dev", "braid0")
	l.node.Exec(t, "ip", "link", "set", "braid0", "up")
	l.node.Forward(t)
	for name, addr := range podAddrs {
		pod := nstest.New(t)
		l.pods[name] = pod
		nstest.Veth(t, l.node, "brd"+name, pod, "eth0")
		l.node.Exec(t, "ip", "link", "set", "brd"+name, "master", "braid0")
		for _, dev := range []string{"all", "eth0"} { // as the CNI plugin makes pods
			pod.Sysctl(t, "net/ipv4/conf/"+dev+"/accept_redirects", "0")
		}
		pod.Exec(t, "ip", "addr", "add", addr+"/32", "dev", "eth0")
		pod.Exec(t, "ip", "route", "add", "10.0.0.1", "dev", "eth0")
		pod.Exec(t, "ip", "route", "add", "default", "via", "10.0.0.1")
	}
	l.cfg = Config{Node: "n1", RunDir: t.TempDir(), Mode: "auto", Tell: true, Log: slog.New(slog.DiscardHandler)}
	l.start()
	t.Cleanup(func() { l.Enforcer.Close() })
	return l
}

func (l *lab) start() {
	l.t.Helper()
	l.node.Run(l.t, func() (err error) { l.Enforcer, err = New(l.cfg); return err })
}

func (l *lab) mustStep() {
	l.t.Helper()
	if p, ok := l.plane.(*nftablesPlane); ok {
		p.looked = time.Time{} // as after a second
	}
	l.node.Run(l.t, func() error { _, err := l.Step(l.t.Context()); return err })
}

func (l *lab) change(list ...model.Object) {
	l.t.Helper()
	for _, o := range list {
		l.compiler.Apply(0, []model.Change{{Ref: o.From().Ref, New: o}})
	}
	l.mustStep()
}

func (l *lab) listen(pod, addr string) net.Listener {
	l.t.Helper()
	var s net.Listener
	l.pods[pod].Run(l.t, func() (err error) { s, err = net.Listen("tcp4", addr); return err })
	l.t.Cleanup(func() { s.Close() })
	return s
}

func (l *lab) dial(pod, addr string) (c net.Conn, err error) {
	err = l.pods[pod].Do(func() (err error) { c, err = net.DialTimeout("tcp4", addr, 5*time.Second); return err })
	if err == nil {
		l.t.Cleanup(func() { c.Close() })
	}
	return c, err
}

func (l *lab) reaches(want bool, when string) {
	l.t.Helper()
	if _, err := l.dial("a", "10.0.0.3:80"); (err == nil) != want {
		l.t.Errorf("%s: reached %v, want %v (%v)", when, err == nil, want, err)
	}
}

func object(kind model.Kind, name string) model.Origin {
	return model.Origin{Ref: model.Ref{Kind: kind, Key: model.Key{Namespace: "shop", Name: name}}}
}

func newPod(name string) *model.Pod {
	return &model.Pod{Origin: object(model.KindPod, name), UID: "u-" + name, Node: "n1", Labels: labels.Set{"app": name}, Phase: model.PhasePending}
}

// TestPolicyLifeOfPods: a pod is cut off until it is attached and known, lives by its policies, loses the
// connections that a new one forbids and no others, and is open when enforcement ends.
func TestPolicyLifeOfPods(t *testing.T) {
	l := newLab(t)
	listener := l.listen("b", "10.0.0.3:80")
	accepted := make(chan net.Conn, 10)
	go func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			accepted <- c
		}
	}()
	nstest.Wait(t, "the way between the pods", func() error { _, err := l.dial("a", "10.0.0.3:80"); return err })
	<-accepted
	l.mustStep()
	l.reaches(false, "before anybody knows the pods")
	l.change(&model.Namespace{Origin: model.Origin{Ref: model.Ref{Kind: model.KindNamespace, Key: model.Key{Name: "shop"}}}}, newPod("a"), newPod("b"))
	l.reaches(false, "known, and not attached")
	for name, addr := range podAddrs {
		of := Attachment{Namespace: "shop", Name: name, UID: "u-" + name, Link: "brd" + name, Addrs: []netip.Addr{netip.MustParseAddr(addr)}}
		if err := l.Attach(t.Context(), of, l.mustStep); err != nil {
			t.Fatal(err)
		}
	}
	conn, err := l.dial("a", "10.0.0.3:80")
	if err != nil {
		t.Fatalf("attached: %v", err)
	}
	server := <-accepted
	other, err := l.dial("a", "10.0.0.3:80")
	if err != nil {
		t.Fatal(err)
	}
	back := l.listen("a", "10.0.0.2:81")
	kept, err := l.dial("b", "10.0.0.2:81")
	if err != nil {
		t.Fatal(err)
	}
	answer, err := back.Accept()
	if err != nil {
		t.Fatal(err)
	}
	passes(t, conn, server)

	deny := &model.NetworkPolicy{Origin: object(model.KindNetworkPolicy, "deny"), Ingress: true, PodSelector: labels.SelectorFromSet(labels.Set{"app": "b"})}
	l.change(deny)
	l.reaches(false, "isolated")
	if _, err := l.flows.step(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, c := range []net.Conn{conn, other} {
		nstest.Wait(t, "the end of a connection that is forbidden now", func() error {
			_ = c.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
			_, _ = c.Write([]byte("x"))
			if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
				return fmt.Errorf("still there: %v", err)
			}
			return nil
		})
	}
	passes(t, kept, answer) // b's own connection to a
	if l.flows.cut < 2 {
		t.Errorf("%d connections were ended", l.flows.cut)
	}

	l.node.Exec(t, "nft", "flush", "ruleset")
	l.mustStep()
	l.reaches(false, "after somebody flushed all rules")
	l.compiler.Apply(0, []model.Change{{Ref: deny.Ref, Old: deny}})
	l.mustStep()
	l.reaches(true, "after the policy went")

	l.node.Exec(t, "ip", "link", "del", "brda")
	l.mustStep()
	if len(l.inForce) != 1 {
		t.Errorf("in force: %v, want only b", l.inForce)
	}
	l.plane.Close() // as when the agent ends
	l.plane = nil
	var removed []string
	l.node.Run(t, func() (err error) { removed, err = removeNFTables(); return err })
	if want := []string{"nftables table bridge braid-policy", "nftables table ip braid-policy", "nftables table ip6 braid-policy"}; !slices.Equal(removed, want) {
		t.Errorf("removed %q, want %q", removed, want)
	}
	if left := l.node.Exec(t, "nft", "list", "ruleset"); left != "" {
		t.Errorf("left:\n%s", left)
	}
}

// TestPolicyRestart: a new agent takes over what is in force, and knows of pods whose addresses the API server does
// not know yet; of those whose links went meanwhile it does not.
func TestPolicyRestart(t *testing.T) {
	l := isolatedLab(t)
	deny := allowing("web", "b", "192.0.2.0/24")
	l.change(deny)
	before := l.node.Exec(t, "nft", "list", "table", "ip", "braid-policy")
	if err := os.WriteFile(filepath.Join(attachmentsDir(l.cfg.RunDir), "broken"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	l.Enforcer.Close()
	l.reaches(false, "without an agent")
	l.start()
	l.reaches(false, "before the new agent knows the cluster")
	for _, o := range []model.Object{audited(false), newPod("a"), newPod("b"), deny} {
		l.compiler.Apply(0, []model.Change{{Ref: o.From().Ref, New: o}})
	}
	l.mustStep()
	l.reaches(false, "restarted")
	if _, err := l.dial("b", "10.0.0.2:1"); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("b is let out: error %v, want one of a itself", err)
	}
	if after := l.node.Exec(t, "nft", "list", "table", "ip", "braid-policy"); l.plane.(*nftablesPlane).era.Load() != 0 || strings.Count(after, "\n") != strings.Count(before, "\n") {
		t.Errorf("tables were made anew. Before:\n%s\nafter:\n%s", before, after)
	}
	l.Enforcer.Close()
	l.node.Exec(t, "ip", "link", "del", "brda")
	l.start()
	l.mustStep()
	if left, err := filepath.Glob(filepath.Join(attachmentsDir(l.cfg.RunDir), "*")); len(left) != 1 || filepath.Base(left[0]) != "brdb" {
		t.Errorf("remembered: %v, %v", left, err)
	}
}

// TestPolicyWaitEnds: a pod that the agent does not come to know in time is said to be cut off.
func TestPolicyWaitEnds(t *testing.T) {
	l := newLab(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := l.Attach(ctx, Attachment{Namespace: "shop", Name: "x", Link: "brda", Addrs: []netip.Addr{netip.MustParseAddr("10.0.0.2")}}, l.mustStep)
	if err == nil || !strings.Contains(err.Error(), "shop/x is cut off") {
		t.Errorf("error %v", err)
	}
}

func passes(t *testing.T, from, to net.Conn) {
	t.Helper()
	_ = to.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := from.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := to.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
}
