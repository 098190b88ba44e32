package main

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"
	"testing/synctest"
	"time"
)

// TestCountsWaitForProbesUnderWay: what began before take belongs to it, however long it takes.
func TestCountsWaitForProbesUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCounts()
		slow := c.begin("a")
		go func() {
			time.Sleep(slowFrom)
			slow(nil)
		}()
		c.begin("a")(errors.New("refused"))
		got := c.take()["a"]
		if got == nil || got.OK != 1 || got.Failed != 1 || got.Slow != 1 || got.Worst < slowFrom || len(got.Errors) != 1 {
			t.Errorf("counted %+v, want one slow success and one failure", got)
		}
		if again := c.take(); len(again) != 0 {
			t.Errorf("counted twice: %+v", again)
		}
	})
}

// TestStarvedProbesAreNotJudged: when the clock went on for long after a probe's time was up, nobody knows what the
// network did. What got through that must not is counted however late.
func TestStarvedProbesAreNotJudged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCounts()
		late, timedOut, answered := c.begin("a"), c.begin("a"), c.begin("a")
		time.Sleep(patience)
		timedOut(os.ErrDeadlineExceeded)
		time.Sleep(starvedFrom)
		late(os.ErrDeadlineExceeded)
		answered(errAnswered)
		if got := c.take()["a"]; got.Starved != 1 || got.Failed != 2 {
			t.Errorf("counted %+v, want one that was starved and two failures", got)
		}
	})
}

func TestAnswersAreJudged(t *testing.T) {
	q, err := newQuestion("web.default.svc=10.96.0.7")
	if err != nil {
		t.Fatal(err)
	}
	msg := q.query(7)
	if err := q.check(msg); err == nil {
		t.Error("a question is taken for an answer")
	}
	good := append(append([]byte(nil), msg...), 10, 96, 0, 7)
	good[7] = 1
	if err := q.check(good); err != nil {
		t.Error(err)
	}
	wrong := append(append([]byte(nil), good...), 1)
	refused := append([]byte(nil), good...)
	refused[3] = 3
	for _, m := range [][]byte{wrong, refused, good[:5]} {
		if err := q.check(m); err == nil {
			t.Errorf("% x is taken for a good answer", m)
		}
	}
}

// TestLostDatagramsAreAskedForAgain: a server that answers only what it hears a second time.
func TestLostDatagramsAreAskedForAgain(t *testing.T) {
	server, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	q, err := newQuestion("web.default.svc=10.96.0.7")
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		buf := make([]byte, 512)
		for n := 1; ; n++ {
			size, from, err := server.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			if n > 1 {
				msg := append(buf[:size:size], q.want...)
				msg[7] = 1
				_, _ = server.WriteToUDPAddrPort(msg, from)
			}
		}
	}()
	c := newCounts()
	if err := resolve(c, "datagrams", server.LocalAddr().(*net.UDPAddr).AddrPort(), q); err != nil {
		t.Error(err)
	}
	if got := c.take()["datagrams"]; got.OK != 1 || got.Failed != 1 {
		t.Errorf("%+v, want one datagram lost and one answered", got)
	}
}

// TestUnreached: who answers is found out, over TCP and UDP, and who refuses is not taken for one who answers.
func TestUnreached(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		buf := make([]byte, 100)
		n, from, _ := c.ReadFrom(buf)
		_, _ = c.WriteTo(buf[:n], from)
	}()
	for network, addr := range map[string]net.Addr{"tcp": l.Addr(), "udp": c.LocalAddr()} {
		if err := unreached(network, netip.MustParseAddrPort(addr.String())); !errors.Is(err, errAnswered) {
			t.Errorf("%s: %v, want %v", network, err, errAnswered)
		}
	}
	l.Close()
	c.Close()
	for network, addr := range map[string]net.Addr{"tcp": l.Addr(), "udp": c.LocalAddr()} {
		if err := unreached(network, netip.MustParseAddrPort(addr.String())); err != nil {
			t.Errorf("%s to nobody: %v", network, err)
		}
	}
}
