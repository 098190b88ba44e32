package main

import (
	"bufio"
	"encoding/json"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
)

// server answers every line with this host's name, which in a pod is the pod's.
type server struct {
	name string

	mu       sync.Mutex
	accepted map[string]int // connections, by "CLIENT PORT"
}

// serve listens on addresses until one of them cannot be listened on any more.
func serve(addrs []string) error {
	name, err := os.Hostname()
	if err != nil {
		return err
	}
	s := &server{name: name, accepted: map[string]int{}}
	failed := make(chan error, len(addrs))
	for _, addr := range addrs {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			return err
		}
		go func() { failed <- s.accept(l) }()
	}
	return <-failed
}

func (s *server) accept(l net.Listener) error {
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		return err
	}
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		if from, err := netip.ParseAddrPort(conn.RemoteAddr().String()); err == nil {
			s.mu.Lock()
			s.accepted[from.Addr().Unmap().String()+" "+port]++
			s.mu.Unlock()
		}
		go s.answer(conn)
	}
}

func (s *server) answer(conn net.Conn) {
	defer conn.Close()
	for lines := bufio.NewReader(conn); ; {
		line, err := lines.ReadSlice('\n')
		if err != nil {
			return // the client has gone
		}
		answer := []byte(s.name)
		if string(line) == "accepted\n" {
			s.mu.Lock()
			answer, err = json.Marshal(s.accepted)
			s.mu.Unlock()
		}
		if err != nil {
			return
		}
		if _, err := io.WriteString(conn, string(answer)+"\n"); err != nil {
			return
		}
	}
}
