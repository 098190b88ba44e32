package enforce

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"testing"

	"k8s.io/apimachinery/pkg/labels"

	"github.com/braidnet/braid/internal/kernel/netns/nstest"
	"github.com/braidnet/braid/internal/model"
)

// reuseRounds is how many pods get one address, one after the other.
const reuseRounds = 500

// TestAddressReuse: pods that get an address which another one had inherit nothing of what that was allowed, nor of
// what it was denied, in whatever order the news come: the one before is deleted before or after the next is
// connected, or stays, completed, with the address in its status; also when it has the same name.
func TestAddressReuse(t *testing.T) {
	l := newLab(t)
	addr := netip.MustParseAddr(podAddrs["b"])
	serve := func(s net.Listener) {
		for {
			c, err := s.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}
	go serve(l.listen("a", "10.0.0.2:80"))
	go serve(l.listen("b", "10.0.0.3:80"))
	l.change(&model.Namespace{Origin: model.Origin{Ref: model.Ref{Kind: model.KindNamespace, Key: model.Key{Name: "shop"}}}}, newPod("a"),
		// Who is closed gets nothing; a gets what those send that are open.
		&model.NetworkPolicy{Origin: object(model.KindNetworkPolicy, "closed"), Ingress: true, PodSelector: labels.SelectorFromSet(labels.Set{"app": "closed"})},
		&model.NetworkPolicy{Origin: object(model.KindNetworkPolicy, "a"), Ingress: true, PodSelector: labels.SelectorFromSet(labels.Set{"app": "a"}),
			IngressRules: []model.PolicyRule{{Peers: []model.PolicyPeer{{Pods: labels.SelectorFromSet(labels.Set{"app": "open"})}}, AnyPort: true}}})
	of := Attachment{Namespace: "shop", Name: "a", UID: "u-a", Link: "brda", Addrs: []netip.Addr{netip.MustParseAddr(podAddrs["a"])}}
	if err := l.Attach(t.Context(), of, l.mustStep); err != nil {
		t.Fatal(err)
	}
	reach := func(from, to string) bool {
		c, err := l.dial(from, to)
		if err == nil {
			c.Close()
		}
		return err == nil
	}
	nstest.Wait(t, "the bridge", func() error {
		l.mustStep()
		if _, err := l.node.Output("ping", "-c1", "-W1", "10.0.0.3"); err != nil {
			return err
		}
		return nil
	})
	var old *model.Pod
	gone := func() {
		if old != nil {
			l.compiler.Apply(0, []model.Change{{Ref: old.Ref, Old: old}})
			l.mustStep()
		}
	}
	for i := range reuseRounds {
		app := []string{"open", "closed"}[i%2]
		order, name := i/2%3, fmt.Sprintf("b-%d", i)
		if i/6%2 == 1 && order != 2 {
			name = "b" // of a StatefulSet, say
		}
		pod := &model.Pod{Origin: object(model.KindPod, name), UID: fmt.Sprintf("u-%d", i), Node: "n1", Labels: labels.Set{"app": app}, Phase: model.PhasePending}
		if order == 0 {
			gone()
		}
		of := Attachment{Namespace: pod.Key.Namespace, Name: pod.Key.Name, UID: pod.UID, Link: "brdb", Addrs: []netip.Addr{addr}}
		if order == 1 { // connected before anybody has told the agent of it: not to be confirmed as what the one before was
			short, cancel := context.WithCancel(t.Context())
			cancel()
			if err := l.Attach(short, of, l.mustStep); err == nil {
				t.Fatalf("round %d: a pod that nobody has heard of has policies", i)
			}
		}
		if old != nil && old.Key == pod.Key {
			l.compiler.Apply(0, []model.Change{{Ref: pod.Ref, Old: old, New: pod}})
			l.mustStep()
			old = nil
		} else {
			l.change(pod)
		}
		if err := l.Attach(t.Context(), of, l.mustStep); err != nil {
			t.Fatal(err)
		}
		running := *pod
		running.Phase, running.IPs = model.PhaseRunning, []netip.Addr{addr}
		for _, when := range []string{"attached", "its address is known", "the one before is gone"} {
			switch when {
			case "its address is known":
				l.compiler.Apply(0, []model.Change{{Ref: pod.Ref, Old: pod, New: &running}})
				l.mustStep()
			case "the one before is gone":
				switch {
				case order == 1:
					gone()
				case order == 2 && old != nil: // completed, which comes late, and still there with its address
					done := *old
					done.Phase = model.PhaseSucceeded
					l.compiler.Apply(0, []model.Change{{Ref: old.Ref, Old: old, New: &done}})
					l.mustStep()
					old = &done
				}
			}
			if got := reach("a", "10.0.0.3:80"); got != (app == "open") {
				t.Fatalf("round %d, %s, %s: reached %v", i, app, when, got)
			}
			if got := reach("b", "10.0.0.2:80"); got != (app == "open") {
				t.Fatalf("round %d, %s, %s: reaches a: %v", i, app, when, got)
			}
		}
		if order == 2 {
			gone()
		}
		old = &running
	}
}
