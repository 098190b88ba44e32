package agent

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/braidnet/braid/internal/kernel/ipt"
	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/netagent/service"
)

// wantLeftOut wants a leftOutError that names exactly these services.
func wantLeftOut(t *testing.T, err error, names ...string) {
	t.Helper()
	var left *leftOutError
	if !errors.As(err, &left) || len(left.notes) != len(names) {
		t.Fatalf("error %v, want one that names %v", err, names)
	}
	for i, n := range names {
		if !strings.Contains(left.notes[i], "service default/"+n+":p: its cluster IP ") {
			t.Errorf("note %q does not name %s", left.notes[i], n)
		}
	}
}

// TestIPTablesRefusedFrontend: the tools refuse an address of the other family, and name the line. That
// frontend is closed, all others are right, and it opens when it is mended.
func TestIPTablesRefusedFrontend(t *testing.T) {
	eachIPTables(t, func(t *testing.T, l *dpLab, dp service.Dataplane) {
		bad := func(a *dpAddrs) service.Frontend {
			other := &dpFamilies[0]
			if a == other {
				other = &dpFamilies[1]
			}
			return dpFrontend("bad", service.ClusterIP, model.TCP, a.vip(1), dpPort, other.backend1(), a.backend2())
		}
		all, net := dpState()
		for i := range dpFamilies {
			all = append(all, bad(&dpFamilies[i]))
		}
		wantLeftOut(t, l.node.Do(func() error { return dp.Replace(all, net) }), "bad", "bad")
		for i := range dpFamilies {
			a := &dpFamilies[i]
			vip, good := netip.AddrPortFrom(a.vip(1), dpPort), netip.AddrPortFrom(a.web, dpPort)
			l.wantSilence(t, l.client, vip)
			l.wantNames(t, l.client, good, "pod1", "pod2")

			// Others change meanwhile, and the error stays.
			web := dpFrontend("web", service.ClusterIP, model.TCP, a.web, dpPort, a.backend2())
			if i == 0 {
				wantLeftOut(t, l.node.Do(func() error { return dp.Apply(service.Delta{Set: []service.Frontend{web}}) }), "bad", "bad")
				l.wantNames(t, l.client, good, "pod2")
			}
			mended := dpFrontend("bad", service.ClusterIP, model.TCP, a.vip(1), dpPort, a.backend2())
			err := l.node.Do(func() error { return dp.Apply(service.Delta{Set: []service.Frontend{mended}}) })
			l.wantNames(t, l.client, vip, "pod2")
			if last := i == len(dpFamilies)-1; (err == nil) != last {
				t.Errorf("after %d frontends were mended: error %v", i+1, err)
			}
		}
		// A frontend that was well and is refused after a change is closed, not left with what it had.
		broken := bad(&dpFamilies[0])
		wantLeftOut(t, l.node.Do(func() error { return dp.Apply(service.Delta{Set: []service.Frontend{broken}}) }), "bad")
		l.wantSilence(t, l.client, netip.AddrPortFrom(broken.Addr, dpPort))
		l.must(t, "Apply", func() error { return dp.Apply(service.Delta{Delete: []service.Key{broken.Key}}) })
	})
}

// coarse makes a family's tool refuse what has one of these words as the legacy kernel tables do: at the
// COMMIT, without a hint which rule it was. It counts the runs.
func coarse(dp service.Dataplane, words ...string) (runs *int) {
	f := dp.(*iptablesPlane).families[0]
	runs = new(int)
	f.restore = func(input string) error {
		*runs++
		for _, w := range words {
			if at := strings.Index(input, w); at >= 0 {
				commit := at + strings.Index(input[at:], "COMMIT")
				return &ipt.RestoreError{Program: "iptables", Line: strings.Count(input[:commit], "\n") + 1, Text: "COMMIT", Reason: "failed", Err: errors.New("exit status 1")}
			}
		}
		return f.tool.Restore(input)
	}
	return runs
}

// TestIPTablesRefusedSomewhere: no line is named. The frontends to blame are found by halving.
func TestIPTablesRefusedSomewhere(t *testing.T) {
	eachIPTables(t, func(t *testing.T, l *dpLab, dp service.Dataplane) {
		a := &dpFamilies[0]
		var all []service.Frontend
		for i := range 60 {
			f := dpFrontend("good", service.ClusterIP, model.TCP, a.vip(i), dpPort, a.backend2())
			if i == 7 || i == 41 {
				f.Origin = dpOrigin("bad")
				f.Backends[0].AddrPort = netip.AddrPortFrom(a.pod2, 6666)
			}
			all = append(all, f)
		}
		_, net := dpState()
		runs := coarse(dp, ":6666")
		wantLeftOut(t, l.node.Do(func() error { return dp.Replace(all, net) }), "bad", "bad")
		if *runs > 40 {
			t.Errorf("%d runs of the tool for 2 of 60 frontends", *runs)
		}
		for i := range all {
			to := netip.AddrPortFrom(a.vip(i), dpPort)
			if i == 7 || i == 41 {
				l.wantSilence(t, l.client, to)
			} else if r := l.ask(t, l.client, to); r.name != "pod2" {
				t.Errorf("%s: %s answered", to, r.name)
			}
		}
		// With nothing to mend, a change of another costs one run; when it is time, the refused are tried again.
		*runs = 0
		set := service.Delta{Set: []service.Frontend{dpFrontend("good", service.ClusterIP, model.TCP, a.vip(0), dpPort, a.backend1())}}
		wantLeftOut(t, l.node.Do(func() error { return dp.Apply(set) }), "bad", "bad")
		if *runs != 1 {
			t.Errorf("%d runs of the tool for a change of another frontend", *runs)
		}
		f := dp.(*iptablesPlane).families[0]
		f.restore = f.tool.Restore // the fault is mended
		f.tried = time.Now().Add(-2 * retryClosed)
		l.must(t, "Apply", func() error { return dp.Apply(service.Delta{}) })

		// Not even the rule that closes a frontend is taken.
		afresh := func(words ...string) {
			l.must(t, "Cleanup", func() error { _, err := dp.Cleanup(); return err })
			coarse(dp, words...)
		}
		afresh(a.vip(3).String() + "/32 -p")
		wantLeftOut(t, l.node.Do(func() error { return dp.Replace(all[:20], net) }), "good")
		l.wantNames(t, l.client, netip.AddrPortFrom(a.vip(4), dpPort), "pod2")
		l.wantRefusal(t, l.client, netip.AddrPortFrom(a.vip(3), dpPort)) // as any port of a cluster IP that is none

		// What is no frontend's fault is an error of the whole, and nothing is said to be in force.
		afresh("BRAID-SERVICES")
		var left *leftOutError
		err := l.node.Do(func() error { return dp.Replace(all, net) })
		if err == nil || errors.As(err, &left) {
			t.Errorf("error %v, want one about the family", err)
		}
		if err := dp.Apply(set); err == nil || !strings.Contains(err.Error(), "call Replace first") {
			t.Errorf("Apply after a failed Replace: error %v", err)
		}
	})
}

// TestServicesLeaveOutNoMoreThanTheyMust: a refused frontend is a note, the step itself is well.
func TestServicesLeaveOutNoMoreThanTheyMust(t *testing.T) {
	l := newRulesLab(t, "iptables")
	coarse(l.dataplane, "10.9.0.66:8080")
	l.set(t, 2, 66)
	l.set(t, 3, 3)
	out := l.outcome()
	if len(out.Notes) != 1 || !strings.Contains(out.Notes[0], "service default/web2: its cluster IP 10.96.0.2:80/TCP is closed: ") || !strings.Contains(out.Summary, "3 frontends, 1 of them left out") {
		t.Errorf("outcome %+v, want a note about web2", out)
	}
	if k := l.Exec(t, "iptables-save", "-t", "nat"); !strings.Contains(k, "10.9.0.3:8080") || strings.Contains(k, "10.9.0.66") {
		t.Errorf("the kernel holds\n%s", k)
	}
	l.set(t, 2, 2)
	if out := l.outcome(); len(out.Notes) != 0 || strings.Contains(out.Summary, "left out") {
		t.Errorf("outcome %+v after it was mended", out)
	}
}
