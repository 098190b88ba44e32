// Package rig is what programs that measure are built of: namespaces with links between them, an API server in one of
// them, connections that are timed, and figures as they are printed. Programs that are measured are of package process.
package rig

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/braidnet/braid/internal/kernel/netns"
	"github.com/braidnet/braid/test/bench/bulkapi"
)

// Namespaces makes a network namespace for each place, with its loopback device up. They have no names: they end with
// this process, even a killed one. After an error those that were made are for the caller to close.
func Namespaces(places ...**netns.NS) (err error) {
	for _, place := range places {
		if *place, err = netns.New(); err != nil {
			return err
		}
		if err := (*place).Do(func() error { return Up("lo") }); err != nil {
			return err
		}
	}
	return nil
}

// Close closes namespaces; nil is none.
func Close(list ...*netns.NS) {
	for _, ns := range list {
		if ns != nil {
			_ = ns.Close()
		}
	}
}

// Join makes a veth pair: its end in one namespace has a name, the one in the other is eth0. Both are down.
func Join(ns *netns.NS, name string, other *netns.NS) error {
	return ns.Do(func() error {
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name, MTU: 1500}, PeerName: "eth0", PeerNamespace: netlink.NsFd(other.Fd())})
	})
}

// API starts an API server that has nothing, on the loopback address of a namespace.
func API(ns *netns.NS) (api *bulkapi.Server, err error) {
	err = ns.Do(func() error {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err == nil {
			api = bulkapi.New(l)
		}
		return err
	})
	return api, err
}

// Up sets a device of this thread's namespace up, as the rest here does with it.
func Up(device string) error {
	l, err := netlink.LinkByName(device)
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(l)
}

// Address gives a device an address, with the length of its network.
func Address(device string, a netip.Prefix) error {
	l, err := netlink.LinkByName(device)
	if err != nil {
		return err
	}
	return netlink.AddrAdd(l, &netlink.Addr{IPNet: IPNet(a)})
}

// AnswerFor makes all addresses of a range the namespace's own.
func AnswerFor(p netip.Prefix) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.RouteAdd(&netlink.Route{Dst: IPNet(p), LinkIndex: lo.Attrs().Index, Type: unix.RTN_LOCAL,
		Scope: netlink.SCOPE_HOST, Table: unix.RT_TABLE_LOCAL})
}

// Router makes a namespace forward packets of both families, wherever they come from.
func Router() error {
	var errs []error
	for key, value := range map[string]string{
		"ipv4/ip_forward": "1", "ipv4/conf/all/rp_filter": "0", "ipv4/conf/default/rp_filter": "0", "ipv6/conf/all/forwarding": "1",
	} {
		if err := os.WriteFile(filepath.Join("/proc/sys/net", key), []byte(value), 0); err != nil {
			errs = append(errs, fmt.Errorf("forward packets: %w", err))
		}
	}
	return errors.Join(errs...)
}

// IPNet is a range in the type that package netlink takes.
func IPNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// Offset returns the IPv4 address n behind the first of a range.
func Offset(p netip.Prefix, n int) netip.Addr {
	b := p.Addr().As4()
	binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(b[:])+uint32(n))
	return netip.AddrFrom4(b)
}
