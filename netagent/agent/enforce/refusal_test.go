package enforce

import (
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"github.com/braidnet/braid/internal/desired"
	"github.com/braidnet/braid/internal/kernel/ipt"
	"github.com/braidnet/braid/internal/kernel/nft"
	"github.com/braidnet/braid/internal/model"
)

// TestRefusalIsTold: of policies that change at once the kernel refuses one. Its pods are closed, the others have their new
// policies from the same step on, and status, metrics and the API server are told; and again when it is in force.
func TestRefusalIsTold(t *testing.T) {
	for name, mode := range map[string]struct {
		variant ipt.Variant
		refuse  func(*lab) (end func())
	}{
		"nftables, ENOSPC": {"", func(l *lab) func() {
			l.refuse("10.0.0.0", func(op desired.NFTOp) error { return nft.Refused(op.Element.Set, "", unix.ENOSPC) })
			plane := l.plane.(*nftablesPlane)
			return func() { plane.apply = plane.conn.Apply }
		}},
		"iptables-nft, a line":         {ipt.NFT, func(l *lab) func() { return l.refuseLine(true) }},
		"iptables-legacy, none of all": {ipt.Legacy, func(l *lab) func() { return l.refuseLine(false) }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			if mode.variant != "" {
				l.restart("iptables", mode.variant)
			}
			l.attached()
			code := 0
			kept, client := eventServer(t, &code)
			writer := newEventWriter(slog.New(slog.DiscardHandler), "n1", client)
			l.faults.report = writer.set
			now := time.Now()
			told := func(reason string) (n int) {
				t.Helper()
				now = now.Add(2 * time.Hour) // an Event is not told again before
				if err := writer.tell(t.Context(), now); err != nil {
					t.Fatal(err)
				}
				for _, e := range kept {
					if e.Reason == reason && e.InvolvedObject.Name == "bad" {
						n++
					}
				}
				return n
			}
			l.alsoServe("a", "10.0.0.2:80")
			if !l.connects("b", "10.0.0.2:80") {
				t.Fatal("b does not reach a without policies")
			}
			end := mode.refuse(l)
			bad := allowing("bad", "b", "10.0.0.0/24")
			bad.IngressRules = append(bad.IngressRules, model.PolicyRule{AnyPeer: true, Ports: []model.PolicyPort{{Protocol: model.TCP, From: 4242, To: 4242}}})
			other := allowing("other", "a", "192.0.2.0/24")
			l.compiler.Apply(0, []model.Change{{Ref: bad.Ref, New: bad}, {Ref: other.Ref, New: other}})
			notes := l.notes()
			if len(notes) != 1 || !strings.Contains(notes[0], "policy shop/bad is closed, its rules allow nothing: ") {
				t.Errorf("notes %q", notes)
			}
			l.reaches(false, "to the pod of the policy that was refused")
			if l.connects("b", "10.0.0.2:80") {
				t.Error("a policy that changed at the same time is not in force")
			}
			if n := l.faulty("closed"); n != 1 {
				t.Errorf("braid_policy_faulty{state=closed} is %v", n)
			}
			if told("NotEnforced") != 1 {
				t.Errorf("events: %v", kept)
			}
			more := allowing("more", "a", "10.0.0.3/32")
			l.change(more)
			if !l.connects("b", "10.0.0.2:80") {
				t.Error("others are not updated while it is closed")
			}
			end()
			l.faults.tried = time.Now().Add(-retryClosedPolicies)
			if notes := l.notes(); len(notes) > 0 {
				t.Errorf("notes %q", notes)
			}
			l.reaches(true, "when the kernel takes it")
			if n := l.faulty("closed"); n != 0 {
				t.Errorf("braid_policy_faulty{state=closed} is %v afterwards", n)
			}
			if told("Enforced") != 1 {
				t.Errorf("events: %v", kept)
			}
		})
	}
}

// refuseLine makes iptables-restore refuse rules about port 4242, naming the line or not, until end.
func (l *lab) refuseLine(names bool) (end func()) {
	plane := l.plane.(*iptablesPlane)
	plane.restore = func(tool *ipt.Tool, input string) error {
		for line := range strings.Lines(input) {
			if strings.Contains(line, "4242") && names {
				return &ipt.RestoreError{Program: "iptables-restore", Text: strings.TrimSpace(line), Reason: "no memory", Err: unix.ENOMEM}
			}
			if strings.Contains(line, "4242") {
				return errors.New("iptables-restore: line 7 failed")
			}
		}
		return tool.Restore(input)
	}
	return func() { plane.restore = (*ipt.Tool).Restore }
}

func (l *lab) alsoServe(pod, addr string) {
	listener := l.listen(pod, addr)
	go func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
}

func (l *lab) connects(pod, addr string) bool {
	_, err := l.dial(pod, addr)
	return err == nil
}

// notes are what a step says to people.
func (l *lab) notes() (notes []string) {
	l.t.Helper()
	l.node.Run(l.t, func() error {
		out, err := l.Step(l.t.Context())
		notes = out.Notes
		return err
	})
	return notes
}

// faulty reads the metric of policies that are not in force as written.
func (l *lab) faulty(state string) (n float64) {
	l.t.Helper()
	r := prometheus.NewPedanticRegistry()
	r.MustRegister(l.Enforcer)
	l.node.Run(l.t, func() error {
		families, err := r.Gather()
		for _, f := range families {
			for _, m := range f.Metric {
				if f.GetName() == "braid_policy_faulty" && m.Label[0].GetValue() == state {
					n = m.Gauge.GetValue()
				}
			}
		}
		return err
	})
	return n
}
