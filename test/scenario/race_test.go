package scenario

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"github.com/braidnet/braid/internal/kernel/netns"
)

// racer is what a pod's first connections came to.
type racer struct {
	denied  int           // connections that must be denied, tried
	through []string      // those of them that were not
	took    time.Duration // from the first that left the pod until an allowed one succeeded
	err     error
}

// wave is how many pods of a race come at once: a node has addresses for 253.
const wave = 100

// cmdRace applies a manifest of pods and connects from each of them from the moment on at which its network namespace is
// there, before it has an interface, as a container would that is faster than everybody:
// `race N FILE PREFIX ALLOWED DENIED [HINDRANCE]`. FILE has min(N, 100) pods whose names begin with PREFIX; they come and go as
// often as N needs, and get the addresses and names of those before them. All of ALLOWED must be reached at some time, and
// DENIED never, by no pod. With a HINDRANCE the agents are stopped for so long, every other such time.
func cmdRace(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 5 || len(args) > 6 {
		ts.Fatalf("usage: race N FILE PREFIX ALLOWED DENIED [HINDRANCE]")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	p := look(ts)
	allowed, err := p.targets(args[3])
	ts.Check(err)
	denied, err := p.targets(args[4])
	ts.Check(err)
	hindrance, err := time.ParseDuration(append(args, "0s")[5])
	ts.Check(err)
	var results []racer
	for at := 0; at < want; at += wave {
		if at > 0 {
			cmdLab(ts, false, []string{"delete", args[1]})
		}
		results = append(results, raceWave(ts, min(want-at, wave), args[1], "/run/netns/braid-"+p.name+"-*"+args[2]+"*", allowed, denied, hindrance)...)
	}
	var sum racer
	var times []time.Duration
	for _, r := range results {
		sum.denied += r.denied
		sum.through = append(sum.through, r.through...)
		sum.err = errors.Join(sum.err, r.err)
		times = append(times, r.took)
	}
	ts.Check(sum.err)
	if len(sum.through) > 0 {
		ts.Fatalf("%d of %d connections got through that must not:\n%s", len(sum.through), sum.denied, strings.Join(sum.through[:min(10, len(sum.through))], "\n"))
	}
	slices.Sort(times)
	n := len(times)
	ts.Logf("%d pods, %d connections that must be denied were; an allowed one succeeded after p50 %s, p99 %s", n, sum.denied,
		times[n/2].Round(time.Millisecond), times[(n*99+99)/100-1].Round(time.Millisecond))
}

// raceWave lets pods come, and returns what became of all of them.
func raceWave(ts *testscript.TestScript, want int, file, pattern string, allowed, denied []netip.AddrPort, hindrance time.Duration) (out []racer) {
	limit := deadline + time.Duration(want)*time.Second
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	var runs, hinders sync.WaitGroup
	results := make(chan racer, want)
	for left := []string{pattern}; len(left) > 0 && ctx.Err() == nil; time.Sleep(10 * time.Millisecond) {
		left, _ = filepath.Glob(pattern) // those of the wave before
	}
	runs.Go(func() {
		seen := map[string]bool{}
		for len(seen) < want && ctx.Err() == nil {
			found, _ := filepath.Glob(pattern)
			for _, path := range found {
				if !seen[path] && len(seen) < want {
					seen[path] = true
					runs.Go(func() { results <- race(ctx, path, allowed, denied) })
				}
			}
			time.Sleep(time.Millisecond)
		}
	})
	if hindrance > 0 {
		agents := agentsOf(ts)
		hinders.Go(func() { hinder(ctx, agents, hindrance) })
	}
	cmdLab(ts, false, []string{"apply", file})
	runs.Wait()
	cancel()
	hinders.Wait()
	close(results)
	for r := range results {
		out = append(out, r)
	}
	if len(out) < want {
		ts.Fatalf("%d of %d pods came within %s", len(out), want, limit)
	}
	return out
}

// hinder stops processes for a time, again and again, and lets them go on at the end.
func hinder(ctx context.Context, list []int, each time.Duration) {
	for ctx.Err() == nil {
		for _, s := range []unix.Signal{unix.SIGSTOP, unix.SIGCONT} {
			for _, pid := range list {
				_ = unix.Kill(pid, s)
			}
			time.Sleep(each)
		}
	}
}

// agentsOf are the process ids of the agents of a script's playground.
func agentsOf(ts *testscript.TestScript) (out []int) {
	for _, n := range labStatus(ts).Nodes {
		if n.Agent.PID > 0 { // 0 would be ourselves
			out = append(out, n.Agent.PID)
		}
	}
	return out
}

// race connects from a namespace to every target again and again, until all that are allowed have answered, and a while longer.
func race(ctx context.Context, path string, allowed, denied []netip.AddrPort) (r racer) {
	ns, err := netns.Open(path)
	for err != nil && ctx.Err() == nil { // the file is there before the namespace is
		time.Sleep(time.Millisecond)
		ns, err = netns.Open(path)
	}
	if err != nil {
		r.err = err
		return r
	}
	defer ns.Close()
	connect := func(to netip.AddrPort) (reached, left bool) {
		var c net.Conn
		err := ns.Do(func() (err error) {
			d := net.Dialer{Timeout: 300 * time.Millisecond, FallbackDelay: -1}
			c, err = d.DialContext(ctx, "tcp", to.String())
			return err
		})
		if err == nil {
			c.Close()
		}
		return err == nil, !errors.Is(err, unix.ENETUNREACH) && !errors.Is(err, unix.EADDRNOTAVAIL)
	}
	var begin time.Time
	began := func(left bool) {
		if left && begin.IsZero() {
			begin = time.Now()
		}
	}
	open := map[netip.AddrPort]bool{}
	for more := 20; len(open) < len(allowed) || more > 0; {
		if ctx.Err() != nil {
			r.err = errors.New(filepath.Base(path) + ": what is allowed was not reached in time")
			return r
		}
		for _, to := range denied {
			reached, left := connect(to)
			began(left)
			r.denied++
			if reached {
				r.through = append(r.through, filepath.Base(path)+" to "+to.String()+" "+strconv.Itoa(r.denied)+".")
			}
		}
		for _, to := range allowed {
			reached, left := connect(to)
			began(left)
			if reached && !open[to] {
				open[to] = true
				r.took = time.Since(begin)
			}
		}
		if len(open) == len(allowed) {
			more--
		}
		time.Sleep(time.Millisecond)
	}
	return r
}
