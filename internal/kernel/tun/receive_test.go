package tun

import (
	"bytes"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/braidnet/braid/internal/desired"
)

// bench is a receiver of node 1 with nothing below it: what it would hand to the kernel is kept.
func newReceiverOnly(t testing.TB) (r *receiver, out *[][]byte) {
	t.Helper()
	p := &Path{relay: relay(1, 2, true), now: time.Now}
	if err := p.Set(p.relay); err != nil {
		t.Fatal(err)
	}
	out = new([][]byte)
	r = &receiver{path: p, merger: newMerger(true, true, func(iov []unix.Iovec) { *out = append(*out, join(iov)) })}
	return r, out
}

var fromNode2 = netip.MustParseAddrPort("192.168.77.2:8285")

func TestReceiveTakesOnlyWhatANodeMaySend(t *testing.T) {
	good := split(t, superpacket(kind{is4: true, udp: true, size: 100, total: 100}), false)[0]
	change := func(f func(p []byte)) []byte { p := bytes.Clone(good); f(p); return p }
	for name, tc := range map[string]struct {
		from   netip.AddrPort
		packet []byte
		reason string // "" = taken
	}{
		"a pod's packet":            {fromNode2, good, ""},
		"the node's own":            {fromNode2, change(func(p []byte) { copy(p[12:], []byte{192, 168, 77, 2}) }), ""},
		"from a stranger":           {netip.MustParseAddrPort("192.168.77.3:8285"), good, "stranger"},
		"from another port":         {netip.MustParseAddrPort("192.168.77.2:8286"), good, "stranger"},
		"from nowhere":              {netip.AddrPort{}, good, "stranger"},
		"a pod of another node":     {fromNode2, change(func(p []byte) { copy(p[12:], []byte{10, 244, 3, 5}) }), "spoofed"},
		"a pod of this node":        {fromNode2, change(func(p []byte) { copy(p[12:], []byte{10, 244, 1, 9}) }), "spoofed"},
		"to another node's pod":     {fromNode2, change(func(p []byte) { copy(p[16:], []byte{10, 244, 2, 9}) }), "misdirected"},
		"to this node's own wire":   {fromNode2, change(func(p []byte) { copy(p[16:], []byte{192, 168, 77, 1}) }), "misdirected"},
		"to the loopback":           {fromNode2, change(func(p []byte) { copy(p[16:], []byte{127, 0, 0, 1}) }), "misdirected"},
		"no IP version":             {fromNode2, change(func(p []byte) { p[0] = 0x55 }), "malformed"},
		"longer than the datagram":  {fromNode2, good[:len(good)-1], "malformed"},
		"header longer than packet": {fromNode2, change(func(p []byte) { p[0], p[2], p[3] = 0x4f, 0, 30 }), "malformed"},
		"a few bytes":               {fromNode2, good[:10], "malformed"},
	} {
		r, out := newReceiverOnly(t)
		r.message(r.path.table.Load(), tc.from, tc.packet, len(tc.packet))
		r.merger.flush()
		taken := len(*out)
		dropped := r.path.Stats().Dropped
		if tc.reason == "" && taken != 1 || tc.reason != "" && (taken != 0 || dropped[tc.reason] != 1) {
			t.Errorf("%s: taken %d, dropped %v; want it dropped as %q", name, taken, dropped, tc.reason)
		}
	}
}

func TestReceiveCutsOffWhatIsBehindThePacket(t *testing.T) {
	good := split(t, superpacket(kind{is4: true, udp: true, size: 100, total: 100}), false)[0]
	r, out := newReceiverOnly(t)
	b := append(bytes.Clone(good), 1, 2, 3)
	r.message(r.path.table.Load(), fromNode2, b, len(b))
	r.merger.flush()
	if len(*out) != 1 || !bytes.Equal((*out)[0][headerLen:], good) {
		t.Errorf("%d packets came out", len(*out))
	}
}

func TestGreetingsAreRemembered(t *testing.T) {
	r, out := newReceiverOnly(t)
	at := time.Unix(1000, 0)
	r.path.now = func() time.Time { return at }
	h := r.path.table.Load().nodes[fromNode2.Addr()]
	if h.trusted(at) {
		t.Fatal("trusted before it greeted")
	}
	r.message(r.path.table.Load(), fromNode2, greeting, len(greeting))
	if !h.trusted(at) || h.trusted(at.Add(trustFor)) || h.trusted(at.Add(-time.Second)) {
		t.Error("a greeting has to count for a while")
	}
	if len(*out) != 0 {
		t.Error("a greeting was taken for a packet")
	}
	if err := r.path.Set(r.path.relay); err != nil {
		t.Fatal(err)
	}
	if !r.path.table.Load().nodes[fromNode2.Addr()].trusted(at) {
		t.Error("a new table forgot a greeting")
	}
	if !h.due(at) || h.due(at) || !h.due(at.Add(greetEvery)) {
		t.Error("greetings have to be due once in a while")
	}
}

func TestTable(t *testing.T) {
	r := relay(1, 2, true)
	r.Tunnels = append(r.Tunnels, desired.Tunnel{Dst: netip.MustParsePrefix("10.244.3.0/24"), Via: netip.MustParseAddr("fd77::3")},
		desired.Tunnel{Dst: netip.MustParsePrefix("10.0.0.0/16"), Via: netip.MustParseAddr("192.168.77.4")})
	table, err := newTable(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	for addr, want := range map[string]string{
		"10.244.2.0": "192.168.77.2", "10.244.2.255": "192.168.77.2", "10.244.3.7": "fd77::3", "10.0.255.255": "192.168.77.4", "fd00:10:244:2::9": "192.168.77.2",
		"10.244.1.255": "", "10.244.4.0": "", "10.1.0.0": "", "9.9.9.9": "", "0.0.0.0": "", "255.255.255.255": "", "fd00:10:244:3::": "", "::": "",
	} {
		got := ""
		if h := table.lookup(netip.MustParseAddr(addr)); h != nil {
			got = h.addr.String()
		}
		if got != want {
			t.Errorf("%s goes to %q, want %q", addr, got, want)
		}
	}
	for _, bad := range []desired.Tunnel{
		{Dst: netip.MustParsePrefix("10.244.2.128/25"), Via: netip.MustParseAddr("192.168.77.9")},
		{Dst: netip.MustParsePrefix("10.0.0.0/8"), Via: netip.MustParseAddr("192.168.77.9")},
		{Dst: netip.MustParsePrefix("10.9.0.1/24"), Via: netip.MustParseAddr("192.168.77.9")},
		{Dst: netip.MustParsePrefix("10.9.0.0/24")},
		{},
	} {
		if _, err := newTable(desired.Relay{Tunnels: append(r.Tunnels[:len(r.Tunnels):len(r.Tunnels)], bad)}, nil); err == nil {
			t.Errorf("%v was taken", bad)
		}
	}
}

// Whatever comes from the network, what goes to the kernel is whole packets that a node may send.
func FuzzReceive(f *testing.F) {
	for _, k := range []kind{{is4: true, size: 100, total: 450, options: 12}, {size: 100, total: 450}, {is4: true, udp: true, size: 100, total: 450}, {udp: true, size: 300, total: 700}} {
		for _, partial := range []bool{true, false} {
			packets := split(f, superpacket(k), partial)
			f.Add(bytes.Join(packets, nil), uint16(len(packets[0])))
		}
	}
	f.Add(greeting, uint16(len(greeting)))
	f.Fuzz(func(t *testing.T, b []byte, size uint16) {
		r, out := newReceiverOnly(t)
		table := r.path.table.Load()
		sent := len(b)
		r.message(table, fromNode2, b, max(1, int(size)))
		r.merger.flush()
		for _, raw := range *out {
			p, err := checkIP(raw[headerLen:])
			if err != nil || len(p) != len(raw)-headerLen {
				t.Fatalf("not a whole packet: %v", err)
			}
			s, err := newSuper(readVirtio(raw), p)
			if err != nil {
				t.Fatalf("the kernel would refuse it: %v", err)
			}
			for i := range s.count() {
				head, body := s.segment(i, make([]byte, maxHeaders), false)
				sent -= len(head) + len(body)
				if !contains(table.nodes[fromNode2.Addr()].from, source(head)) || !contains(table.pods, destination(head)) {
					t.Fatalf("a packet of %s for %s was let through", source(head), destination(head))
				}
			}
		}
		if sent < 0 {
			t.Fatal("more came out than in")
		}
	})
}

// Whatever the kernel says of a packet, splitting it neither fails nor reads beyond it.
func FuzzSplit(f *testing.F) {
	for _, k := range kinds()[:20] {
		f.Add(superpacket(k))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		if len(raw) < headerLen || len(raw) > headerLen+maxPacket {
			return
		}
		p, err := checkIP(raw[headerLen:])
		if err != nil {
			return
		}
		s, err := newSuper(readVirtio(raw), p)
		if err != nil {
			return
		}
		for i := range s.count() {
			head, body := s.segment(i, make([]byte, maxHeaders), i%2 == 0)
			if len(head)+len(body) > len(p) {
				t.Fatalf("segment %d is longer than the packet", i)
			}
		}
		icmpError(p, tooBig, 1280)
		icmpError(p, noRoute, 0)
	})
}
