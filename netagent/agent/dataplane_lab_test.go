package agent

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/braidnet/braid/internal/kernel/netns/nstest"
	"github.com/braidnet/braid/netagent/service"
)

// dpTries is how often a balanced frontend is asked: that one of two backends never answers has a
// chance of 2^-31.
const dpTries = 32

// dpLab is a node, a client outside, and two pods, each in a network namespace:
//
//	client 192.0.2.2 -- 192.0.2.1 node 10.244.1.1 -- 10.244.1.11 pod1 (local)
//	                                   10.244.2.1 -- 10.244.2.12 pod2 (stands for another node's)
type dpLab struct{ client, node, pod1, pod2 *dpHost }

// dpHost is one namespace, answering TCP and UDP on dpTarget with its name and who asked.
type dpHost struct {
	*nstest.NS
	name string
}

type dpReply struct {
	name   string
	client netip.Addr
}

func newDPLab(t *testing.T) *dpLab {
	t.Helper()
	host := func(name string) *dpHost { return &dpHost{nstest.New(t), name} }
	l := &dpLab{client: host("client"), node: host("node"), pod1: host("pod1"), pod2: host("pod2")}
	l.node.Forward(t)
	for _, x := range []struct {
		host     *dpHost
		dev      string
		own, via func(dpAddrs) netip.Addr
	}{
		{l.client, "lan", func(a dpAddrs) netip.Addr { return a.client }, func(a dpAddrs) netip.Addr { return a.node }},
		{l.pod1, "pod1", func(a dpAddrs) netip.Addr { return a.pod1 }, func(a dpAddrs) netip.Addr { return a.podGW1 }},
		{l.pod2, "pod2", func(a dpAddrs) netip.Addr { return a.pod2 }, func(a dpAddrs) netip.Addr { return a.podGW2 }},
	} {
		nstest.Veth(t, l.node.NS, x.dev, x.host.NS, "eth0")
		for _, a := range dpFamilies {
			bits := a.localPods.Bits()
			l.node.addr(t, netip.PrefixFrom(x.via(a), bits), x.dev)
			x.host.addr(t, netip.PrefixFrom(x.own(a), bits), "eth0")
			x.host.Exec(t, "ip", "route", "add", "default", "via", x.via(a).String())
		}
	}
	// A node needs some route towards a cluster IP, else connect fails before translation. It leads
	// away from the client: redirects would use up the kernel's allowance of ICMP errors to it.
	nstest.Veth(t, l.node.NS, "uplink", nstest.New(t), "eth0")
	l.node.Exec(t, "ip", "-4", "route", "add", "default", "dev", "uplink")
	l.node.Exec(t, "ip", "-6", "route", "add", "default", "dev", "uplink")
	for _, h := range []*dpHost{l.client, l.pod1, l.pod2} {
		h.serve(t)
	}
	for _, a := range dpFamilies { // the links are up once everybody is reached directly
		for _, x := range []struct {
			from *dpHost
			to   netip.Addr
		}{{l.client, a.pod1}, {l.client, a.pod2}, {l.pod1, a.client}} {
			nstest.Wait(t, x.to.String(), func() error { _, err := x.from.get(netip.AddrPortFrom(x.to, dpTarget)); return err })
		}
	}
	return l
}

func (h *dpHost) addr(t *testing.T, p netip.Prefix, dev string) {
	t.Helper()
	args := []string{"addr", "add", p.String(), "dev", dev}
	if p.Addr().Is6() {
		args = append(args, "nodad")
	}
	h.Exec(t, "ip", args...)
}

func (h *dpHost) serve(t *testing.T) {
	t.Helper()
	var tcp net.Listener
	var udp net.PacketConn
	h.Run(t, func() (err error) {
		if tcp, err = net.Listen("tcp", fmt.Sprintf(":%d", dpTarget)); err != nil {
			return err
		}
		udp, err = net.ListenPacket("udp", fmt.Sprintf(":%d", dpTarget))
		return err
	})
	t.Cleanup(func() { tcp.Close(); udp.Close() })
	answer := func(a net.Addr) []byte {
		return fmt.Appendf(nil, "%s %s", h.name, netip.MustParseAddrPort(a.String()).Addr().Unmap())
	}
	go func() {
		for {
			c, err := tcp.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write(answer(c.RemoteAddr()))
			c.Close()
		}
	}()
	go func() {
		buf := make([]byte, 64)
		for {
			_, from, err := udp.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = udp.WriteTo(answer(from), from)
		}
	}()
}

// Bounds of a wait for an answer: one that must come, and one that must not.
const (
	patience = 5 * time.Second
	silence  = 300 * time.Millisecond
)

// get makes one TCP connection and reads the answer.
func (h *dpHost) get(to netip.AddrPort) (dpReply, error) { return h.exchange("tcp", to, patience) }

// datagram sends one UDP datagram and reads the answer.
func (h *dpHost) datagram(to netip.AddrPort) (dpReply, error) { return h.exchange("udp", to, patience) }

// getAs is get with one of the host's addresses as source.
func (h *dpHost) getAs(source netip.Addr, to netip.AddrPort) (dpReply, error) {
	return h.exchangeBy(net.Dialer{LocalAddr: &net.TCPAddr{IP: source.AsSlice()}}, "tcp", to, patience)
}

func (h *dpHost) exchange(network string, to netip.AddrPort, patience time.Duration) (r dpReply, err error) {
	return h.exchangeBy(net.Dialer{}, network, to, patience)
}

func (h *dpHost) exchangeBy(d net.Dialer, network string, to netip.AddrPort, patience time.Duration) (r dpReply, err error) {
	var c net.Conn
	d.Timeout = patience
	if err := h.Do(func() (err error) { c, err = d.Dial(network, to.String()); return err }); err != nil {
		return r, err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	buf := make([]byte, 64)
	n := 0
	if network == "udp" {
		if _, err := c.Write([]byte("?")); err != nil {
			return r, err
		}
		if n, err = c.Read(buf); err != nil {
			return r, err
		}
	} else if n, err = io.ReadFull(c, buf); err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return r, err
	}
	name, addr, _ := strings.Cut(string(buf[:n]), " ")
	client, err := netip.ParseAddr(addr)
	return dpReply{name, client}, err
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}

// ask is get that ends the test on an error.
func (l *dpLab) ask(t *testing.T, from *dpHost, to netip.AddrPort) dpReply {
	t.Helper()
	r, err := from.get(to)
	if err != nil {
		t.Fatalf("%s asked %s: %v\n%s", from.name, to, err, l.rules(t))
	}
	return r
}

// wantNames asks again and again and wants exactly these to answer.
func (l *dpLab) wantNames(t *testing.T, from *dpHost, to netip.AddrPort, want ...string) {
	t.Helper()
	var got []string
	for range dpTries {
		if r := l.ask(t, from, to); !slices.Contains(got, r.name) {
			got = append(got, r.name)
		}
	}
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("%s asked %s %d times: %v answered, want %v", from.name, to, dpTries, got, want)
	}
}

// construct makes a dataplane inside the node, as a starting agent would.
func (l *dpLab) construct(t *testing.T, construct func(*slog.Logger) (service.Dataplane, error)) (dp service.Dataplane) {
	t.Helper()
	l.must(t, "construct", func() (err error) { dp, err = construct(slog.New(slog.DiscardHandler)); return err })
	return dp
}

// must runs a step of a dataplane inside the node.
func (l *dpLab) must(t *testing.T, what string, step func() error) {
	t.Helper()
	if err := l.node.Do(step); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

var dpCounters = regexp.MustCompile(`packets \d+ bytes \d+|\[\d+:\d+\]`)

// rules lists everything in the kernel with the handles that each rule and chain gets anew when it
// is written again, without the packet counters.
func (l *dpLab) rules(t *testing.T) string {
	t.Helper()
	out := l.node.Exec(t, "nft", "-a", "list", "ruleset")
	if os.Getenv("XTABLES_LOCKFILE") != "" { // the legacy tools are under test, and nft does not see their rules
		out += l.node.Exec(t, "iptables-legacy-save") + l.node.Exec(t, "ip6tables-legacy-save")
	}
	lines := strings.Split(dpCounters.ReplaceAllString(out, ""), "\n")
	return strings.Join(slices.DeleteFunc(lines, func(l string) bool { return strings.HasPrefix(l, "#") }), "\n")
}

// foreignRules puts rules of somebody else next to ours, in the same chains too.
func (l *dpLab) foreignRules(t *testing.T) {
	t.Helper()
	for _, tool := range []string{"iptables", "ip6tables"} {
		l.node.Exec(t, tool, "-t", "nat", "-N", "FOREIGN")
		l.node.Exec(t, tool, "-t", "nat", "-A", "FOREIGN", "-p", "tcp", "--dport", "9", "-j", "RETURN")
		l.node.Exec(t, tool, "-t", "nat", "-A", "PREROUTING", "-j", "FOREIGN")
		l.node.Exec(t, tool, "-A", "FORWARD", "-p", "tcp", "--dport", "9", "-j", "DROP")
	}
	l.node.Exec(t, "nft", "add", "table", "ip", "foreign")
	l.node.Exec(t, "nft", "add", "chain", "ip", "foreign", "kept")
}

func (l *dpLab) wantForeign(t *testing.T) {
	t.Helper()
	for _, tool := range []string{"iptables", "ip6tables"} {
		l.node.Exec(t, tool, "-t", "nat", "-C", "FOREIGN", "-p", "tcp", "--dport", "9", "-j", "RETURN")
		l.node.Exec(t, tool, "-t", "nat", "-C", "PREROUTING", "-j", "FOREIGN")
		l.node.Exec(t, tool, "-C", "FORWARD", "-p", "tcp", "--dport", "9", "-j", "DROP")
	}
	l.node.Exec(t, "nft", "list", "chain", "ip", "foreign", "kept")
}

// checkLeftovers: a new agent finds rules of services that went while none ran.
func (l *dpLab) checkLeftovers(t *testing.T, dp service.Dataplane, all []service.Frontend, net service.Net) {
	fewer := slices.DeleteFunc(slices.Clone(all), func(f service.Frontend) bool { return f.Origin.Name != "udp" })
	l.must(t, "Replace", func() error { return dp.Replace(fewer, net) })
	rules := l.rules(t)
	for _, a := range dpFamilies {
		for _, gone := range []netip.Addr{a.web, a.none, a.dropped} {
			if strings.Contains(rules, gone.String()) {
				t.Errorf("rules still name %s, whose service is gone\n%s", gone, rules)
			}
		}
		if _, err := l.client.datagram(netip.AddrPortFrom(a.udp, dpPort)); err != nil {
			t.Errorf("the service that stayed: %v", err)
		}
	}
	l.must(t, "Replace", func() error { return dp.Replace(all, net) })
	for _, a := range dpFamilies {
		l.wantNames(t, l.client, netip.AddrPortFrom(a.web, dpPort), "pod1", "pod2")
	}
}

// checkRepair: somebody flushed everything.
func (l *dpLab) checkRepair(t *testing.T, dp service.Dataplane, all []service.Frontend, net service.Net) {
	l.must(t, "Replace", func() error { return dp.Replace(all, net) })
	l.node.Exec(t, "nft", "flush", "ruleset")
	l.foreignRules(t)
	l.must(t, "Replace", func() error { return dp.Replace(all, net) })
	for _, a := range dpFamilies {
		l.wantNames(t, l.client, netip.AddrPortFrom(a.web, dpPort), "pod1", "pod2")
	}
}

// checkCleanup: everything of ours goes, nothing else, and a second time is no error.
func (l *dpLab) checkCleanup(t *testing.T, dp service.Dataplane, all []service.Frontend, net service.Net) {
	for round := range 2 {
		l.must(t, "Cleanup", func() error {
			removed, err := dp.Cleanup()
			if (len(removed) > 0) != (round == 0) {
				t.Errorf("round %d says it removed %v", round, removed)
			}
			return err
		})
		if rules := l.rules(t); strings.Contains(strings.ToLower(rules), "braid") {
			t.Errorf("rules of ours are left:\n%s", rules)
		}
		l.wantForeign(t)
	}
	for _, a := range dpFamilies {
		if _, err := l.client.get(netip.AddrPortFrom(a.node, dpNodePort)); err == nil {
			t.Errorf("the node port of %s still answers after the cleanup", a.family)
		}
	}
	l.must(t, "Replace after Cleanup", func() error { return dp.Replace(all, net) })
	for _, a := range dpFamilies {
		l.wantNames(t, l.client, netip.AddrPortFrom(a.web, dpPort), "pod1", "pod2")
	}
	l.must(t, "Cleanup", func() error { _, err := dp.Cleanup(); return err })
}

// haveTool reports whether a program is there.
func haveTool(name string) bool { _, err := exec.LookPath(name); return err == nil }
