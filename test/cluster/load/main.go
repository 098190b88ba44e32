// Command load is the traffic under which faults are judged. As a server it answers every line with its own
// name, and the line "accepted" with who connected. As a client it opens connections, keeps others open and asks DNS
// questions, all the time, and counts what fails.
//
//	load serve :8080 …
//	load run --tcp NAME=ADDR:PORT … --hold NAME=ADDR:PORT … --dns ADDR:53 --ask NAME=ADDR
//	load run --udp NAME=ADDR:PORT … --steady NAME=ADDR:PORT …
//	load run --never NAME=ADDR:PORT … --neverudp NAME=ADDR:PORT …
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
	"sync/atomic"
	"syscall"
	"time"
)

func main() {
	err := errors.New("say serve ADDR:PORT, or run --help")
	if len(os.Args) > 2 && os.Args[1] == "serve" {
		err = serve(os.Args[2:])
	} else if len(os.Args) > 1 && os.Args[1] == "run" {
		err = run(os.Args[2:])
	}
	fmt.Fprintln(os.Stderr, "load:", err)
	os.Exit(1)
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
	tcp, hold, udp, steady, dns, never, neverUDP := targets{}, targets{}, targets{}, targets{}, targets{}, targets{}, targets{}
	f.Var(tcp, "tcp", "NAME=ADDR:PORT of a server, to be connected to anew all the time")
	f.Var(hold, "hold", "NAME=ADDR:PORT of a server, to be kept connected to")
	f.Var(udp, "udp", "NAME=ADDR:PORT of a server, to be sent datagrams from ever new sockets")
	f.Var(steady, "steady", "NAME=ADDR:PORT of a server, to be sent datagrams from one socket")
	f.Var(never, "never", "NAME=ADDR:PORT of a server that must not be reached, to be connected to all the time")
	f.Var(neverUDP, "neverudp", "the same, to be sent datagrams from ever new sockets")
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
		go probe(c, name, *every, func() error { return connect(c, "tcp", name, addr) })
	}
	for name, addr := range hold {
		go keep(c, "tcp", name, addr, *every)
	}
	for name, addr := range udp {
		go probe(c, name, *every, func() error { return connect(c, "udp", name, addr) })
	}
	for name, addr := range steady {
		go keep(c, "udp", name, addr, *every)
	}
	for name, addr := range never {
		go probe(c, name, *every, func() error { return unreached("tcp", addr) })
	}
	for name, addr := range neverUDP {
		go probe(c, name, *every, func() error { return unreached("udp", addr) })
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

var errAnswered = errors.New("answered")

// silence is how long nobody may answer what must not be reached.
const silence = time.Second

// unreached fails when somebody answers.
func unreached(network string, addr netip.AddrPort) error {
	d := net.Dialer{Timeout: silence}
	if network == "udp" {
		d.LocalAddr = &net.UDPAddr{Port: freshPort()}
	}
	conn, err := d.Dial(network, addr.String())
	if err != nil {
		return nil
	}
	defer conn.Close()
	if network == "udp" && exchange(conn, bufio.NewReader(conn), silence) != nil {
		return nil
	}
	return errAnswered
}

// connect makes one connection, asks one question and closes.
func connect(c *counts, network, name string, addr netip.AddrPort) error {
	d := net.Dialer{Timeout: patience}
	if network == "udp" {
		d.LocalAddr = &net.UDPAddr{Port: freshPort()}
	}
	conn, err := d.Dial(network, addr.String())
	for errors.Is(err, syscall.EADDRINUSE) {
		d.LocalAddr = &net.UDPAddr{Port: freshPort()}
		conn, err = d.Dial(network, addr.String())
	}
	if err != nil {
		return err
	}
	defer conn.Close()
	return talk(c, name, conn, bufio.NewReader(conn))
}

const (
	firstPort, lastPort = 10000, 60000
	portsPerSecond      = 400 // more than are used, and few enough that all are used up only after two minutes
)

var ports atomic.Uint64

func init() { ports.Store(uint64(time.Now().UnixMilli()) * portsPerSecond / 1000) }

// freshPort returns a local port that was not used for as long as possible, nor by a load that ran here before. The
// kernel picks among its ports at random, so that a datagram often has the port of one sent before: to the kernel
// of a node the same flow, which stays with its backend also when that has ended, until the node hears of it.
func freshPort() int { return firstPort + int(ports.Add(1)%(lastPort-firstPort)) }

// talk exchanges a line; over UDP as probeDNS does, once more when no answer comes.
func talk(c *counts, name string, conn net.Conn, r *bufio.Reader) (err error) {
	if _, udp := conn.(*net.UDPConn); !udp {
		return exchange(conn, r, patience)
	}
	for range attempts {
		done := c.begin(name + ", datagrams")
		err = exchange(conn, r, retryAfter)
		done(err)
		if err == nil {
			break
		}
	}
	return err
}

func exchange(conn net.Conn, r *bufio.Reader, within time.Duration) error {
	if err := conn.SetDeadline(time.Now().Add(within)); err != nil {
		return err
	}
	if _, err := io.WriteString(conn, "who\n"); err != nil {
		return err
	}
	_, err := r.ReadSlice('\n')
	return err
}

// keep exchanges lines on one connection, or by one UDP socket, until that breaks, which counts as a failure,
// and makes another.
func keep(c *counts, network, name string, addr netip.AddrPort, every time.Duration) {
	for {
		done := c.begin(name)
		conn, err := net.DialTimeout(network, addr.String(), patience)
		done(err)
		if err != nil {
			time.Sleep(every)
			continue
		}
		for r := bufio.NewReader(conn); err == nil; time.Sleep(every) {
			done := c.begin(name)
			err = talk(c, name, conn, r)
			done(err)
		}
		conn.Close()
	}
}
