package agent

import (
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/braidnet/braid/internal/kernel/netns/nstest"
)

var streamPace = flag.Duration("stream.pace", 2*time.Millisecond, "between two datagrams of a stream while keys are replaced")

// window is how many datagrams of a stream are under way at most: none is lost in a queue, however busy the machine.
const window = 40

// stream sends numbered datagrams from a pod to another, and lines there and back on one connection.
type stream struct {
	name           string
	sent, got      atomic.Int64
	reordered, bad atomic.Int64 // datagrams that came after a later one; and such as nobody sent
	lines          atomic.Int64
	broken         atomic.Pointer[error] // what ended the connection
	gaps           []string              // when numbers were left out, and which
}

// start begins the stream; end stops the sender, and close all of it.
func (s *stream) start(t *testing.T, from, to *nstest.NS, ip string, port int, end, closed <-chan struct{}, wg *sync.WaitGroup) {
	t.Helper()
	var in, out net.Conn
	var listener net.Listener
	addr := net.JoinHostPort(ip, fmt.Sprint(port))
	to.Run(t, func() error {
		l, err := net.ListenPacket("udp", addr)
		if err != nil {
			return err
		}
		in = l.(*net.UDPConn)
		listener, err = net.Listen("tcp", addr)
		return errors.Join(err, l.(*net.UDPConn).SetReadBuffer(1<<20))
	})
	from.Run(t, func() (err error) {
		out, err = net.Dial("udp", addr)
		return err
	})
	wg.Go(func() { s.receive(in) })
	wg.Go(func() { echoLines(listener) })
	wg.Go(func() { s.send(out, end) })
	var conn net.Conn
	from.Run(t, func() (err error) {
		conn, err = net.Dial("tcp", addr)
		return err
	})
	wg.Go(func() { s.talk(conn, end) })
	wg.Go(func() {
		<-closed
		for _, c := range []io.Closer{in, out, listener, conn} {
			_ = c.Close()
		}
	})
}

func (s *stream) send(out net.Conn, end <-chan struct{}) {
	tick := time.NewTicker(*streamPace)
	defer tick.Stop()
	for n := uint64(0); ; {
		select {
		case <-end:
			return
		case <-tick.C:
		}
		if s.sent.Load()-s.got.Load() >= window {
			continue
		}
		if _, err := out.Write(binary.BigEndian.AppendUint64(make([]byte, 0, 100), n)); err == nil {
			s.sent.Add(1)
			n++
		}
	}
}

func (s *stream) receive(in net.Conn) {
	next := uint64(0)
	for b := make([]byte, 100); ; {
		n, err := in.Read(b)
		if err != nil {
			return
		}
		switch number := binary.BigEndian.Uint64(b); {
		case n != 8:
			s.bad.Add(1)
			continue
		case number < next:
			s.reordered.Add(1)
		default:
			if number > next {
				s.gaps = append(s.gaps, fmt.Sprintf("%s %d…%d", time.Now().Format("05.000"), next, number-1))
			}
			next = number + 1
		}
		s.got.Add(1)
	}
}

func echoLines(l net.Listener) {
	c, err := l.Accept()
	if err != nil {
		return
	}
	defer c.Close()
	_, _ = io.Copy(c, c)
}

// talk has each line answered before the next.
func (s *stream) talk(c net.Conn, end <-chan struct{}) {
	line, back := []byte("0123456789abcdef"), make([]byte, 16)
	for {
		_, err := c.Write(line)
		if err == nil {
			_ = c.SetReadDeadline(time.Now().Add(time.Minute))
			_, err = io.ReadFull(c, back)
		}
		if err != nil {
			s.broken.Store(&err)
			return
		}
		s.lines.Add(1)
		select {
		case <-end:
			return
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// streams runs one between each two pods of a testNet, in both directions and families.
type streams struct {
	all         []*stream
	end, closed chan struct{}
	wg          sync.WaitGroup
}

func (n *testNet) stream(t *testing.T) *streams {
	t.Helper()
	out := &streams{end: make(chan struct{}), closed: make(chan struct{})}
	for i, from := range n.nodes {
		for j, to := range n.nodes {
			for f, ip := range to.podIPs {
				if i == j {
					continue
				}
				s := &stream{name: fmt.Sprintf("%s to %s by IPv%d", from.name, to.name, 4+2*f)}
				s.start(t, from.pod, to.pod, ip, 4000+i, out.end, out.closed, &out.wg)
				out.all = append(out.all, s)
			}
		}
	}
	return out
}

// stop waits until all has arrived, or nothing comes any more, and says what became of the streams that match.
func (s *streams) stop(t *testing.T, spared func(name string) bool) {
	t.Helper()
	close(s.end)
	missing := func() (n int64) {
		for _, x := range s.all {
			n += x.sent.Load() - x.got.Load()
		}
		return n
	}
	for last, quiet := missing(), 0; missing() > 0 && quiet < 30; time.Sleep(100 * time.Millisecond) {
		if quiet++; missing() != last {
			last, quiet = missing(), 0
		}
	}
	close(s.closed)
	s.wg.Wait()
	var sent, lines, reordered int64
	for _, x := range s.all {
		sent, lines, reordered = sent+x.sent.Load(), lines+x.lines.Load(), reordered+x.reordered.Load()
		lost, broken := x.sent.Load()-x.got.Load(), x.broken.Load()
		if spared(x.name) {
			t.Logf("%s: sent %d, lost %d", x.name, x.sent.Load(), lost)
			continue
		}
		if lost != 0 || x.bad.Load() != 0 || x.sent.Load() < 100 || x.lines.Load() < 10 {
			t.Errorf("%s: sent %d, lost %d, %d of nobody, %d answers by TCP; late or lost: %v", x.name, x.sent.Load(), lost, x.bad.Load(), x.lines.Load(), x.gaps)
		}
		if broken != nil {
			t.Errorf("%s: connection: %v", x.name, *broken)
		}
	}
	t.Logf("%d datagrams, %d of them reordered, %d answers by TCP", sent, reordered, lines)
}
