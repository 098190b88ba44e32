package dns

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// patience is how long a test waits for what takes milliseconds on an idle machine.
const patience = 30 * time.Second

var programs struct {
	once        sync.Once
	dir         string
	stock, ours string
	stockErr    error
	oursErr     error
}

// build makes both programs, once per test run.
func build() {
	programs.once.Do(func() {
		var err error
		if programs.dir, err = os.MkdirTemp("", "braid-oracle-"); err != nil {
			programs.stockErr, programs.oursErr = err, err
			return
		}
		programs.stock, programs.stockErr = compile("stock", "./stock")
		programs.ours, programs.oursErr = compile("ours", "github.com/braidnet/braid/coredns-build")
	})
}

func compile(name, pkg string) (string, error) {
	path := filepath.Join(programs.dir, name)
	if out, err := exec.Command("go", "build", "-o", path, pkg).CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build %s: %w: %s", pkg, err, bytes.TrimSpace(out))
	}
	return path, nil
}

// stock and ours return the path of a program. Without the stock one there is nothing to compare
// with, which is no fault of ours: those tests are skipped, but not where tests must be complete.
func stock(t *testing.T) string {
	t.Helper()
	if build(); programs.stockErr != nil {
		line, _, _ := strings.Cut(strings.ReplaceAll(programs.stockErr.Error(), "\n", "; "), "\n")
		if os.Getenv("CI") == "true" {
			t.Fatal(line)
		}
		t.Skipf("stock CoreDNS cannot be built: %s", line)
	}
	return programs.stock
}

func ours(t *testing.T) string {
	t.Helper()
	if build(); programs.oursErr != nil {
		t.Fatal(programs.oursErr)
	}
	return programs.ours
}

func TestMain(m *testing.M) {
	code := m.Run()
	if programs.dir != "" {
		os.RemoveAll(programs.dir)
	}
	os.Exit(code)
}

// program is a running server.
type program struct {
	name string
	cmd  *exec.Cmd
	mu   sync.Mutex
	said bytes.Buffer
}

func (p *program) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.said.Write(b)
}

func (p *program) log() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.said.String()
}

// start runs a server with a Corefile; it is killed with the test.
func start(t *testing.T, name, path, corefile string) *program {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "Corefile")
	if err := os.WriteFile(file, []byte(corefile), 0o644); err != nil {
		t.Fatal(err)
	}
	p := &program{name: name, cmd: exec.Command(path, "-conf", file)}
	p.cmd.Dir, p.cmd.Stdout, p.cmd.Stderr = dir, p, p
	p.cmd.Env = append(os.Environ(), "HOME="+dir, "KUBECONFIG=")
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.cmd.Process.Kill()
		p.cmd.Wait()
		if t.Failed() {
			said := p.log()
			t.Logf("%s said (last lines):\n%s", name, said[max(0, len(said)-3000):])
		}
	})
	return p
}

// eventually tries until it works.
func eventually(t *testing.T, what string, try func() error) {
	t.Helper()
	within(t, patience, what, try)
}

func within(t *testing.T, limit time.Duration, what string, try func() error) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(limit)
	for {
		err := try()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("%s: %v", what, err)
		}
	}
}

// given are the ports that were handed out. CoreDNS shares ports (SO_REUSEPORT), so that two servers
// on one would not fail but mix their answers.
var given = map[int]bool{}

// freePort returns a port that is free for UDP and TCP.
func freePort(t *testing.T) int {
	t.Helper()
	for range 100 {
		l, err := net.Listen("tcp", ":0")
		if err != nil {
			t.Fatal(err)
		}
		port := l.Addr().(*net.TCPAddr).Port
		u, err := net.ListenUDP("udp", &net.UDPAddr{Port: port})
		l.Close()
		if err == nil {
			u.Close()
			if !given[port] {
				given[port] = true
				return port
			}
		}
	}
	t.Fatal("no port is free for both UDP and TCP")
	return 0
}

// localAddrs returns the addresses of this machine by which others reach it.
func localAddrs() (out []netip.Addr) {
	list, _ := net.InterfaceAddrs()
	for _, a := range list {
		if p, err := netip.ParsePrefix(a.String()); err == nil && !p.Addr().IsLoopback() && p.Addr().Is4() {
			out = append(out, p.Addr())
		}
	}
	return out
}

// client asks one server, over connections that it keeps.
type client struct {
	addr string
	udp  *dns.Conn
	tcp  *dns.Conn
}

func (c *client) conn(tcp bool) (*dns.Conn, error) {
	network, at := "udp", &c.udp
	if tcp {
		network, at = "tcp", &c.tcp
	}
	if *at != nil {
		return *at, nil
	}
	fresh, err := net.Dial(network, c.addr)
	if err != nil {
		return nil, err
	}
	*at = &dns.Conn{Conn: fresh, UDPSize: dns.MaxMsgSize}
	return *at, nil
}

func (c *client) close(tcp bool) {
	at := &c.udp
	if tcp {
		at = &c.tcp
	}
	if *at != nil {
		(*at).Close()
		*at = nil
	}
}

// patienceForOne is how long one answer may take; only servers that never answer need it.
const patienceForOne = 3 * time.Second

// ask sends a question and returns the answer with its length on the wire. A TCP connection that
// the server closed meanwhile is opened again.
func (c *client) ask(q question) (*dns.Msg, int, error) {
	m, n, err := c.once(q)
	var timeout net.Error
	if err != nil && !(errors.As(err, &timeout) && timeout.Timeout()) {
		m, n, err = c.once(q)
	}
	return m, n, err
}

func (c *client) once(q question) (_ *dns.Msg, _ int, err error) {
	conn, err := c.conn(q.tcp)
	if err != nil {
		return nil, 0, err
	}
	defer func() {
		if err != nil {
			c.close(q.tcp)
		}
	}()
	m := q.msg()
	if err := conn.SetDeadline(time.Now().Add(patienceForOne)); err != nil {
		return nil, 0, err
	}
	if err := conn.WriteMsg(m); err != nil {
		return nil, 0, err
	}
	for {
		raw, err := conn.ReadMsgHeader(nil)
		if err != nil {
			return nil, 0, err
		}
		out := new(dns.Msg)
		if err := out.Unpack(raw); err != nil {
			return nil, 0, fmt.Errorf("answer of %d bytes has no sense: %w", len(raw), err)
		}
		if out.Id == m.Id {
			return out, len(raw), nil
		}
	}
}

func itoa(n int) string { return strconv.Itoa(n) }

func atoi(s string) int {
	n, err := strconv.Atoi(s)
	if err != nil {
		panic(err)
	}
	return n
}

func reverseName(a netip.Addr) string {
	name, err := dns.ReverseAddr(a.String())
	if err != nil {
		panic(err)
	}
	return name
}
