package standin

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// udpService answers datagrams on one port.
type udpService struct {
	conns []*net.UDPConn
	wg    sync.WaitGroup
}

func listenUDP(info Info, p Port) (service, error) {
	fds, err := bind(unix.SOCK_DGRAM, p.Number)
	if err != nil {
		return nil, err
	}
	s := &udpService{}
	for i, fd := range fds {
		c, err := connOf(fd)
		if err != nil {
			for _, rest := range fds[i+1:] {
				unix.Close(rest)
			}
			s.close()
			return nil, err
		}
		s.conns = append(s.conns, c)
	}
	for _, c := range s.conns {
		s.wg.Go(func() { echo(c, info) })
	}
	return s, nil
}

// connOf turns a bound socket into a net.UDPConn and takes the descriptor over.
func connOf(fd int) (*net.UDPConn, error) {
	f := os.NewFile(uintptr(fd), "datagrams")
	defer f.Close() // FilePacketConn works on a copy
	c, err := net.FilePacketConn(f)
	if err != nil {
		return nil, fmt.Errorf("use datagram socket: %w", err)
	}
	return c.(*net.UDPConn), nil
}

// echo answers until the socket is closed. The answer leaves from the address the question was sent
// to: a wildcard socket would otherwise let the kernel choose one, and with several addresses the
// client, or the connection tracking in between, would not know the answer for one.
func echo(c *net.UDPConn, info Info) {
	buf, oob := make([]byte, 65536), make([]byte, 128)
	for {
		n, oobn, _, client, err := c.ReadMsgUDPAddrPort(buf, oob)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // such as the ICMP error of an earlier answer: not the end of the socket
		}
		local, source := localAddr(oob[:oobn])
		reply := fmt.Appendf(nil, "%s %s %s ", info.Name, local, netip.AddrPortFrom(client.Addr().Unmap(), client.Port()))
		_, _, _ = c.WriteMsgUDPAddrPort(append(reply, buf[:n]...), source, client)
	}
}

// localAddr reads which local address a datagram was sent to, and returns the control message that
// makes an answer leave from it.
func localAddr(oob []byte) (netip.Addr, []byte) {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return netip.Addr{}, nil
	}
	for _, m := range msgs {
		switch {
		case m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_PKTINFO && len(m.Data) >= unix.SizeofInet4Pktinfo:
			// struct in_pktinfo: interface, local address of the packet, its destination (ip(7)).
			local := netip.AddrFrom4([4]byte(m.Data[4:8]))
			return local, unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: local.As4()})
		case m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_PKTINFO && len(m.Data) >= unix.SizeofInet6Pktinfo:
			// struct in6_pktinfo: address, interface (RFC 3542 section 6).
			local := netip.AddrFrom16([16]byte(m.Data[:16]))
			info := &unix.Inet6Pktinfo{Addr: local.As16()}
			if local.IsLinkLocalUnicast() {
				info.Ifindex = binary.NativeEndian.Uint32(m.Data[16:20])
			}
			return local, unix.PktInfo6(info)
		}
	}
	return netip.Addr{}, nil
}

func (s *udpService) close() {
	for _, c := range s.conns {
		c.Close()
	}
	s.wg.Wait()
}
