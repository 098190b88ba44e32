package scenario

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"
)

// stream sends a pod datagrams all the time and notes for how long none was answered.
type stream struct {
	name string

	mu   sync.Mutex
	last time.Time // when an answer came
	gap  time.Duration
}

const streamPace = 20 * time.Millisecond

func newStream(t *testing.T, from place, name string, to netip.AddrPort) *stream {
	t.Helper()
	s := &stream{name: fmt.Sprintf("%s (%s)", name, to)}
	conn, err := from.dial(context.Background(), "udp", to)
	if err != nil {
		t.Fatalf("%s: %v", s.name, err)
	}
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { s.send(conn, done) })
	wg.Go(func() { s.receive(conn, done) })
	t.Cleanup(func() {
		close(done)
		_ = conn.Close()
		wg.Wait()
	})
	s.reset()
	return s
}

func (s *stream) send(conn net.Conn, done <-chan struct{}) {
	tick := time.NewTicker(streamPace)
	defer tick.Stop()
	for {
		select {
		case <-done:
			return
		case <-tick.C:
		}
		_, _ = conn.Write([]byte("hello")) // what cannot be sent is not answered
	}
}

func (s *stream) receive(conn net.Conn, done <-chan struct{}) {
	buf := make([]byte, 512)
	for {
		_, err := conn.Read(buf)
		select {
		case <-done:
			return
		default:
		}
		if err == nil { // otherwise an ICMP error, for one datagram
			s.answered()
		}
	}
}

func (s *stream) answered() {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	s.gap = max(s.gap, now.Sub(s.last)-streamPace)
	s.last = now
}

// reset begins a new count now.
func (s *stream) reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last, s.gap = time.Now(), 0
}

// outage is for how long no answer came, at most, since the count began.
func (s *stream) outage() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.gap
}
