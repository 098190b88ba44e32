package scenario

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"github.com/braidnet/braid/internal/kernel/netns"
)

const (
	// patience is how long an answer may take; silence is what no answer in that time is. A SYN that got lost
	// would be sent again within it.
	patience = 5 * time.Second
	silence  = 1200 * time.Millisecond
)

// expectation is one line of a script's list of connections:
//
//	FROM PROTOCOL TARGET refused|silent|denied|allowed
//	FROM PROTOCOL TARGET POD[,POD…] [from NAME] [sticky]
//
// FROM, PROTOCOL and TARGET may be lists too, for every combination of which the line holds. "allowed" is answered, and
// by the pod if the target is one.
// New connections to every address of the target end at each of the pods and at no other; "outside" stands
// for the server beyond the cluster. They seem to come from NAME ("itself": their address is kept); with
// sticky they all end at one of the pods. Protocols are tcp, udp, and those of asks_test.go.
type expectation struct {
	text, from, protocol, target string
	fate                         string // refused, silent, denied or allowed; empty: answered by pods
	pods                         []string
	source                       string
	sticky                       bool
}

func parseExpectations(line string) (all []expectation, err error) {
	words := strings.Fields(line)
	if len(words) < 4 {
		return nil, fmt.Errorf("%q: want FROM PROTOCOL TARGET OUTCOME", line)
	}
	var e expectation
	switch words[3] {
	case "refused", "silent", "denied", "allowed":
		e.fate = words[3]
	default:
		e.pods = strings.Split(words[3], ",")
	}
	for rest := words[4:]; len(rest) > 0; {
		switch {
		case rest[0] == "from" && len(rest) > 1:
			e.source, rest = rest[1], rest[2:]
		case rest[0] == "sticky":
			e.sticky, rest = true, rest[1:]
		default:
			return nil, fmt.Errorf("%q: unknown word %q", line, rest[0])
		}
	}
	for _, e.from = range strings.Split(words[0], ",") {
		for _, e.protocol = range strings.Split(words[1], ",") {
			if !slices.Contains([]string{"tcp", "udp", "large", "sctp", "icmp"}, e.protocol) {
				return nil, fmt.Errorf("%q: unknown protocol %q", line, e.protocol)
			}
			for _, e.target = range strings.Split(words[2], ",") {
				e.text = strings.Join(append([]string{e.from, e.protocol, e.target}, words[3:]...), " ")
				all = append(all, e)
			}
		}
	}
	return all, nil
}

// cmdCheck makes the connections that a file lists, all at the same time, until every line holds.
func cmdCheck(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: check FILE")
	}
	check(ts, args[0], func(e expectation) expectation { return e })
}

// cmdReachable makes the connections that files list and wants every one answered by anybody: whom a policy is to
// deny an answer does listen.
func cmdReachable(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: reachable FILE…")
	}
	for _, file := range args {
		check(ts, file, func(e expectation) expectation {
			e.fate, e.source = "allowed", ""
			return e
		})
	}
}

// check tries the lines of a file, as change has them.
func check(ts *testscript.TestScript, file string, change func(expectation) expectation) {
	p := look(ts)
	ts.Check(p.answerSCTP(ts.ReadFile(file)))
	defer p.end()
	var wg sync.WaitGroup
	var mu sync.Mutex
	var wrong []string
	n := 0
	for _, line := range strings.Split(ts.ReadFile(file), "\n") {
		line, _, _ = strings.Cut(line, "#")
		if strings.TrimSpace(line) == "" {
			continue
		}
		all, err := parseExpectations(strings.TrimSpace(line))
		ts.Check(err)
		n += len(all)
		for _, e := range all {
			e = change(e)
			wg.Go(func() {
				if err := p.until(e); err != nil {
					mu.Lock()
					wrong = append(wrong, fmt.Sprintf("%s\n\t%v", e.text, err))
					mu.Unlock()
				}
			})
		}
	}
	wg.Wait()
	if len(wrong) > 0 {
		slices.Sort(wrong)
		ts.Fatalf("%d of %d lines of %s do not hold:\n%s", len(wrong), n, file, strings.Join(wrong, "\n"))
	}
	ts.Logf("%d lines hold", n)
}

// until asks again while a change may not have come through yet.
func (p *playground) until(e expectation) (err error) {
	for end := time.Now().Add(deadline / 2); ; time.Sleep(50 * time.Millisecond) {
		if err = p.try(e); err == nil || time.Now().After(end) {
			return err
		}
	}
}

func (p *playground) try(e expectation) error {
	targets, err := p.targets(e.target)
	if err != nil {
		return err
	}
	errs := make([]error, len(targets))
	var wg sync.WaitGroup
	for i, to := range targets {
		wg.Go(func() {
			if err := p.tryOne(e, to); err != nil {
				errs[i] = fmt.Errorf("%s: %w", to, err)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// tryOne makes connections to one address until all pods have been seen, and some more.
func (p *playground) tryOne(e expectation, to netip.AddrPort) error {
	from, ok := p.places[e.from]
	if !ok {
		return fmt.Errorf("no place %q: the script can name %v", e.from, slices.Sorted(maps.Keys(p.places)))
	}
	seen := map[string]int{}
	least, most := 6*len(e.pods), 60*len(e.pods)
	if e.fate != "" {
		least, most = 1, 1
	}
	for i := 0; i < least || i < most && !e.sticky && len(seen) < len(e.pods); i++ {
		a, err := from.ask(e.protocol, to, e.fate)
		if a.pod == echo {
			a.pod = p.nameOf(to.Addr())
		}
		if e.fate != "" {
			return p.fateError(e, a, err)
		}
		if err != nil {
			return err
		}
		seen[a.pod]++
		if !slices.Contains(e.pods, a.pod) {
			return fmt.Errorf("connection %d: answered by %s", i+1, a.pod)
		}
		if err := p.source(e, a); err != nil {
			return err
		}
	}
	if want := len(e.pods); e.sticky && len(seen) != 1 || !e.sticky && len(seen) != want {
		return fmt.Errorf("answered by %v", seen)
	}
	return nil
}

// source compares whom the pod saw with whom it should see.
func (p *playground) source(e expectation, a answer) error {
	want := p.places[e.source].masks
	switch e.source {
	case "":
		return nil
	case "itself":
		want = []netip.Addr{a.local}
	}
	if !slices.Contains(want, a.client) {
		return fmt.Errorf("%s sees %s as its client, want one of %v", a.pod, a.client, want)
	}
	return nil
}

func (p *playground) fateError(e expectation, a answer, err error) error {
	got := "answered by " + a.pod
	target, _, _ := strings.Cut(e.target, ":")
	switch {
	case err == nil && e.fate == "allowed" && (a.pod == target || !p.places[target].pod):
		return nil
	case e.fate == "denied" && denied(e.protocol, err):
		return nil
	case errors.Is(err, unix.ECONNREFUSED):
		got = "refused"
	case errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded):
		got = "silent"
	case err != nil:
		got = err.Error()
	}
	if got != e.fate {
		return errors.New(got)
	}
	return nil
}

// denied reports whether policy has refused this: with a reset, or "administratively prohibited". The kernel sends
// a host few of the latter in a second, so silence says the same where packets are not sent again.
func denied(protocol string, err error) bool {
	return protocol != "tcp" && errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, unix.EHOSTUNREACH) || errors.Is(err, unix.EACCES) || protocol == "tcp" && errors.Is(err, unix.ECONNREFUSED)
}

// answer is who answered, whom it saw as its client, and who that was.
type answer struct {
	pod           string
	client, local netip.Addr
	large         bool // the question does not fit into one packet
}

// ask makes one connection, or exchanges one datagram from a new socket.
func (from place) ask(protocol string, to netip.AddrPort, fate string) (a answer, err error) {
	if fate == "silent" || protocol != "tcp" { // a datagram is not sent again
		return from.askWithin(silence, protocol, to)
	}
	return from.askWithin(patience, protocol, to)
}

func (from place) askWithin(wait time.Duration, protocol string, to netip.AddrPort) (a answer, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), wait)
	defer cancel()
	switch protocol {
	case "icmp", "sctp":
		return from.askRaw(ctx, protocol, to)
	case "large":
		protocol = "udp"
		a.large = true
	}
	conn, err := from.dial(ctx, protocol, to)
	if err != nil {
		return a, err
	}
	defer conn.Close()
	end, _ := ctx.Deadline()
	if err := conn.SetDeadline(end); err != nil {
		return a, err
	}
	a.local = netip.MustParseAddrPort(conn.LocalAddr().String()).Addr()
	if protocol == "udp" {
		return a.datagram(conn)
	}
	if _, err := io.WriteString(conn, "GET / HTTP/1.0\r\n\r\n"); err != nil {
		return a, err
	}
	page, err := io.ReadAll(conn)
	if err != nil {
		return a, err
	}
	err = a.page(string(page))
	return a, err
}

// dial makes the socket with the place's address.
func (from place) dial(ctx context.Context, protocol string, to netip.AddrPort) (conn net.Conn, err error) {
	d := net.Dialer{FallbackDelay: -1} // with one numeric address the socket is made on this very goroutine
	for _, ip := range from.bind {
		if ip.Is4() == to.Addr().Is4() {
			d.LocalAddr = &net.TCPAddr{IP: ip.AsSlice()}
			if protocol == "udp" {
				d.LocalAddr = &net.UDPAddr{IP: ip.AsSlice()}
			}
		}
	}
	return from.dialer(ctx, &d, protocol, to.String())
}

// dialer makes the socket in the place's network namespace.
func (from place) dialer(ctx context.Context, d *net.Dialer, protocol, to string) (conn net.Conn, err error) {
	ns, err := netns.Open(from.netns)
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	err = ns.Do(func() error {
		conn, err = d.DialContext(ctx, protocol, to)
		return err
	})
	return conn, err
}

// datagram reads the stand-ins' "POD LOCAL CLIENT:PORT DATA".
func (a answer) datagram(conn net.Conn) (answer, error) {
	// What a node's rules drop or refuse on its way out fails here; only reading tells which of the two it was.
	question := "hello"
	if a.large {
		question = strings.Repeat("x", 4000)
	}
	if _, err := io.WriteString(conn, question); err != nil && !errors.Is(err, unix.EPERM) {
		return a, err
	}
	buf := make([]byte, 5000)
	n, err := conn.Read(buf)
	if err != nil {
		return a, err
	}
	words := strings.Fields(string(buf[:n]))
	if len(words) != 4 {
		return a, fmt.Errorf("strange answer %q", buf[:n])
	}
	client, err := netip.ParseAddrPort(words[2])
	a.pod, a.client = words[0], client.Addr()
	return a, err
}

// page reads the stand-ins' HTTP answer, or that of the server outside.
func (a *answer) page(text string) error {
	_, body, _ := strings.Cut(text, "\r\n\r\n")
	for line := range strings.Lines(body) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
		switch key {
		case "pod", "name":
			a.pod = value
		case "client":
			client, err := netip.ParseAddrPort(value)
			if err != nil {
				return err
			}
			a.client = client.Addr()
		}
	}
	if a.pod == "" {
		return fmt.Errorf("strange answer %q", text)
	}
	return nil
}
