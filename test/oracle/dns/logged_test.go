package dns

import (
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	tap "github.com/dnstap/golang-dnstap"
	"github.com/miekg/dns"
	"google.golang.org/protobuf/proto"
	corev1 "k8s.io/api/core/v1"

	"github.com/braidnet/braid/test/oracle/fakeapi"
)

// labels are all that both programs tell of a name and of the client; the cluster is only told by ours.
const labels = "{/kubernetes/kind} {/kubernetes/namespace} {/kubernetes/service} {/kubernetes/endpoint} {/kubernetes/port-name} {/kubernetes/protocol} " +
	"{/kubernetes/client-namespace} {/kubernetes/client-pod-name} {/kubernetes/client-label/app} {/kubernetes/parse-error}"

// logged writes down queries in three ways: in a format with what the kubernetes plugin tells, in the
// plain one for what is denied or fails, and as dnstap.
const logged = `
.:%[1]d {
    bind 127.0.0.1
    errors
    metadata
    log hand.svc.cluster.local hand.pod.cluster.local "said {type} {class} {name} {proto} {size} {>do} {>bufsize} {rcode} {>rflags} {rsize} {/log/class} ` + labels + `"
    log . {
        class denial error
    }
    dnstap %[4]s/tap full {
        identity oracle
        version one
        extra "` + labels + `"
    }
    kubernetes cluster.local in-addr.arpa ip6.arpa {
        endpoint %[2]s
        pods verified
    }
    file %[3]s example.net
}
`

// taps are the dnstap messages of one program.
type taps struct {
	mu   sync.Mutex
	list []string
	err  error
}

// listen receives the messages that a program sends to a socket.
func listen(t *testing.T, path string) *taps {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	out := &taps{}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return // closed with the test
			}
			go out.read(conn)
		}
	}()
	return out
}

func (s *taps) read(conn net.Conn) {
	defer conn.Close()
	r, err := tap.NewReader(conn, &tap.ReaderOptions{Bidirectional: true, Timeout: patience})
	buf := make([]byte, 2*dns.MaxMsgSize)
	for err == nil {
		var n int
		if n, err = r.ReadFrame(buf); err == nil {
			var text string
			if text, err = tapped(buf[:n]); err == nil {
				s.mu.Lock()
				s.list = append(s.list, text)
				s.mu.Unlock()
			}
		}
	}
	if !errors.Is(err, io.EOF) {
		s.mu.Lock()
		s.err = errors.Join(s.err, err)
		s.mu.Unlock()
	}
}

func (s *taps) all() ([]string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.list), s.err
}

// tapped prints a message but for its times and the client's port, of which it says whether they are there.
func tapped(frame []byte) (string, error) {
	var d tap.Dnstap
	if err := proto.Unmarshal(frame, &d); err != nil {
		return "", err
	}
	m := d.GetMessage()
	raw := m.GetQueryMessage()
	if m.GetType() == tap.Message_CLIENT_RESPONSE {
		raw = m.GetResponseMessage()
	}
	var about dns.Msg
	if err := about.Unpack(raw); err != nil {
		return "", fmt.Errorf("%s has a message of %d bytes without sense: %w", m.GetType(), len(raw), err)
	}
	return fmt.Sprintf("%s by %s %s %s, port %t, query time %t, response time %t, to %s %s, extra %q\n%s", m.GetType(), m.GetSocketFamily(), m.GetSocketProtocol(), net.IP(m.GetQueryAddress()),
		m.GetQueryPort() > 0, m.GetQueryTimeSec() > 0, m.GetResponseTimeSec() > 0, d.GetIdentity(), d.GetVersion(), d.GetExtra(), newView(&about, len(raw), nil)), nil
}

var (
	commonLine = regexp.MustCompile(`^\[INFO\] 127\.0\.0\.1:\d+ - \d+ (".*) [0-9.]+s$`)
	formatLine = regexp.MustCompile(`^\[INFO\] (said .*)$`)
)

// found returns what a pattern captures of each line that it matches.
func found(pattern *regexp.Regexp, text string) (out []string) {
	for _, line := range strings.Split(text, "\n") {
		if m := pattern.FindStringSubmatch(line); m != nil {
			out = append(out, m[1])
		}
	}
	return out
}

// sameRecords tells how the notes of the two programs differ, which come in any order.
func sameRecords(want int, theirs, mine []string) error {
	slices.Sort(theirs)
	slices.Sort(mine)
	if len(theirs) != want || len(mine) != want {
		return fmt.Errorf("%d by the stock program and %d by ours, want %d", len(theirs), len(mine), want)
	}
	for i := range theirs {
		if theirs[i] != mine[i] {
			return fmt.Errorf("stock\n%s\nours\n%s", theirs[i], mine[i])
		}
	}
	return nil
}

// waited is the namespace of what is only asked for until both programs know the cluster.
const waited = "viewed"

func compared(list []string) []string {
	return slices.DeleteFunc(list, func(text string) bool { return strings.Contains(text, waited) })
}

// TestLogged compares what log and dnstap write down of the same queries, metadata included.
func TestLogged(t *testing.T) {
	api, err := fakeapi.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(api.Stop)
	api.Put(append(neighbourCluster(), service(waited+"/db", "None", "x/TCP/1"), slice(waited+"/db-1", "db", "x/TCP/1", "10.244.84.1"), pod(waited+"/db-0", corev1.PodRunning, "10.244.84.1"))...)
	received := map[string]*taps{}
	p, v, programs := programsOn(t, logged, api.URL(), func(which, folder string) { received[which] = listen(t, filepath.Join(folder, "tap")) })
	for _, rel := range []string{"web.%s.svc", "db.%s.svc", "10-244-84-1.%s.pod"} {
		eventually(t, rel, func() error {
			x := p.ask(v.question(fmt.Sprintf(rel, waited)))
			if len(x.stock.answer) > 0 && len(x.ours.answer) > 0 {
				return nil
			}
			return fmt.Errorf("%s", x)
		})
	}
	asked, formatted, denied := 0, 0, 0
	for _, name := range []string{
		"web.hand.svc.cluster.local.", "WEB.Hand.svc.cluster.local.", "_http._tcp.web.hand.svc.cluster.local.", "db.hand.svc.cluster.local.", "db-0.db.hand.svc.cluster.local.",
		"none.hand.svc.cluster.local.", "a.b.c.d.web.hand.svc.cluster.local.", "10-244-83-1.hand.pod.cluster.local.", "10-244-83-99.hand.pod.cluster.local.",
		"web.none.svc.cluster.local.", "none.cluster.local.", "99.80.96.10.in-addr.arpa.", "www.example.net.", "none.example.net.", "unserved.test.",
	} {
		for _, typ := range []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeSRV, dns.TypeMX} {
			for _, tcp := range []bool{false, true} {
				q := question{variant: v, name: name, typ: typ, class: dns.ClassINET, tcp: tcp, edns: 1232, do: tcp}
				x := p.ask(q)
				if len(x.stock.diff(x.ours)) > 0 {
					t.Errorf("%s", x)
				}
				asked++
				switch low := strings.ToLower(name); {
				case dns.IsSubDomain("hand.svc.cluster.local.", low), dns.IsSubDomain("hand.pod.cluster.local.", low):
					formatted++
				case x.stock.rcode != dns.RcodeSuccess || len(x.stock.answer) == 0:
					denied++
				}
			}
		}
	}
	for _, kind := range []struct {
		name    string
		pattern *regexp.Regexp
		want    int
	}{{"lines in a format", formatLine, formatted}, {"lines by class", commonLine, denied}} {
		eventually(t, kind.name, func() error {
			return sameRecords(kind.want, compared(found(kind.pattern, programs["stock"].log())), compared(found(kind.pattern, programs["ours"].log())))
		})
	}
	eventually(t, "dnstap messages", func() error {
		theirs, err := received["stock"].all()
		mine, err2 := received["ours"].all()
		if err = errors.Join(err, err2); err != nil {
			return err
		}
		return sameRecords(2*asked, compared(theirs), compared(mine)) // a query and a response each
	})
	const want = "said A IN db-0.db.hand.svc.cluster.local. udp 59 false 1232 NOERROR qr,aa,rd 140 success svc hand db db-0   hand client web -"
	if lines := found(formatLine, programs["ours"].log()); !slices.Contains(lines, want) {
		t.Errorf("no line %q in:\n%s", want, strings.Join(lines, "\n"))
	}
	t.Logf("%d queries: %d lines in a format, %d lines by class and %d dnstap messages compared", asked, formatted, denied, 2*asked)
}
