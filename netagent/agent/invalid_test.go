package agent

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"

	"github.com/braidnet/braid/internal/model"
)

const stalePort = 9000 // where the server of this test listens

// TestStrayPacketsDoNotEndConnections: what connection tracking calls invalid it does not translate. A
// late retransmission of a server would then reach its client with the server's own address, and be
// answered by a reset that ends the connection (kubernetes issue 74839, and upstream's spec about it).
func TestStrayPacketsDoNotEndConnections(t *testing.T) {
	for mode := range testedPlanes {
		t.Run(mode, func(t *testing.T) {
			l := newFlowLab(t, mode)
			l.apply(t, flowNodes()...)
			tcp := append(l.backends(map[string]string{"pod2": "r"}), l.service(nil))
			for i := range tcp {
				switch o := tcp[i].Object.(type) {
				case *model.EndpointSlice:
					o.Ports[0] = model.EndpointPort{Protocol: model.TCP, Port: stalePort}
				case *model.Service:
					o.Ports[0].Protocol = model.TCP
				}
			}
			l.apply(t, tcp...)
			for i := range dpFamilies {
				l.checkStray(t, &dpFamilies[i])
			}
		})
	}
}

func (l *flowLab) checkStray(t *testing.T, a *dpAddrs) {
	t.Helper()
	var listener net.Listener
	var raw net.PacketConn
	network := map[bool]string{true: "ip4:6", false: "ip6:6"}[a.pod2.Is4()]
	l.pod2.Run(t, func() (err error) {
		if listener, err = net.Listen("tcp", netip.AddrPortFrom(a.pod2, stalePort).String()); err != nil {
			return err
		}
		raw, err = net.ListenPacket(network, a.pod2.String())
		return err
	})
	defer listener.Close()
	defer raw.Close()
	var client net.Conn
	l.pod1.Run(t, func() (err error) {
		client, err = net.Dial("tcp", netip.AddrPortFrom(a.udp, dpPort).String())
		return err
	})
	defer client.Close()
	server, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	peer := netip.MustParseAddrPort(server.RemoteAddr().String())
	if peer.Addr().Unmap() != a.pod1 {
		t.Fatalf("the server sees %s, want the pod %s", peer, a.pod1)
	}
	say := func(from, to net.Conn) {
		t.Helper()
		if _, err := from.Write([]byte("word")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(to, make([]byte, 4)); err != nil {
			t.Fatal(err)
		}
	}
	say(client, server)
	seen := nextSegment(t, raw, peer, "word")
	stray := tcpSegment{from: stalePort, to: peer.Port(), seq: seen.ack - 100000, ack: seen.seq + 4, flags: tcpACK | tcpPSH, data: "late data"}
	if _, err := raw.WriteTo(stray.encode(a.pod2, a.pod1), &net.IPAddr{IP: a.pod1.AsSlice()}); err != nil {
		t.Fatal(err)
	}
	say(server, client)
	say(client, server)
	// The client's answer to the stray packet is before its next word on the wire.
	for {
		s := nextSegment(t, raw, peer, "")
		if s.flags&tcpRST != 0 {
			t.Errorf("%s: the client got the stray packet with the pod's address, and reset the connection", a.family)
			return
		}
		if s.data == "word" && s.seq == seen.seq+4 {
			return
		}
	}
}

const (
	tcpRST = 1 << 2
	tcpPSH = 1 << 3
	tcpACK = 1 << 4
)

// tcpSegment is a TCP segment without options.
type tcpSegment struct {
	from, to uint16
	seq, ack uint32
	flags    byte
	data     string
}

// nextSegment returns the next segment from peer to the server that has this data, "" for any.
func nextSegment(t *testing.T, raw net.PacketConn, peer netip.AddrPort, data string) (s tcpSegment) {
	t.Helper()
	buf := make([]byte, 2048)
	for {
		n, from, err := raw.ReadFrom(buf)
		if err != nil {
			t.Fatal(err)
		}
		b := buf[:n]
		if n < 20 || n < int(b[12]>>4)*4 {
			continue
		}
		s = tcpSegment{binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:]), binary.BigEndian.Uint32(b[4:]),
			binary.BigEndian.Uint32(b[8:]), b[13], string(b[int(b[12]>>4)*4:])}
		if s.to == stalePort && from.String() == peer.Addr().Unmap().String() && s.from == peer.Port() && (data == "" || s.data == data) {
			return s
		}
	}
}

// encode writes the segment with its checksum.
func (s tcpSegment) encode(src, dst netip.Addr) []byte {
	b := binary.BigEndian.AppendUint16(nil, s.from)
	b = binary.BigEndian.AppendUint16(b, s.to)
	b = binary.BigEndian.AppendUint32(b, s.seq)
	b = binary.BigEndian.AppendUint32(b, s.ack)
	b = append(b, 5<<4, s.flags, 0xff, 0xff /* window */, 0, 0, 0, 0)
	b = append(b, s.data...)
	pseudo := fmt.Appendf(nil, "%s%s", src.AsSlice(), dst.AsSlice())
	pseudo = binary.BigEndian.AppendUint32(pseudo, uint32(len(b)))
	pseudo = append(append(pseudo, 0, 0, 0, 6), b...)
	var sum uint32
	for i := 0; i < len(pseudo); i += 2 {
		sum += uint32(pseudo[i]) << 8
		if i+1 < len(pseudo) {
			sum += uint32(pseudo[i+1])
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(b[16:], ^uint16(sum))
	return b
}
