package scenario

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/braidnet/braid/netagent/lab"
)

var allFaults = flag.Bool("faults.all", false, "every fault with every backend, seen by the agent as it happens, late, and not at all (20 minutes)")

const (
	// told is how long a repair may take of which the kernel tells the agent: a second is promised, and the machine may be busy.
	told = 10 * time.Second
	// untold is how long one may take of which nobody tells: what is promised, and what a busy machine adds.
	untold = 45 * time.Second
	// quick is how long one connection may take; others follow.
	quick = 400 * time.Millisecond
)

// world is one way to connect pods, in which faults are tried.
type world struct {
	name     string
	options  []string          // of lab up
	env      map[string]string // the devices of both families, and the gateways of routes to n2
	iptables bool
}

func tunnel(dev4, dev6 string) map[string]string {
	return map[string]string{"DEV4": dev4, "DEV6": dev6, "VIA4": "10.244.2.0", "VIA6": "fd00:10:244:2::"}
}

var worlds = []world{
	{name: "vxlan", options: []string{"--backend", "vxlan", "--agent-setting", "policy: enforce"}, env: tunnel("braid.vx4", "braid.vx6")},
	{name: "host-gw", options: []string{"--backend", "host-gw", "--service-mode", "iptables"}, iptables: true,
		env: map[string]string{"DEV4": "eth0", "DEV6": "eth0", "VIA4": "192.168.77.12", "VIA6": "fd77::12"}},
	{name: "udp", options: []string{"--backend", "udp"}, env: tunnel("braid.udp", "braid.udp")},
	{name: "wireguard", options: []string{"--backend", "wireguard"}, env: tunnel("braid.wg", "braid.wg")},
	{name: "none", options: []string{"--backend", "none", "--service-mode", "iptables"}, iptables: true},
}

// TestFaults does harm to a node of a running cluster, as people and other programs do, and waits until
// everything is as it was before and pods, services and host ports are reached again. The agent of the node is
// stopped while harm is done, so that the harm can be seen. README.md says which line of the checklist is where.
func TestFaults(t *testing.T) {
	needRoot(t)
	for _, w := range worlds {
		t.Run(w.name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t, w)
			for _, f := range faults {
				if f.on != "" && !slices.Contains(strings.Fields(f.on), w.name) || !*allFaults && f.seldom {
					continue
				}
				for _, how := range f.ways() {
					if !t.Run(f.name+how.suffix, func(t *testing.T) { s.try(t, f, how) }) {
						t.Fatal("what is not repaired would be in the way of all that follows")
					}
				}
			}
			s.report(t)
		})
	}
}

// way is how the agent comes to know of harm.
type way struct {
	suffix string
	before unix.Signal // sent before harm is done; 0: none
	after  unix.Signal // sent after it
}

// ways are those in which a fault is tried.
func (f fault) ways() []way {
	late := way{"", unix.SIGSTOP, unix.SIGCONT}
	if !*allFaults {
		return []way{late}
	}
	return []way{late, {", seen at once", 0, 0}, {", while no agent runs", unix.SIGSTOP, unix.SIGKILL}}
}

// site is a playground of two nodes with pods a and b on them, and the connections between these.
type site struct {
	world
	dir, lab string
	places   *playground
	web      []netip.Addr // cluster IPs of the service of b
	streams  []*stream
	before   []string // what the kernel of n1 holds while all is well
	results  []string
}

func newSite(t *testing.T, w world) *site {
	t.Helper()
	s := &site{world: w, dir: bin(t)}
	s.lab = labName("f" + strings.ReplaceAll(w.name, "-", ""))
	t.Cleanup(func() { tearDown(t, s.dir, s.lab) })
	manifest := filepath.Join(t.TempDir(), "pods.yaml")
	if err := os.WriteFile(manifest, []byte(faultPods), 0o600); err != nil {
		t.Fatal(err)
	}
	s.netagent(t, append(append([]string{"lab", "up", "--name", s.lab, "--nodes", "2"}, w.options...), manifest)...)
	s.look(t)
	for _, way := range [][2]string{{"a", "b"}, {"b", "a"}} {
		for _, ip := range s.places.places[way[1]].ips {
			s.streams = append(s.streams, newStream(t, s.places.places[way[0]], way[0]+" → "+way[1], netip.AddrPortFrom(ip, 80)))
		}
	}
	s.await(t, untold, "the playground to work", func() error { return s.works() })
	// The agent looks once a second at what the CNI plugin writes, and puts back what it has seen.
	s.await(t, untold, "the agent to have seen the host ports", func() error {
		seen, err := os.ReadFile("/run/braid-lab/" + s.lab + "/nodes/n1/run/pod-rules")
		if err == nil && !bytes.Contains(seen, []byte("braid-hostports")) {
			err = errors.New("it has seen none yet")
		}
		return err
	})
	s.await(t, untold, "the kernel's state to be the same twice", func() error {
		last := s.before
		s.before = s.state(t)
		return differ(last, s.before)
	})
	return s
}

// look reads where pods and services are.
func (s *site) look(t *testing.T) {
	t.Helper()
	p, err := lookAt(s.lab, s.status(t))
	if err == nil {
		s.places = p
		s.web, err = p.service("web")
	}
	if err != nil {
		t.Fatal(err)
	}
}

func (s *site) status(t *testing.T) (status lab.Status) {
	t.Helper()
	if err := json.Unmarshal([]byte(s.netagent(t, "lab", "status", "-o", "json", "--name", s.lab)), &status); err != nil {
		t.Fatal(err)
	}
	return status
}

func (s *site) netagent(t *testing.T, args ...string) string {
	t.Helper()
	var stderr strings.Builder
	c := exec.Command(filepath.Join(s.dir, "netagent"), args...)
	c.Stderr = &stderr
	out, err := c.Output()
	if err != nil {
		t.Fatalf("netagent %s: %v\n%s%s", strings.Join(args, " "), err, out, stderr.String())
	}
	return string(out)
}

// try does harm once and waits for the repair.
func (s *site) try(t *testing.T, f fault, how way) {
	agent := s.status(t).Nodes[0].Agent
	signal := func(sig unix.Signal) {
		if sig == 0 {
			return
		}
		if err := unix.Kill(agent.PID, sig); err != nil {
			t.Fatal(err)
		}
	}
	signal(how.before)
	if _, err := s.run(f.do); err != nil && how.before != 0 { // an agent that looks on repairs in the middle of it
		t.Fatal(err)
	}
	if how.before != 0 && !f.mild {
		if differ(s.before, s.state(t)) == nil && s.works() == nil {
			t.Error("no harm was done: everything is as before and works, without an agent")
		}
	}
	signal(how.after)
	if how.after == unix.SIGKILL {
		s.await(t, untold, "another agent", func() error {
			if now := s.status(t).Nodes[0].Agent; now.Restarts == agent.Restarts || !now.Ready {
				return errors.New(now.Why)
			}
			return nil
		})
	}
	for _, st := range s.streams {
		st.reset()
	}
	begin, limit := time.Now(), told
	if f.untold {
		limit = untold
	}
	s.await(t, limit, "the repair", func() error {
		if err := s.works(); err != nil {
			return err
		}
		if f.other {
			return nil
		}
		return differ(s.before, s.state(t))
	})
	took := time.Since(begin)
	if f.undo != "" {
		s.shell(t, f.undo)
		s.await(t, limit, "things to be as before", func() error { return errors.Join(s.works(), differ(s.before, s.state(t))) })
	}
	outage := time.Duration(0)
	for _, st := range s.streams {
		outage = max(outage, st.outage())
	}
	line := fmt.Sprintf("%-60s no answer for %5d ms, all as before after %5d ms", strings.TrimPrefix(t.Name(), "TestFaults/"), outage.Milliseconds(), took.Milliseconds())
	s.results = append(s.results, line)
	t.Log(line)
}

func (s *site) report(t *testing.T) { t.Log("\n" + strings.Join(s.results, "\n")) }

// await asks until there is no error.
func (s *site) await(t *testing.T, limit time.Duration, what string, ask func() error) {
	t.Helper()
	for end := time.Now().Add(limit); ; time.Sleep(10 * time.Millisecond) {
		err := ask()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("waited %s for %s: %v", limit, what, err)
		}
	}
}

// shell runs a script on node n1, with the world's devices and addresses in its environment.
func (s *site) shell(t *testing.T, script string) string {
	t.Helper()
	out, err := s.run(script)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func (s *site) run(script string) (string, error) {
	c := exec.Command("ip", "netns", "exec", "braid-"+s.lab+"-n1", "sh", "-euc", shellWords+script)
	c.Env = append(os.Environ(), "NODE=braid-"+s.lab+"-n1", "NET=braid-"+s.lab+"-net")
	for k, v := range s.env {
		c.Env = append(c.Env, k+"="+v)
	}
	var stderr strings.Builder
	c.Stderr = &stderr
	out, err := c.Output()
	if err != nil {
		err = fmt.Errorf("%s\n%w: %s", script, err, stderr.String())
	}
	return string(out), err
}

// works makes one connection each way, through the service and to the host port, in both families.
func (s *site) works() error {
	type want struct{ from, pod string }
	asked := map[netip.AddrPort]want{}
	for _, ip := range s.places.places["b"].ips {
		asked[netip.AddrPortFrom(ip, 80)] = want{"a", "b"}
	}
	for _, ip := range s.places.places["a"].ips {
		asked[netip.AddrPortFrom(ip, 80)] = want{"b", "a"}
	}
	for _, ip := range s.web {
		asked[netip.AddrPortFrom(ip, 80)] = want{"a", "b"}
	}
	for _, ip := range s.places.places["n1"].ips {
		asked[netip.AddrPortFrom(ip, 8088)] = want{"outside", "a"}
	}
	var wg sync.WaitGroup
	errs := make(chan error, len(asked))
	for to, w := range asked {
		wg.Go(func() {
			a, err := s.places.places[w.from].askWithin(quick, "tcp", to)
			if err == nil && a.pod != w.pod {
				err = fmt.Errorf("answered by %s", a.pod)
			}
			if err != nil {
				errs <- fmt.Errorf("%s to %s, %s: %w", w.from, w.pod, to, err)
			}
		})
	}
	wg.Wait()
	close(errs)
	return <-errs
}

// state is what the kernel of n1 holds, in lines that mean something: sorted, without numbers that change.
func (s *site) state(t *testing.T) (lines []string) {
	t.Helper()
	text := s.shell(t, stateScript)
	if s.iptables {
		text += s.shell(t, "iptables-save; ip6tables-save")
	}
	for line := range strings.Lines(unstable.ReplaceAllString(text, "")) {
		for part := range strings.SplitSeq(line, ", ") { // elements of a set, in any order
			if part = strings.Join(strings.Fields(part), " "); !ignored.MatchString(part) {
				lines = append(lines, part)
			}
		}
	}
	slices.Sort(lines)
	return lines
}

// differ names what is in one of two states only.
func differ(before, now []string) error {
	var out []string
	for _, l := range before {
		if _, ok := slices.BinarySearch(now, l); !ok {
			out = append(out, "missing: "+l)
		}
	}
	for _, l := range now {
		if _, ok := slices.BinarySearch(before, l); !ok {
			out = append(out, "new: "+l)
		}
	}
	if len(out) == 0 && len(before) != len(now) {
		out = []string{fmt.Sprintf("%d lines, and %d before", len(now), len(before))}
	}
	if len(out) > 0 {
		return errors.New(strings.Join(out, "\n"))
	}
	return nil
}
