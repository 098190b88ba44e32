// Command load is the traffic under which faults are judged. As a server it answers every line with its own
// name. As a client it opens connections, keeps others open and asks DNS questions, all the time, and counts
// what fails.
//
//	load serve :8080
//	load run --tcp NAME=ADDR:PORT … --hold NAME=ADDR:PORT … --dns ADDR:53 --ask NAME=ADDR
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"time"
)

func main() {
	err := errors.New("say serve ADDR:PORT, or run --help")
	if len(os.Args) > 2 && os.Args[1] == "serve" {
		err = serve(os.Args[2])
	} else if len(os.Args) > 1 && os.Args[1] == "run" {
		err = run(os.Args[2:])
	}
	fmt.Fprintln(os.Stderr, "load:", err)
	os.Exit(1)
}

// serve answers every line with this host's name, which in a pod is the pod's.
func serve(addr string) error {
	name, err := os.Hostname()
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer conn.Close()
			for lines := bufio.NewReader(conn); ; {
				if _, err := lines.ReadSlice('\n'); err != nil {
					return // the client has gone
				}
				if _, err := io.WriteString(conn, name+"\n"); err != nil {
					return
				}
			}
		}()
	}
}

// targets is a flag NAME=ADDR:PORT that may be repeated.
type targets map[string]netip.AddrPort

func (t targets) String() string { return "" }

func (t targets) Set(s string) error {
	name, addr, _ := strings.Cut(s, "=")
	ap, err := netip.ParseAddrPort(addr)
	t[name] = ap
	return err
}

func run(args []string) error {
	f := flag.NewFlagSet("load run", flag.ContinueOnError)
	tcp, hold, dns := targets{}, targets{}, targets{}
	f.Var(tcp, "tcp", "NAME=ADDR:PORT of a server, to be connected to anew all the time")
	f.Var(hold, "hold", "NAME=ADDR:PORT of a server, to be kept connected to")
	f.Var(dns, "dns", "NAME=ADDR:PORT of a DNS server, to be asked")
	ask := f.String("ask", "", "NAME=ADDR: the question, and what the last record of the answer is")
	every := f.Duration("every", 25*time.Millisecond, "pause between two probes of one target")
	stats := f.String("stats", ":8090", "where to answer /take: what was counted since the last time")
	if err := f.Parse(args); err != nil {
		return err
	}
	q, err := newQuestion(*ask)
	if err != nil && len(dns) > 0 {
		return err
	}
	c := newCounts()
	for name, addr := range tcp {
		go probe(c, name, *every, func() error { return connect(addr) })
	}
	for name, addr := range hold {
		go keep(c, name, addr, *every)
	}
	for name, addr := range dns {
		go probeDNS(c, name, addr, q, *every)
		go steadyDNS(c, name+", one socket", addr, q, *every)
	}
	http.HandleFunc("/take", func(w http.ResponseWriter, _ *http.Request) { _ = json.NewEncoder(w).Encode(c.take()) })
	return http.ListenAndServe(*stats, nil)
}

// patience is how long a connection may take before it counts as failed. A lost SYN is sent again after 1, 3
// and 7 seconds.
const patience = 5 * time.Second

// probe calls fn again and again, without waiting for the one before.
func probe(c *counts, name string, every time.Duration, fn func() error) {
	for range time.Tick(every) {
		done := c.begin(name)
		go func() { done(fn()) }()
	}
}

// connect makes one connection, asks one question and closes.
func connect(addr netip.AddrPort) error {
	conn, err := net.DialTimeout("tcp", addr.String(), patience)
	if err != nil {
		return err
	}
	defer conn.Close()
	return exchange(conn, bufio.NewReader(conn))
}

func exchange(conn net.Conn, r *bufio.Reader) error {
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if _, err := io.WriteString(conn, "who\n"); err != nil {
		return err
	}
	_, err := r.ReadSlice('\n')
	return err
}

// keep exchanges lines on one connection until it breaks, which counts as a failure, and makes another.
func keep(c *counts, name string, addr netip.AddrPort, every time.Duration) {
	for {
		done := c.begin(name)
		conn, err := net.DialTimeout("tcp", addr.String(), patience)
		done(err)
		if err != nil {
			time.Sleep(every)
			continue
		}
		for r := bufio.NewReader(conn); err == nil; time.Sleep(every) {
			done := c.begin(name)
			err = exchange(conn, r)
			done(err)
		}
		conn.Close()
	}
}
