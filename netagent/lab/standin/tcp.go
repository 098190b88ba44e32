package standin

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// tcpService accepts connections on one port, finds out whether the client speaks HTTP, and hands
// those that do to an HTTP server. The others get their bytes back.
type tcpService struct {
	listeners []net.Listener
	web       *http.Server
	handoff   *handoff
	wg        sync.WaitGroup

	mu     sync.Mutex
	conns  map[net.Conn]struct{} // those not handed to web
	closed bool
}

func listenTCP(info Info, p Port) (_ service, err error) {
	fds, err := bind(unix.SOCK_STREAM, p.Number)
	if err != nil {
		return nil, err
	}
	s := &tcpService{conns: map[net.Conn]struct{}{}}
	defer func() {
		if err != nil {
			s.closeListeners()
		}
	}()
	for i, fd := range fds {
		l, err := listenerOf(fd)
		if err != nil {
			for _, rest := range fds[i+1:] {
				unix.Close(rest)
			}
			return nil, err
		}
		s.listeners = append(s.listeners, l)
	}
	s.handoff = &handoff{conns: make(chan net.Conn), done: make(chan struct{}), addr: s.listeners[0].Addr()}
	s.web = &http.Server{
		Handler:  answer(info, p.Number),
		ErrorLog: log.New(io.Discard, "", 0), // broken requests are the client's affair
	}
	s.wg.Go(func() { _ = s.web.Serve(s.handoff) })
	for _, l := range s.listeners {
		s.wg.Go(func() { s.accept(l) })
	}
	return s, nil
}

// listenerOf turns a bound socket into a net.Listener and takes the descriptor over.
func listenerOf(fd int) (net.Listener, error) {
	f := os.NewFile(uintptr(fd), "listener")
	defer f.Close() // FileListener works on a copy
	if err := unix.Listen(fd, 128); err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	return l, nil
}

func answer(info Info, port uint16) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		local, _ := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr)
		client, _ := netip.ParseAddrPort(r.RemoteAddr)
		var addr netip.Addr
		if local != nil {
			addr = local.AddrPort().Addr()
		}
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = io.WriteString(w, banner(info, addr, client, port))
	}
}

func (s *tcpService) accept(l net.Listener) {
	for {
		c, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(10 * time.Millisecond) // out of descriptors: the only way on is to let some end
			continue
		}
		if !s.track(c) {
			c.Close()
			return
		}
		s.wg.Go(func() { s.serve(c) })
	}
}

func (s *tcpService) track(c net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.conns[c] = struct{}{}
	}
	return !s.closed
}

func (s *tcpService) untrack(c net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
}

func (s *tcpService) serve(c net.Conn) {
	defer s.untrack(c)
	in := bufio.NewReader(c)
	if speaksHTTP(in) {
		s.handoff.give(sniffed{c, in})
		return
	}
	defer c.Close()
	_, _ = io.Copy(c, in)
}

// methods are the HTTP methods that make a connection HTTP. The word PRI, with which HTTP/2 starts,
// is not among them: gRPC clients get an echo, which they rightly refuse.
var methods = []string{"GET ", "HEAD ", "POST ", "PUT ", "PATCH ", "DELETE ", "OPTIONS ", "TRACE "}

// speaksHTTP looks at the first bytes until they are a method or cannot become one.
func speaksHTTP(in *bufio.Reader) bool {
	for n := 1; ; n++ {
		head, err := in.Peek(n)
		if err != nil {
			return false
		}
		possible := false
		for _, m := range methods {
			if string(head) == m {
				return true
			}
			possible = possible || strings.HasPrefix(m, string(head))
		}
		if !possible {
			return false
		}
	}
}

func (s *tcpService) closeListeners() {
	for _, l := range s.listeners {
		l.Close()
	}
}

func (s *tcpService) close() {
	s.closeListeners()
	s.mu.Lock()
	s.closed = true
	for c := range s.conns {
		c.Close()
	}
	s.mu.Unlock()
	s.handoff.Close()
	s.wg.Wait()
	// Only now that web accepts no more does its Close reach every connection it was handed.
	_ = s.web.Close()
}

// sniffed is a connection whose first bytes have been read already.
type sniffed struct {
	net.Conn
	in *bufio.Reader
}

func (c sniffed) Read(p []byte) (int, error) { return c.in.Read(p) }

// handoff is a listener that yields the connections it is given.
type handoff struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
	addr  net.Addr
}

func (h *handoff) give(c net.Conn) {
	select {
	case h.conns <- c:
	case <-h.done:
		c.Close()
	}
}

func (h *handoff) Accept() (net.Conn, error) {
	select {
	case c := <-h.conns:
		return c, nil
	case <-h.done:
		return nil, net.ErrClosed
	}
}

func (h *handoff) Close() error {
	h.once.Do(func() { close(h.done) })
	return nil
}

func (h *handoff) Addr() net.Addr { return h.addr }
