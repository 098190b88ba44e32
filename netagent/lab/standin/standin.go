// Package standin plays the containers of the playground: it serves the ports of a pod from inside
// the pod's network namespace, and its answers say which pod gave them and whom the pod saw as its
// client. It stands in for the program in the container, never for the network.
//
// All pods are served by the one process that calls Serve: a socket stays in the namespace it was
// opened in, whichever thread uses it afterwards.
package standin

import (
	"errors"
	"fmt"
	"net/netip"
	"sort"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/braidnet/braid/internal/kernel/netns"
)

// Info is what a stand-in says of itself.
type Info struct {
	Namespace, Name, Node string
	// IPs are the pod's addresses, for messages: answers name the address that was asked.
	IPs []netip.Addr
}

// String prints "pod namespace/name", and its addresses when they are known.
func (i Info) String() string {
	s := "pod " + i.Namespace + "/" + i.Name
	for n, ip := range i.IPs {
		s += []string{" at ", ", "}[min(n, 1)] + ip.String()
	}
	return s
}

// Port is a port to serve. Protocol is TCP, UDP or SCTP (empty = TCP).
type Port struct {
	Name     string
	Number   uint16
	Protocol string
}

func (p Port) String() string { return fmt.Sprintf("%d/%s", p.Number, p.Protocol) }

// socket identifies what is bound: two containers of a pod that declare the same port share it.
type socket struct {
	number   uint16
	protocol string
}

// service is everything that serves one port. It is closed by ending its sockets; done waits for
// whatever they had started.
type service interface {
	close()
}

// Server serves the ports of one pod.
type Server struct {
	info Info
	path string

	mu      sync.Mutex
	open    map[socket]service
	skipped []Port
	closed  bool
}

// Serve opens the ports inside the network namespace at netnsPath and serves them until Close.
//
// A TCP port answers HTTP requests of any method and path with 200 and the lines "pod: NAME",
// "namespace: NS", "node: NODE", "pod-ip: ADDR" (the local end of the connection),
// "client: ADDR:PORT" and "port: PORT"; to a client that does not speak HTTP first it sends its
// bytes back. A UDP port answers each datagram with "NAME LOCALADDR CLIENTADDR:PORT DATA", from the
// address that was asked. Ports of other protocols are not served: Skipped lists them.
func Serve(netnsPath string, info Info, ports []Port) (*Server, error) {
	s := &Server{info: info, path: netnsPath, open: map[socket]service{}}
	if err := s.SetPorts(ports); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// SetPorts makes the server serve exactly these ports. Ports it serves already are not disturbed.
// After an error the ports that could be opened are served.
func (s *Server) SetPorts(ports []Port) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return fmt.Errorf("stand-in of %s: set ports: it is closed", s.info)
	}
	want := map[socket]Port{}
	s.skipped = nil
	for _, p := range ports {
		if p.Protocol == "" {
			p.Protocol = "TCP"
		}
		if p.Protocol != "TCP" && p.Protocol != "UDP" {
			s.skipped = append(s.skipped, p)
			continue
		}
		want[socket{p.Number, p.Protocol}] = p
	}
	for k, svc := range s.open {
		if _, keep := want[k]; !keep {
			svc.close()
			delete(s.open, k)
		}
	}
	return s.openMissing(want)
}

func (s *Server) openMissing(want map[socket]Port) error {
	var missing []Port
	for k, p := range want {
		if s.open[k] == nil {
			missing = append(missing, p)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	sort.Slice(missing, func(i, j int) bool { return missing[i].String() < missing[j].String() })
	ns, err := netns.Open(s.path)
	if err != nil {
		return fmt.Errorf("stand-in of %s: %w", s.info, err)
	}
	defer ns.Close()
	return ns.Do(func() error {
		var errs []error
		for _, p := range missing {
			svc, err := s.listen(p)
			if err != nil {
				errs = append(errs, fmt.Errorf("stand-in of %s: port %s: %w", s.info, p, err))
				continue
			}
			s.open[socket{p.Number, p.Protocol}] = svc
		}
		return errors.Join(errs...)
	})
}

// listen opens one port; the calling thread is inside the pod's namespace.
func (s *Server) listen(p Port) (service, error) {
	if p.Protocol == "UDP" {
		return listenUDP(s.info, p)
	}
	return listenTCP(s.info, p)
}

// Skipped lists the ports that were asked for and are not served, because of their protocol.
func (s *Server) Skipped() []Port {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Port(nil), s.skipped...)
}

// Close ends all listeners and connections and returns when nothing of them runs any more.
func (s *Server) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for k, svc := range s.open {
		svc.close()
		delete(s.open, k)
	}
	return nil
}

// families are the wildcard sockets of one port. One socket per family instead of a dual-stack one:
// IPv4 clients then never show up as IPv4-mapped IPv6 addresses.
var families = []struct {
	domain int
	any    unix.Sockaddr
	// level and option switch on, for each datagram, the note which local address it was sent to.
	level, option int
}{
	{unix.AF_INET, &unix.SockaddrInet4{}, unix.IPPROTO_IP, unix.IP_PKTINFO},
	{unix.AF_INET6, &unix.SockaddrInet6{}, unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO},
}

// bind opens one socket per family the kernel has, bound to the port on all addresses. They are
// made by hand because package net probes once, in whatever namespace it is first used, which
// families there are.
func bind(kind int, port uint16) (fds []int, err error) {
	defer func() {
		if err != nil {
			for _, fd := range fds {
				unix.Close(fd)
			}
		}
	}()
	for _, f := range families {
		fd, err := unix.Socket(f.domain, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if errors.Is(err, unix.EAFNOSUPPORT) && len(fds) > 0 {
			continue
		}
		if err != nil {
			return fds, fmt.Errorf("open socket: %w", err)
		}
		fds = append(fds, fd)
		if err := prepare(fd, f.domain, kind, f.level, f.option); err != nil {
			return fds, err
		}
		if err := unix.Bind(fd, withPort(f.any, port)); err != nil {
			return fds, fmt.Errorf("bind: %w%s", err, inUse(err))
		}
	}
	return fds, nil
}

func prepare(fd, domain, kind, level, option int) error {
	if domain == unix.AF_INET6 {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1); err != nil {
			return fmt.Errorf("set IPV6_V6ONLY: %w", err)
		}
	}
	if kind == unix.SOCK_STREAM {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
			return fmt.Errorf("set SO_REUSEADDR: %w", err)
		}
		return nil
	}
	if err := unix.SetsockoptInt(fd, level, option, 1); err != nil {
		return fmt.Errorf("ask for the local address of datagrams: %w", err)
	}
	return nil
}

func withPort(any unix.Sockaddr, port uint16) unix.Sockaddr {
	if _, v4 := any.(*unix.SockaddrInet4); v4 {
		return &unix.SockaddrInet4{Port: int(port)}
	}
	return &unix.SockaddrInet6{Port: int(port)}
}

func inUse(err error) string {
	if errors.Is(err, unix.EADDRINUSE) {
		return " (another container or, with hostNetwork, another pod of the node serves it: change one of the ports)"
	}
	return ""
}

// banner is the text of an HTTP answer.
func banner(i Info, local netip.Addr, client netip.AddrPort, port uint16) string {
	var b strings.Builder
	fmt.Fprintf(&b, "pod: %s\nnamespace: %s\nnode: %s\n", i.Name, i.Namespace, i.Node)
	fmt.Fprintf(&b, "pod-ip: %s\nclient: %s\nport: %d\n", local, client, port)
	return b.String()
}
