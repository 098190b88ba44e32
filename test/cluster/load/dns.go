package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"
)

// question is an A or AAAA query without EDNS, whose answer ends in the address asked for.
type question struct {
	name []byte // in wire form
	want []byte // the address
}

func newQuestion(s string) (question, error) {
	name, addr, _ := strings.Cut(s, "=")
	a, err := netip.ParseAddr(addr)
	q := question{want: a.AsSlice()}
	for label := range strings.SplitSeq(strings.Trim(name, "."), ".") {
		q.name = append(append(q.name, byte(len(label))), label...)
	}
	q.name = append(q.name, 0)
	return q, err
}

// query returns the message with this number.
func (q question) query(id uint16) []byte {
	const recursion = 1 << 8
	msg := binary.BigEndian.AppendUint16(nil, id)
	for _, v := range []uint16{recursion, 1, 0, 0, 0} {
		msg = binary.BigEndian.AppendUint16(msg, v)
	}
	msg = append(msg, q.name...)
	kind := uint16(1) // A
	if len(q.want) == 16 {
		kind = 28 // AAAA
	}
	return binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(msg, kind), 1)
}

// check judges an answer.
func (q question) check(msg []byte) error {
	if len(msg) < 12 {
		return fmt.Errorf("an answer of %d bytes", len(msg))
	}
	if code := msg[3] & 15; code != 0 {
		return fmt.Errorf("answered with RCODE %d", code)
	}
	if n := binary.BigEndian.Uint16(msg[6:]); n == 0 || !bytes.HasSuffix(msg, q.want) {
		return fmt.Errorf("%d records that do not end in %v", n, q.want)
	}
	return nil
}

const (
	// retryAfter and attempts are those of musl's resolver, which sends again from the same socket; glibc
	// waits 5 s.
	retryAfter = 2500 * time.Millisecond
	attempts   = 2
)

var errUnanswered = errors.New("no answer")

// probeDNS asks as resolvers do, each question from a socket of its own: once more when no answer comes. It
// counts questions without an answer, and, as another name, datagrams without one.
func probeDNS(c *counts, name string, addr netip.AddrPort, q question, every time.Duration) {
	for range time.Tick(every) {
		done := c.begin(name)
		go func() { done(resolve(c, name+", datagrams", addr, q)) }()
	}
}

func resolve(c *counts, datagrams string, addr netip.AddrPort, q question) error {
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(addr))
	if err != nil {
		return err
	}
	defer conn.Close()
	id, buf := uint16(rand.Uint32()), make([]byte, 512)
	for range attempts {
		done := c.begin(datagrams)
		err = askOnce(conn, q, id, buf)
		done(err)
		if err == nil {
			return nil
		}
	}
	return err
}

func askOnce(conn *net.UDPConn, q question, id uint16, buf []byte) error {
	if err := conn.SetDeadline(time.Now().Add(retryAfter)); err != nil {
		return err
	}
	if _, err := conn.Write(q.query(id)); err != nil {
		return err
	}
	for {
		n, err := conn.Read(buf)
		if err != nil {
			return err
		}
		if n > 2 && binary.BigEndian.Uint16(buf) == id {
			return q.check(buf[:n])
		}
	}
}

// steadyDNS asks all the time from one socket, as forwarders do: its datagrams are one flow to the kernel. Like
// probeDNS it asks once more when no answer comes.
func steadyDNS(c *counts, name string, addr netip.AddrPort, q question, every time.Duration) {
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(addr))
	if err != nil {
		c.begin(name)(err)
		return
	}
	s := &steady{conn: conn, q: q, waiting: map[uint16]chan []byte{}}
	go s.receive()
	for range time.Tick(every) {
		done := c.begin(name)
		go func() {
			var err error
			for range attempts {
				one := c.begin(name + ", datagrams")
				err = s.ask()
				one(err)
				if err == nil {
					break
				}
			}
			done(err)
		}()
	}
}

// steady is a socket with the questions that wait for their answers.
type steady struct {
	conn    *net.UDPConn
	q       question
	mu      sync.Mutex
	last    uint16
	waiting map[uint16]chan []byte
}

func (s *steady) receive() {
	for buf := make([]byte, 512); ; {
		n, err := s.conn.Read(buf)
		if err != nil || n < 2 {
			continue // an ICMP error: whoever waits gives up in time
		}
		s.mu.Lock()
		if ch := s.waiting[binary.BigEndian.Uint16(buf)]; ch != nil {
			select {
			case ch <- bytes.Clone(buf[:n]):
			default: // the same answer twice
			}
		}
		s.mu.Unlock()
	}
}

func (s *steady) ask() error {
	ch := make(chan []byte, 1)
	s.mu.Lock()
	s.last++
	id := s.last
	s.waiting[id] = ch
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.waiting, id)
		s.mu.Unlock()
	}()
	// An ICMP error of an earlier datagram is told by the next write: this one was not sent then.
	if _, err := s.conn.Write(s.q.query(id)); err != nil {
		if _, err = s.conn.Write(s.q.query(id)); err != nil {
			return err
		}
	}
	select {
	case msg := <-ch:
		return s.q.check(msg)
	case <-time.After(retryAfter):
		return errUnanswered
	}
}
