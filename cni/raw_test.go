package main

import (
	be "encoding/binary"
	"hash/crc32"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/braidnet/braid/internal/kernel/netns/nstest"
	"golang.org/x/sys/unix"
)

// neighbour is the hardware address of a neighbour on a link.
func neighbour(t *testing.T, from *nstest.NS, dev, addr string) net.HardwareAddr {
	t.Helper()
	from.Exec(t, "ping", "-n", "-c", "1", "-W", "5", addr)
	for _, line := range strings.Split(from.Exec(t, "ip", "neigh", "show", "dev", dev), "\n") {
		words := strings.Fields(line)
		if len(words) > 2 && words[0] == addr && words[1] == "lladdr" {
			mac, err := net.ParseMAC(words[2])
			if err != nil {
				t.Fatal(err)
			}
			return mac
		}
	}
	t.Fatalf("%s is no neighbour on %s", addr, dev)
	return nil
}

// send puts a UDP datagram on a link as it is, past the sender's own IP stack.
func send(t *testing.T, from *nstest.NS, dev string, to net.HardwareAddr, src, dst netip.Addr, port uint16, data string) {
	t.Helper()
	udp := make([]byte, 8, 8+len(data)) // RFC 768; without a checksum, which IPv4 allows
	be.BigEndian.PutUint16(udp, 40000)
	be.BigEndian.PutUint16(udp[2:], port)
	be.BigEndian.PutUint16(udp[4:], uint16(8+len(data)))
	frame(t, from, dev, to, ipv4(17, src, dst, append(udp, data...)))
}

// ipv4 puts a header before a payload (RFC 791 §3.1).
func ipv4(protocol uint8, src, dst netip.Addr, payload []byte) []byte {
	h := make([]byte, 20, 20+len(payload))
	h[0], h[8], h[9] = 0x45, 64, protocol
	be.BigEndian.PutUint16(h[2:], uint16(20+len(payload)))
	copy(h[12:], src.AsSlice())
	copy(h[16:], dst.AsSlice())
	be.BigEndian.PutUint16(h[10:], checksum(h))
	return append(h, payload...)
}

// sctpInit is the packet that begins an association (RFC 9260 §3.1, §3.3.2).
func sctpInit(from, to uint16) []byte {
	b := make([]byte, 12+20)
	be.BigEndian.PutUint16(b, from)
	be.BigEndian.PutUint16(b[2:], to)
	b[12], b[15] = 1, 20                                        // chunk INIT, its length
	be.BigEndian.PutUint32(b[16:], 7)                           // initiate tag
	be.BigEndian.PutUint32(b[20:], 65536)                       // receiver window
	b[25], b[27] = 1, 1                                         // streams out and in
	sum := crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) // appendix A
	be.LittleEndian.PutUint32(b[8:], sum)
	return b
}

// checksum is the Internet checksum (RFC 1071).
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(be.BigEndian.Uint16(b[i:]))
	}
	if len(b)%2 == 1 {
		sum += uint32(b[len(b)-1]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// frame sends a packet of IPv4 or IPv6 to a hardware address.
func frame(t *testing.T, from *nstest.NS, dev string, to net.HardwareAddr, packet []byte) {
	t.Helper()
	kind := uint16(unix.ETH_P_IP)
	if packet[0]>>4 == 6 {
		kind = unix.ETH_P_IPV6
	}
	kind = kind<<8 | kind>>8
	from.Run(t, func() error {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		link, err := net.InterfaceByName(dev)
		if err != nil {
			return err
		}
		addr := &unix.SockaddrLinklayer{Protocol: kind, Ifindex: link.Index, Halen: uint8(len(to))}
		copy(addr.Addr[:], to)
		return unix.Sendto(fd, packet, 0, addr)
	})
}
