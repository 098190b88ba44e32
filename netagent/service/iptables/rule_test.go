package iptables

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/braidnet/braid/internal/desired/xt"
	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/netagent/service"
)

func TestCommentCannotEscape(t *testing.T) {
	f := frontend("x\" -j ACCEPT\n-A INPUT -j ACCEPT\n#", service.ClusterIP, model.TCP, "10.96.0.1:80", far("10.244.2.7:80"))
	f.PortName = `\` + strings.Repeat("é", 300)
	r := New(false, false)
	r.Replace([]service.Frontend{f}, service.Net{}, nil)
	in := r.Pending()
	for _, line := range strings.Split(in, "\n") {
		if strings.HasPrefix(line, "-A INPUT") || len(line) > 400 {
			t.Errorf("a name made the line %q", line)
		}
	}
	if err := newFakeKernel().load(in); err != nil {
		t.Error(err)
	}
}

func TestPathMatch(t *testing.T) {
	k4 := service.Key{Kind: service.ClusterIP, Protocol: model.UDP, Addr: netip.MustParseAddr("10.96.18.52"), Port: 0x1234}
	k6 := service.Key{Kind: service.ClusterIP, Protocol: model.TCP, Addr: netip.MustParseAddr("fd00:10:96::a"), Port: 80}
	np := service.Key{Kind: service.NodePort, Protocol: model.SCTP, Addr: netip.IPv4Unspecified(), Port: 30080}
	for _, tc := range []struct {
		key   service.Key
		n     int
		nibbl int
		want  string
	}{
		{k4, 1, 8, "-d 0.0.0.0/4"},
		{k4, 3, 8, "-d 10.96.0.0/12"},
		{k4, 8, 8, "-d 10.96.18.52/32"},
		{k4, 9, 8, "-d 10.96.18.52/32 -p udp"},
		{k4, 10, 8, "-d 10.96.18.52/32 -p udp -m udp --dport 4096:8191"},
		{k4, 13, 8, "-d 10.96.18.52/32 -p udp -m udp --dport 4660"},
		{k6, 30, 32, "-d fd00:10:96::/120"},
		{k6, 32, 32, "-d fd00:10:96::a/128"},
		{np, 1, 0, "-p sctp"},
		{np, 4, 0, "-p sctp -m sctp --dport 30080:30095"},
		{np, 5, 0, "-p sctp -m sctp --dport 30080"},
	} {
		key, ok := dispatchKey(tc.key)
		if !ok {
			t.Fatalf("no dispatch key for %s", tc.key)
		}
		if got := pathMatch(key[:tc.n], tc.nibbl); got != tc.want {
			t.Errorf("%s, %d nibbles: %q, want %q", tc.key, tc.n, got, tc.want)
		}
	}
	if _, ok := dispatchKey(service.Key{Kind: service.ClusterIP, Protocol: 1, Addr: k4.Addr}); ok {
		t.Error("a protocol without ports has a dispatch key")
	}
}

func TestEqualRule(t *testing.T) {
	for _, tc := range []struct {
		a, b string
		want bool
	}{
		{`-m comment --comment "a" -j X`, `-m comment --comment a -j X`, true},
		{`-m comment --comment "a b" -j X`, `-m comment --comment a b -j X`, false},
		{`-m comment --comment "a\"b" -j X`, `-m comment --comment "a\"b"  -j X`, true},
		{`-m statistic --mode random --probability 0.33333333302 -j X`, `-m statistic --mode random --probability 0.33333333349 -j X`, true},
		{`-m statistic --mode random --probability 0.33333333302 -j X`, `-m statistic --mode random --probability 0.5 -j X`, false},
		{`-d 1.0 -j X`, `-d 1.00 -j X`, false},
		{`-j X`, `-j X -m tcp`, false},
	} {
		if got := xt.EqualRule(tc.a, tc.b); got != tc.want {
			t.Errorf("%s | %s: equal %v, want %v", tc.a, tc.b, got, tc.want)
		}
	}
}

func FuzzWords(f *testing.F) {
	f.Add(`-m comment --comment "a \" b" -j X`)
	f.Add(`"`)
	f.Fuzz(func(t *testing.T, s string) {
		// Quoting each word again and splitting must give the same words.
		w := xt.Words(s)
		quoted := make([]string, len(w))
		for i, x := range w {
			quoted[i] = `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(x) + `"`
		}
		if again := xt.Words(strings.Join(quoted, " ")); !slices.Equal(w, again) {
			t.Errorf("%q: words %q, after quoting %q", s, w, again)
		}
	})
}

// TestProbabilities: walking the rules of n backends gives each the same chance.
func TestProbabilities(t *testing.T) {
	for _, n := range []int{2, 3, 7, 100} {
		left := 1.0
		for i := range n - 1 {
			var p float64
			if _, err := fmt.Sscanf(probability(n-i), "-m statistic --mode random --probability %g", &p); err != nil {
				t.Fatal(err)
			}
			if got := left * p * float64(n); got < 0.9999 || got > 1.0001 {
				t.Errorf("backend %d of %d gets %.6f times its share", i, n, got)
			}
			left *= 1 - p
		}
	}
}
