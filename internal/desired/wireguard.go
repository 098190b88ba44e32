package desired

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"fmt"
	"net/netip"
	"slices"
)

// WGKey is a Curve25519 key of WireGuard.
type WGKey [32]byte

// String prints the key in base64, as all of WireGuard's tools do. Only public keys are for printing.
func (k WGKey) String() string { return base64.StdEncoding.EncodeToString(k[:]) }

// ParseWGKey reads 32 bytes in base64, 44 characters. The key of zeros is nobody's.
func ParseWGKey(s string) (k WGKey, err error) {
	raw, err := base64.StdEncoding.Strict().DecodeString(s)
	switch {
	case err != nil || len(raw) != len(k):
		return WGKey{}, fmt.Errorf("%.60q is not a WireGuard key: write 32 bytes in base64, as `wg pubkey` prints them", s)
	case WGKey(raw) == WGKey{}:
		return WGKey{}, fmt.Errorf("the key of zeros belongs to nobody")
	}
	return WGKey(raw), nil
}

// WireGuard is what a WireGuard device is to know, but for its private key.
type WireGuard struct {
	Dev    string
	Port   uint16 // UDP port to listen on
	Peers  []WGPeer
	Origin string
}

// WGPeer is one other end. No two peers of a device share an allowed prefix.
type WGPeer struct {
	Key      WGKey
	Endpoint netip.AddrPort
	Allowed  []netip.Prefix // sources it may send from, and destinations that are sent to it
	// Keepalive is after how many seconds it is sent something when there is nothing to say, so that there is a session;
	// 0 = never.
	Keepalive int
	Origin    string
}

// Detour is a second WireGuard device, with keys of its own, that carries packets in the place of the first. To the rest
// of the kernel they go out and come in by the first.
type Detour struct {
	WireGuard
	Steer Steering // what is sent by it
}

// Steering chooses destinations: Prefixes, or with All every one but these. The zero value chooses none.
type Steering struct {
	All      bool
	Prefixes []netip.Prefix // sorted
}

func (p WGPeer) String() string {
	return fmt.Sprintf("WireGuard peer %s at %s with %v", p.Key, p.Endpoint, p.Allowed)
}

func (s Steering) String() string {
	switch {
	case s.All && len(s.Prefixes) == 0:
		return "everything"
	case s.All:
		return fmt.Sprintf("everything but %v", s.Prefixes)
	case len(s.Prefixes) == 0:
		return "nothing"
	}
	return fmt.Sprint(s.Prefixes)
}

// sort puts the lists into one order.
func (w *WireGuard) sort() {
	for i := range w.Peers {
		slices.SortFunc(w.Peers[i].Allowed, ComparePrefix)
	}
	slices.SortFunc(w.Peers, func(a, b WGPeer) int {
		return cmp.Or(bytes.Compare(a.Key[:], b.Key[:]), a.Endpoint.Addr().Compare(b.Endpoint.Addr()))
	})
}
