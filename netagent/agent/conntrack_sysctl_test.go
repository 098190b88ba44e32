package agent

import (
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/braidnet/braid/internal/kernel/netns/nstest"
	"github.com/braidnet/braid/internal/kernel/sysctl"
)

func TestConntrackMax(t *testing.T) {
	for _, c := range []struct{ perCore, min, cpus, want int }{
		{32768, 131072, 1, 131072}, {32768, 131072, 4, 131072}, {32768, 131072, 8, 262144}, {32768, 131072, 64, 1 << 20},
		{0, 131072, 8, 0}, {32768, 0, 1, 32768}, {32768, 2 << 20, 8, 2 << 20},
	} {
		if got := (ConntrackConfig{MaxPerCore: c.perCore, Min: c.min}).max(c.cpus); got != c.want {
			t.Errorf("%+v: %d", c, got)
		}
	}
	for list, want := range map[string]int{"0": 1, "0-3": 4, "0-1,4,6-7": 5, "": 0, "x": 0, "3-1": 0} {
		if got := countList(list); got != want {
			t.Errorf("%q: %d CPUs, want %d", list, got, want)
		}
	}
}

func TestConntrackSysctls(t *testing.T) {
	ns := nstest.New(t)
	value := func(name string) (v string) {
		t.Helper()
		ns.Run(t, func() (err error) { v, err = sysctl.Get("net/netfilter/nf_conntrack_" + name); return err })
		return v
	}
	max, err := strconv.Atoi(value("max"))
	if err != nil {
		t.Fatal(err)
	}
	tune := func(c ConntrackConfig) (changed, notes []string) {
		ns.Run(t, func() error { changed, notes = (&tuner{ConntrackConfig: c}).tune(); return nil })
		return changed, notes
	}
	want := map[string]string{"tcp_timeout_established": "86400", "tcp_timeout_close_wait": "3600", "udp_timeout": "40",
		"udp_timeout_stream": value("udp_timeout_stream"), "tcp_be_liberal": "1"}
	c := ConntrackConfig{TCPEstablished: defaultConntrack.TCPEstablished, TCPCloseWait: defaultConntrack.TCPCloseWait, UDP: 40 * time.Second, TCPBeLiberal: true,
		MaxPerCore: 1, Min: max / 2}
	changed, notes := tune(c)
	for name, v := range want {
		if got := value(name); got != v {
			t.Errorf("%s is %s, want %s", name, got, v)
		}
	}
	if len(notes) > 0 || !slices.Contains(changed, "set sysctl net/netfilter/nf_conntrack_tcp_timeout_close_wait to 3600") {
		t.Errorf("changed %q, notes %q: a table that is larger than asked for is left alone", changed, notes)
	}
	if changed, notes := tune(c); len(changed)+len(notes) > 0 {
		t.Errorf("a second time: changed %q, notes %q", changed, notes)
	}
	// The size of the table is the machine's: a namespace cannot set it, and the agent lives with that.
	c.Min = 2 * max
	changed, notes = tune(c)
	if len(changed) > 0 || !slices.ContainsFunc(notes, func(n string) bool { return strings.Contains(n, "nf_conntrack_max to "+strconv.Itoa(2*max)) }) {
		t.Errorf("changed %q, notes %q", changed, notes)
	}
	if got := value("max"); got != strconv.Itoa(max) {
		t.Errorf("the machine's table was %d, is %s", max, got)
	}
}
