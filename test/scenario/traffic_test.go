package scenario

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

const (
	// pace is the pause between two connections of one line, unless the script says another: fifty a second, to
	// each address.
	pace = "20ms"
	// enough connections of each kind after a change say that it has come through.
	enough   = 25
	loadPort = "127.0.0.1:8099"
)

// loads are the streams of connections that scripts started, by name of the playground.
var loads sync.Map

// load is the program test/cluster/load, running in several places of a playground.
type load struct {
	*playground
	probes   map[string]int // how many each place makes
	commands []*exec.Cmd
}

// loadProgram builds the program, for each script once.
func loadProgram(ts *testscript.TestScript) string {
	file := ts.MkAbs("load.program")
	if _, err := os.Stat(file); err == nil {
		return file
	}
	build := exec.Command("go", "build", "-mod=readonly", "-o", file, "./load")
	build.Dir, build.Env = "../cluster", append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
	if out, err := build.CombinedOutput(); err != nil {
		ts.Fatalf("build test/cluster/load: %v\n%s", err, out)
	}
	return file
}

// cmdLoad starts the connections that a file lists, in place of those of an earlier one:
//
//	FROM PROBE TARGET…
//
// tcp makes new connections all the time, udp exchanges datagrams from new sockets, hold and steady keep one
// connection or socket for each address, hold*9 nine of them; never and neverudp fail when they are answered.
func cmdLoad(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 || len(args) > 2 {
		ts.Fatalf("usage: load FILE [PAUSE]")
	}
	endLoad(ts.Getenv("LAB"))
	every := append(args, pace)[1]
	program := loadProgram(ts)
	l := &load{playground: look(ts), probes: map[string]int{}}
	argv := map[string][]string{}
	for line := range strings.Lines(ts.ReadFile(args[0])) {
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		probe, times, _ := strings.Cut(words[1], "*")
		n, err := strconv.Atoi(cmp.Or(times, "1"))
		ts.Check(err)
		for _, target := range words[2:] {
			addrs, err := l.targets(target)
			ts.Check(err)
			for _, to := range addrs {
				for i := range n {
					argv[words[0]] = append(argv[words[0]], "--"+probe, fmt.Sprintf("%s %s %s%s=%s", probe, target, to, strings.Repeat("'", i), to))
				}
				l.probes[words[0]] += n
				if probe == "udp" || probe == "steady" {
					l.probes[words[0]] += n // its datagrams are counted too
				}
			}
		}
	}
	loads.Store(l.name, l)
	ts.Defer(func() { endLoad(l.name) })
	for from, probes := range argv {
		at := from
		if _, isNode := strings.CutPrefix(from, "n"); isNode {
			at = "node/" + from
		}
		c := exec.Command(lookPath(ts, "netagent"), append([]string{"lab", "exec", "--name", l.name, at, "--", program, "run", "--every", every, "--stats", loadPort}, probes...)...)
		c.Stderr = os.Stderr
		ts.Check(c.Start())
		l.commands = append(l.commands, c)
	}
	_, err := l.settled()
	ts.Check(err)
}

func endLoad(lab string) {
	v, ok := loads.LoadAndDelete(lab)
	if !ok {
		return
	}
	for _, c := range v.(*load).commands {
		_ = c.Process.Kill()
		_ = c.Wait()
	}
}

// tally is what became of the connections of one line.
type tally struct {
	OK, Failed, Slow int
	Worst            time.Duration
	// FirstFailed and LastFailed are when the first and the last of those were begun that failed.
	FirstFailed, LastFailed time.Time
	Errors                  []string
}

// take returns what was counted since the last time, by place and line. It waits for what is under way.
func (l *load) take() (map[string]tally, error) {
	out, errs := map[string]tally{}, make(chan error, len(l.probes))
	var mu sync.Mutex
	for from := range l.probes {
		go func() {
			counts, err := l.places[from].counts()
			mu.Lock()
			defer mu.Unlock()
			for name, t := range counts {
				out[from+" "+name] = t
			}
			errs <- err
		}()
	}
	var err error
	for range l.probes {
		err = errors.Join(err, <-errs)
	}
	return out, err
}

// counts asks the program that runs in a place.
func (from place) counts() (counts map[string]tally, err error) {
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
		return from.dialer(ctx, &net.Dialer{FallbackDelay: -1}, network, addr)
	}}}
	resp, err := client.Get("http://" + loadPort + "/take")
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	return counts, json.NewDecoder(resp.Body).Decode(&counts)
}

// settled counts until every line has made enough connections that succeeded, since begun, and none failed
// among the last. It returns all of them.
func (l *load) settled() (map[string]tally, error) {
	want := l.wanted()
	all, last := map[string]tally{}, map[string]tally{}
	for end := time.Now().Add(deadline); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		part, err := l.take()
		if err != nil {
			if len(all) > 0 {
				return nil, err
			}
			continue // it has not begun to answer
		}
		for name, t := range part {
			all[name], last[name] = add(all[name], t), add(last[name], t)
			if t.Failed > 0 {
				last = map[string]tally{}
			}
		}
		if len(last) >= want && !slices.ContainsFunc(slices.Collect(maps.Values(last)), func(t tally) bool { return t.OK < enough }) {
			return all, nil
		}
	}
	return nil, fmt.Errorf("after %s not all connections succeed:\n%s", deadline, failures(all))
}

// wanted is how many lines there are to be counts for.
func (l *load) wanted() (n int) {
	for _, probes := range l.probes {
		n += probes
	}
	return n
}

func add(a, b tally) tally {
	if a.LastFailed.Before(b.LastFailed) {
		a.LastFailed = b.LastFailed
	}
	if a.Failed == 0 || b.Failed > 0 && b.FirstFailed.Before(a.FirstFailed) {
		a.FirstFailed = b.FirstFailed
	}
	return tally{a.OK + b.OK, a.Failed + b.Failed, a.Slow + b.Slow, max(a.Worst, b.Worst), a.FirstFailed, a.LastFailed, append(a.Errors, b.Errors...)}
}

func failures(all map[string]tally) string {
	var out strings.Builder
	for _, name := range slices.Sorted(maps.Keys(all)) {
		if t := all[name]; t.Failed > 0 {
			fmt.Fprintf(&out, "%s: %d of %d failed: %s\n", name, t.Failed, t.Failed+t.OK, strings.Join(t.Errors[:min(5, len(t.Errors))], "; "))
		}
	}
	return out.String()
}

// cmdUnharmed counts what the load has done since the last time, and enough more, and fails when anything
// failed. With the word "retried" single datagrams may have gone unanswered, if the next from the same socket was
// answered: a backend that is not ready loses its UDP flows, and with them the answers that are under way.
func cmdUnharmed(ts *testscript.TestScript, neg bool, args []string) {
	retried := slices.Equal(args, []string{"retried"})
	if neg || len(args) > 0 && !retried {
		ts.Fatalf("usage: unharmed [retried]")
	}
	before, err := loadOf(ts).take()
	ts.Check(err)
	after, err := loadOf(ts).settled()
	ts.Check(err)
	for name, t := range before {
		after[name] = add(after[name], t)
	}
	sum, lost := tally{}, 0
	for name, t := range after {
		if _, datagrams := strings.CutSuffix(name, ", datagrams"); datagrams && retried {
			lost += t.Failed
			continue
		}
		sum = add(sum, t)
	}
	if sum.Failed > 0 {
		ts.Fatalf("%d of %d failed:\n%s", sum.Failed, sum.OK+sum.Failed, failures(after))
	}
	ts.Logf("%d connections and exchanges, none failed, %d slow, worst %s, datagrams sent again %d", sum.OK, sum.Slow, sum.Worst.Round(time.Millisecond), lost)
}

func loadOf(ts *testscript.TestScript) *load {
	v, ok := loads.Load(ts.Getenv("LAB"))
	if !ok {
		ts.Fatalf("no load was started")
	}
	return v.(*load)
}

// cmdRepaired runs a command that does harm on a node, and says how long it took until connections succeed again
// from a pod there, the node and outside: `repaired NODE POD SERVICE:PORT NODEPORT COMMAND…`.
func cmdRepaired(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 5 {
		ts.Fatalf("usage: repaired NODE POD SERVICE:PORT NODEPORT COMMAND…")
	}
	l, node := loadOf(ts), args[0]
	begin := time.Now()
	cmdLab(ts, false, append([]string{"exec", "node/" + node, "--"}, args[4:]...))
	harmed := time.Now()
	var wg sync.WaitGroup
	var mu sync.Mutex
	works := harmed
	for _, way := range [][2]string{{args[1], args[2]}, {node, args[2]}, {"outside", node + ":" + args[3]}} {
		addrs, err := l.targets(way[1])
		ts.Check(err)
		for _, to := range addrs {
			wg.Go(func() {
				at := l.places[way[0]].firstAnswered(to)
				mu.Lock()
				defer mu.Unlock()
				if at.After(works) {
					works = at
				}
			})
		}
	}
	wg.Wait()
	during, err := l.settled()
	ts.Check(err)
	sum := tally{}
	for _, t := range during {
		sum = add(sum, t)
	}
	ts.Logf("%q took %s, connections succeeded %s after it at the latest; of %d during that time and after it %d failed and %d were slow",
		strings.Join(args[4:], " "), harmed.Sub(begin).Round(time.Millisecond), works.Sub(harmed).Round(time.Millisecond), sum.OK+sum.Failed, sum.Failed, sum.Slow)
}

// firstAnswered begins one connection after the other, without waiting, and returns when the first of those began
// that were answered. Their SYN was not sent again meanwhile: that takes a second.
func (from place) firstAnswered(to netip.AddrPort) (at time.Time) {
	answered := make(chan time.Time, 1)
	for end := time.Now().Add(deadline); time.Now().Before(end); {
		begin := time.Now()
		go func() {
			if _, err := from.askWithin(900*time.Millisecond, "tcp", to); err == nil {
				select {
				case answered <- begin:
				default:
				}
			}
		}()
		select {
		case at = <-answered:
			return at
		case <-time.After(20 * time.Millisecond):
		}
	}
	return time.Now()
}
