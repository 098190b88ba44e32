package main

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/braidnet/braid/internal/kernel/netns/nstest"
)

func TestParseShapes(t *testing.T) {
	got, err := parseShapes("44000x1,5000x50,1x1000a", "")
	if err != nil || len(got) != 3 || got[0] != (shape{services: 44000, endpoints: 1}) || got[2] != (shape{services: 1, endpoints: 1000, affinity: true}) {
		t.Errorf("got %v, %v", got, err)
	}
	if got, err := parseShapes("none", "1x1"); err != nil || got != nil {
		t.Errorf("none: got %v, %v", got, err)
	}
	for _, bad := range []string{"1000", "x1", "0x1", "1x0", "1000x1b", "9000000x9"} {
		if _, err := parseShapes(bad, ""); err == nil || !strings.Contains(err.Error(), bad) {
			t.Errorf("%q: the error is %v", bad, err)
		}
	}
}

func TestLastBefore(t *testing.T) {
	at := func(ms int) time.Time { return time.UnixMilli(int64(ms)) }
	seen := []time.Time{at(10), at(20), at(30)}
	for packet, want := range map[int]int{5: 5, 20: 20, 25: 20, 99: 30} {
		if got := lastBefore(seen, at(packet)); !got.Equal(at(want)) {
			t.Errorf("a packet at %d found the commit of %d, want %d", packet, got.UnixMilli(), want)
		}
	}
}

func TestRatioIsToOursOfTheSameMode(t *testing.T) {
	all := subjects("", "")
	tab := newTable("x", all)
	for _, s := range all {
		d := 10 * time.Millisecond
		if !s.ours {
			d = 200 * time.Millisecond
		}
		if s.name == "braid iptables" {
			d = 100 * time.Millisecond
		}
		tab.time(s, "row", d)
	}
	var out strings.Builder
	tab.print(&out)
	const want = "| row | 10 ms | 100 ms | 200 ms (20×) | 200 ms (20×) | 200 ms (2×) | 200 ms (2×) |"
	if !strings.Contains(out.String(), want) {
		t.Errorf("want the row %s in\n%s", want, out.String())
	}
}

// The world alone: every address of the range is a pod that says who it is, and what nobody serves is
// no answer.
func TestWorld(t *testing.T) {
	nstest.RequireRoot(t)
	w, err := newWorld()
	if err != nil {
		t.Fatal(err)
	}
	defer w.close()
	p := &probe{client: w.client, every: time.Millisecond, port: podPort}
	for _, pod := range []string{"10.0.0.1", "10.127.255.254"} {
		a := netip.MustParseAddr(pod)
		if _, err := p.await(a, 10*time.Second, by(a)); err != nil {
			t.Errorf("pod %s: %v", pod, err)
		}
	}
	if _, err := p.await(vip(0), 20*time.Millisecond, byAny); !errors.Is(err, errLimit) {
		t.Errorf("a service that nobody serves: %v, want the time limit", err)
	}
	ended := make(chan struct{})
	close(ended)
	p.ended = ended
	if _, err := p.await(vip(0), time.Minute, byAny); !errors.Is(err, errEnded) {
		t.Errorf("with no program: %v", err)
	}
}
