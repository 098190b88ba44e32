// Package wg makes and configures WireGuard devices: the kernel's, or, where it has none, one that this
// process serves itself through a TUN device.
package wg

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/braidnet/braid/internal/desired"
	"github.com/braidnet/braid/internal/kernel/netns"
)

// silent is how long a peer has to be quiet before its endpoint is set back to the planned one: what
// authenticated packets came from since is where it really is. It is WireGuard's time until a session ends
// (Reject-After-Time, 180 s).
const silent = 180 * time.Second

// Options change how a device is made.
type Options struct {
	User bool      // serve it in this process also where the kernel could
	NS   *netns.NS // where its sockets belong; the calling thread is in it
}

// Device is a WireGuard device that is there.
type Device struct {
	name string
	ctl  control
	user *userDevice // nil when the kernel serves it

	keyed time.Time
}

// Keyed is when this process gave the device its private key: zero when it found it there.
func (d *Device) Keyed() time.Time { return d.keyed }

// control reads and writes a device's settings.
type control interface {
	Device(name string) (*wgtypes.Device, error)
	ConfigureDevice(name string, cfg wgtypes.Config) error
	Close() error
}

// Open makes a device, or takes the one of that name that the kernel serves, and says in one word who
// serves it. mtu is for a device that is made. A device that this process served ends with it.
func Open(h *netlink.Handle, name string, mtu int, o Options) (*Device, error) {
	if !o.User {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU = name, mtu
		err := h.LinkAdd(&netlink.Wireguard{LinkAttrs: attrs})
		if errors.Is(err, unix.EEXIST) {
			err = mustBeWireGuard(h, name)
		}
		if err == nil {
			ctl, err := wgctrl.New()
			if err != nil {
				return nil, fmt.Errorf("speak to the kernel's WireGuard: %w", err)
			}
			return &Device{name: name, ctl: ctl}, nil
		}
		if !errors.Is(err, unix.EOPNOTSUPP) {
			return nil, fmt.Errorf("make WireGuard device %s: %w", name, err)
		}
	}
	u, err := openUser(name, mtu, o.NS)
	if err != nil {
		return nil, err
	}
	return &Device{name: name, ctl: u, user: u}, nil
}

func mustBeWireGuard(h *netlink.Handle, name string) error {
	l, err := h.LinkByName(name)
	if err != nil {
		return err
	}
	if l.Type() != "wireguard" {
		return fmt.Errorf("device %s is a %s, which Braid did not make: remove it (ip link delete %[1]s) or rename it", name, l.Type())
	}
	return nil
}

// User reports whether this process serves the device.
func (d *Device) User() bool { return d.user != nil }

// Dead reports whether the device is of no use any more: it was served here, and somebody deleted it.
func (d *Device) Dead() bool { return d.user != nil && d.user.dead() }

// Close gives the device up. One that the kernel serves goes on; one that was served here is gone.
func (d *Device) Close() error { return d.ctl.Close() }

// Heard is what came from a peer.
type Heard struct {
	Handshake time.Time // when it last proved that it has its key; zero for never
	Bytes     int64     // that it sent, what keeps sessions alive among them
}

// Up reports whether there is a session at the time now.
func (h Heard) Up(now time.Time) bool {
	return !h.Handshake.IsZero() && now.Sub(h.Handshake) < silent
}

// Heard returns what came from each peer.
func (d *Device) Heard() (map[desired.WGKey]Heard, error) {
	have, err := d.ctl.Device(d.name)
	if err != nil {
		return nil, fmt.Errorf("read WireGuard device %s: %w", d.name, err)
	}
	out := map[desired.WGKey]Heard{}
	for _, p := range have.Peers {
		out[desired.WGKey(p.PublicKey)] = Heard{p.LastHandshakeTime, p.ReceiveBytes}
	}
	return out, nil
}

// Apply makes the device know what is wanted, and returns what it changed. What is right already is left
// alone, so that no session ends. private stays out of every text.
func (d *Device) Apply(want desired.WireGuard, private desired.WGKey) ([]string, error) {
	have, err := d.ctl.Device(d.name)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("WireGuard device %s is not there", d.name)
	}
	if err != nil {
		return nil, fmt.Errorf("read WireGuard device %s: %w", d.name, err)
	}
	cfg, changes := diff(want, private, have, time.Now())
	if len(changes) == 0 {
		return nil, nil
	}
	if err := d.ctl.ConfigureDevice(d.name, cfg); err != nil {
		return nil, fmt.Errorf("configure WireGuard device %s (%s): %w", d.name, changes[0], err)
	}
	if cfg.PrivateKey != nil {
		d.keyed = time.Now()
	}
	return changes, nil
}

// diff returns the message that makes have what is wanted, and its parts in words. Peers that go come
// first, so that prefixes that move from one to the next are free.
func diff(want desired.WireGuard, private desired.WGKey, have *wgtypes.Device, now time.Time) (cfg wgtypes.Config, changes []string) {
	if have.PrivateKey != wgtypes.Key(private) {
		k := wgtypes.Key(private)
		cfg.PrivateKey = &k
		changes = append(changes, fmt.Sprintf("set the private key of device %s: %s", want.Dev, want.Origin))
	}
	if have.ListenPort != int(want.Port) {
		p := int(want.Port)
		cfg.ListenPort = &p
		changes = append(changes, fmt.Sprintf("set UDP port %d of device %s (was %d): %s", p, want.Dev, have.ListenPort, want.Origin))
	}
	wanted := map[wgtypes.Key]bool{}
	for _, p := range want.Peers {
		wanted[wgtypes.Key(p.Key)] = true
	}
	old := map[wgtypes.Key]*wgtypes.Peer{}
	for i := range have.Peers {
		p := &have.Peers[i]
		old[p.PublicKey] = p
		if !wanted[p.PublicKey] {
			cfg.Peers = append(cfg.Peers, wgtypes.PeerConfig{PublicKey: p.PublicKey, Remove: true})
			changes = append(changes, fmt.Sprintf("deleted WireGuard peer %s: nothing wants it", p.PublicKey))
		}
	}
	for _, p := range want.Peers {
		if c, changed := peerDiff(p, old[wgtypes.Key(p.Key)], now); changed {
			cfg.Peers = append(cfg.Peers, c)
			changes = append(changes, fmt.Sprintf("set %s: %s", p, p.Origin))
		}
	}
	return cfg, changes
}

// peerDiff is the message about one peer; have is nil for a new one.
func peerDiff(want desired.WGPeer, have *wgtypes.Peer, now time.Time) (c wgtypes.PeerConfig, changed bool) {
	c = wgtypes.PeerConfig{PublicKey: wgtypes.Key(want.Key), UpdateOnly: have != nil}
	var allowed []netip.Prefix
	if have != nil {
		for _, a := range have.AllowedIPs {
			bits, _ := a.Mask.Size()
			if addr, ok := netip.AddrFromSlice(a.IP); ok {
				if len(a.Mask) == net.IPv4len {
					addr = addr.Unmap()
				}
				allowed = append(allowed, netip.PrefixFrom(addr, bits))
			}
		}
		slices.SortFunc(allowed, desired.ComparePrefix)
	}
	if have == nil || !slices.Equal(allowed, want.Allowed) {
		changed, c.ReplaceAllowedIPs = true, true
		for _, p := range want.Allowed {
			c.AllowedIPs = append(c.AllowedIPs, net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())})
		}
	}
	every := time.Duration(want.Keepalive) * time.Second
	if have == nil && every > 0 || have != nil && have.PersistentKeepaliveInterval != every {
		changed, c.PersistentKeepaliveInterval = true, &every
	}
	if have == nil || endpoint(have.Endpoint) != want.Endpoint && now.Sub(have.LastHandshakeTime) > silent {
		changed, c.Endpoint = true, net.UDPAddrFromAddrPort(want.Endpoint)
	}
	return c, changed
}

func endpoint(a *net.UDPAddr) netip.AddrPort {
	if a == nil {
		return netip.AddrPort{}
	}
	p := a.AddrPort()
	return netip.AddrPortFrom(p.Addr().Unmap(), p.Port())
}
