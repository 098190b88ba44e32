package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"

	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

func hostgw(w *world, n int, _ *options) error {
	return run(w.nodes[n-1], "ip", w.family, "route", "add", w.cidrOf(other(n)), "via", w.nodeIP(other(n)))
}

func vxlan(w *world, n int, _ *options) error {
	peer, mac := other(n), func(n int) string { return fmt.Sprintf("02:00:00:00:00:%02d", n) }
	gateway := netip.MustParsePrefix(w.cidrOf(peer)).Addr().String()
	for _, argv := range [][]string{
		{"ip", "link", "add", "vx", "address", mac(n), "mtu", strconv.Itoa(w.inner("vxlan")), "type", "vxlan", "id", "1", "dstport", "8472", "dev", "eth0", "local", w.nodeIP(n), "nolearning"},
		{"ip", "link", "set", "vx", "up"},
		{"ip", "neigh", "add", gateway, "lladdr", mac(peer), "dev", "vx", "nud", "permanent"},
		{"bridge", "fdb", "append", mac(peer), "dev", "vx", "dst", w.nodeIP(peer)},
		{"ip", w.family, "route", "add", w.cidrOf(peer), "via", gateway, "dev", "vx", "onlink"},
	} {
		if err := run(w.nodes[n-1], argv...); err != nil {
			return err
		}
	}
	return nil
}

// tracked is vxlan on nodes that track connections, as they do wherever services are or pods are masqueraded: a
// chain that could translate is enough, also one without rules.
func tracked(w *world, n int, o *options) error {
	err := run(w.nodes[n-1], "nft", "add table inet bench; add chain inet bench c { type nat hook postrouting priority 100; }")
	return errors.Join(err, vxlan(w, n, o))
}

// wireguard makes a device of the kernel's, or where that has none one of the program wireguard-go, whose
// sockets for settings are in one folder for all namespaces: so the name is one that no other program has.
func wireguard(w *world, n int, o *options) error {
	node, peer := w.nodes[n-1], other(n)
	dev := fmt.Sprintf("bench%d-%d", w.nodes[0].Fd(), n)
	if run(node, "ip", "link", "add", dev, "type", "wireguard") != nil {
		if err := w.daemon(node, dev, o.wireguard, "-f", dev); err != nil {
			return err
		}
	}
	port := 51820
	_, pods, err := net.ParseCIDR(w.cidrOf(peer))
	if err != nil {
		return err
	}
	config := wgtypes.Config{PrivateKey: w.key(n), ListenPort: &port, Peers: []wgtypes.PeerConfig{{
		PublicKey: w.key(peer).PublicKey(), AllowedIPs: []net.IPNet{*pods},
		Endpoint: &net.UDPAddr{IP: net.ParseIP(w.nodeIP(peer)), Port: port},
	}}}
	if err := await(patience, func() error {
		return node.Do(func() error {
			c, err := wgctrl.New()
			if err != nil {
				return err
			}
			defer c.Close()
			return c.ConfigureDevice(dev, config)
		})
	}); err != nil {
		return fmt.Errorf("configure %s: %w", dev, err)
	}
	if err := run(node, "ip", "link", "set", dev, "up", "mtu", strconv.Itoa(w.inner("wireguard"))); err != nil {
		return err
	}
	return run(node, "ip", w.family, "route", "add", w.cidrOf(peer), "dev", dev)
}

// key is the private key of node n: for measuring only.
func (w *world) key(n int) *wgtypes.Key {
	k := wgtypes.Key{8: byte(n), 31: 64}
	return &k
}
