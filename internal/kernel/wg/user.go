package wg

import (
	"bufio"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/braidnet/braid/internal/kernel/netns"
)

// userDevice is a device that this process serves. Its settings go in and out as the text of WireGuard's
// cross-platform interface (https://www.wireguard.com/xplatform/).
type userDevice struct{ dev *device.Device }

// openUser makes a TUN device of that name and serves it.
func openUser(name string, mtu int, ns *netns.NS) (*userDevice, error) {
	t, err := tun.CreateTUN(name, mtu)
	if err != nil {
		return nil, fmt.Errorf("the kernel has no WireGuard (modprobe wireguard), and none can be served here: make TUN device %s: %w", name, err)
	}
	quiet := &device.Logger{Verbosef: device.DiscardLogf, Errorf: device.DiscardLogf}
	u := &userDevice{device.NewDevice(&checksums{t}, &bind{conn.NewDefaultBind(), ns}, quiet)}
	if err := u.dev.Up(); err != nil {
		u.dev.Close()
		return nil, fmt.Errorf("serve WireGuard on %s: %w", name, err)
	}
	return u, nil
}

// checksums mends what the TUN package computes: a UDP checksum that comes out as 0 has to be sent as 0xffff (RFC 768). Over
// IPv6 nobody takes 0, so one datagram of 65536 would be lost, and again each time it is repeated.
type checksums struct{ tun.Device }

func (c *checksums) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	n, err := c.Device.Read(bufs, sizes, offset)
	for i := range n {
		mendChecksum(bufs[i][offset : offset+sizes[i]])
	}
	return n, err
}

// mendChecksum corrects an IPv6 packet whose first header is UDP's (RFC 8200, RFC 768).
func mendChecksum(p []byte) {
	const header, udp = 40, 17
	if len(p) < header+8 || p[0]>>4 != 6 || p[6] != udp {
		return
	}
	if sum := p[header+6 : header+8]; sum[0] == 0 && sum[1] == 0 {
		sum[0], sum[1] = 0xff, 0xff
	}
}

// bind opens its sockets in one namespace, whatever thread asks for them.
type bind struct {
	conn.Bind
	ns *netns.NS
}

func (b *bind) Open(port uint16) (fns []conn.ReceiveFunc, actual uint16, err error) {
	if b.ns == nil {
		return b.Bind.Open(port)
	}
	derr := b.ns.Do(func() error {
		fns, actual, err = b.Bind.Open(port)
		return err
	})
	return fns, actual, derr
}

func (u *userDevice) dead() bool {
	select {
	case <-u.dev.Wait():
		return true
	default:
		return false
	}
}

// Close ends the device, and the TUN device with it.
func (u *userDevice) Close() error {
	u.dev.Close()
	return nil
}

// ConfigureDevice writes settings as text.
func (u *userDevice) ConfigureDevice(_ string, cfg wgtypes.Config) error {
	var b strings.Builder
	if cfg.PrivateKey != nil {
		fmt.Fprintf(&b, "private_key=%x\n", cfg.PrivateKey[:])
	}
	if cfg.ListenPort != nil {
		fmt.Fprintf(&b, "listen_port=%d\n", *cfg.ListenPort)
	}
	for _, p := range cfg.Peers {
		fmt.Fprintf(&b, "public_key=%x\n", p.PublicKey[:])
		if p.Remove {
			b.WriteString("remove=true\n")
		}
		if p.UpdateOnly {
			b.WriteString("update_only=true\n")
		}
		if p.Endpoint != nil {
			fmt.Fprintf(&b, "endpoint=%s\n", p.Endpoint)
		}
		if p.PersistentKeepaliveInterval != nil {
			fmt.Fprintf(&b, "persistent_keepalive_interval=%d\n", int(p.PersistentKeepaliveInterval.Seconds()))
		}
		if p.ReplaceAllowedIPs {
			b.WriteString("replace_allowed_ips=true\n")
		}
		for _, a := range p.AllowedIPs {
			fmt.Fprintf(&b, "allowed_ip=%s\n", a.String())
		}
	}
	return u.dev.IpcSet(b.String())
}

// Device reads the settings back.
func (u *userDevice) Device(name string) (*wgtypes.Device, error) {
	text, err := u.dev.IpcGet()
	if err != nil {
		return nil, err
	}
	d, err := parse(text)
	if err != nil {
		return nil, err
	}
	d.Name = name
	return d, nil
}

// ofPeer are the words that belong to the peer named before them.
var ofPeer = []string{"endpoint", "allowed_ip", "last_handshake_time_sec", "last_handshake_time_nsec", "rx_bytes", "persistent_keepalive_interval"}

func parse(text string) (*wgtypes.Device, error) {
	d := &wgtypes.Device{}
	var p *wgtypes.Peer
	var seconds, nanos int64
	for s := bufio.NewScanner(strings.NewReader(text)); s.Scan(); {
		key, value, _ := strings.Cut(s.Text(), "=")
		var err error
		if p == nil && slices.Contains(ofPeer, key) {
			return nil, fmt.Errorf("read WireGuard's %s: it stands before any peer", key)
		}
		switch key {
		case "private_key":
			d.PrivateKey, err = hexKey(value)
		case "listen_port":
			d.ListenPort, err = strconv.Atoi(value)
		case "public_key":
			d.Peers = append(d.Peers, wgtypes.Peer{})
			p = &d.Peers[len(d.Peers)-1]
			p.PublicKey, err = hexKey(value)
		case "endpoint":
			var a netip.AddrPort
			a, err = netip.ParseAddrPort(value)
			p.Endpoint = net.UDPAddrFromAddrPort(a)
		case "allowed_ip":
			var n *net.IPNet
			if _, n, err = net.ParseCIDR(value); err == nil {
				p.AllowedIPs = append(p.AllowedIPs, *n)
			}
		case "rx_bytes":
			p.ReceiveBytes, err = strconv.ParseInt(value, 10, 64)
		case "persistent_keepalive_interval":
			p.PersistentKeepaliveInterval, err = time.ParseDuration(value + "s")
		case "last_handshake_time_sec":
			seconds, err = strconv.ParseInt(value, 10, 64)
		case "last_handshake_time_nsec":
			if nanos, err = strconv.ParseInt(value, 10, 64); seconds > 0 || nanos > 0 {
				p.LastHandshakeTime = time.Unix(seconds, nanos)
			}
		}
		if err != nil {
			return nil, fmt.Errorf("read WireGuard's %s: %w", key, err)
		}
	}
	return d, nil
}

func hexKey(s string) (k wgtypes.Key, err error) {
	raw, err := hex.DecodeString(s)
	if err == nil && len(raw) != len(k) {
		err = fmt.Errorf("a key of %d bytes", len(raw))
	}
	copy(k[:], raw)
	return k, err
}
