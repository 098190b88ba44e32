package main

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// fastCluster has a service of each sort, and a headless one whose answers do not fit a small packet.
func fastCluster() string {
	var b strings.Builder
	service := func(name, spec string) {
		fmt.Fprintf(&b, "---\napiVersion: v1\nkind: Service\nmetadata: {name: %s, namespace: prod}\nspec: {%s}\n", name, spec)
	}
	slice := func(name, service, family string, endpoints ...string) {
		fmt.Fprintf(&b, "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: %s, namespace: prod, labels: {kubernetes.io/service-name: %s}}\n"+
			"addressType: %s\nports: [{name: sql, port: 5432}, {name: http, port: 80}]\nendpoints:\n- %s\n", name, service, family, strings.Join(endpoints, "\n- "))
	}
	service("web", "clusterIP: 10.96.1.1, clusterIPs: [10.96.1.1, 'fd00:10:96::1'], ports: [{name: http, port: 80}, {name: dns, port: 53, protocol: UDP}]")
	service("bare", "clusterIP: 10.96.1.2, clusterIPs: [10.96.1.2]")
	service("db", "clusterIP: None, ports: [{name: sql, port: 5432}]")
	slice("db-4", "db", "IPv4", "{addresses: [10.244.1.6], hostname: db-0}", "{addresses: [10.244.2.6]}", "{addresses: [10.244.3.6], conditions: {ready: false}}")
	slice("db-6", "db", "IPv6", "{addresses: ['fd00:10:244:1::'], hostname: db-0}", "{addresses: ['fd00:10:244:2::6']}")
	service("many", "clusterIP: None")
	var list []string
	for i := range 120 {
		list = append(list, fmt.Sprintf("{addresses: [10.245.0.%d]}", i%100))
	}
	slice("many-1", "many", "IPv4", list...)
	service("down", "clusterIP: None")
	slice("down-1", "down", "IPv4", "{addresses: [10.244.9.9], conditions: {ready: false}}")
	service("out", "type: ExternalName, externalName: www.example.net")
	service("alias", "type: ExternalName, externalName: web.prod.svc.cluster.local")
	return b.String()
}

// fastProgram is a program that tells its metrics at an address.
type fastProgram struct {
	*program
	metrics string
}

// startFast runs a server with two doors to one state, of which the first has a fast path.
func startFast(t *testing.T, options string) (p *fastProgram, fast, plain string) {
	t.Helper()
	dir := t.TempDir()
	write(t, filepath.Join(dir, "cluster.yaml"), fastCluster())
	upstream, metrics := outside(t), fmt.Sprintf("127.0.0.1:%d", freePort(t))
	block := func(port int, word string) string {
		return fmt.Sprintf(".:%d {\n bind 127.0.0.1\n errors\n kubernetes cluster.local in-addr.arpa {\n  manifests %s\n  pods insecure\n  ttl 30\n %s\n }\n forward . %s\n "+
			"cache 20 {\n  disable success cluster.local in-addr.arpa\n  disable denial cluster.local in-addr.arpa\n }\n loadbalance\n prometheus %s\n %s\n}\n", port, dir, options, upstream, metrics, word)
	}
	a, b := freePort(t), freePort(t)
	corefile := filepath.Join(t.TempDir(), "Corefile")
	write(t, corefile, block(a, "fastpath")+block(b, ""))
	fast, plain = fmt.Sprintf("127.0.0.1:%d", a), fmt.Sprintf("127.0.0.1:%d", b)
	return &fastProgram{start(t, corefile, fast), "http://" + metrics + "/metrics"}, fast, plain
}

// exchange sends one packet and returns what comes back, nil for nothing.
func exchange(t *testing.T, addr string, packet []byte, silent bool) []byte {
	t.Helper()
	c, err := net.Dial("udp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write(packet); err != nil {
		t.Fatal(err)
	}
	wait := patience
	if silent {
		wait = 50 * time.Millisecond
	}
	c.SetReadDeadline(time.Now().Add(wait))
	buf := make([]byte, dns.MaxMsgSize)
	n, err := c.Read(buf)
	if silent && os.IsTimeout(err) {
		return nil
	}
	if err != nil {
		t.Fatalf("no answer from %s to %x: %v", addr, packet, err)
	}
	return buf[:n]
}

// same compares two answers byte for byte, but for the order of addresses. What an answer that is cut
// short leaves out is arbitrary.
func same(a, b []byte) bool {
	if bytes.Equal(a, b) {
		return true
	}
	var m, n dns.Msg
	if len(a) != len(b) || m.Unpack(a) != nil || n.Unpack(b) != nil || !bytes.Equal(a[:headerBytes], b[:headerBytes]) {
		return false
	}
	for _, s := range []*dns.Msg{&m, &n} {
		for _, rrs := range [][]dns.RR{s.Answer, s.Extra} {
			for _, rr := range rrs {
				if a, ok := rr.(*dns.A); ok && s.Truncated {
					a.A = nil
				}
			}
			slices.SortFunc(rrs, func(a, b dns.RR) int { return strings.Compare(a.String(), b.String()) })
		}
	}
	return m.String() == n.String()
}

const headerBytes = 12

// Every question gets the same answer through both doors.
func TestFastPathAnswersTheSame(t *testing.T) {
	p, fast, plain := startFast(t, "")
	names := []string{
		"web.prod.svc.cluster.local.", "bare.prod.svc.cluster.local.", "db.prod.svc.cluster.local.", "many.prod.svc.cluster.local.",
		"down.prod.svc.cluster.local.", "out.prod.svc.cluster.local.", "alias.prod.svc.cluster.local.", "none.prod.svc.cluster.local.",
		"db-0.db.prod.svc.cluster.local.", "10-244-2-6.db.prod.svc.cluster.local.", "x.db.prod.svc.cluster.local.",
		"_http._tcp.web.prod.svc.cluster.local.", "http.tcp.web.prod.svc.cluster.local.", "_sql._tcp.db.prod.svc.cluster.local.",
		"_x._tcp.web.prod.svc.cluster.local.", "_tcp.web.prod.svc.cluster.local.", "_.web.prod.svc.cluster.local.",
		"prod.svc.cluster.local.", "gone.svc.cluster.local.", "web.gone.svc.cluster.local.", "svc.cluster.local.", "cluster.local.", "pod.cluster.local.",
		"dns-version.cluster.local.", "ns.dns.cluster.local.", "dns.cluster.local.", "10-1-2-3.prod.pod.cluster.local.", "prod.pod.cluster.local.", "x.prod.pod.cluster.local.",
		"www.example.net.prod.svc.cluster.local.", "www.example.net.svc.cluster.local.", "www.example.net.cluster.local.", "a.b.c.d.e.prod.svc.cluster.local.",
		"xcluster.local.", "local.", ".", "www.example.net.", "web\\.x.prod.svc.cluster.local.", "we\\000b.prod.svc.cluster.local.",
		strings.Repeat("a", 63) + ".prod.svc.cluster.local.", strings.Repeat(strings.Repeat("a", 60)+".", 3) + "prod.svc.cluster.local.",
		"1.1.96.10.in-addr.arpa.", "6.2.244.10.in-addr.arpa.", "9.9.9.10.in-addr.arpa.", "10.in-addr.arpa.",
	}
	types := []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeSRV, dns.TypePTR, dns.TypeTXT, dns.TypeMX, dns.TypeNS, dns.TypeSOA, dns.TypeCNAME, dns.TypeHTTPS, dns.TypeDS, 65280}
	n := 0
	for i, name := range names {
		for j, typ := range types {
			for k, change := range fastChanges {
				if k > 1 && k%3 != (i+j)%3 && typ != dns.TypeA {
					continue // enough of each with each
				}
				m := new(dns.Msg).SetQuestion(name, typ)
				m.Id = uint16(n)
				change(m)
				packet, err := m.Pack()
				if err != nil {
					continue // a name that is too long with what it was changed to
				}
				n++
				a, b := exchange(t, fast, packet, false), exchange(t, plain, packet, false)
				if !same(a, b) {
					t.Errorf("%s %s, change %d, %x:\nfast\n%s\nplain\n%s", name, dns.Type(typ), k, packet, hex.Dump(a), hex.Dump(b))
				}
			}
		}
	}
	// The last answer is counted after it is sent.
	deadline := time.Now().Add(patience)
	for {
		metrics, counted := counters(t, p.metrics, fast, plain)
		var wrong []string
		for key, v := range metrics {
			if v[0] != v[1] {
				wrong = append(wrong, fmt.Sprintf("%s is %q with a fast path, %q without", key, v[0], v[1]))
			}
		}
		if len(wrong) == 0 && len(metrics) > 0 && counted > 0 {
			t.Logf("%d questions, %d answered on the fast path, %d metrics", n, counted, len(metrics))
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d metrics, %d fast answers, wrong:\n%s", len(metrics), counted, strings.Join(wrong, "\n"))
		}
	}
}

// counters returns what prometheus says of the queries of both servers, but for how long they took,
// and how many answers the fast path gave.
func counters(t *testing.T, url, fast, plain string) (both map[string][2]string, counted int) {
	t.Helper()
	res, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	both = map[string][2]string{}
	for _, line := range strings.Split(string(text), "\n") {
		key, value, _ := strings.Cut(line, " ")
		if key == "coredns_fastpath_answers_total" {
			counted, _ = strconv.Atoi(value)
		}
		if !strings.HasPrefix(key, "coredns_dns_") || (strings.Contains(key, "duration") && !strings.Contains(key, "_count")) {
			continue
		}
		for i, addr := range []string{fast, plain} {
			if general := strings.Replace(key, addr, "SERVER", 1); general != key {
				v := both[general]
				v[i] = value
				both[general] = v
			}
		}
	}
	return both, counted
}

// fastChanges are ways to ask one question.
var fastChanges = []func(*dns.Msg){
	func(*dns.Msg) {},
	func(m *dns.Msg) { m.SetEdns0(1232, false) },
	func(m *dns.Msg) { m.SetEdns0(4096, true); m.CheckingDisabled = true },
	func(m *dns.Msg) { m.SetEdns0(100, false); m.RecursionDesired = false },
	func(m *dns.Msg) { m.SetEdns0(1700, false); m.AuthenticatedData = true },
	func(m *dns.Msg) { m.Question[0].Name = strings.ToUpper(m.Question[0].Name) },
	func(m *dns.Msg) {
		m.SetEdns0(800, false)
		m.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "0123456789abcdef"}}
	},
	func(m *dns.Msg) {
		m.SetEdns0(800, false)
		m.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_NSID{Code: dns.EDNS0NSID}, &dns.EDNS0_PADDING{Padding: make([]byte, 9)}}
	},
	func(m *dns.Msg) { m.SetEdns0(1232, false); m.IsEdns0().SetVersion(1) },
	func(m *dns.Msg) { m.SetEdns0(1232, false); m.IsEdns0().Hdr.Ttl |= 0x7fff },
	func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS },
	func(m *dns.Msg) { m.Opcode = dns.OpcodeNotify },
	func(m *dns.Msg) { m.Opcode = dns.OpcodeUpdate },
	func(m *dns.Msg) { m.Zero, m.Authoritative, m.Truncated, m.RecursionAvailable = true, true, true, true },
	func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) },
	func(m *dns.Msg) {
		m.Extra = append(m.Extra, &dns.A{Hdr: dns.RR_Header{Name: "x.", Rrtype: dns.TypeA, Class: 1}, A: net.IPv4(1, 2, 3, 4)})
	},
	func(m *dns.Msg) { m.SetEdns0(1232, false); m.SetEdns0(512, true) },
}

// So do packets that are no questions.
func TestFastPathLeavesTheRestAlone(t *testing.T) {
	p, fast, plain := startFast(t, "")
	question, _ := new(dns.Msg).SetQuestion("web.prod.svc.cluster.local.", dns.TypeA).Pack()
	with := func(at int, values ...byte) []byte {
		b := slices.Clone(question)
		copy(b[at:], values)
		return b
	}
	for _, c := range []struct {
		name   string
		packet []byte
		silent bool
	}{
		{"too short for a header", question[:7], true},
		{"a header alone", question[:12], false},
		{"a response", with(2, 0x81), true},
		{"half a name", question[:20], false},
		{"half a question", question[:len(question)-2], false},
		{"octets behind the question", append(slices.Clone(question), 1, 2, 3), false},
		{"a label that is too long", with(12, 64), false},
		{"a pointer", append(slices.Clone(question[:12]), 0xc0, 12, 0, 1, 0, 1), false},
		{"an answer that is not there", with(6, 0, 1), false},
		{"two answers", with(6, 0, 2), false},
		{"no question", with(4, 0, 0), false},
		{"an additional record that is not there", with(10, 0, 1), false},
		{"longer than CoreDNS reads", append(with(10, 0, 1), bytes.Repeat([]byte{0}, 600)...), false},
	} {
		a, b := exchange(t, fast, c.packet, c.silent), exchange(t, plain, c.packet, c.silent)
		if !same(a, b) {
			t.Errorf("%s, %x:\nfast\n%s\nplain\n%s", c.name, c.packet, hex.Dump(a), hex.Dump(b))
		}
	}
	p.eventually(t, "web.prod.svc.cluster.local.", dns.TypeA, "NOERROR 10.96.1.1")
}
