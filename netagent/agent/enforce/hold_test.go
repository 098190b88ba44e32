package enforce

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/braidnet/braid/internal/kernel/ipt"
	"github.com/braidnet/braid/internal/kernel/netns/nstest"
	"github.com/braidnet/braid/internal/model"
)

// TestHold: an agent that starts while the API server is away keeps what the one before left in force, and cuts pods off
// where somebody has taken that away, before or afterwards. When it knows the cluster everything is as it was.
func TestHold(t *testing.T) {
	for mode, flush := range map[string]string{"nftables": "nft flush ruleset", "iptables": "iptables-nft -F; iptables-nft -X"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			var l *lab
			if mode == "iptables" {
				l = iptablesLab(t, ipt.NFT)
			} else {
				l = isolatedLab(t)
			}
			pol := allowing("web", "b", "10.0.0.0/24")
			l.change(pol)
			l.reaches(true, "allowed")
			for _, gone := range []bool{false, true} {
				l.Enforcer.Close()
				if gone {
					l.node.Exec(t, "sh", "-c", flush)
				}
				l.start()
				ctx, cancel := context.WithCancel(t.Context())
				complete, done := make(chan struct{}), make(chan struct{})
				go func() {
					defer close(done)
					_ = l.node.Do(func() error { l.Hold(ctx, complete); return nil })
				}()
				if gone {
					nstest.Wait(t, "pods to be cut off", func() error { return l.cutOff() })
					l.node.Exec(t, "sh", "-c", flush)
					nstest.Wait(t, "pods to be cut off again", func() error { return l.cutOff() })
				} else {
					l.reaches(true, "as the agent before left it")
				}
				close(complete)
				<-done
				cancel()
				for _, o := range []model.Object{audited(false), newPod("a"), newPod("b"), pol} {
					l.compiler.Apply(0, []model.Change{{Ref: o.From().Ref, New: o}})
				}
				l.mustStep()
				l.reaches(true, "when the cluster is known")
				if _, err := l.dial("a", "10.0.0.3:81"); err == nil || !strings.Contains(err.Error(), "refused") {
					t.Errorf("another port: %v", err)
				}
			}
		})
	}
}

// TestHoldOfNobody: the first agent of a node cuts nobody off.
func TestHoldOfNobody(t *testing.T) {
	l := newLab(t)
	l.listen("b", "10.0.0.3:80")
	nstest.Wait(t, "the way between the pods", func() error { _, err := l.dial("a", "10.0.0.3:80"); return err })
	l.node.Run(t, func() error { l.Hold(t.Context(), make(chan struct{})); return nil })
	l.reaches(true, "after the start")
}

var errReached = errors.New("a reaches b")

// cutOff returns an error where a reaches b.
func (l *lab) cutOff() error {
	if _, err := l.dial("a", "10.0.0.3:80"); err == nil {
		return errReached
	}
	return nil
}
