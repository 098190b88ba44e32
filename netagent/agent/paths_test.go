package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/braidnet/braid/internal/kernel/icmp"
	"github.com/braidnet/braid/internal/kernel/netns/nstest"
	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/netagent/overlay"
)

// fakePath answers sizes up to takes, and loses one packet in loss.
type fakePath struct {
	mu    sync.Mutex
	takes int
	loss  int
	sent  int
	err   error
}

func (f *fakePath) ask(_ context.Context, _ netip.Addr, sizes []int) ([]bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	got := make([]bool, len(sizes))
	for i, s := range sizes {
		f.sent++
		got[i] = s <= f.takes && (f.loss == 0 || rand.IntN(f.loss) > 0)
	}
	return got, f.err
}

func (f *fakePath) become(takes int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.takes = takes
}

func TestLook(t *testing.T) {
	to := netip.MustParseAddr("10.244.2.0")
	for takes := 100; takes <= 9100; takes += 1 + takes/300 {
		f := &fakePath{takes: takes}
		v, err := look(t.Context(), f.ask, to, 8950)
		want := verdict{pathNarrow, takes}
		if takes >= 8950 {
			want = verdict{state: pathWhole}
		}
		if err != nil || v != want {
			t.Fatalf("takes %d: %+v, %v, want %+v", takes, v, err, want)
		}
		if f.sent > 100 {
			t.Errorf("takes %d: %d packets", takes, f.sent)
		}
	}
	if v, err := look(t.Context(), (&fakePath{takes: 10}).ask, to, 1450); err != nil || v.state != pathSilent {
		t.Errorf("%+v, %v, want silent", v, err)
	}
	if v, err := look(t.Context(), (&fakePath{takes: 99}).ask, to, 100); err != nil || v.state != pathSilent {
		t.Errorf("%+v, %v, want silent", v, err)
	}
	if _, err := look(t.Context(), (&fakePath{err: errors.New("no right")}).ask, to, 1450); err == nil {
		t.Error("no error")
	}
	// What is lost now and then makes no path narrow: one look in a thousand at one packet lost in ten may err.
	bad := 0
	for range 2000 {
		f := &fakePath{takes: 1500, loss: 10}
		if v, _ := look(t.Context(), f.ask, to, 1450); v.state != pathWhole {
			bad++
		}
	}
	if bad > 20 {
		t.Errorf("%d of 2000 looks were misled by loss", bad)
	}
}

// quick is a set of paths whose pauses are short.
func quick(ask askFunc) *paths {
	p := newPaths(ask, slog.New(slog.DiscardHandler))
	p.every, p.again, p.confirm, p.pace = time.Hour, 10*time.Millisecond, time.Millisecond, 0
	return p
}

func (p *paths) start(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { p.run(ctx); close(done) }()
	t.Cleanup(func() { cancel(); <-done })
}

func (p *paths) states() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	count := map[pathState]int{}
	for _, x := range p.all {
		count[x.verdict.state]++
	}
	return fmt.Sprint(count[pathUnknown], count[pathWhole], count[pathNarrow], count[pathSilent])
}

func waitStates(t *testing.T, p *paths, want string) {
	t.Helper()
	nstest.Wait(t, "unknown, whole, narrow, silent paths to be "+want, func() error {
		if got := p.states(); got != want {
			return fmt.Errorf("they are %s", got)
		}
		return nil
	})
}

func TestPathsAreFollowed(t *testing.T) {
	f := &fakePath{takes: 1450}
	p := quick(f.ask)
	p.start(t)
	var list []overlay.Probe
	for i := range 40 {
		list = append(list, overlay.Probe{Node: fmt.Sprintf("n%d", i), To: netip.AddrFrom4([4]byte{10, 244, byte(i), 0}), Dev: "braid.vx4", Size: 1450, Over: 50,
			Local: netip.MustParseAddr("192.0.2.1"), Via: netip.MustParseAddr("192.0.2.2")})
	}
	means := func(overlay.Probe) string { return "UDP port 8472" }
	p.set(list, means)
	waitStates(t, p, "0 40 0 0")
	f.mu.Lock()
	sent := f.sent
	f.mu.Unlock()
	p.set(list, means) // as each Sync does
	if again := p.states(); again != "0 40 0 0" || sent != 40 {
		t.Errorf("%s after %d packets: nothing changed, and one packet a path is enough", again, sent)
	}
	// A path that is asked to take more is looked at, and found too narrow; when it takes more, that is seen.
	list[3].Size = 1500
	p.set(list[:4], means)
	waitStates(t, p, "0 3 1 0")
	notes := p.notes()
	if len(notes) != 1 || !strings.Contains(notes[0], "node n3: packets of 1500 bytes do not arrive at 10.244.3.0 by braid.vx4, 1450 do: something between 192.0.2.1 and 192.0.2.2 takes no more than 1500") {
		t.Errorf("notes %q", notes)
	}
	metrics := map[string]float64{}
	p.collect(func(_ *prometheus.Desc, v float64, labels ...string) { metrics[strings.Join(labels, " ")] = v })
	if metrics["narrow"] != 1 || metrics["whole"] != 3 || metrics["n3 10.244.3.0"] != 1450 {
		t.Errorf("metrics %v", metrics)
	}
	f.become(9000)
	waitStates(t, p, "0 4 0 0")
	f.become(0)
	for i := range list {
		list[i].Size++
	}
	p.set(list, means)
	waitStates(t, p, "0 0 0 40")
	if notes := p.notes(); len(notes) != maxPathNotes+1 || !strings.Contains(notes[maxPathNotes], "30 more") || !strings.Contains(notes[0], "UDP port 8472") {
		t.Errorf("notes %q", notes)
	}
	p.set(nil, means)
	if p.states() != "0 0 0 0" || len(p.notes()) != 0 {
		t.Errorf("paths to nodes that are gone: %s", p.states())
	}
}

// One bad answer, as of a node that starts, is no news.
func TestPathsConfirm(t *testing.T) {
	p := quick(nil)
	x := &path{Probe: overlay.Probe{Node: "n2", Size: 1450}}
	p.all[pathKey{node: "n2"}] = x
	p.note(x, verdict{state: pathSilent}, nil)
	if len(p.notes()) != 0 {
		t.Errorf("notes %q after one bad answer", p.notes())
	}
	p.note(x, verdict{state: pathSilent}, nil)
	if len(p.notes()) != 1 {
		t.Errorf("notes %q after two", p.notes())
	}
	p.note(x, verdict{}, errors.New("no right to ask"))
	if notes := p.notes(); len(notes) != 1 || !strings.Contains(notes[0], "not looked at: no right to ask") {
		t.Errorf("notes %q: what is not known any more is not told", notes)
	}
	p.note(x, verdict{state: pathWhole}, nil)
	if len(p.notes()) != 0 {
		t.Errorf("notes %q of a path that is well", p.notes())
	}
}

// Black holes on a real wire, for each backend and family: found, named, and gone when they are.
func TestBlackHoles(t *testing.T) {
	for _, backend := range []string{"vxlan", "vxlan direct", "host-gw", "udp", "wireguard"} {
		t.Run(backend, func(t *testing.T) {
			t.Parallel()
			n := newTestNet(t, backend)
			n.syncAll(t)
			a := n.nodes[0]
			p := quick(func(ctx context.Context, to netip.Addr, sizes []int) (got []bool, err error) {
				derr := a.ns.Do(func() error {
					got, err = icmp.Echo(ctx, to, sizes, 250*time.Millisecond)
					return nil
				})
				return got, errors.Join(err, derr)
			})
			p.again = 100 * time.Millisecond
			p.start(t)
			res := a.sync(t)
			probes := 4
			if backend == "wireguard" {
				probes = 2 // a tunnel each
			}
			if len(res.Probes) != probes {
				t.Fatalf("probes %+v, want %d", res.Probes, probes)
			}
			p.set(res.Probes, res.Means)
			waitStates(t, p, fmt.Sprintf("0 %d 0 0", probes))
			// The switch's port to n2 takes less than it says: what is larger is dropped, and nobody is told.
			n.underlay.Exec(t, "ip", "link", "set", "pn2", "mtu", "1400")
			p.forget() // five minutes pass
			p.set(res.Probes, res.Means)
			waitStates(t, p, fmt.Sprintf("0 %d %d 0", probes/2, probes/2))
			for _, note := range p.notes() {
				// What is let through may have room for a tag; WireGuard fills up to 16 bytes.
				var least int
				if _, text, _ := strings.Cut(note, "takes no more than "); !strings.HasPrefix(note, "node n2: packets of ") {
					t.Errorf("note %q", note)
				} else if _, err := fmt.Sscan(text, &least); err != nil || least < 1388 || least > 1404 {
					t.Errorf("note %q", note)
				}
			}
			n.underlay.Exec(t, "ip", "link", "set", "pn2", "mtu", "1500")
			waitStates(t, p, fmt.Sprintf("0 %d 0 0", probes))
			// A node that is not there at all.
			n.underlay.Exec(t, "ip", "link", "set", "pn2", "down")
			p.forget()
			p.set(res.Probes, res.Means)
			waitStates(t, p, fmt.Sprintf("0 %d 0 %d", probes/2, probes/2))
			n.store.Apply([]model.Update{model.Delete(n.nodes[1].node.Ref)})
			res = a.sync(t)
			p.set(res.Probes, res.Means)
			waitStates(t, p, fmt.Sprintf("0 %d 0 0", probes/2))
		})
	}
}

func (p *paths) forget() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.all = map[pathKey]*path{}
}
