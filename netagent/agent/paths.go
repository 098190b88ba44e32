package agent

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/braidnet/braid/netagent/overlay"
)

const (
	// pathsEvery is how often a path that takes everything is looked at again. A thousand nodes make three packets a
	// second each.
	pathsEvery = 5 * time.Minute
	// pathsAgain is how soon a path that does not is looked at again; a first bad answer is confirmed sooner.
	pathsAgain   = 20 * time.Second
	pathsConfirm = 2 * time.Second
	// pathsPace and pathsAtOnce bound what is sent after a change that concerns all paths.
	pathsPace   = 20 * time.Millisecond
	pathsAtOnce = 16
	// echoWait is how long an answer may take.
	echoWait = time.Second
)

// pathState is what is known of a path.
type pathState int

const (
	pathUnknown pathState = iota // not asked yet, or a bad answer that waits to be confirmed
	pathWhole                    // takes the largest packets of pods
	pathNarrow                   // takes smaller ones only
	pathSilent                   // nothing comes back
)

var pathStates = map[pathState]string{pathUnknown: "unknown", pathWhole: "whole", pathNarrow: "narrow", pathSilent: "silent"}

// verdict is what one look at a path found.
type verdict struct {
	state   pathState
	largest int // that takes, bytes, for pathNarrow
}

// askFunc asks for echoes of some sizes; see icmp.Echo.
type askFunc func(ctx context.Context, to netip.Addr, sizes []int) ([]bool, error)

const (
	pathTries = 3 // that have to be lost before a path counts as bad
	sizeTries = 2 // and a size in the search for the largest as too large
	pathSteps = 8 // sizes that are tried at once in the search for the largest
	pathSmall = 100
)

// look finds out what a path takes. The error is of having no means to ask.
func look(ctx context.Context, ask askFunc, to netip.Addr, size int) (verdict, error) {
	small := false
	for try := range pathTries {
		sizes := []int{size}
		if try > 0 && pathSmall < size && !small {
			// Ascending, here and below: overlay udp sends equal packets and a smaller last one as one, which virtual
			// networks carry however large it is.
			sizes = []int{pathSmall, size}
		}
		got, err := ask(ctx, to, sizes)
		if err != nil || ctx.Err() != nil {
			return verdict{}, cmp.Or(err, ctx.Err())
		}
		if got[len(got)-1] {
			return verdict{state: pathWhole}, nil
		}
		small = small || got[0]
	}
	if !small {
		return verdict{state: pathSilent}, nil
	}
	passes, lost := pathSmall, size
	for lost-passes > 1 {
		sizes := between(passes, lost)
		for try := 0; try < sizeTries && len(sizes) > 0; try++ {
			got, err := ask(ctx, to, sizes)
			if err != nil || ctx.Err() != nil {
				return verdict{}, cmp.Or(err, ctx.Err())
			}
			for i, ok := range got {
				if ok {
					passes = max(passes, sizes[i])
				}
			}
			sizes = slices.DeleteFunc(sizes, func(s int) bool { return s <= passes })
			if try == sizeTries-1 && len(sizes) > 0 {
				lost = sizes[0]
			}
		}
	}
	return verdict{pathNarrow, passes}, nil
}

// between returns some sizes that divide the room between two evenly, ascending.
func between(passes, lost int) (list []int) {
	n := min(pathSteps, lost-passes-1)
	for i := 1; i <= n; i++ {
		list = append(list, passes+(lost-passes)*i/(n+1))
	}
	return list
}

type pathKey struct {
	node string
	to   netip.Addr
}

// path is one of those that are looked at.
type path struct {
	overlay.Probe
	means   string
	due     time.Time
	busy    bool
	verdict verdict   // that is reported
	last    verdict   // the newest, which counts when it is bad twice
	since   time.Time // of verdict
}

// paths looks at the ways to all other nodes: after changes, and slowly for ever.
type paths struct {
	ask askFunc
	log *slog.Logger
	every, again, confirm,
	pace time.Duration

	mu    sync.Mutex
	all   map[pathKey]*path
	fault string // why nothing can be asked, "" = it can
	wake  chan struct{}
}

func newPaths(ask askFunc, log *slog.Logger) *paths {
	return &paths{ask: ask, log: log, every: pathsEvery, again: pathsAgain, confirm: pathsConfirm, pace: pathsPace,
		all: map[pathKey]*path{}, wake: make(chan struct{}, 1)}
}

// set says which paths there are. What is new or changed is looked at soon.
func (p *paths) set(list []overlay.Probe, means func(overlay.Probe) string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now, wanted := time.Now(), make(map[pathKey]bool, len(list))
	for _, probe := range list {
		key := pathKey{probe.Node, probe.To}
		wanted[key] = true
		if have := p.all[key]; have == nil || have.Probe != probe {
			p.all[key] = &path{Probe: probe, means: means(probe), due: now}
		}
	}
	for key := range p.all {
		if !wanted[key] {
			delete(p.all, key)
		}
	}
	p.rouse()
}

// rouse makes run look at what is due.
func (p *paths) rouse() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// run looks at paths as they are due, until ctx ends.
func (p *paths) run(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	slots := make(chan struct{}, pathsAtOnce)
	for ctx.Err() == nil {
		next, wait := p.next()
		if next == nil {
			select {
			case <-ctx.Done():
			case <-p.wake:
			case <-time.After(wait):
			}
			continue
		}
		select {
		case <-ctx.Done():
			return
		case slots <- struct{}{}:
		}
		wg.Go(func() {
			defer func() { <-slots }()
			v, err := look(ctx, p.ask, next.To, next.Size)
			if ctx.Err() == nil {
				p.note(next, v, err)
			}
		})
		select {
		case <-ctx.Done():
		case <-time.After(p.pace):
		}
	}
}

// next returns the path that has been due longest and marks it busy, or how long to wait for one.
func (p *paths) next() (first *path, wait time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, x := range p.all {
		if !x.busy && (first == nil || x.due.Before(first.due)) {
			first = x
		}
	}
	if first == nil {
		return nil, p.every
	}
	if wait = time.Until(first.due); wait > 0 {
		return nil, wait
	}
	first.busy = true
	return first, 0
}

// note takes a verdict. A bad one counts when the next is as bad: nodes that start, and bursts of loss, pass.
func (p *paths) note(x *path, v verdict, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	defer p.rouse()
	x.busy = false
	p.fault = ""
	if err != nil {
		p.fault, v = err.Error(), verdict{}
	}
	before, confirmed := x.verdict, v.state == x.last.state || v.state == pathWhole || v.state == pathUnknown
	x.last = v
	wait := p.again
	switch {
	case !confirmed:
		wait = p.confirm
	case v.state == pathWhole:
		wait = p.every
	}
	x.due = time.Now().Add(wait - wait/5 + rand.N(wait/5*2+1))
	if !confirmed || v == before {
		return
	}
	x.verdict = v
	if v.state == before.state {
		return
	}
	x.since = time.Now()
	switch {
	case p.all[pathKey{x.Node, x.To}] != x:
	case v.state == pathNarrow:
		p.log.Warn("path to another node", "problem", x.text())
	case v.state == pathSilent:
		p.log.Info("path to another node", "problem", x.text())
	case v.state == pathWhole && before.state != pathUnknown:
		p.log.Info("path to another node is well again", "peer", x.Node, "to", x.To, "bytes", x.Size)
	}
}

// text says what is wrong with a path, and what to do.
func (x *path) text() string {
	if x.verdict.state == pathSilent {
		return fmt.Sprintf("node %s: nothing comes back from %s by %s: is the node up and its agent running, and does everything between %s and %s let %s through?",
			x.Node, x.To, x.Dev, x.Local, x.Via, x.means)
	}
	least := x.verdict.largest + x.Over
	return fmt.Sprintf("node %s: packets of %d bytes do not arrive at %s by %s, %d do: something between %s and %s takes no more than %d bytes and loses what is larger. "+
		"Raise its MTU, or give the route to %s an mtu of %d on this node, or set mtu: %d on all nodes",
		x.Node, x.Size, x.To, x.Dev, x.verdict.largest, x.Local, x.Via, least, x.Via, least, x.verdict.largest)
}

// maxPathNotes bounds how many paths status names.
const maxPathNotes = 10

// notes says what is wrong, the narrow ones first.
func (p *paths) notes() (list []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var bad []*path
	for _, x := range p.all {
		if x.verdict.state == pathNarrow || x.verdict.state == pathSilent {
			bad = append(bad, x)
		}
	}
	slices.SortFunc(bad, func(a, b *path) int {
		return cmp.Or(cmp.Compare(a.verdict.state, b.verdict.state), cmp.Compare(a.Node, b.Node), a.To.Compare(b.To))
	})
	for i, x := range bad {
		if i == maxPathNotes {
			list = append(list, fmt.Sprintf("and %d more paths to other nodes lose packets", len(bad)-i))
			break
		}
		list = append(list, fmt.Sprintf("%s (for %s)", x.text(), time.Since(x.since).Round(time.Second)))
	}
	if p.fault != "" {
		list = append(list, "the paths to other nodes are not looked at: "+p.fault)
	}
	return list
}

var (
	descPaths   = prometheus.NewDesc("braid_overlay_paths", "Paths to other nodes by what they take: the largest packets of pods (whole), smaller ones only (narrow), none (silent), or not known.", []string{"state"}, nil)
	descPathMTU = prometheus.NewDesc("braid_overlay_path_largest_bytes", "The largest packet of pods that arrives, of paths that are narrow.", []string{"peer", "address"}, nil)
)

func (p *paths) collect(gauge func(d *prometheus.Desc, v float64, labels ...string)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	count := map[pathState]int{}
	for key, x := range p.all {
		count[x.verdict.state]++
		if x.verdict.state == pathNarrow {
			gauge(descPathMTU, float64(x.verdict.largest), key.node, key.to.String())
		}
	}
	for state, name := range pathStates {
		gauge(descPaths, float64(count[state]), name)
	}
}
