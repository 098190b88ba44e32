package enforce

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/braidnet/braid/internal/desired"
	"github.com/braidnet/braid/internal/kernel/nft"
	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/netagent/policy"
)

// isolatedLab is a lab whose pods are known and attached, with a listener in b.
func isolatedLab(t *testing.T) *lab { return newLab(t).attached() }

func (l *lab) attached() *lab {
	t := l.t
	listener := l.listen("b", "10.0.0.3:80")
	go func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	l.change(&model.Namespace{Origin: model.Origin{Ref: model.Ref{Kind: model.KindNamespace, Key: model.Key{Name: "shop"}}}}, newPod("a"), newPod("b"))
	for name, addr := range podAddrs {
		of := Attachment{Namespace: "shop", Name: name, UID: "u-" + name, Link: "brd" + name, Addrs: []netip.Addr{netip.MustParseAddr(addr)}}
		if err := l.Attach(t.Context(), of, l.mustStep); err != nil {
			t.Fatal(err)
		}
	}
	l.reaches(true, "without policies")
	return l
}

// allowing is a policy that isolates a pod and lets a block in.
func allowing(name, pod, block string) *model.NetworkPolicy {
	return &model.NetworkPolicy{Origin: object(model.KindNetworkPolicy, name), Ingress: true, PodSelector: labels.SelectorFromSet(labels.Set{"app": pod}),
		IngressRules: []model.PolicyRule{{AnyPort: true, Peers: []model.PolicyPeer{{Block: netip.MustParsePrefix(block)}}}}}
}

// refuse makes the kernel's border refuse what touches the range that begins with an address.
func (l *lab) refuse(first string, refusal func(op desired.NFTOp) error) *int {
	plane, n := l.plane.(*nftablesPlane), new(int)
	key := string(netip.MustParseAddr(first).AsSlice())
	plane.apply = func(ops []desired.NFTOp) error {
		for _, op := range ops {
			if op.Verb == desired.NFTAddElement && op.Element.Key == key && strings.HasPrefix(op.Element.Set, "ranges-") {
				*n++
				return refusal(op)
			}
		}
		return plane.conn.Apply(ops)
	}
	return n
}

// TestRefusedPolicy: a policy that the kernel refuses closes its own pods, and nothing else; others are
// updated, and it opens again by itself. Whether the kernel says what it refuses or not.
func TestRefusedPolicy(t *testing.T) {
	for name, refusal := range map[string]func(desired.NFTOp) error{
		"ENOSPC that names the set": func(op desired.NFTOp) error { return nft.Refused(op.Element.Set, "", unix.ENOSPC) },
		"EINVAL that names nothing": func(desired.NFTOp) error { return errors.Join(unix.EINVAL) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := isolatedLab(t)
			var reported []policy.Fault
			l.faults.report = func(list []policy.Fault) { reported = list }
			tries := l.refuse("10.0.0.0", refusal)
			l.change(allowing("bad", "b", "10.0.0.0/24"))
			l.reaches(false, "after the policy was refused")
			if len(reported) != 1 || !reported[0].Closed || reported[0].Policy.Name != "bad" {
				t.Fatalf("reported: %v", reported)
			}
			out, err := l.Step(t.Context())
			if err != nil || len(out.Notes) != 1 || !strings.Contains(out.Notes[0], "policy shop/bad is closed, its rules allow nothing: ") {
				t.Errorf("notes %q, error %v", out.Notes, err)
			}
			n := *tries
			l.change(allowing("good", "b", "10.0.0.2/32"))
			l.reaches(true, "another policy allows it, meanwhile")
			for i := range 20 { // more of them, of which one is refused too
				l.compiler.Apply(0, []model.Change{{New: allowing("p"+string(rune('a'+i)), "a", netip.AddrFrom4([4]byte{11, byte(i), 0, 0}).String()+"/16")}})
			}
			worse := allowing("worse", "a", "10.0.0.0/24")
			l.compiler.Apply(0, []model.Change{{Ref: worse.Ref, New: worse}})
			l.mustStep()
			if *tries-n > 16 {
				t.Errorf("%d transactions were refused", *tries-n)
			}
			var closed []string
			for _, f := range reported {
				closed = append(closed, f.Policy.Name)
			}
			if !slices.Equal(closed, []string{"bad", "worse"}) {
				t.Errorf("closed: %v", closed)
			}
			l.compiler.Apply(0, []model.Change{{Ref: object(model.KindNetworkPolicy, "good").Ref}})
			l.mustStep()
			l.reaches(false, "when the other policy is gone")
			n = *tries
			l.faults.tried = time.Now().Add(-retryClosedPolicies)
			l.mustStep()
			if l.reaches(false, "tried again"); *tries == n {
				t.Error("it was not tried again")
			}
			l.plane.(*nftablesPlane).apply = l.plane.(*nftablesPlane).conn.Apply
			l.faults.tried = time.Now().Add(-retryClosedPolicies)
			l.mustStep()
			l.reaches(true, "when the kernel takes it")
			if len(reported) > 0 {
				t.Errorf("reported: %v", reported)
			}
		})
	}
}

// refuseAll is a kernel without memory.
func refuseAll(ops []desired.NFTOp) error {
	if len(ops) == 0 {
		return nil
	}
	return unix.ENOMEM
}

// TestRefusalOfAll: where the kernel takes nothing at all no policy is blamed, and what is in force stays.
func TestRefusalOfAll(t *testing.T) {
	l := isolatedLab(t)
	l.change(allowing("good", "b", "192.0.2.0/24"))
	l.reaches(false, "isolated")
	plane := l.plane.(*nftablesPlane)
	plane.apply = refuseAll
	more := allowing("more", "b", "10.0.0.0/24")
	l.compiler.Apply(0, []model.Change{{Ref: more.Ref, New: more}})
	if _, err := l.Step(t.Context()); !errors.Is(err, unix.ENOMEM) {
		t.Errorf("error %v", err)
	}
	if f := l.compiler.Faults(); len(f) > 0 {
		t.Errorf("blamed: %v", f)
	}
	l.reaches(false, "while the kernel takes nothing")
	plane.apply = plane.conn.Apply
	l.mustStep()
	l.reaches(true, "afterwards")
}
