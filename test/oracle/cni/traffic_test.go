package cni

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/braidnet/braid/internal/kernel/netns/nstest"
)

// serve answers on a port, TCP and UDP, with a name and where the question seems to come from.
func serve(t *testing.T, ns *nstest.NS, name string, port int) {
	t.Helper()
	at := ":" + strconv.Itoa(port)
	answer := func(from net.Addr) []byte {
		a, _ := netip.ParseAddrPort(from.String())
		return []byte(name + " from " + a.Addr().Unmap().String())
	}
	ns.Run(t, func() error {
		for _, family := range []string{"4", "6"} {
			l, err := net.Listen("tcp"+family, at)
			if err != nil {
				return err
			}
			u, err := net.ListenPacket("udp"+family, at)
			if err != nil {
				return err
			}
			t.Cleanup(func() { _, _ = l.Close(), u.Close() })
			go func() {
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					_, _ = c.Write(answer(c.RemoteAddr()))
					_ = c.Close()
				}
			}()
			go func() {
				for b := make([]byte, 100); ; {
					_, from, err := u.ReadFrom(b)
					if errors.Is(err, net.ErrClosed) {
						return
					}
					if err == nil {
						_, _ = u.WriteTo(answer(from), from)
					}
				}
			}()
		}
		return nil
	})
}

// place is where questions come from.
type place struct {
	name string
	*nstest.NS
}

// question is one connection.
type question struct {
	from     place
	protocol string
	to       netip.AddrPort
}

func (q question) String() string { return fmt.Sprintf("%s %s to %s", q.from.name, q.protocol, q.to) }

// patience is how long an answer is waited for; see settle.
const patience = 400 * time.Millisecond

// ask asks once. What comes is the answer, or how there was none.
func (q question) ask(wait time.Duration) (answer string) {
	err := q.from.Do(func() error {
		ctx, cancel := context.WithTimeout(context.Background(), wait)
		defer cancel()
		c, err := (&net.Dialer{}).DialContext(ctx, q.protocol, q.to.String())
		if err != nil {
			return err
		}
		defer c.Close()
		b := make([]byte, 100)
		for try := range 2 {
			if q.protocol == "udp" {
				if _, err := c.Write([]byte("?")); err != nil {
					return err
				}
			}
			if err := c.SetReadDeadline(time.Now().Add(wait * time.Duration(try+1) / 3)); err != nil {
				return err
			}
			var n int
			if n, err = c.Read(b); err == nil {
				answer = string(b[:n])
				return nil
			}
			if !errors.Is(err, os.ErrDeadlineExceeded) {
				return err
			}
		}
		return err
	})
	switch {
	case err == nil:
		return answer
	case errors.Is(err, unix.ECONNREFUSED):
		return "refused"
	case errors.Is(err, unix.ENETUNREACH), errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.EADDRNOTAVAIL), errors.Is(err, unix.EINVAL):
		return "no way"
	}
	return "silence"
}

// traffic asks everything that can be asked, all at once, and again what got no answer.
func (p *plane) traffic(n *network, f facts) {
	list := p.questions(n)
	answers := make([]string, len(list))
	for wait := patience; wait <= 4*patience; wait *= 2 {
		var wg sync.WaitGroup
		for i, q := range list {
			if answers[i] == "" || answers[i] == "silence" && wait == 2*patience {
				wg.Go(func() { answers[i] = q.ask(wait) })
			}
		}
		wg.Wait()
	}
	for i, q := range list {
		f.set(q.String(), "%s", answers[i])
	}
}

// questions are: each pod to the outside and to the next pod, the outside and the node to each pod, and
// everybody to host ports.
func (p *plane) questions(n *network) (list []question) {
	node, outside := place{"node", p.NS}, place{"outside", p.outside}
	var pods []place
	for i := range p.pods {
		if p.results[i] != nil {
			pods = append(pods, place{fmt.Sprint("pod", i), p.pods[i]})
		}
	}
	ask := func(from place, protocol, to string, port int) {
		list = append(list, question{from, protocol, netip.AddrPortFrom(netip.MustParseAddr(to), uint16(port))})
	}
	for i := range p.pods {
		if p.results[i] == nil {
			continue
		}
		for _, six := range []bool{false, true} {
			a, ok := p.addressOf(i, six)
			if !ok {
				continue
			}
			out := outsideIP
			if six {
				out = outsideIP6
			}
			ask(place{fmt.Sprint("pod", i), p.pods[i]}, "tcp", out, outsidePort)
			for _, from := range append([]place{node, outside}, pods...) {
				ask(from, "tcp", a.String(), podPorts[0])
			}
		}
		for _, m := range n.mappings(i) {
			for _, to := range []string{"127.0.0.1", "::1", nodeIP, otherIP, nodeIP6} {
				ask(node, m.Protocol, to, m.HostPort)
				if strings.Contains(to, "1:") || to == "127.0.0.1" || to == "::1" {
					continue
				}
				for _, from := range append([]place{outside}, pods...) {
					ask(from, m.Protocol, to, m.HostPort)
				}
			}
		}
	}
	return list
}
