package nflog

import (
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/braidnet/braid/internal/kernel/netns/nstest"
)

const group = 66

func open(t *testing.T, ns *nstest.NS) *Conn {
	t.Helper()
	var c *Conn
	ns.Run(t, func() (err error) { c, err = Open(group, 128); return err })
	return c
}

// TestCopiesArrive: what rules of either tool send to the group arrives with its prefix, ends and ports.
func TestCopiesArrive(t *testing.T) {
	ns := nstest.New(t)
	ns.Exec(t, "ip", "link", "set", "lo", "up")
	ns.Exec(t, "nft", "add table inet t; add chain inet t out { type filter hook output priority 0; }; "+
		`add rule inet t out udp dport 99 log prefix "from nft" group 66 snaplen 128; add rule inet t out udp dport 99 drop`)
	c := open(t, ns)
	defer c.Close()
	for _, to := range []string{"127.0.0.1:99", "[::1]:99"} {
		ns.Run(t, func() error {
			s, err := net.Dial("udp", to)
			if err != nil {
				return err
			}
			defer s.Close()
			_, _ = s.Write(make([]byte, 500))
			var got []Packet
			for len(got) == 0 {
				if err := c.Receive(func(p Packet) { got = append(got, p) }); err != nil {
					return err
				}
			}
			from := s.LocalAddr().(*net.UDPAddr).AddrPort()
			dst := netip.MustParseAddrPort(to)
			if want := (Packet{"from nft", from.Addr().Unmap(), dst.Addr(), udp, from.Port(), dst.Port()}); len(got) != 1 || got[0] != want {
				t.Errorf("got %+v, want %+v", got, want)
			}
			return nil
		})
	}
}

// TestGroupIsTaken: a second listener is told that there is one.
func TestGroupIsTaken(t *testing.T) {
	ns := nstest.New(t)
	c := open(t, ns)
	ns.Run(t, func() error {
		if _, err := Open(group, 128); err == nil || !strings.Contains(err.Error(), "does another program have it?") {
			t.Errorf("a second listener: error %v", err)
		}
		return nil
	})
	c.Close()
	open(t, ns).Close()
}

// TestCloseEndsReceive: who waits for copies is let go.
func TestCloseEndsReceive(t *testing.T) {
	c := open(t, nstest.New(t))
	done := make(chan error)
	go func() { done <- c.Receive(func(Packet) {}) }()
	c.Close()
	if err := <-done; err == nil || errors.Is(err, ErrLost) {
		t.Errorf("Receive of a closed connection: %v", err)
	}
}

var (
	head4 = "\x45\x00\x00\x28\x00\x00\x00\x00\x40\x06\x00\x00\x0a\x00\x00\x01\x0a\x00\x00\x02"
	head6 = "\x60\x00\x00\x00\x00\x10%c\x40" + "\xfd" + strings.Repeat("\x00", 14) + "\x01" + "\xfd" + strings.Repeat("\x00", 14) + "\x02"
	ports = "\x04\xd2\x00\x50"
)

func v6(next byte, rest string) string { return strings.Replace(head6, "%c", string(next), 1) + rest }

func TestParse(t *testing.T) {
	a, b := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	c, d := netip.MustParseAddr("fd00::1"), netip.MustParseAddr("fd00::2")
	for name, tt := range map[string]struct {
		in   string
		want Packet
	}{
		"ipv4":           {head4 + ports, Packet{"", a, b, tcp, 1234, 80}},
		"options":        {"\x46" + head4[1:] + "\x01\x01\x01\x01" + ports, Packet{"", a, b, tcp, 1234, 80}},
		"cut":            {head4 + ports[:3], Packet{"", a, b, tcp, 0, 0}},
		"later fragment": {head4[:6] + "\x00\x01" + head4[8:] + ports, Packet{"", a, b, tcp, 0, 0}},
		"ipv6":           {v6(udp, ports), Packet{"", c, d, udp, 1234, 80}},
		"hop by hop":     {v6(hopByHop, "\x06\x00\x00\x00\x00\x00\x00\x00"+ports), Packet{"", c, d, tcp, 1234, 80}},
		"authentication": {v6(authentication, "\x84\x04"+strings.Repeat("\x00", 22)+ports), Packet{"", c, d, sctp, 1234, 80}},
		"first fragment": {v6(fragment, "\x06\x00\x00\x01\x00\x00\x00\x00"+ports), Packet{"", c, d, tcp, 1234, 80}},
		"other fragment": {v6(fragment, "\x06\x00\x00\x10\x00\x00\x00\x00"+ports), Packet{"", c, d, tcp, 0, 0}},
		"chain cut":      {v6(routing, "\x06\x05\x00\x00"), Packet{"", c, d, routing, 0, 0}},
		"no transport":   {v6(58, "\x80\x00\x00\x00\x00"), Packet{"", c, d, 58, 0, 0}},
	} {
		if got, ok := parse([]byte(tt.in)); !ok || got != tt.want {
			t.Errorf("%s: got %+v, %v, want %+v", name, got, ok, tt.want)
		}
	}
	for _, in := range []string{"", "\x45", head4[:19], "\x44" + head4[1:], v6(6, "")[:39], "\x00" + head4} {
		if p, ok := parse([]byte(in)); ok {
			t.Errorf("%q is read as %+v", in, p)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(head4 + ports))
	f.Add([]byte(v6(hopByHop, "\x2c\x00\x00\x00\x00\x00\x00\x00\x06\x00\x00\x01\x00\x00\x00\x00"+ports)))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, ok := parse(b)
		if ok && (!p.Src.IsValid() || !p.Dst.IsValid() || p.Src.BitLen() != p.Dst.BitLen()) {
			t.Errorf("%x is read as %+v", b, p)
		}
	})
}
