package scenario

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"

	"github.com/braidnet/braid/internal/kernel/netns"
)

// Questions that no stand-in of the playground answers:
//
//	icmp   an echo request, which the kernel of the pod answers; the target's port means nothing
//	sctp   the first packet of an association. This kernel has no sockets for SCTP, so it is sent as a raw packet, and
//	       answered by the test in all pods
//	large  a datagram that travels in fragments

// rawNetwork names the raw socket for a protocol, to an address.
func rawNetwork(protocol string, to netip.Addr) string {
	switch {
	case protocol == "sctp" && to.Is4():
		return "ip4:132"
	case protocol == "sctp":
		return "ip6:132"
	case to.Is4():
		return "ip4:1"
	}
	return "ip6:58"
}

// askRaw sends one packet and waits for the one that answers it.
func (from place) askRaw(ctx context.Context, protocol string, to netip.AddrPort) (a answer, err error) {
	c, err := from.dialer(ctx, &net.Dialer{}, rawNetwork(protocol, to.Addr()), to.Addr().String())
	if err != nil {
		return a, err
	}
	defer c.Close()
	end, _ := ctx.Deadline()
	if err := c.SetDeadline(end); err != nil {
		return a, err
	}
	a.local = netip.MustParseAddr(c.LocalAddr().String())
	own := uint16(20000 + rand.IntN(40000))
	question, answered := echoRequest(own, to.Addr()), isEchoReply
	if protocol == "sctp" {
		question, answered = sctpPacket(own, to.Port(), 0, sctpInit, ""), isInitAck
	}
	if _, err := c.Write(question); err != nil {
		return a, err
	}
	for buf := make([]byte, 1500); ; {
		n, _, err := c.(*net.IPConn).ReadFromIP(buf)
		if err != nil {
			return a, err
		}
		if text, ok := answered(buf[:n], own); ok {
			name, client, _ := strings.Cut(text, " ")
			a.pod = name
			if client != "" {
				a.client, err = netip.ParseAddr(client)
			}
			return a, err
		}
	}
}

// echoRequest is an ICMP message (RFC 792, RFC 4443); the kernel computes the checksum for IPv6.
func echoRequest(id uint16, to netip.Addr) []byte {
	b := []byte{8, 0, 0, 0}
	if !to.Is4() {
		b[0] = 128
	}
	b = append(binary.BigEndian.AppendUint16(b, id), 0, 1)
	if to.Is4() {
		binary.BigEndian.PutUint16(b[2:], ^(uint16(b[0])<<8 + id + 1)) // no carry: ids are small enough
	}
	return b
}

// echo is who answers an echo request: it does not say.
const echo = "(echo)"

func isEchoReply(b []byte, id uint16) (string, bool) {
	return echo, len(b) >= 8 && (b[0] == 0 || b[0] == 129) && binary.BigEndian.Uint16(b[4:]) == id
}

// Chunks of SCTP (RFC 9260 §3.3).
const sctpInit, sctpInitAck = 1, 2

// sctpPacket is a packet of INIT or INIT ACK, the latter with text in its cookie.
func sctpPacket(from, to uint16, tag uint32, chunk byte, text string) []byte {
	for len(text)%4 > 0 {
		text += " "
	}
	cookie := []byte(text)
	if text != "" {
		cookie = append(binary.BigEndian.AppendUint16([]byte{0, 7}, uint16(4+len(text))), text...)
	}
	b := binary.BigEndian.AppendUint16(nil, from)
	b = binary.BigEndian.AppendUint16(b, to)
	b = binary.BigEndian.AppendUint32(b, tag)
	b = append(b, 0, 0, 0, 0 /* checksum */, chunk, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(20+len(cookie)))
	b = append(b, 0, 0, 0, 7 /* tag */, 0, 0, 0x10, 0 /* window */, 0, 1, 0, 1 /* streams */, 0, 0, 0, 9)
	b = append(b, cookie...)
	binary.LittleEndian.PutUint32(b[8:], crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
	return b
}

func isInitAck(b []byte, own uint16) (string, bool) {
	if len(b) < 36 || b[12] != sctpInitAck || binary.BigEndian.Uint16(b[2:]) != own {
		return "", false
	}
	return strings.TrimSpace(string(b[36:])), true
}

// answerSCTP lets all pods answer associations until end is called, if a list has any.
func (p *playground) answerSCTP(list string) error {
	if !strings.Contains(list, "sctp") {
		return nil
	}
	for name, at := range p.places {
		if !at.pod {
			continue
		}
		ns, err := netns.Open(at.netns)
		if err != nil {
			return err
		}
		err = ns.Do(func() error {
			for _, ip := range at.ips {
				c, err := net.ListenIP(rawNetwork("sctp", ip), nil)
				if err != nil {
					return err
				}
				p.answering = append(p.answering, c)
				go answerSCTP(c, name)
			}
			return nil
		})
		if err = errors.Join(err, ns.Close()); err != nil {
			return fmt.Errorf("answer SCTP in %s: %w", name, err)
		}
	}
	return nil
}

func (p *playground) end() {
	for _, c := range p.answering {
		c.Close()
	}
	p.answering = nil
}

func answerSCTP(c *net.IPConn, name string) {
	for buf := make([]byte, 1500); ; {
		n, client, err := c.ReadFromIP(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil || n < 32 || buf[12] != sctpInit {
			continue
		}
		tag := binary.BigEndian.Uint32(buf[16:])
		from, to := binary.BigEndian.Uint16(buf[2:]), binary.BigEndian.Uint16(buf)
		_, _ = c.WriteToIP(sctpPacket(from, to, tag, sctpInitAck, name+" "+client.IP.String()), client)
	}
}
