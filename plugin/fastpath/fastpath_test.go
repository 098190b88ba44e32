package fastpath

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/coredns/caddy"
	"github.com/miekg/dns"
)

// A plugin that could change an answer keeps the fast path off, and is named.
func TestOff(t *testing.T) {
	for _, tc := range []struct{ name, rest, want string }{
		{"hosts", "KUBERNETES\n hosts {\n 10.0.0.1 web.prod.svc.cluster.local\n fallthrough\n }", "plugin hosts could change the answers"},
		{"template", "KUBERNETES\n template IN A web.prod.svc.cluster.local {\n answer \"{{ .Name }} 1 IN A 10.0.0.1\"\n }", "plugin template could change the answers"},
		{"acl", "KUBERNETES\n acl {\n block net 127.0.0.0/8\n }", "plugin acl could change the answers"},
		{"log", "KUBERNETES\n log", "plugin log could change the answers"},
		{"view", "KUBERNETES\n view all {\n expr true\n }", "plugin view chooses by more than the name"},
		{"nearest", "NEAREST", "its answers depend on who asks"},
		{"loadbalance", "KUBERNETES\n loadbalance round_robin {\n prefer 10.0.0.0/8\n }", "plugin loadbalance does more than shuffle"},
		{"cache of a zone", "KUBERNETES\n cache 30 example.org", "plugin cache is set up for some zones only"},
		{"no kubernetes", "whoami", "plugin kubernetes is not in this server block"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			said.take()
			port := freePort(t)
			start(t, fmt.Sprintf(".:%d {\n bind 127.0.0.1\n fastpath\n %s\n}", port, tc.rest))
			var log string
			eventually(t, "line that says why", func() bool {
				log += said.take()
				return strings.Contains(log, tc.want)
			})
			if n := strings.Count(log, "plugin/fastpath: off for"); n != 1 {
				t.Errorf("it is said %d times:\n%s", n, log)
			}
			before := fastAnswers(t)
			ask(t, local(port), "web.prod.svc.cluster.local.", dns.TypeA)
			if fastAnswers(t) != before {
				t.Error("a question was answered on the fast path")
			}
		})
	}
}

// Names for which another server block is there are that one's, with or without a fast path.
func TestOtherBlocks(t *testing.T) {
	port := freePort(t)
	start(t, fmt.Sprintf(".:%d {\n bind 127.0.0.1\n fastpath\n KUBERNETES\n}\nprod.svc.cluster.local:%d {\n bind 127.0.0.1\n whoami\n}", port, port))
	serving(t, "dns://"+local(port))                                                            // for the reverse zone
	if got := ask(t, local(port), "web.prod.svc.cluster.local.", dns.TypeA); got != "NOERROR" { // whoami's answer is in the additional section
		t.Errorf("web: %s", got)
	}
	before := fastAnswers(t)
	if got := ask(t, local(port), "1.1.96.10.in-addr.arpa.", dns.TypePTR); got != "NOERROR web.prod.svc.cluster.local." || fastAnswers(t) != before+1 {
		t.Errorf("reverse: %s", got)
	}
}

// On a wildcard address, replies come from the address that was asked.
func TestEveryAddress(t *testing.T) {
	for _, bind := range []string{"", "bind 0.0.0.0"} {
		port := freePort(t)
		start(t, fmt.Sprintf(".:%d {\n %s\n fastpath {\n sockets 3\n }\n KUBERNETES\n}", port, bind))
		host := strings.TrimPrefix(strings.TrimPrefix(bind, "bind"), " ")
		serving(t, fmt.Sprintf("dns://%s:%d", host, port))
		for _, host := range []string{"127.0.0.1", "127.9.8.7", "::1"} {
			if bind != "" && host == "::1" {
				continue
			}
			before := fastAnswers(t)
			for range 8 { // all sockets
				// The client's socket is connected: it would not hear another address.
				if got := ask(t, netip.AddrPortFrom(netip.MustParseAddr(host), uint16(port)).String(), "web.prod.svc.cluster.local.", dns.TypeA); got != "NOERROR 10.96.1.1" {
					t.Errorf("%s: %s", host, got)
				}
				if got := ask(t, net.JoinHostPort(host, fmt.Sprint(port)), "dns-version.cluster.local.", dns.TypeTXT); got != `NOERROR "1.1.0"` {
					t.Errorf("%s, by the other plugins: %s", host, got)
				}
			}
			if n := fastAnswers(t) - before; n != 8 {
				t.Errorf("%s: %v of 8 questions were answered on the fast path", host, n)
			}
		}
	}
}

// A reload keeps the sockets, a failed one too, and one to a Corefile without the word gives them up.
// No question stays without its answer meanwhile.
func TestReload(t *testing.T) {
	port := freePort(t)
	corefile := func(rest string) string {
		return fmt.Sprintf(".:%d {\n bind 127.0.0.1\n KUBERNETES\n %s\n}", port, rest)
	}
	inst, err := caddy.Start(input(t, corefile("fastpath")))
	if err != nil {
		t.Fatal(err)
	}
	g := serving(t, "dns://"+local(port))
	quit, done := make(chan struct{}), make(chan int)
	go func() {
		n := 0
		defer func() { done <- n }()
		c := &dns.Client{Timeout: 5 * time.Second}
		for ; ; n++ {
			select {
			case <-quit:
				return
			default:
			}
			m, _, err := c.Exchange(new(dns.Msg).SetQuestion("web.prod.svc.cluster.local.", dns.TypeA), local(port))
			if err != nil || len(m.Answer) != 1 {
				t.Errorf("question %d: %v %v", n, m, err)
				return
			}
		}
	}()
	for range 3 {
		if inst, err = inst.Restart(input(t, corefile("fastpath\n loadbalance"))); err != nil {
			t.Fatal(err)
		}
		eventually(t, "plan that shuffles", func() bool { return g.plan.Load().zones[0].shuffled })
		if serving(t, g.addr) != g {
			t.Fatal("the sockets are others after a reload")
		}
		if failed, err := inst.Restart(input(t, corefile("fastpath\n nonsense"))); err == nil || failed != inst {
			t.Fatal("a Corefile with nonsense was taken")
		}
		if inst, err = inst.Restart(input(t, corefile("fastpath"))); err != nil {
			t.Fatal(err)
		}
		eventually(t, "plan that does not", func() bool { return !g.plan.Load().zones[0].shuffled })
	}
	if inst, err = inst.Restart(input(t, corefile(""))); err != nil {
		t.Fatal(err)
	}
	eventually(t, "end of the sockets", func() bool {
		groups.Lock()
		defer groups.Unlock()
		return groups.by[g.addr] == nil
	})
	before := fastAnswers(t)
	ask(t, local(port), "web.prod.svc.cluster.local.", dns.TypeA)
	close(quit)
	if n := <-done; n == 0 {
		t.Error("nothing was asked meanwhile")
	}
	if fastAnswers(t) != before {
		t.Error("there is still a fast path")
	}
	stop(t, inst)
}

// Several sockets of the server itself stay the server's.
func TestMultisocket(t *testing.T) {
	port := freePort(t)
	start(t, fmt.Sprintf(".:%d {\n bind 127.0.0.1\n multisocket 3\n fastpath\n KUBERNETES\n}", port))
	g := serving(t, "dns://"+local(port))
	if g.base != 3 {
		t.Errorf("base is %d", g.base)
	}
	before := fastAnswers(t)
	for range 20 {
		ask(t, local(port), "web.prod.svc.cluster.local.", dns.TypeA)
	}
	if n := fastAnswers(t) - before; n != 20 {
		t.Errorf("%v of 20 questions were answered on the fast path", n)
	}
}

func TestSettings(t *testing.T) {
	for text, want := range map[string]string{
		"fastpath":                         "",
		"fastpath {\n sockets 4\n}":        "",
		"fastpath off":                     "wrong argument count",
		"fastpath {\n sockets\n}":          "want one number",
		"fastpath {\n sockets 0\n}":        "want one number",
		"fastpath {\n sockets 65\n}":       "want one number",
		"fastpath {\n sockets 1 2\n}":      "want one number",
		"fastpath {\n threads 4\n}":        `unknown property "threads"; accepted: sockets`,
		"fastpath\nfastpath":               "only be used once",
		"fastpath {\n sockets nonsense\n}": "want one number",
	} {
		s, err := parse(caddy.NewTestController("dns", text))
		switch {
		case want == "" && (err != nil || s.sockets < 1):
			t.Errorf("%q: %v, %v", text, s, err)
		case want != "" && (err == nil || !strings.Contains(strings.ToLower(err.Error()), strings.ToLower(want))):
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}
