package main

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

// Processors of what is measured, and of all else.
const (
	serverCPU = 0
	askerCPU  = 1
)

// subject is one program with one configuration.
type subject struct {
	name     string
	program  string
	corefile string // file of the repository; "" for the bare responder
	cpu      int
}

func subjects(o *options) []subject {
	const kubeadm = "coredns-build/testdata/Corefile.kubeadm"
	return []subject{
		{"stock, kubeadm's Corefile", o.stock, kubeadm, serverCPU},
		{"ours, kubeadm's Corefile", o.ours, kubeadm, serverCPU},
		{"ours, Corefile.example", o.ours, "Corefile.example", serverCPU},
		{"bare responder", o.bare, "", serverCPU},
	}
}

// server is a running subject.
type server struct {
	subject
	cmd    *exec.Cmd
	log    *bytes.Buffer
	addr   string
	port   int
	opened time.Duration // until the first right answer
}

// launch starts a subject and waits until it answers right.
func launch(o *options, s subject, api, upstream string) (*server, error) {
	ports, err := freePorts(4)
	if err != nil {
		return nil, err
	}
	p := &server{subject: s, port: ports[0], addr: fmt.Sprintf("127.0.0.1:%d", ports[0]), log: &bytes.Buffer{}}
	args := []string{"-c", strconv.Itoa(s.cpu), s.program}
	if s.corefile == "" {
		args = append(args, "--listen", fmt.Sprintf(":%d", p.port)) // as the Corefiles do
	} else {
		file := filepath.Join(o.dir, fmt.Sprintf("Corefile.%d", p.port))
		text, err := configure(s.corefile, ports, api, upstream)
		if err == nil {
			err = os.WriteFile(file, []byte(text), 0o644)
		}
		if err != nil {
			return nil, err
		}
		args = append(args, "-conf", file)
	}
	p.cmd = exec.Command("taskset", args...)
	p.cmd.Stdout, p.cmd.Stderr = p.log, p.log
	p.cmd.Env = append(os.Environ(), "BRAID_MANIFESTS=")
	began := time.Now()
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	if err := p.answers(o); err != nil {
		p.stop()
		return nil, fmt.Errorf("%s: %w; it said:\n%s", s.name, err, p.log)
	}
	p.opened = time.Since(began)
	return p, nil
}

// configure is a Corefile of the repository, with ports that are free here and these servers.
func configure(file string, ports []int, api, upstream string) (string, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	text := string(b)
	for _, change := range [][2]string{
		{".:53 {", fmt.Sprintf(".:%d {", ports[0])},
		{"health {", fmt.Sprintf("health 127.0.0.1:%d {", ports[1])},
		{"\n    ready\n", fmt.Sprintf("\n    ready 127.0.0.1:%d\n", ports[2])},
		{"prometheus :9153", fmt.Sprintf("prometheus 127.0.0.1:%d", ports[3])},
		{"ip6.arpa {\n", "ip6.arpa {\n        endpoint " + api + "\n"},
		{"forward . /etc/resolv.conf", "forward . " + upstream},
	} {
		if !strings.Contains(text, change[0]) {
			return "", fmt.Errorf("%s: no line %q to change", file, strings.TrimSpace(change[0]))
		}
		text = strings.Replace(text, change[0], change[1], 1)
	}
	return text, nil
}

// answers waits for the last service's address.
func (p *server) answers(o *options) error {
	m := new(dns.Msg).SetQuestion(fmt.Sprintf("service-%d.%s.svc.cluster.local.", o.services-1, namespace), dns.TypeA)
	c := &dns.Client{Timeout: 200 * time.Millisecond}
	var last error
	for deadline := time.Now().Add(2 * time.Minute); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
		got, _, err := c.Exchange(m, p.addr)
		if err == nil && len(got.Answer) == 1 {
			return nil
		}
		if last = err; err == nil {
			last = fmt.Errorf("answer %s", dns.RcodeToString[got.Rcode])
		}
	}
	return fmt.Errorf("no right answer in time: %w", last)
}

func (p *server) stop() {
	_ = p.cmd.Process.Kill() // it may have ended
	_ = p.cmd.Wait()
}

// cpuTime is the processor time that the program has used.
func (p *server) cpuTime() (time.Duration, error) { return threadsTime(p.cmd.Process.Pid) }

// threadsTime adds up what the kernel counts for each thread, in nanoseconds.
func threadsTime(pid int) (sum time.Duration, err error) {
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err != nil || len(files) == 0 {
		return 0, fmt.Errorf("process %d has no threads: %w", pid, err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if os.IsNotExist(err) {
			continue // a thread that ended meanwhile
		}
		if err != nil {
			return 0, err
		}
		first, _, _ := strings.Cut(string(b), " ")
		n, err := strconv.ParseInt(first, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", f, err)
		}
		sum += time.Duration(n)
	}
	return sum, nil
}

// memory is the resident memory now and at its highest, in MiB.
func (p *server) memory() (now, peak int) {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid)) // 0 says enough
	for line := range strings.SplitSeq(string(b), "\n") {
		f := strings.Fields(line)
		if len(f) != 3 {
			continue
		}
		n, _ := strconv.Atoi(f[1])
		switch f[0] {
		case "VmRSS:":
			now = n / 1024
		case "VmHWM:":
			peak = n / 1024
		}
	}
	return now, peak
}

// freePorts returns ports that are free for UDP and TCP.
func freePorts(n int) (out []int, err error) {
	for len(out) < n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close()
		port := l.Addr().(*net.TCPAddr).Port
		u, err := net.ListenPacket("udp", fmt.Sprintf(":%d", port))
		if err != nil {
			continue
		}
		u.Close()
		out = append(out, port)
	}
	return out, nil
}

func pinSelf(cpu int) error {
	tasks, err := filepath.Glob("/proc/self/task/*")
	if err != nil {
		return err
	}
	var set unix.CPUSet
	set.Set(cpu)
	for _, t := range tasks {
		id, err := strconv.Atoi(filepath.Base(t))
		if err != nil {
			return err
		}
		if err := unix.SchedSetaffinity(id, &set); err != nil && err != unix.ESRCH {
			return fmt.Errorf("use processor %d alone: %w", cpu, err)
		}
	}
	return nil
}
