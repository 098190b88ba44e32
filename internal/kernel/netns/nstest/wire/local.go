package wire

import (
	"net/netip"

	"golang.org/x/sys/unix"
)

// localSocket is a raw socket: it gets a copy of what the node itself is sent, after translation and
// after the hook input. There is none of SCTP, because the kernel does not refuse a protocol that has one.
type localSocket struct {
	fd       int
	domain   int
	protocol uint8
}

func openLocal(domain int, protocol uint8) (localSocket, error) {
	s := localSocket{domain: domain, protocol: protocol}
	var err error
	if s.fd, err = unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, int(protocol)); err != nil {
		return s, err
	}
	if domain == unix.AF_INET6 {
		err = unix.SetsockoptInt(s.fd, unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1)
	}
	return s, err
}

// read returns the next packet of ours that was delivered, and whether there was one.
func (s localSocket) read(buf []byte) (Packet, bool) {
	oob := make([]byte, 128)
	for {
		size, oobSize, _, from, err := unix.Recvmsg(s.fd, buf, oob, 0)
		if err != nil {
			return Packet{}, false
		}
		var p Packet
		var refusal string
		var ok bool
		if from6, is6 := from.(*unix.SockaddrInet6); is6 { // the header is not handed over
			p, refusal, ok = parseTransport(buf[:size], netip.AddrFrom16(from6.Addr), destination(oob[:oobSize]), s.protocol)
		} else {
			p, refusal, ok = parse(buf[:size])
		}
		if ok && refusal == "" {
			return p, true
		}
	}
}

// destination reads struct in6_pktinfo (RFC 3542 §6.1).
func destination(oob []byte) netip.Addr {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return netip.Addr{}
	}
	for _, m := range messages {
		if m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_PKTINFO && len(m.Data) >= 16 {
			return netip.AddrFrom16([16]byte(m.Data))
		}
	}
	return netip.Addr{}
}
