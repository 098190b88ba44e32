package scenario

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/braidnet/braid/netagent/lab"
)

// place is where connections of a playground begin or end.
type place struct {
	netns string
	pod   bool
	ips   []netip.Addr // its own
	masks []netip.Addr // what others see of whom it masquerades (nodes)
	bind  []netip.Addr // what it sends from; empty: what the kernel chooses
}

// playground is what scripts can name.
type playground struct {
	name      string
	places    map[string]place
	answering []io.Closer // what answers SCTP in pods
}

// look reads what there is of a script's playground at present.
func look(ts *testscript.TestScript) *playground {
	p, err := lookAt(ts.Getenv("LAB"), labStatus(ts))
	ts.Check(err)
	return p
}

// lookAt reads what there is of a playground, whose status is known.
func lookAt(name string, status lab.Status) (*playground, error) {
	p := &playground{name: name, places: map[string]place{}}
	for _, n := range status.Nodes {
		here := place{netns: n.NetNS, ips: n.IPs, masks: slices.Clone(n.IPs)}
		for _, pods := range n.PodCIDRs {
			here.masks = append(here.masks, pods.Addr().Next(), pods.Addr()) // of the bridge and the overlay
		}
		p.places[n.Name] = here
	}
	beyond := []netip.Addr{netip.MustParseAddr("203.0.113.10"), netip.MustParseAddr("2001:db8:99::10")}
	p.places["outside"] = place{netns: "/run/netns/braid-" + p.name + "-net"}
	p.places["world"] = place{netns: "/run/netns/braid-" + p.name + "-net", ips: beyond, bind: beyond}
	pods, err := filepath.Glob("/run/braid-lab/" + p.name + "/pods/*/sandbox.json")
	if err != nil {
		return nil, err
	}
	for _, file := range pods {
		var s struct {
			Name, NetNS string
			IPs         []netip.Addr
		}
		data, err := os.ReadFile(file)
		if err == nil {
			err = json.Unmarshal(data, &s)
		}
		if err != nil {
			return nil, err
		}
		p.places[s.Name] = place{netns: s.NetNS, ips: s.IPs, pod: true}
	}
	return p, nil
}

func labStatus(ts *testscript.TestScript) (s lab.Status) {
	out, err := exec.Command(lookPath(ts, "netagent"), "lab", "status", "-o", "json", "--name", ts.Getenv("LAB")).Output()
	ts.Check(err)
	ts.Check(json.Unmarshal(out, &s))
	return s
}

// targets are the addresses that a word of a script stands for, in every family: SERVICE:PORT (its cluster IPs;
// SERVICE.NAMESPACE outside of default), SERVICE/lb:PORT (its load balancer's), NODE:PORT, POD:PORT or ADDRESS:PORT.
func (p *playground) targets(word string) (out []netip.AddrPort, err error) {
	if at, err := netip.ParseAddrPort(word); err == nil {
		return []netip.AddrPort{at}, nil
	}
	name, text, _ := strings.Cut(word, ":")
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return nil, fmt.Errorf("target %q: want NAME:PORT or ADDRESS:PORT", word)
	}
	ips := p.places[name].ips
	if len(ips) == 0 {
		if ips, err = p.service(name); err != nil {
			return nil, err
		}
	}
	for _, ip := range ips {
		out = append(out, netip.AddrPortFrom(ip, uint16(port)))
	}
	return out, nil
}

// nameOf says whose address it is.
func (p *playground) nameOf(ip netip.Addr) string {
	for name, at := range p.places {
		if slices.Contains(at.ips, ip) {
			return name
		}
	}
	return ip.String()
}

// service reads a Service from the folder that the agents read.
func (p *playground) service(name string) (ips []netip.Addr, err error) {
	name, balancer := strings.CutSuffix(name, "/lb")
	name, namespace, _ := strings.Cut(name, ".")
	file := "/run/braid-lab/" + p.name + "/cluster/service." + cmp.Or(namespace, "default") + "." + name + ".yaml"
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var s corev1.Service
	if err := yaml.Unmarshal(data, &s); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	texts := s.Spec.ClusterIPs
	if balancer {
		texts = nil
		for _, in := range s.Status.LoadBalancer.Ingress {
			texts = append(texts, in.IP)
		}
	}
	for _, t := range texts {
		ip, err := netip.ParseAddr(t)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		ips = append(ips, ip)
	}
	if len(ips) == 0 {
		return nil, fmt.Errorf("%s has no such address", file)
	}
	return ips, nil
}

// cmdFill writes addresses of pods into a manifest: `fill FILE` replaces POD/4 and POD/6 between
// double braces.
func cmdFill(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: fill FILE")
	}
	p := look(ts)
	text := regexp.MustCompile(`\{\{(\S+)/([46])\}\}`).ReplaceAllStringFunc(ts.ReadFile(args[0]), func(word string) string {
		pod, family, _ := strings.Cut(strings.Trim(word, "{}"), "/")
		for _, ip := range p.places[pod].ips {
			if ip.Is4() == (family == "4") {
				return ip.String()
			}
		}
		ts.Fatalf("fill: no pod %s with an IPv%s address", pod, family)
		return ""
	})
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(text), 0o600))
}

// cmdRestart ends the agents of all nodes, by SIGKILL or the signal it is told, and waits until others have taken
// their place; and again, as often as it is told.
func cmdRestart(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) > 2 {
		ts.Fatalf("usage: restart [SIGNAL [TIMES]]")
	}
	signal, times := append(args, "KILL")[0], 1
	if len(args) == 2 {
		var err error
		times, err = strconv.Atoi(args[1])
		ts.Check(err)
	}
	for range times {
		restartOnce(ts, signal)
	}
}

func restartOnce(ts *testscript.TestScript, signal string) {
	before := labStatus(ts)
	for _, n := range before.Nodes {
		cmdLab(ts, false, []string{"kill", "node/" + n.Name + "/netagent", "--signal", signal})
	}
	for end := time.Now().Add(deadline); ; time.Sleep(20 * time.Millisecond) {
		waits := ""
		for i, n := range labStatus(ts).Nodes {
			if n.Agent.Restarts == before.Nodes[i].Agent.Restarts || !n.Agent.Ready {
				waits = n.Name + ": " + n.Agent.Why
			}
		}
		if waits == "" {
			return
		}
		if time.Now().After(end) {
			ts.Fatalf("%s after the kill the agent of %s", deadline, waits)
		}
	}
}
