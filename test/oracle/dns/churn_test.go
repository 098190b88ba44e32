package dns

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/braidnet/braid/test/oracle/fakeapi"
)

// load asks one server without pause, until it is told to stop, and checks every answer.
type load struct {
	addr  string
	stop  chan struct{}
	hands sync.WaitGroup
	asked atomic.Int64
	wrong atomic.Int64
}

// run keeps one question going; right says what is wrong with an answer.
func (l *load) run(t *testing.T, q question, right func(*dns.Msg) error) {
	l.hands.Go(func() {
		c := &client{addr: l.addr}
		defer c.close(false)
		for {
			select {
			case <-l.stop:
				return
			default:
			}
			l.asked.Add(1)
			m, _, err := c.ask(q)
			if err == nil {
				err = right(m)
			}
			if err != nil && l.wrong.Add(1) <= 5 {
				t.Errorf("%s: %v", q, err)
			}
		}
	})
}

func (l *load) end() {
	close(l.stop)
	l.hands.Wait()
}

// endpointsOf names n endpoints, each of its generation.
func endpointsOf(g func(i int) int, n int) (out []string) {
	for i := range n {
		out = append(out, fmt.Sprintf("10.%d.%d.%d=pod-%d", 100+g(i), i/250, 1+i%250, i))
	}
	return out
}

// TestChurn has a rolling update of 500 endpoints, one by one, and 100 reloads of the Corefile while
// clients ask: no answer may be lost, and each must be true of the moment.
func TestChurn(t *testing.T) {
	const endpoints, reloads = 500, 100
	api, err := fakeapi.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(api.Stop)
	put := func(done int) {
		g := func(i int) int {
			if i < done {
				return 1
			}
			return 0
		}
		list := endpointsOf(g, endpoints)
		for s := range endpoints / 100 {
			api.Put(slice(fmt.Sprintf("prod/db-%d", s), "db", "sql/TCP/5432", list[100*s:100*s+100]...))
		}
	}
	api.Put(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "prod"}}, service("prod/web", "10.96.0.1", "http/TCP/80"), service("prod/db", "None", "sql/TCP/5432"))
	put(0)
	file := filepath.Join(t.TempDir(), "Corefile")
	port := freePort(t)
	write := func(ttl int) {
		text := fmt.Sprintf(".:%d {\n bind 127.0.0.1\n errors\n kubernetes cluster.local in-addr.arpa {\n endpoint %s\n ttl %d\n }\n}\n", port, api.URL(), ttl)
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write(1)
	p := &program{name: "ours", cmd: exec.Command(ours(t), "-conf", file)}
	p.cmd.Stdout, p.cmd.Stderr = p, p
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.cmd.Process.Kill()
		p.cmd.Wait()
	})
	v := &variant{name: "churn", zones: []string{"cluster.local."}}
	l := &load{addr: fmt.Sprintf("127.0.0.1:%d", port), stop: make(chan struct{})}
	c := &client{addr: l.addr}
	eventually(t, "synced", func() error { return c.expect(v, "web.prod.svc", dns.RcodeSuccess, "10.96.0.1") })
	ask := func(rel string, typ uint16) question {
		return question{variant: v, name: relative(rel, "cluster.local."), typ: typ, class: dns.ClassINET}
	}
	l.run(t, ask("web.prod.svc", dns.TypeA), func(m *dns.Msg) error {
		if m.Rcode != dns.RcodeSuccess || len(m.Answer) != 1 || m.Answer[0].(*dns.A).A.String() != "10.96.0.1" {
			return fmt.Errorf("got %s", m)
		}
		return nil
	})
	l.run(t, ask("none.prod.svc", dns.TypeA), func(m *dns.Msg) error {
		if m.Rcode != dns.RcodeNameError {
			return fmt.Errorf("got %s", m)
		}
		return nil
	})
	// The whole service: every endpoint is there at all times, at its old or its new address. Over UDP, because
	// a reload of CoreDNS ends its TCP connections.
	whole := ask("db.prod.svc", dns.TypeA)
	whole.edns = 16384
	l.run(t, whole, func(m *dns.Msg) error {
		if len(m.Answer) != endpoints {
			return fmt.Errorf("%d of %d addresses, %s", len(m.Answer), endpoints, dns.RcodeToString[m.Rcode])
		}
		return nil
	})
	l.run(t, ask("pod-321.db.prod.svc", dns.TypeA), func(m *dns.Msg) error {
		if len(m.Answer) != 1 || !strings.HasSuffix(m.Answer[0].(*dns.A).A.String(), ".1.72") {
			return fmt.Errorf("got %s", m)
		}
		return nil
	})
	for i := range reloads {
		for k := range endpoints / reloads {
			put(i*endpoints/reloads + k + 1)
		}
		write(1 + (i+1)%10)
		if err := p.cmd.Process.Signal(syscall.SIGUSR1); err != nil {
			t.Fatal(err)
		}
		eventually(t, "reload", func() error {
			if n := strings.Count(p.log(), "Reloading complete"); n < i+1 {
				return fmt.Errorf("%d reloads of %d done", n, i+1)
			}
			return nil
		})
	}
	eventually(t, "the last endpoint", func() error { return c.expect(v, "pod-499.db.prod.svc", dns.RcodeSuccess, "10.101.1.250") })
	l.end()
	t.Logf("churn: %d endpoints replaced, %d reloads, %d queries, %d lost or wrong", endpoints, reloads, l.asked.Load(), l.wrong.Load())
	if n := api.Asked()[fakeapi.Request{Verb: "watch", Resource: "services"}]; n != 1 {
		t.Errorf("services were read %d times over %d reloads, want once", n, reloads)
	}
	if l.asked.Load() < reloads {
		t.Error("hardly anything was asked")
	}
}

// TestSelfCheck loses a change on its way: no watch tells of it, and the answer comes right all the same.
func TestSelfCheck(t *testing.T) {
	api, err := fakeapi.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(api.Stop)
	api.Put(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "prod"}}, service("prod/web", "10.96.0.1", "http/TCP/80"))
	v := &variant{name: "check", zones: []string{"cluster.local."}, options: []string{"self_check 50ms"}}
	start(t, "ours", ours(t), corefile(t, []*variant{v}, api.URL(), "ours"))
	c := &client{addr: v.ours}
	eventually(t, "synced", func() error { return c.expect(v, "web.prod.svc", dns.RcodeSuccess, "10.96.0.1") })
	api.Lose(service("prod/web", "10.96.0.2", "http/TCP/80"))
	eventually(t, "a lost change", func() error { return c.expect(v, "web.prod.svc", dns.RcodeSuccess, "10.96.0.2") })
	api.Put(service("prod/web", "10.96.0.3", "http/TCP/80"))
	eventually(t, "a change that is told", func() error { return c.expect(v, "web.prod.svc", dns.RcodeSuccess, "10.96.0.3") })
}
