package tun

import (
	"context"
	"fmt"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// BenchmarkTCP sends one stream from node to node: what it costs is two passes through user space.
func BenchmarkTCP(b *testing.B) {
	for _, is4 := range []bool{true, false} {
		b.Run(fmt.Sprintf("IPv4=%v", is4), func(b *testing.B) {
			h := newHosts(b, true, 1472)
			var l net.Listener
			h[1].ns.Run(b, func() (err error) {
				l, err = net.Listen("tcp", net.JoinHostPort(pod(2, is4), "0"))
				return err
			})
			defer l.Close()
			var c net.Conn
			h[0].ns.Run(b, func() (err error) {
				c, err = (&net.Dialer{Timeout: 10 * time.Second}).DialContext(context.Background(), "tcp", l.Addr().String())
				return err
			})
			defer c.Close()
			s, err := l.Accept()
			if err != nil {
				b.Fatal(err)
			}
			defer s.Close()
			const chunk = 256 << 10
			b.SetBytes(chunk)
			go func() {
				for buf := make([]byte, chunk); ; {
					if _, err := c.Write(buf); err != nil {
						return
					}
				}
			}()
			buf := make([]byte, chunk)
			before := cpu(b)
			b.ResetTimer()
			for n := 0; n < b.N*chunk; {
				k, err := s.Read(buf)
				if err != nil {
					b.Fatal(err)
				}
				n += k
			}
			b.StopTimer()
			b.ReportMetric(float64(cpu(b)-before)/float64(b.N), "cpu-ns/op")
		})
	}
}

// cpu is the processor time of this process, ns: both nodes, both ends, and what of the kernel's work is done
// on their behalf. Other than the time it does not depend much on what else the machine does.
func cpu(b *testing.B) int64 {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return u.Utime.Nano() + u.Stime.Nano()
}
