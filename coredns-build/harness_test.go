package main

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// patience is how long a test waits for something that takes milliseconds on an idle machine.
const patience = 30 * time.Second

var binary struct {
	once sync.Once
	path string
	err  error
}

// build returns the path of the real program, made once per test run.
func build(t *testing.T) string {
	t.Helper()
	binary.once.Do(func() {
		folder, err := os.MkdirTemp("", "braid-coredns-")
		if err != nil {
			binary.err = err
			return
		}
		binary.path = filepath.Join(folder, "coredns")
		if out, err := exec.Command("go", "build", "-o", binary.path, ".").CombinedOutput(); err != nil {
			binary.err = fmt.Errorf("go build: %w\n%s", err, out)
		}
	})
	if binary.err != nil {
		t.Fatal(binary.err)
	}
	return binary.path
}

func TestMain(m *testing.M) {
	code := m.Run()
	if binary.path != "" {
		os.RemoveAll(filepath.Dir(binary.path))
	}
	os.Exit(code)
}

// output collects what the program says and lets a test wait for a line.
type output struct {
	mu   sync.Mutex
	text bytes.Buffer
	more chan struct{} // closed and replaced at each write
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	close(o.more)
	o.more = make(chan struct{})
	return o.text.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

// wait returns once the text has been said n times.
func (o *output) wait(t *testing.T, text string, n int) {
	t.Helper()
	deadline := time.After(patience)
	for {
		o.mu.Lock()
		said, more := strings.Count(o.text.String(), text), o.more
		o.mu.Unlock()
		if said >= n {
			return
		}
		select {
		case <-more:
		case <-deadline:
			t.Fatalf("%q was said %d times, want %d:\n%s", text, said, n, o)
		}
	}
}

// program is a running coredns.
type program struct {
	*exec.Cmd
	addr string
	out  *output
}

// start runs coredns with a Corefile and waits until it serves at addr. It is killed with the test.
func start(t *testing.T, corefile, addr string, env ...string) *program {
	t.Helper()
	return begin(t, addr, exec.Command(build(t), "-conf", corefile), env)
}

// startOn runs a Corefile that names no port on the given one.
func startOn(t *testing.T, corefile string, port int) *program {
	t.Helper()
	return begin(t, fmt.Sprintf("127.0.0.1:%d", port), exec.Command(build(t), "-conf", corefile, "-p", fmt.Sprint(port)), nil)
}

func begin(t *testing.T, addr string, cmd *exec.Cmd, env []string) *program {
	t.Helper()
	p := &program{cmd, addr, &output{more: make(chan struct{})}}
	p.Env = append(os.Environ(), env...)
	p.Stdout, p.Stderr = p.out, p.out
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.Process.Kill()
		p.Wait()
		if t.Failed() {
			t.Logf("coredns said:\n%s", p.out)
		}
	})
	p.out.wait(t, "CoreDNS-1", 1)
	return p
}

// ask sends one query over "udp" or "tcp".
func (p *program) ask(network, name string, typ uint16) (*dns.Msg, error) {
	m := new(dns.Msg).SetQuestion(name, typ)
	m.SetEdns0(1232, false)
	c := dns.Client{Net: network, Timeout: 5 * time.Second}
	got, _, err := c.Exchange(m, p.addr)
	if err == nil && got.Truncated {
		err = fmt.Errorf("%s is truncated", name)
	}
	return got, err
}

// short prints an answer as one line: rcode, then the data of the answer section in order of names.
func short(m *dns.Msg) string {
	out := []string{dns.RcodeToString[m.Rcode]}
	for _, rr := range m.Answer {
		out = append(out, strings.TrimPrefix(rr.String(), rr.Header().String()))
	}
	return strings.Join(out, " ")
}

// eventually asks until the answer is what is wanted.
func (p *program) eventually(t *testing.T, name string, typ uint16, want string) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(patience)
	last := ""
	for {
		if m, err := p.ask("udp", name, typ); err != nil {
			last = err.Error()
		} else if last = short(m); last == want {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("%s: still %q, want %q", name, last, want)
		}
	}
}

// freePort returns a port that is free for UDP and TCP on the loopback address.
func freePort(t *testing.T) int {
	t.Helper()
	for range 100 {
		u, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
		if err != nil {
			t.Fatal(err)
		}
		port := u.LocalAddr().(*net.UDPAddr).Port
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		u.Close()
		if err == nil {
			l.Close()
			return port
		}
	}
	t.Fatal("no port is free for both UDP and TCP")
	return 0
}

// outside is a name server that knows www.example.net, over UDP and TCP; it returns its address.
func outside(t *testing.T) string {
	t.Helper()
	addr := fmt.Sprintf("127.0.0.1:%d", freePort(t))
	handler := dns.HandlerFunc(func(w dns.ResponseWriter, r *dns.Msg) {
		m := new(dns.Msg).SetReply(r)
		if q := r.Question[0]; strings.EqualFold(q.Name, "www.example.net.") && q.Qtype == dns.TypeA {
			rr, _ := dns.NewRR(q.Name + " 60 IN A 192.0.2.80")
			m.Answer = []dns.RR{rr}
		} else {
			m.Rcode = dns.RcodeNameError
		}
		if err := w.WriteMsg(m); err != nil {
			t.Log("outside server:", err)
		}
	})
	for _, network := range []string{"udp", "tcp"} {
		ready, failed := make(chan struct{}), make(chan error, 1)
		s := &dns.Server{Addr: addr, Net: network, Handler: handler, NotifyStartedFunc: func() { close(ready) }}
		go func() { failed <- s.ListenAndServe() }()
		select {
		case <-ready:
			t.Cleanup(func() { s.Shutdown() })
		case err := <-failed:
			t.Fatal(err)
		}
	}
	return addr
}

// write puts a file in place as an editor that is careful does.
func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path+"~", []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+"~", path); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	text, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
