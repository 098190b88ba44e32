package main

import (
	be "encoding/binary"
	"hash/crc32"
	"net"
	"net/netip"
	"os"
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

// ipv6 puts a header before a payload (RFC 8200 §3).
func ipv6(protocol uint8, src, dst netip.Addr, payload []byte) []byte {
	h := make([]byte, 40, 40+len(payload))
	h[0], h[6], h[7] = 0x60, protocol, 255
	be.BigEndian.PutUint16(h[4:], uint16(len(payload)))
	copy(h[8:], src.AsSlice())
	copy(h[24:], dst.AsSlice())
	return append(h, payload...)
}

// icmpv6 is a packet with a message, checksum included (RFC 4443 §2.3).
func icmpv6(src, dst netip.Addr, message ...byte) []byte {
	pseudo := append(append(src.AsSlice(), dst.AsSlice()...), 0, 0, 0, byte(len(message)), 0, 0, 0, unix.IPPROTO_ICMPV6)
	be.BigEndian.PutUint16(message[2:], 0)
	be.BigEndian.PutUint16(message[2:], checksum(append(pseudo, message...)))
	return ipv6(unix.IPPROTO_ICMPV6, src, dst, message)
}

// ether is an Ethernet frame.
func ether(to, from net.HardwareAddr, kind uint16, payload []byte) []byte {
	return append(be.BigEndian.AppendUint16(append(append([]byte{}, to...), from...), kind), payload...)
}

// frame sends a packet of IPv4 to a hardware address.
func frame(t *testing.T, from *nstest.NS, dev string, to net.HardwareAddr, packet []byte) {
	t.Helper()
	link := deviceOf(t, from, dev)
	inject(t, from, dev, ether(to, link.HardwareAddr, unix.ETH_P_IP, packet))
}

func deviceOf(t *testing.T, ns *nstest.NS, dev string) (link *net.Interface) {
	t.Helper()
	ns.Run(t, func() (err error) { link, err = net.InterfaceByName(dev); return err })
	return link
}

// inject puts a frame on a link as it is.
func inject(t *testing.T, from *nstest.NS, dev string, frame []byte) {
	t.Helper()
	link := deviceOf(t, from, dev)
	from.Run(t, func() error {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: link.Index})
	})
}

// sniff opens a socket that sees every frame a link takes in.
func sniff(t *testing.T, ns *nstest.NS, dev string) *os.File {
	t.Helper()
	link := deviceOf(t, ns, dev)
	var f *os.File
	ns.Run(t, func() error {
		all := uint16(unix.ETH_P_ALL)<<8 | uint16(unix.ETH_P_ALL)>>8
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, int(all))
		if err != nil {
			return err
		}
		f = os.NewFile(uintptr(fd), dev)
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: link.Index})
	})
	t.Cleanup(func() { f.Close() })
	return f
}
