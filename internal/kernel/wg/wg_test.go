package wg

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/braidnet/braid/internal/desired"
)

var now = time.Unix(1_800_000_000, 0)

func peerOf(n byte, endpoint string, allowed ...string) desired.WGPeer {
	p := desired.WGPeer{Key: desired.WGKey{n}, Endpoint: netip.MustParseAddrPort(endpoint), Origin: "Node x"}
	for _, a := range allowed {
		p.Allowed = append(p.Allowed, netip.MustParsePrefix(a))
	}
	return p
}

// have is a peer as a device tells of it, last heard some time ago.
func have(n byte, endpoint string, heard time.Duration, allowed ...string) wgtypes.Peer {
	p := wgtypes.Peer{PublicKey: wgtypes.Key{n}, Endpoint: net.UDPAddrFromAddrPort(netip.MustParseAddrPort(endpoint)), LastHandshakeTime: now.Add(-heard)}
	for _, a := range allowed {
		_, ipnet, _ := net.ParseCIDR(a)
		p.AllowedIPs = append(p.AllowedIPs, *ipnet)
	}
	return p
}

func TestDiffChangesNoMoreThanIsWrong(t *testing.T) {
	private := desired.WGKey{9}
	right := &wgtypes.Device{PrivateKey: wgtypes.Key(private), ListenPort: 51820}
	b := peerOf(2, "192.0.2.2:51820", "10.244.2.0/24", "fd00:2::/64")
	kept := b
	kept.Keepalive = 20
	for name, tc := range map[string]struct {
		want []desired.WGPeer
		have []wgtypes.Peer
		text []string // a part of each change, in order
	}{
		"all is right":     {[]desired.WGPeer{b}, []wgtypes.Peer{have(2, "192.0.2.2:51820", time.Hour, "fd00:2::/64", "10.244.2.0/24")}, nil},
		"a new peer":       {[]desired.WGPeer{b}, nil, []string{"set WireGuard peer " + b.Key.String()}},
		"a peer that left": {nil, []wgtypes.Peer{have(3, "192.0.2.3:1", 0)}, []string{"deleted WireGuard peer"}},
		"other addresses":  {[]desired.WGPeer{b}, []wgtypes.Peer{have(2, "192.0.2.2:51820", 0, "10.244.2.0/24", "fd00:2::/64", "0.0.0.0/0")}, []string{"set WireGuard peer"}},
		"addresses that move, who loses is first": {[]desired.WGPeer{b}, []wgtypes.Peer{have(3, "192.0.2.2:51820", 0, "10.244.2.0/24")}, []string{"deleted", "set"}},
		"a peer heard from elsewhere stays there": {[]desired.WGPeer{b}, []wgtypes.Peer{have(2, "198.51.100.2:7", time.Minute, "10.244.2.0/24", "fd00:2::/64")}, nil},
		"a session that has to be there":          {[]desired.WGPeer{kept}, []wgtypes.Peer{have(2, "192.0.2.2:51820", 0, "10.244.2.0/24", "fd00:2::/64")}, []string{"set WireGuard peer"}},
		"one that is silent there does not":       {[]desired.WGPeer{b}, []wgtypes.Peer{have(2, "198.51.100.2:7", time.Hour, "10.244.2.0/24", "fd00:2::/64")}, []string{"set WireGuard peer"}},
	} {
		t.Run(name, func(t *testing.T) {
			d := *right
			d.Peers = tc.have
			cfg, changes := diff(desired.WireGuard{Dev: "d", Port: 51820, Peers: tc.want}, private, &d, now)
			if len(changes) != len(tc.text) || len(cfg.Peers) != len(tc.text) || cfg.PrivateKey != nil || cfg.ListenPort != nil || cfg.ReplacePeers {
				t.Fatalf("changes %q, message %+v, want %q", changes, cfg, tc.text)
			}
			for i := range changes {
				if !strings.Contains(changes[i], tc.text[i]) {
					t.Errorf("change %q, want %q in it", changes[i], tc.text[i])
				}
			}
		})
	}
	_, changes := diff(desired.WireGuard{Dev: "d", Port: 51820}, private, &wgtypes.Device{}, now)
	if len(changes) != 2 || strings.Contains(fmt.Sprint(changes), private.String()) {
		t.Errorf("%q: want key and port, and not what the key is", changes)
	}
}

func TestChecksumOfZero(t *testing.T) {
	packet := func(first byte, next byte, sum ...byte) []byte {
		p := make([]byte, 48)
		p[0], p[6] = first, next
		copy(p[46:], sum)
		return p
	}
	for name, tc := range map[string]struct {
		packet []byte
		sum    byte // each of its bytes afterwards
	}{
		"UDP over IPv6":  {packet(0x60, 17), 0xff},
		"one that is":    {packet(0x60, 17, 1, 1), 1},
		"TCP over IPv6":  {packet(0x60, 6), 0},
		"IPv4, has none": {packet(0x45, 17), 0},
	} {
		if mendChecksum(tc.packet); tc.packet[46] != tc.sum || tc.packet[47] != tc.sum {
			t.Errorf("%s: checksum %x", name, tc.packet[46:])
		}
	}
	mendChecksum([]byte{0x60}) // a packet cut short is left alone
}

// FuzzParse reads what a device says of itself: no text makes it end the agent.
func FuzzParse(f *testing.F) {
	f.Add("private_key=" + strings.Repeat("0a", 32) + "\nlisten_port=1\npublic_key=" + strings.Repeat("0b", 32) + "\nendpoint=[fd00::1]:2\nallowed_ip=10.0.0.0/8\nlast_handshake_time_sec=1\nlast_handshake_time_nsec=2\n")
	f.Add("endpoint=1.2.3.4:5\n")
	f.Add("last_handshake_time_nsec=1")
	f.Fuzz(func(t *testing.T, text string) {
		d, err := parse(text)
		if (d == nil) == (err == nil) {
			t.Fatalf("%+v, %v", d, err)
		}
	})
}
