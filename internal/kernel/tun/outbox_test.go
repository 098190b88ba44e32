package tun

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// newOutboxTo returns a sender and its outbox, and a socket that gets what it sends.
func newOutboxTo(t *testing.T) (s *sender, b *outbox, to *hop, peer net.PacketConn) {
	t.Helper()
	peer, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { peer.Close() })
	f := Features(allFeatures)
	sock, err := listen(netip.MustParseAddrPort("127.0.0.1:0"), &f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { sock.Close() })
	s = &sender{path: &Path{now: time.Now}}
	s.path.features.Store(uint32(f))
	if b, err = newOutbox(sock, true, true, s.failed); err != nil {
		t.Fatal(err)
	}
	addr := peer.LocalAddr().(*net.UDPAddr).AddrPort()
	return s, b, &hop{addr: addr.Addr(), name: newSockaddr(addr), hello: new(hello)}, peer
}

// fill puts datagrams into the box, and returns them.
func fill(b *outbox, to *hop, sizes ...int) (want [][]byte) {
	for i, size := range sizes {
		body := bytes.Repeat([]byte{byte(i + 1)}, size)
		head := b.room()[:20]
		copy(head, fmt.Sprintf("head %15d", i))
		want = append(want, append(bytes.Clone(head), body...))
		b.add(to, head, body)
	}
	return want
}

func receive(t *testing.T, from net.PacketConn, want [][]byte) {
	t.Helper()
	buf := make([]byte, 1<<16)
	for i, w := range want {
		_ = from.SetReadDeadline(time.Now().Add(10 * time.Second))
		n, _, err := from.ReadFrom(buf)
		if err != nil || !bytes.Equal(buf[:n], w) {
			t.Fatalf("datagram %d: %d bytes, want %d: %v", i, n, len(w), err)
		}
	}
}

// Datagrams become messages by size, and come as they were put in, in order.
func TestOutboxGroups(t *testing.T) {
	_, b, to, peer := newOutboxTo(t)
	want := fill(b, to, 100, 100, 100, 40, 100, 100, 300, 300, 50, 50, 0, 7)
	var counts []int
	for _, g := range b.groups[:b.n] {
		counts = append(counts, g.count)
	}
	if got := fmt.Sprint(counts); got != "[4 2 3 2 1]" {
		t.Errorf("messages of %s datagrams", got)
	}
	b.flush()
	receive(t, peer, want)
	// More than fits: what is in the box goes by itself.
	for range 3 {
		sizes := make([]int, maxMessages+10)
		for i := range sizes {
			sizes[i] = 10 + i%2*30
		}
		want = fill(b, to, sizes...)
		b.flush()
		receive(t, peer, want)
	}
}

// A message that the kernel refuses because the device cannot compute checksums goes as single datagrams,
// and so does all that follows.
func TestOutboxWithoutGroups(t *testing.T) {
	s, b, to, peer := newOutboxTo(t)
	want := fill(b, to, 100, 100, 30)
	for i := range b.n {
		b.message(i)
	}
	s.failed(b, &b.groups[0], unix.EIO)
	receive(t, peer, want)
	if s.path.Features()&SendGroups != 0 {
		t.Errorf("features %s", s.path.Features())
	}
	b.n, b.segments, b.used = 0, 0, 0
	want = fill(b, to, 100, 100, 30)
	if b.n != 3 {
		t.Errorf("%d messages, want single ones", b.n)
	}
	b.flush()
	receive(t, peer, want)
}
