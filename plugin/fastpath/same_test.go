package fastpath

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

// both answers packets on either path without the network between.
type both struct {
	reader *reader
	plan   *plan
	client *net.UDPConn // whom the slow path answers
}

func newBoth(t testing.TB) *both {
	t.Helper()
	port := freePort(t)
	start(t, fmt.Sprintf(".:%d {\n bind 127.0.0.1\n fastpath\n KUBERNETES\n cache 20 {\n disable success cluster.local in-addr.arpa\n disable denial cluster.local in-addr.arpa\n }\n loadbalance\n}", port))
	g := serving(t, "dns://"+local(port))
	s, err := listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	client, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.close(); client.Close() })
	return &both{newReader(g, s), g.plan.Load(), client}
}

// fast returns the answer of the fast path, nil when it leaves that to others.
func (b *both) fast(packet []byte) []byte {
	s := b.reader.socket
	s.in[0].length = uint32(copy(s.requests[0][:], packet))
	s.peers[0].Family = unix.AF_INET
	s.queued, b.reader.nDone = 0, 0
	if !b.reader.query.read(s.request(0)) || !b.reader.answer(b.plan, 0) {
		return nil
	}
	return s.replies[0][:s.outVec[0].Len]
}

// slow returns the answer of the other plugins, nil when there is none after a long wait.
func (b *both) slow(t testing.TB, packet []byte) []byte {
	w := &waiting{socket: b.reader.socket, server: b.plan.server, packet: packet[:min(len(packet), requestLen)], peer: b.client.LocalAddr().(*net.UDPAddr).AddrPort()}
	w.serve()
	b.client.SetReadDeadline(time.Now().Add(patience))
	buf := make([]byte, dns.MaxMsgSize)
	n, err := b.client.Read(buf)
	if err != nil {
		return nil
	}
	return buf[:n]
}

// sameAnswer compares answers byte for byte, but for the order of addresses.
func sameAnswer(a, b []byte) bool {
	if bytes.Equal(a, b) {
		return true
	}
	var m, n dns.Msg
	if len(a) != len(b) || m.Unpack(a) != nil || n.Unpack(b) != nil || !bytes.Equal(a[:headerLen], b[:headerLen]) {
		return false
	}
	for _, msg := range []*dns.Msg{&m, &n} {
		for _, rrs := range [][]dns.RR{msg.Answer, msg.Extra} {
			slices.SortFunc(rrs, func(a, b dns.RR) int { return strings.Compare(a.String(), b.String()) })
		}
	}
	return m.String() == n.String()
}

func packets(t testing.TB) (out [][]byte) {
	for i, name := range []string{
		"web.prod.svc.cluster.local.", "WEB.prod.SVC.cluster.local.", "db.prod.svc.cluster.local.", "db-0.db.prod.svc.cluster.local.", "_sql._tcp.db.prod.svc.cluster.local.",
		"_http._tcp.web.prod.svc.cluster.local.", "www.example.com.prod.svc.cluster.local.", "gone.svc.cluster.local.", "cluster.local.", "10-1-2-3.prod.pod.cluster.local.",
		"1.1.96.10.in-addr.arpa.", "6.1.244.10.in-addr.arpa.", "example.org.", "a\\.b.prod.svc.cluster.local.", ".",
	} {
		for j, typ := range []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeSRV, dns.TypePTR, dns.TypeTXT, dns.TypeHTTPS, dns.TypeSOA} {
			m := new(dns.Msg).SetQuestion(name, typ)
			m.Id = uint16(i<<8 | j)
			switch (i + j) % 4 {
			case 1:
				m.SetEdns0(1232, j%2 == 0)
			case 2:
				m.SetEdns0(200, false)
				m.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "0123456789abcdef"}}
			case 3:
				m.CheckingDisabled, m.AuthenticatedData, m.RecursionDesired = true, true, false
			}
			b, err := m.Pack()
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, b)
		}
	}
	return out
}

// What the fast path answers is what the other plugins would, whatever the packet: never an answer
// where they give none, and never a longer one.
func FuzzPacket(f *testing.F) {
	b := newBoth(f)
	answers := 0
	for _, p := range packets(f) {
		f.Add(p)
		if b.fast(p) != nil {
			answers++
		}
	}
	if answers < 40 {
		f.Fatalf("the fast path answers only %d of the seeds", answers)
	}
	f.Fuzz(func(t *testing.T, packet []byte) {
		fast := slices.Clone(b.fast(packet))
		if fast == nil {
			return
		}
		if slow := b.slow(t, packet); !sameAnswer(fast, slow) {
			t.Errorf("%x:\nfast\n%s\nslow\n%s", packet, hex.Dump(fast), hex.Dump(slow))
		}
	})
}

// The fast path allocates nothing, whatever it answers.
func TestAllocatesNothing(t *testing.T) {
	b := newBoth(t)
	for _, p := range packets(t) {
		if b.fast(p) == nil {
			continue
		}
		m := new(dns.Msg)
		if err := m.Unpack(p); err != nil {
			t.Fatal(err)
		}
		if n := testing.AllocsPerRun(100, func() { b.fast(p) }); n > 0 && !strings.Contains(m.Question[0].Name, ".pod.") {
			t.Errorf("%s %s: %v allocations", m.Question[0].Name, dns.Type(m.Question[0].Qtype), n)
		}
	}
}

func BenchmarkAnswer(b *testing.B) {
	x := newBoth(b)
	for _, name := range []string{"web.prod.svc.cluster.local.", "www.example.com.prod.svc.cluster.local."} {
		p, err := new(dns.Msg).SetQuestion(name, dns.TypeA).Pack()
		if err != nil {
			b.Fatal(err)
		}
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				x.fast(p)
				x.reader.done[0].add(0.0001)
			}
		})
	}
}

// What is more than can wait is dropped, and the oldest are started first.
func TestQueueIsBounded(t *testing.T) {
	b := newBoth(t)
	var q queue
	for i := range maxWaiting + 10 {
		b.reader.socket.in[0].length = uint32(copy(b.reader.socket.requests[0][:], fmt.Sprintf("%04d", i)))
		if ok := q.push(b.reader, b.plan, 0); ok != (i < maxWaiting) {
			t.Fatalf("push %d: %t", i, ok)
		}
	}
	g := &group{}
	q.start(maxStarted, g)
	if got := string(q.list[q.first].packet); got != fmt.Sprintf("%04d", maxStarted) || q.len() != maxWaiting-maxStarted {
		t.Errorf("next is %q of %d", got, q.len())
	}
	g.busy.Wait()
	for range maxBusy {
		g.pace.begin()
	}
	q.start(maxWaiting, g)
	if q.len() != 0 {
		t.Errorf("%d wait although nobody can take them", q.len())
	}
}
