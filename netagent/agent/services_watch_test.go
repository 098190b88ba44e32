package agent

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/braidnet/braid/internal/kernel/ipt"
	"github.com/braidnet/braid/internal/kernel/netns/nstest"
	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/netagent/agent/tools"
)

// rulesLab is a namespace in which one service mode runs without the rest of the agent.
type rulesLab struct {
	*nstest.NS
	*services
	mode string
}

// newRulesLab takes a service mode, or "legacy" for the mode iptables with the tools of that name.
func newRulesLab(t *testing.T, mode string) *rulesLab {
	t.Helper()
	l := &rulesLab{NS: nstest.New(t), mode: mode}
	asked := mode
	if mode == "legacy" {
		asked = "iptables"
		needVariant(t, ipt.Legacy)
		l.Exec(t, "iptables-legacy", "-t", "mangle", "-N", tools.Traces.Chains[0]) // as the kubelet shows its choice
	}
	l.Run(t, func() (err error) {
		l.services, err = newTestServices(Config{Node: "n1", ServiceMode: asked, Log: slog.New(slog.DiscardHandler)})
		return err
	})
	t.Cleanup(l.services.close)
	l.set(t, 1, 1)
	return l
}

func newTestServices(c Config) (*services, error) {
	l := newLedger()
	return newServices(c, l, newProxyMetrics(l))
}

// set makes service number i have the backend 10.9.0.b and steps.
func (l *rulesLab) set(t *testing.T, i, b byte) {
	t.Helper()
	ref := func(k model.Kind, name string) model.Origin {
		return model.Origin{Ref: model.Ref{Kind: k, Key: model.Key{Namespace: "default", Name: name}}}
	}
	name := fmt.Sprint("web", i)
	svc := &model.Service{Origin: ref(model.KindService, name), Type: model.ClusterIP,
		ClusterIPs: []netip.Addr{netip.AddrFrom4([4]byte{10, 96, 0, i})}, Ports: []model.ServicePort{{Protocol: model.TCP, Port: 80}}}
	slice := &model.EndpointSlice{Origin: ref(model.KindEndpointSlice, name), Service: svc.Key,
		Ports:     []model.EndpointPort{{Protocol: model.TCP, Port: 8080}},
		Endpoints: []model.Endpoint{{Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, 9, 0, b})}, Ready: true, Serving: true}}}
	l.planner.Apply(1, []model.Change{{Ref: svc.Ref, New: svc}, {Ref: slice.Ref, New: slice}})
	l.sync(t)
}

func (l *rulesLab) sync(t *testing.T) {
	t.Helper()
	l.took = 0 // repairs are not put off
	l.Run(t, func() error { _, err := l.step(t.Context()); return err })
}

// rules prints what the kernel has of ours.
func (l *rulesLab) print(t *testing.T) string {
	t.Helper()
	if l.mode == "nftables" {
		if out, err := l.Output("nft", "list", "table", "ip", "braid"); err == nil {
			return out
		}
		return ""
	}
	if l.mode == "legacy" {
		return l.Exec(t, "iptables-legacy-save", "-t", "nat")
	}
	return l.Exec(t, "iptables-nft-save", "-t", "nat")
}

func TestChangesOfOthersAreSeenAndRepairedOurOwnNeverKick(t *testing.T) {
	for mode, harms := range map[string][]string{
		"nftables": {"nft flush ruleset", "nft delete table ip braid", "nft flush chain ip braid services", "nft flush map ip braid slots"},
		"iptables": {"nft flush ruleset", "iptables-nft -t nat -F", "iptables-nft -t nat -D PREROUTING 1"},
		"legacy":   {"iptables-legacy -t nat -F", "iptables-legacy -t nat -D PREROUTING 1", "iptables-legacy -F", "ip6tables-legacy -t nat -F BRAID-SERVICES"},
	} {
		t.Run(mode, func(t *testing.T) {
			l := newRulesLab(t, mode)
			quiet := func(after string) {
				t.Helper()
				l.took = 0
				if mode == "legacy" { // where writes are not counted, a comparison that writes nothing
					l.sync(t)
				}
				if l.touched(time.Now()) {
					t.Errorf("%s looks like somebody else's change", after)
					l.rules.trust()
				}
			}
			quiet("the first load")
			for b := range byte(5) {
				l.set(t, 1, 10+b)
				l.set(t, 2+b, 1)
				quiet("an own change")
			}
			l.whole = time.Now().Add(-2 * quietAudit)
			l.sync(t)
			quiet("an audit")
			theirs := "nft add table inet theirs"
			if mode == "legacy" {
				theirs = "iptables-legacy -A FORWARD -p tcp --dport 9 -j DROP"
			}
			for i, harm := range append(harms, theirs) {
				l.Exec(t, "sh", "-c", harm)
				l.took = 0
				if !l.touched(time.Now()) {
					t.Errorf("%s was not seen", harm)
				}
				l.sync(t)
				quiet("the repair after " + harm)
				if k := l.print(t); !strings.Contains(k, "10.9.0.14") || !strings.Contains(k, "10.96.0.6") || !strings.Contains(k, "prerouting") && !strings.Contains(k, "-A PREROUTING") {
					t.Errorf("after %s and a step the kernel holds\n%s", harm, k)
				}
				l.set(t, 50, byte(20+i))
				quiet("a change after the repair")
			}
		})
	}
}

// TestForeignChangeBeforeOurOwnIsNotTakenForIt: both fall between two looks.
func TestForeignChangeBeforeOurOwnIsNotTakenForIt(t *testing.T) {
	l := newRulesLab(t, "nftables")
	l.Exec(t, "nft", "flush", "chain", "ip", "braid", "nat-prerouting")
	l.set(t, 2, 2)
	if k := l.print(t); strings.Count(k, "jump services") != 2 {
		t.Errorf("the flushed chain was not repaired with the next change:\n%s", k)
	}
}

func TestRepairsArePutOffWhenTheyAreDearAndOthersAreBusy(t *testing.T) {
	l := newRulesLab(t, "nftables")
	l.took, l.whole = 100*time.Millisecond, time.Now()
	l.Exec(t, "nft", "add", "table", "inet", "theirs")
	if l.touched(l.whole.Add(time.Second)) {
		t.Error("a comparison of 100 ms every second is more than one part in fifty")
	}
	if !l.touched(l.whole.Add(6 * time.Second)) {
		t.Error("what was put off is forgotten")
	}
	l.Exec(t, "nft", "delete", "table", "ip", "braid")
	if !l.touched(l.whole.Add(time.Second)) {
		t.Error("a table that is gone waits like one that is there")
	}
	l.sync(t)
	l.took = 100 * time.Millisecond
	l.Exec(t, "nft", "flush", "map", "ip", "braid", "slots")
	if !l.touched(l.whole.Add(time.Second)) {
		t.Error("a second harm waits although there was a first")
	}
}

func TestEmptiedChainsAreNotPutOff(t *testing.T) {
	for mode, tool := range map[string]string{"iptables": "tables-nft", "legacy": "tables-legacy"} {
		l := newRulesLab(t, mode)
		harms := []string{"ip" + tool + " -t nat -F", "ip6" + tool + " -F", "ip" + tool + " -F FORWARD", "ip6" + tool + " -t nat -D OUTPUT 1"}
		if mode == "iptables" {
			harms = append(harms, "nft flush ruleset")
		}
		l.notPutOff(t, "ip"+tool, harms)
	}
}

func (l *rulesLab) notPutOff(t *testing.T, tool string, harms []string) {
	for _, harm := range harms {
		l.harmed = false // by the harm before
		l.took, l.whole = 100*time.Millisecond, time.Now()
		l.Exec(t, tool, "-t", "nat", "-N", "THEIRS")
		if l.touched(l.whole.Add(time.Second)) {
			t.Error("a comparison of 100 ms every second is more than one part in fifty")
		}
		l.Exec(t, "sh", "-c", harm)
		if !l.touched(l.whole.Add(time.Second)) {
			t.Errorf("after %q services wait like rules of others", harm)
		}
		l.sync(t)
		l.Exec(t, "sh", "-c", tool+" -t nat -X THEIRS || true")
		l.sync(t)
	}
}

// TestHarmDuringAnOwnWriteIsSeen: whoever flushes one table after the other meets a repair of the first while
// he is at the second.
func TestHarmDuringAnOwnWriteIsSeen(t *testing.T) {
	for mode, tool := range map[string]string{"iptables": "iptables-nft", "legacy": "iptables-legacy"} {
		for name, harm := range map[string]string{"all gone": " -t nat -F", "a rule gone": " -t nat -D PREROUTING 1"} {
			t.Run(mode+"/"+name, func(t *testing.T) {
				l := newRulesLab(t, mode)
				whole := l.print(t)
				p := l.dataplane.(*iptablesPlane)
				restore := p.families[0].restore
				once := func(input string) error {
					p.families[0].restore = restore
					err := restore(input)
					l.Exec(t, "sh", "-c", tool+harm)
					return err
				}
				seen := func() {
					t.Helper()
					after := l.whole.Add(6 * time.Second) // repairs of a rule are put off
					if name == "all gone" {
						after = l.whole.Add(time.Second)
					}
					if l.took = 100 * time.Millisecond; !l.touched(after) {
						t.Fatal("nobody looks at what was done during a write of ours")
					}
					l.sync(t)
					l.sync(t) // where writes are not counted, a comparison that writes nothing
					if l.touched(time.Now().Add(time.Hour)) {
						t.Error("what was seen is not forgotten")
					}
				}
				l.Exec(t, "sh", "-c", tool+" -t filter -D FORWARD 1")
				p.families[0].restore = once
				l.sync(t)
				seen()
				if got := l.print(t); withoutNotes(got) != withoutNotes(whole) {
					t.Errorf("after a flush during a repair the kernel holds\n%s\nand before\n%s", got, whole)
				}
				p.families[0].restore = once
				l.set(t, 2, 2)
				seen()
				if got := l.print(t); !strings.Contains(got, "10.96.0.2") || !strings.Contains(got, "-A PREROUTING") {
					t.Errorf("after a flush during a change the kernel holds\n%s", got)
				}
			})
		}
	}
}

// withoutNotes leaves out the time and the counters in what iptables-save prints.
func withoutNotes(saved string) string {
	return regexp.MustCompile(`(?m)^#.*$|\[\d+:\d+\]`).ReplaceAllString(saved, "")
}

func TestWatchKicks(t *testing.T) {
	l := newRulesLab(t, "nftables")
	l.took = 0
	ctx, cancel := context.WithCancel(t.Context())
	kicks, done := make(chan struct{}, 100), make(chan struct{})
	go func() { defer close(done); l.Watch(ctx, func() { kicks <- struct{}{} }) }()
	l.Exec(t, "nft", "flush", "ruleset")
	select {
	case <-kicks:
	case <-time.After(20 * time.Second):
		t.Error("a flushed ruleset went unnoticed")
	}
	cancel()
	<-done
}

// TestCleanupWithoutTheRightDoesNotSayThatNothingIsHere: a user who is not root must not take an empty
// answer for a clean node.
func TestCleanupWithoutTheRightDoesNotSayThatNothingIsHere(t *testing.T) {
	l := newRulesLab(t, "nftables")
	dir := t.TempDir()
	var removed []string
	var err error
	l.Run(t, func() error {
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3} // of this thread
		var full [2]unix.CapUserData
		if err := unix.Capget(&header, &full[0]); err != nil {
			return err
		}
		less := full
		less[0].Effective &^= 1 << unix.CAP_NET_ADMIN
		if err := unix.Capset(&header, &less[0]); err != nil {
			return err
		}
		removed, err = Cleanup(t.Context(), Config{RunDir: dir, StateDir: dir, CNIConfDir: dir, Log: slog.New(slog.DiscardHandler)})
		return unix.Capset(&header, &full[0])
	})
	if err == nil || !strings.Contains(err.Error(), "run this as root") {
		t.Errorf("removed %v, error %v, and the table is there:\n%s", removed, err, l.print(t))
	}
}
