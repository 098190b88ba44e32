package main

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/braidnet/braid/test/bench/rig"
)

// Ports of the second pod: one that takes everything in, one that sends it back, one that counts datagrams.
const (
	discardPort = "5001"
	echoPort    = "5002"
	countPort   = "5003"
)

const chunk = 256 << 10 // bytes of one write

// measure is one figure of a world.
type measure struct {
	name, unit string
	less       bool // less is better
	run        func(w *world, length time.Duration) (float64, error)
}

var measures = []measure{
	{name: "TCP, 1 stream", unit: "Gbit/s", run: func(w *world, d time.Duration) (float64, error) { return w.stream(1, d) }},
	{name: "TCP, 8 streams", unit: "Gbit/s", run: func(w *world, d time.Duration) (float64, error) { return w.stream(8, d) }},
	{name: "processor time, 1 stream", unit: "s/GB", less: true, run: (*world).processor},
	{name: "UDP, 100 bytes", unit: "packets/s", run: func(w *world, d time.Duration) (float64, error) { return w.packets(100, d) }},
	{name: "UDP, 1,350 bytes", unit: "Gbit/s", run: func(w *world, d time.Duration) (float64, error) {
		n, err := w.packets(1350, d) // what one packet holds with every overlay
		return n * 1350 * 8 / 1e9, err
	}},
	{name: "TCP ping-pong, median", unit: "µs", less: true, run: (*world).pingPong},
}

func measureNames() (out []string) {
	for _, m := range measures {
		out = append(out, m.name)
	}
	return out
}

// received counts what has come to the discarding and counting servers of a world.
type received struct{ bytes, packets atomic.Int64 }

var counts sync.Map // of world to *received

func (w *world) received() *received {
	r, _ := counts.LoadOrStore(w, &received{})
	return r.(*received)
}

// serve starts the servers of the second pod.
func (w *world) serve() error {
	r := w.received()
	return w.pods[1].Do(func() error {
		for port, handle := range map[string]func(net.Conn){
			discardPort: func(c net.Conn) {
				b := make([]byte, chunk)
				for {
					n, err := c.Read(b)
					r.bytes.Add(int64(n))
					if err != nil {
						return
					}
				}
			},
			echoPort: func(c net.Conn) { _, _ = io.Copy(c, c) },
		} {
			l, err := net.Listen("tcp", net.JoinHostPort(w.podIP(2), port))
			if err != nil {
				return err
			}
			w.servers = append(w.servers, l)
			go accept(l, handle)
		}
		u, err := net.ListenPacket("udp", net.JoinHostPort(w.podIP(2), countPort))
		if err != nil {
			return err
		}
		w.servers = append(w.servers, u)
		_ = u.(*net.UDPConn).SetReadBuffer(4 << 20)
		go func() {
			for b := make([]byte, 2000); ; {
				if _, _, err := u.ReadFrom(b); errors.Is(err, net.ErrClosed) {
					return
				} else if err == nil {
					r.packets.Add(1)
				}
			}
		}()
		return nil
	})
}

func accept(l net.Listener, handle func(net.Conn)) {
	for {
		c, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			go func() {
				defer c.Close()
				handle(c)
			}()
		}
	}
}

// dial connects from the first pod to the second.
func (w *world) dial(network, port string, patience time.Duration) (c net.Conn, err error) {
	err = w.pods[0].Do(func() (err error) {
		c, err = (&net.Dialer{Timeout: patience}).DialContext(context.Background(), network, net.JoinHostPort(w.podIP(2), port))
		return err
	})
	return c, err
}

// stream sends over several connections and returns what came, in Gbit/s. The first fifth of the time is
// for the connections to find their speed.
func (w *world) stream(n int, length time.Duration) (float64, error) {
	var wg sync.WaitGroup
	conns := make([]net.Conn, n)
	for i := range conns {
		c, err := w.dial("tcp", discardPort, 5*time.Second)
		if err != nil {
			return 0, err
		}
		conns[i] = c
		wg.Go(func() {
			for b := make([]byte, chunk); ; {
				if _, err := c.Write(b); err != nil {
					return
				}
			}
		})
	}
	r := w.received()
	time.Sleep(length / 5)
	begin, from := time.Now(), r.bytes.Load()
	time.Sleep(length)
	rate := float64(r.bytes.Load()-from) * 8 / time.Since(begin).Seconds() / 1e9
	for _, c := range conns {
		_ = c.(*net.TCPConn).SetLinger(0)
		_ = c.Close()
	}
	wg.Wait()
	return rate, nil
}

// processor returns what one gigabyte costs, in seconds of a processor: of this process, which is both pods,
// of the programs of the nodes, and of the kernel's threads for packets. So what else the machine does counts little.
func (w *world) processor(length time.Duration) (float64, error) {
	before, err := w.spent()
	if err != nil {
		return 0, err
	}
	from := w.received().bytes.Load()
	if _, err := w.stream(1, length); err != nil {
		return 0, err
	}
	after, err := w.spent()
	return (after - before).Seconds() / (float64(w.received().bytes.Load()-from) / 1e9), err
}

// packets sends datagrams of a size as fast as it can, one by one, and returns how many came a second.
func (w *world) packets(size int, length time.Duration) (float64, error) {
	c, err := w.dial("udp", countPort, time.Second)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	r := w.received()
	begin, from := time.Now(), r.packets.Load()
	for b := make([]byte, size); time.Since(begin) < length; {
		for range 32 {
			_, _ = c.Write(b) // what does not fit is lost, as the rest of the way
		}
	}
	return float64(r.packets.Load()-from) / time.Since(begin).Seconds(), nil
}

// pingPong sends one byte back and forth and returns the median of the round trips, in µs.
func (w *world) pingPong(length time.Duration) (float64, error) {
	c, err := w.dial("tcp", echoPort, 5*time.Second)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	var list []time.Duration
	b := make([]byte, 1)
	for begin := time.Now(); time.Since(begin) < length; {
		sent := time.Now()
		if _, err := c.Write(b); err != nil {
			return 0, err
		}
		if _, err := io.ReadFull(c, b); err != nil {
			return 0, err
		}
		list = append(list, time.Since(sent))
	}
	return float64(rig.Percentile(list, 50).Nanoseconds()) / 1000, nil
}
